"""Mean activations of a network, for the scaling that makes them one (Gatys et al. 2016, sec. 2).

m_c is the mean of relu(conv_c) over the packaged calibration pictures, longest side 256, float32,
floored at 0.1 of its layer's mean. The bundled network's are in its file; those of foreign weights
are computed at first use and cached by the weights' hash, the pooling and this file's version.
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

__all__ = ["VERSION", "activation_means", "calibrate", "feature_scales"]

VERSION = 2
"""Raised when the pictures or the rule change, so that no stale cache is used."""

_FLOOR = 0.1
_SIDE = 256  # pixels
_FOLDER = Path(weights_module.__file__).parent / "calibration"


def calibration_pictures() -> list[Tensor]:
    """The packaged pictures, (1, 3, H, W) each. Raises `WeightsError` if one has been changed."""
    listed = (_FOLDER / "SHA256SUMS").read_text().split()
    pictures = []
    for sha256, name in zip(listed[::2], listed[1::2], strict=True):
        data = (_FOLDER / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise WeightsError(f"the calibration picture {name} has been changed; install again")
        image = decode(data)
        pictures.append(to_tensor(match_size(image, fit(image.size, _SIDE))))
    return pictures


@torch.no_grad()
def calibrate(weights: Weights, pooling: str) -> dict[str, Tensor]:
    """{conv: (out,)}: mean of relu(conv) over positions, then over pictures; floored.

    Beyond the edge conv1_1 sees the bundled network's mean colour: each input convention has its
    own, and one network under two of them must have the same means.
    """
    encoder = Encoder(weights.with_mean(), pooling=pooling)
    pictures = calibration_pictures()
    total: dict[str, Tensor] = {}
    for picture in pictures:
        with torch.autocast("cpu", enabled=False):  # a caller's would round what is kept
            features = encoder(picture, map(relu_of, encoder.convs))
        for conv in encoder.convs:
            mean = features[relu_of(conv)][0].mean(dim=(1, 2))  # (N,)
            total[conv] = total.get(conv, 0) + mean / len(pictures)
    return {conv: mean.clamp(min=_FLOOR * float(mean.mean())) for conv, mean in total.items()}


def activation_means(weights: Weights, pooling: str) -> Mapping[str, Tensor]:
    """{conv: (out,)} from the weights' own file, the cache, or computed now (seconds)."""
    if pooling in weights.activation_means:
        return weights.activation_means[pooling]
    cached = cache_folder() / f"means-{weights.sha256[:16]}-{pooling}-{VERSION}.safetensors"
    try:
        return load_file(cached)
    except Exception:  # not there yet, or cut short: it is only a cache
        means = calibrate(weights, pooling)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, save(means))
    except OSError:
        pass  # computed again next time
    return means


def feature_scales(weights: Weights, pooling: str, feature_scale: str) -> dict[str, Tensor] | None:
    """What `Encoder` divides features by, for `unit` or `caffe` features.

    `unit`: m_c, channel by channel. `caffe`: features as they were published. Nothing for the
    bundled network; for foreign weights one number for all channels of a layer, the mean of m_c
    over that of the bundled layer, so that layers weigh as they do in the bundled network and a
    layer's channels as they do in the foreign one.
    """
    if feature_scale == "caffe" and weights.bundled:
        return None
    means = activation_means(weights, pooling)
    if feature_scale == "unit":
        return dict(means)
    published = weights_module.load().activation_means[pooling]
    scales = {}
    for conv, mean in means.items():
        # VGG-19's fourth convolutions have no counterpart in VGG-16: its third stands in, and in
        # block 5, of which the first alone is bundled, that one.
        twin = max(
            (c for c in published if block(c) == block(conv) and c <= conv), default="conv5_1"
        )
        # Means of floored means, both: the floor is a share of the layer's mean, so that the
        # quotient for one network times a number is that number.
        scales[conv] = torch.full_like(mean, float(mean.mean() / published[twin].mean()))
    return scales
