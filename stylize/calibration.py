"""Mean activations of a network, for scaling its features to mean one (Gatys et al. 2016, sec. 2).

The mean m_c of a channel is that of relu(conv_c) over the packaged calibration pictures, with a
longest side of 256 pixels and in float32; it is raised to 0.1 of its layer's mean where it is below
that. The bundled network's means are in its file. Those of other weights are computed at first use
and cached under the weights' hash, the pooling and `_VERSION`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stylize import weights as weights_module
from stylize.encoder import Encoder
from stylize.errors import WeightsError
from stylize.files import write_atomic
from stylize.image import decode, fit, match_size, to_tensor
from stylize.layers import block, relu_of
from stylize.weights import Weights, cache_folder

__all__ = ["calibrate", "feature_scales"]

_VERSION = 2
"""To be raised when the pictures or the rule change, so that no stale cache is used."""

_FLOOR = 0.1  # of the layer's mean
_SIDE = 256  # pixels
_FOLDER = Path(__file__).parent / "weights" / "calibration"


def calibration_pictures() -> list[Tensor]:
    """Read the packaged pictures, (1, 3, H, W) each. Raises `WeightsError` if one has changed."""
    listed = (_FOLDER / "SHA256SUMS").read_text().split()
    pictures = []
    for sha256, name in zip(listed[::2], listed[1::2], strict=True):
        data = (_FOLDER / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise WeightsError(
                f"the calibration picture {name} has been changed; reinstall stylize-batch"
            )
        image = decode(data)
        pictures.append(to_tensor(match_size(image, fit(image.size, _SIDE))))
    return pictures


@torch.no_grad()
def calibrate(weights: Weights, pooling: str) -> dict[str, Tensor]:
    """Return {conv: (out,)}, the mean of relu(conv) over positions, then over pictures; floored.

    Beyond the edge conv1_1 sees the bundled network's mean colour, not that of the weights' input
    convention: one network under two conventions must have the same means.
    """
    encoder = Encoder(weights.with_mean(), pooling=pooling)
    pictures = calibration_pictures()
    total: dict[str, Tensor] = {}
    for picture in pictures:
        with torch.autocast("cpu", enabled=False):  # a caller's autocast would round the means
            features = encoder(picture, map(relu_of, encoder.convs))
        for conv in encoder.convs:
            mean = features[relu_of(conv)][0].mean(dim=(1, 2))  # (N,)
            total[conv] = total.get(conv, 0) + mean / len(pictures)
    return {conv: mean.clamp(min=_FLOOR * float(mean.mean())) for conv, mean in total.items()}


def activation_means(weights: Weights, pooling: str) -> Mapping[str, Tensor]:
    """Return `calibrate`'s means from the weights' own file, the cache, or computed (seconds)."""
    if pooling in weights.activation_means:
        return weights.activation_means[pooling]
    cached = cache_folder() / f"means-{weights.sha256[:16]}-{pooling}-{_VERSION}.safetensors"
    try:
        return load_file(cached)
    except Exception:  # not cached yet, or damaged: safetensors raises many kinds
        means = calibrate(weights, pooling)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, save(means))
    except OSError:
        pass  # computed again next time
    return means


def feature_scales(weights: Weights, pooling: str, feature_scale: str) -> dict[str, Tensor] | None:
    """Return what `Encoder` divides the features of each convolution by, or None for nothing.

    With `unit`, that is m_c for each channel. With `caffe` the features are to be as published:
    None for the bundled network; for other weights one number a layer, the mean of m_c over that of
    the bundled layer. So layers weigh as in the bundled network, and a layer's
    channels keep their proportions.
    """
    if feature_scale == "caffe" and weights.bundled:
        return None
    means = activation_means(weights, pooling)
    if feature_scale == "unit":
        return dict(means)
    published = weights_module.load().activation_means[pooling]
    scales = {}
    for conv, mean in means.items():
        # VGG-19's fourth convolutions have no counterpart in VGG-16: the third stands in, and in
        # block 5 the first, which alone is bundled.
        twin = max(
            (c for c in published if block(c) == block(conv) and c <= conv), default="conv5_1"
        )
        # Both are means of floored means. The floor is a share of the layer's mean, so that the
        # quotient is exactly k for the bundled network times k.
        scales[conv] = torch.full_like(mean, float(mean.mean() / published[twin].mean()))
    return scales
