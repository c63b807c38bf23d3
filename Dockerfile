# stylize-batch in a container: no root, no home folder; the bundled VGG-16 is inside.
#
#   docker build -t stylize-batch .                          # for CPUs
#   docker build -t stylize-batch --build-arg TORCH=cu130 .  # for NVIDIA GPUs; run with --gpus all
#   docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" stylize-batch manifest.csv
#
# To keep VGG-19 between runs, add: -v stylize-cache:/cache
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:${PYTHON}-slim
ARG TORCH=cpu
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/${TORCH}
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && mkdir -m 1777 /cache
ENV HOME=/nonexistent STYLIZE_CACHE=/cache
USER 10001
WORKDIR /work
ENTRYPOINT ["stylize-batch"]
CMD ["--help"]
