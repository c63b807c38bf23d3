"""Linear colour transfer between pictures, for `init=matched` and for `preserve_color`.

Pictures are (1, 3, H, W) in [0, 1]. Keeping colours: Gatys et al. 2016, *Preserving Color in Neural
Artistic Style Transfer*. Monge-Kantorovich map: Pitie and Kokaram 2007, *The Linear
Monge-Kantorovitch Linear Colour Mapping for Example-Based Colour Transfer*.

Moments and maps are computed in float64, on the CPU where the device has no float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["YIQ", "keep_luminance", "luminance", "recolor", "restore_color", "transport"]

_EPS = 1e-8
"""Variance added along each colour axis, since a grey or constant picture has none along some."""

YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]],
    dtype=torch.float64,
    device="cpu",
)
"""RGB -> YIQ (NTSC); the rows are Y, I and Q."""


def _pixels(image: Tensor) -> Tensor:
    """Return the colours, (3, M), in float64."""
    pixels = image[0].flatten(1)
    return (pixels.cpu() if pixels.device.type == "mps" else pixels).double()


def _moments(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean (3, 1) and the covariance (3, 3) of the colours, on the CPU.

    With a mask (1, 1, H, W) each pixel counts by its value.
    """
    pixels = _pixels(image)
    if mask is None:
        mean = pixels.mean(dim=1, keepdim=True)
        centred = pixels - mean
        covariance = (centred @ centred.T / pixels.shape[1]).cpu()
    else:
        weights = _pixels(mask)
        weights = weights / weights.sum()
        mean = (weights * pixels).sum(dim=1, keepdim=True)
        centred = pixels - mean
        covariance = (weights * centred @ centred.T).cpu()
    return mean.cpu(), covariance + _EPS * torch.eye(3, dtype=torch.float32, device="cpu")


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(matrix)
    # The product of two covariances has eigenvalues down to _EPS^2; less is rounding.
    power: Tensor = (vectors * values.clamp(min=_EPS**2) ** exponent) @ vectors.T
    return power


def _apply(image: Tensor, matrix: Tensor, mean: Tensor, new_mean: Tensor) -> Tensor:
    """Map the colours: x -> matrix (x - mean) + new_mean."""
    pixels = _pixels(image)
    matrix, mean, new_mean = (part.to(pixels.device) for part in (matrix, mean, new_mean))
    return (matrix @ (pixels - mean) + new_mean).view_as(image[0])[None].to(image)


def transport(
    image: Tensor,
    *references: Tensor,
    shares: Sequence[float] = (1.0,),
    masks: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Give a picture the colour mean and covariance of the references, changing it least.

    x -> A (x - mu_c) + mu_s with A = Sc^-1/2 (Sc^1/2 Ss Sc^1/2)^1/2 Sc^-1/2, the Monge-Kantorovich
    map. With several references, the moments are those of all their pixels, each reference weighted
    by its share (sum 1), and its pixels by its mask, if it has one. Values may leave [0, 1].
    """
    mean, covariance = _moments(image)
    moments = map(_moments, references, masks or [None] * len(references))
    means, covariances = map(torch.stack, zip(*moments, strict=True))
    share = means.new_tensor(shares).view(-1, 1, 1)
    new_mean = (share * means).sum(dim=0)
    apart = means - new_mean
    new_covariance = (share * (covariances + apart @ apart.mT)).sum(dim=0)
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    matrix = inverse @ _power(root @ new_covariance @ root, 0.5) @ inverse
    return _apply(image, matrix, mean, new_mean)


def recolor(style: Tensor, content: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give the style picture the content's colours: x -> Sc^1/2 Ss^-1/2 (x - mu_s) + mu_c.

    Linear histogram matching as in Image Analogies, see Gatys et al. 2016. Clamped to [0, 1]. With
    a mask, the style's moments are those of its part.
    """
    mean, covariance = _moments(style, mask)
    new_mean, new_covariance = _moments(content)
    matrix = _power(new_covariance, 0.5) @ _power(covariance, -0.5)
    return _apply(style, matrix, mean, new_mean).clamp(0, 1)


def luminance(image: Tensor) -> Tensor:
    """Return the luminance Y of YIQ, repeated on three channels."""
    y = (YIQ[0].to(image).view(1, 3, 1, 1) * image).sum(dim=1, keepdim=True)
    return y.expand(-1, 3, -1, -1).contiguous()


def keep_luminance(style: Tensor, content: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the style's luminance with the content's mean and standard deviation.

    Y -> (sd_c / sd_s) (Y - mu_s) + mu_c, clamped to [0, 1]. With a mask, mu_s and sd_s are those of
    the style's part.
    """
    y, target = luminance(style), luminance(content)
    mean, deviation = y.mean(), y.std()
    if mask is not None:
        means, covariance = _moments(y, mask)
        mean, deviation = means[0].to(y), covariance[0, 0].sqrt().to(y)
    scale = target.std() / deviation.clamp(min=_EPS**0.5)
    return (scale * (y - mean) + target.mean()).clamp(0, 1)


def restore_color(result: Tensor, content: Tensor) -> Tensor:
    """Combine the result's luminance Y with the content's colour, I and Q."""
    pixels = _pixels(content)
    yiq = YIQ.to(pixels.device)
    pixels = yiq @ pixels  # (3, M): Y, I, Q
    pixels[0] = _pixels(luminance(result))[0]
    back: Tensor = torch.linalg.inv(yiq) @ pixels
    return back.view_as(result[0])[None].to(result)
