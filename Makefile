# Everything a newcomer or a build needs. The targets share one virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 3
# Each process takes whole files. `make test JOBS=0` runs all tests in one process.
AT_ONCE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Else each process, and each program that a test starts, compiles all its files anew.
unexport PYTHONDONTWRITEBYTECODE
# The workers of Ray find the plug-in of coverage wherever they begin.
MEASURED := PYTHONPATH=$(CURDIR)/tests:$(CURDIR) $(BIN)/python

.PHONY: demo figures test test-quick lowest coverage check slow chaos cluster-test wheel browser weights clean

demo: $(VENV)/installed  ## paint six pictures that ship with the project
	$(BIN)/stylize-batch demo

figures: $(VENV)/installed  ## the paper's three figures: under 30 minutes on two cores
	$(BIN)/stylize-batch manifests/figure1.csv
	$(BIN)/stylize-batch montage manifests/figure1 -o manifests/figure1/figure1.png \
		--rows meta.reconstruction --cols meta.panel --caption meta.layers --inputs beside
	$(BIN)/stylize-batch manifests/figure2.csv
	$(BIN)/stylize-batch montage manifests/figure2 -o manifests/figure2/figure2.png \
		--wrap 3 --caption meta.panel --inputs inset --cell 448
	$(BIN)/stylize-batch manifests/figure3.csv
	$(BIN)/stylize-batch montage manifests/figure3 -o manifests/figure3/figure3.png \
		--rows 'meta.style layers up to' --cols meta.alpha/beta --inputs beside

test: $(VENV)/tests-installed check  ## the whole suite, except what is marked slow
	$(BIN)/python -m pytest $(AT_ONCE)

test-quick: $(VENV)/tests-installed  ## without the files that run the whole command: for the loop of work
	$(BIN)/python -m pytest $(AT_ONCE) -m 'not slow and not whole'

lowest:  ## the quick tests with the lowest versions that pyproject.toml allows, of all at once
	$(MAKE) .venv-lowest/lowest-installed
	.venv-lowest/bin/python -m pytest $(AT_ONCE) -m 'not slow and not whole'

.venv-lowest/lowest-installed: pyproject.toml
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
		--resolution lowest-direct --editable '.[test]'
	touch $@

coverage: $(VENV)/tests-installed  ## which branches tests reach, in all processes
	rm -f .coverage .coverage.*  # TESTS=tests/test_log.py measures with one file alone
	# In a read-only system coverage cannot write what it saw.
	$(MEASURED) -m coverage run -m pytest $(AT_ONCE) $(TESTS) --deselect \
		tests/test_surroundings.py::test_a_read_only_system_runs_in_what_can_be_written_or_says_what_cannot
	$(MEASURED) -m coverage combine --quiet
	$(MEASURED) -m coverage report $(if $(TESTS),--fail-under=0)

check: $(VENV)/tests-installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/tests-installed  ## what takes minutes
	$(BIN)/python -m pytest -m slow

chaos: $(VENV)/tests-installed  ## kills, hostile files, a long run: 20 to 25 minutes on two cores
	$(BIN)/python -m pytest -m slow --durations=0 tests/test_chaos.py tests/test_cluster.py \
		tests/test_crash.py tests/test_hostile.py tests/test_memory.py tests/test_signals.py

cluster-test:  ## clusters, jobs and metrics, with the long ones, in an environment of its own
	$(MAKE) .venv-cluster/tests-installed VENV=.venv-cluster
	.venv-cluster/bin/pip install --quiet --editable '.[jobs]'
	.venv-cluster/bin/python -m pytest -m 'slow or not slow' tests/test_cluster.py tests/test_jobs.py

wheel: $(VENV)/tests-installed  ## build, install elsewhere, paint, uninstall; then the Dockerfile's steps
	.ci/wheel $(BIN)/python
	$(BIN)/python -m pytest -m slow tests/test_dockerfile.py

browser:  ## install Chromium by apt, as root, for the tests of the report; without it they skip
	@if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			chromium chromium-driver) >/dev/null 2>&1 || echo "no Chromium could be installed: its tests will be skipped"; \
	fi

weights: $(VENV)/tests-installed  ## make the bundled VGG-16 anew from its source
	$(BIN)/pip install --quiet --editable '.[weights]'
	$(BIN)/python -m stylize.weights.make_vgg16

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/tests-installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) dist stylize-demo manifests/figure[123]
