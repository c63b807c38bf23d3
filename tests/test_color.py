"""Colour transfer: moments matched, identity on itself, colours kept where they are to be kept."""

import pytest
import torch
from torch import Tensor

from stylize import color


def picture(seed: int, height: int = 24, width: int = 32) -> Tensor:
    """A picture with correlated colours, well inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    pixels = mix @ torch.randn(3, height * width, generator=generator, dtype=torch.float64)
    shift = torch.rand(3, 1, generator=generator, dtype=torch.float64)
    return (0.35 + 0.3 * shift + 0.05 * pixels).clamp(0, 1).view(1, 3, height, width)


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    pixels = image[0].flatten(1).double()
    mean = pixels.mean(dim=1, keepdim=True)
    return mean, (pixels - mean) @ (pixels - mean).T / pixels.shape[1]


def near_grey(seed: int, spread: float) -> Tensor:
    """Grey of standard deviation about 0.2, each channel `spread` away from it."""
    generator = torch.Generator().manual_seed(seed)
    grey = 0.5 + 0.2 * torch.randn(1, 1, 24, 32, generator=generator, dtype=torch.float64)
    return grey + spread * torch.randn(1, 3, 24, 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transport_gives_the_references_mean_and_covariance(dtype: torch.dtype) -> None:
    content, style = picture(1).to(dtype), picture(2, 40, 20).to(dtype)
    mean, covariance = moments(color.transport(content, style))
    wanted_mean, wanted_covariance = moments(style)
    assert (moments(content)[0] - wanted_mean).abs().max() > 0.01  # there was something to do
    assert (mean - wanted_mean).abs().max() < 1e-5
    assert (covariance - wanted_covariance).abs().max() < 1e-5


def test_recolor_gives_the_contents_mean_and_covariance() -> None:
    style, content = picture(3), picture(4, 40, 20)
    painted = color.recolor(style, content)
    assert painted.min() > 0  # nothing was clamped, so the moments must be exact
    assert painted.max() < 1
    mean, covariance = moments(painted)
    assert (mean - moments(content)[0]).abs().max() < 1e-5
    assert (covariance - moments(content)[1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "image",
    [
        picture(5),
        near_grey(6, 0.0),
        near_grey(7, 0.002),
        near_grey(8, 0.0002),
        torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64),
    ],
    ids=["colours", "grey", "nearly grey", "more nearly grey", "one colour"],
)
def test_transport_is_the_identity_on_itself(image: Tensor) -> None:
    # S = Sc = Ss: A = S^-1/2 (S^1/2 S S^1/2)^1/2 S^-1/2 = S^-1/2 S S^-1/2 = 1.
    assert (color.transport(image, image) - image).abs().max() < 1e-5


def test_transport_scales_the_faint_colours_of_nearly_grey_pictures_as_their_spreads_do() -> None:
    # Noise of sd 0.002 in each channel against 0.004: along any colour axis the map is about
    # a factor 2. Within 10 %: 768 pixels fix a standard deviation to 1/sqrt(2*768) = 2.6 %.
    content, style = near_grey(9, 0.002), near_grey(10, 0.004)
    matched = color.transport(content, style)
    chroma = (matched - matched.mean(dim=1, keepdim=True)).std()
    assert chroma == pytest.approx(float(2 * (content - content.mean(1, True)).std()), rel=0.1)


def test_transport_moves_a_shifted_picture_by_the_shift_alone() -> None:
    content = picture(11)
    shift = torch.tensor([0.1, -0.05, 0.02], dtype=torch.float64).view(1, 3, 1, 1)
    # Equal covariances: A = 1, and x -> x + (mu_s - mu_c).
    assert torch.allclose(color.transport(content, content + shift), content + shift, atol=1e-9)


def test_colours_of_constant_pictures_become_the_references_mean() -> None:
    flat, other = torch.full((1, 3, 16, 16), 0.25), picture(12).float()
    assert torch.allclose(
        color.transport(flat, other).mean(dim=(2, 3)), other.mean(dim=(2, 3)), atol=1e-5
    )
    # The other way round the mean colour is matched too, and the variance falls to nothing.
    assert (color.transport(other, flat) - 0.25).abs().max() < 1e-3
    assert (color.recolor(flat, other).mean((2, 3)) - other.mean((2, 3))).abs().max() < 1e-3


def test_luminance_is_y_of_yiq_on_three_channels() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1
    # Y = 0.299 R + 0.587 G + 0.114 B; its weights sum to 1, so white stays 1.
    assert torch.allclose(color.luminance(red), torch.full((1, 3, 16, 16), 0.299))
    assert torch.allclose(color.luminance(torch.ones(1, 3, 16, 16)), torch.ones(1, 3, 16, 16))


def test_keep_luminance_matches_mean_and_spread_of_the_contents_luminance() -> None:
    style, content = picture(13), picture(14)
    matched = color.keep_luminance(style, content)
    wanted = color.luminance(content)
    assert matched.min() > 0  # nothing was clamped
    assert matched.max() < 1
    assert float(matched.mean()) == pytest.approx(float(wanted.mean()), abs=1e-9)
    assert float(matched.std()) == pytest.approx(float(wanted.std()), abs=1e-9)
    assert torch.equal(matched[:, 0], matched[:, 2])


def test_keep_luminance_of_a_constant_style_is_the_contents_mean() -> None:
    content = picture(15)
    matched = color.keep_luminance(torch.zeros(1, 3, 16, 16, dtype=torch.float64), content)
    # (sd_c / sd_s)(Y - mu_s) is 0 for every Y = mu_s, whatever sd_s = 0 is taken for.
    assert torch.allclose(matched, color.luminance(content).mean().expand_as(matched))


def test_restore_color_keeps_the_results_y_and_the_contents_i_and_q() -> None:
    result, content = picture(16), picture(17)
    back = color.restore_color(result, content)
    yiq = color.YIQ
    out, painted, photo = ((yiq @ x[0].flatten(1)) for x in (back, result, content))
    assert torch.allclose(out[0], painted[0], atol=1e-9)
    assert torch.allclose(out[1:], photo[1:], atol=1e-9)


def test_restore_color_of_the_content_itself_is_the_content() -> None:
    content = picture(18)
    assert torch.allclose(color.restore_color(content, content), content, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_colour_map_works_on_the_gpu() -> None:
    content, style = picture(19).float(), picture(20).float()
    for function in (color.transport, color.recolor, color.keep_luminance, color.restore_color):
        there = function(content.cuda(), style.cuda())
        assert there.is_cuda
        assert torch.allclose(there.cpu(), function(content, style), atol=1e-5)


def test_several_references_count_as_their_pixels_together() -> None:
    content, one, other = (near_grey(seed, 0.05) for seed in (31, 32, 33))
    other = 0.5 * other + 0.2
    # Two thirds and a third of the pixels, as the shares say.
    together = torch.cat([one, one, other], dim=3)
    wanted = color.transport(content, together)
    found = color.transport(content, one, other, shares=(2 / 3, 1 / 3))
    assert torch.allclose(found, wanted, atol=1e-9)
    assert torch.equal(
        color.transport(content, one, other, shares=(1, 0)), color.transport(content, one)
    )
