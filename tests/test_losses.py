"""The losses against answers derived by hand, and against numerical derivatives."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylize.config import StyleConfig
from stylize.encoder import Encoder
from stylize.losses import (
    PerceptualLoss,
    Statistic,
    content_loss,
    energy,
    gram_matrix,
    quarters,
    relative,
    standing_out,
    style_loss,
    total_variation_loss,
)
from stylize.weights import Weights

KINDS = ("gram", "moments", "wasserstein")


def field(seed: int, channels: int = 3, height: int = 4, width: int = 5, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, height, width, generator=generator, dtype=torch.float64)


def picture(seed: int, height: int = 32, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=generator)


def perceptual(
    encoder: Encoder,
    config: StyleConfig,
    content: Tensor,
    style: Tensor,
    mask: Tensor | None = None,
    factor: float = 1.0,
    start: Tensor | None = None,
    spread: float = 0.0,
) -> PerceptualLoss:
    with torch.no_grad():
        targets = encoder(content, [layer for layer, _ in config.content_layers])
        layers = [layer for layer, _ in config.style_layers]
        features = encoder(style, layers)
        statistics = {n: Statistic.of(features[n], config.style_loss) for n in layers}
        near = {} if start is None else encoder(start, layers)
        started = {n: Statistic.of(f, config.style_loss) for n, f in near.items()}
    return PerceptualLoss(
        encoder,
        config,
        targets,
        statistics,
        mask=mask,
        content_factor=factor,
        start=started,
        spread=spread,
    )


# Gram matrices


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8)])
def test_gram_of_constant_features_is_their_outer_product(height: int, width: int) -> None:
    a = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    features = a.view(1, 3, 1, 1).expand(1, 3, height, width)
    # F F^T / M = M a a^T / M = a a^T, whatever M; small whole numbers are exact.
    outer = torch.tensor([[[1.0, 2, -3], [2, 4, -6], [-3, -6, 9]]], dtype=torch.float64)
    assert torch.equal(gram_matrix(features), outer)


def test_shuffling_the_pixels_leaves_the_gram_matrix() -> None:
    features = field(1, channels=7)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = features.flatten(2)[:, :, order].view_as(features)
    assert not torch.equal(shuffled, features)
    # Only the order of 20 additions changes: some units in the last place of float64.
    assert torch.allclose(gram_matrix(shuffled), gram_matrix(features), rtol=0, atol=1e-14)


def test_a_batch_has_one_gram_matrix_a_picture() -> None:
    features = field(2, rows=3)
    separate = torch.cat([gram_matrix(features[i : i + 1]) for i in range(3)])
    assert torch.allclose(gram_matrix(features), separate, rtol=0, atol=1e-15)


def test_gram_sums_in_float32_whatever_the_features_type() -> None:
    # 300^2 = 90,000 is over float16's 65,504, and 4096 terms of 1 over bfloat16's 256 that a sum
    # of ones can reach; in float32 both are exact.
    large = torch.full((1, 2, 64, 64), 300.0, dtype=torch.float16)
    assert torch.equal(gram_matrix(large), torch.full((1, 2, 2), 90_000.0))
    ones = torch.ones(1, 2, 64, 64, dtype=torch.bfloat16)
    assert torch.equal(gram_matrix(ones), torch.ones(1, 2, 2))


def test_half_a_mask_on_two_textures_gives_that_textures_statistic() -> None:
    left, right = field(3), 3 * field(4) + 1
    both = torch.cat([left, right], dim=3)  # (1, 3, 4, 10)
    mask = torch.zeros(1, 1, 4, 10, dtype=torch.float64)
    mask[..., :5] = 1
    for masked, alone in ((mask, left), (1 - mask, right)):
        got, wanted = Statistic.of(both, "moments", masked), Statistic.of(alone, "moments")
        assert torch.allclose(got.gram, wanted.gram, rtol=0, atol=1e-12)
        assert got.mean is not None
        assert wanted.mean is not None
        assert torch.allclose(got.mean, wanted.mean, rtol=0, atol=1e-12)


def test_complementary_masks_recombine_to_the_whole() -> None:
    features = field(5)
    mask = torch.rand(1, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = float(mask.sum()), float((1 - mask).sum())
    # sum m f f^T + sum (1-m) f f^T = sum f f^T, and a + b = M.
    whole = (a * gram_matrix(features, mask) + b * gram_matrix(features, 1 - mask)) / (a + b)
    assert torch.allclose(whole, gram_matrix(features), rtol=0, atol=1e-14)


def test_a_constant_mask_is_no_mask_and_a_black_one_gives_no_nan() -> None:
    features = field(6)
    for grey in (1.0, 0.25):
        mask = torch.full((1, 1, 4, 5), grey, dtype=torch.float64)
        assert torch.allclose(gram_matrix(features, mask), gram_matrix(features), atol=1e-14)
    black = Statistic.of(features, "moments", torch.zeros(1, 1, 4, 5, dtype=torch.float64))
    assert torch.equal(black.gram, torch.zeros(1, 3, 3, dtype=torch.float64))
    assert torch.equal(black.covariance(), torch.zeros(1, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (67, 71)])
def test_gram_of_many_bfloat16_positions_is_theirs_in_float64(height: int, width: int) -> None:
    features = field(1, 32, height, width, rows=2).relu().bfloat16()
    wanted = gram_matrix(features.double())
    difference = gram_matrix(features).double() - wanted
    assert difference.norm() < 1e-3 * wanted.norm()
    features.requires_grad_()
    slope = field(2, 1, 32, 32, rows=2)[:, 0]
    (gradient,) = torch.autograd.grad((gram_matrix(features) * slope).sum(), features)
    rows = features.detach().double().flatten(2).transpose(1, 2)
    expected = rows @ (slope + slope.transpose(1, 2)) / (height * width)
    off = gradient.double().flatten(2).transpose(1, 2) - expected
    assert off.norm() < 1e-2 * expected.norm()


# The losses by hand


def test_content_loss_is_the_mean_square() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2)
    b = torch.tensor([1.0, 0.0, 3.0, 1.0]).view(1, 2, 1, 2)
    # (0 + 4 + 0 + 9) / (N M = 4) = 3.25
    assert content_loss(a, b).tolist() == [3.25]
    assert content_loss(a, a).tolist() == [0.0]


def test_content_loss_counts_each_position_by_its_weight() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2)
    b = torch.tensor([1.0, 0.0, 3.0, 1.0]).view(1, 2, 1, 2)
    # All that differs, 4 and 9, is at the second position: 1.5 * 13 / 4.
    assert content_loss(a, b, torch.tensor([0.5, 1.5]).view(1, 1, 1, 2)).tolist() == [4.875]


def test_a_position_stands_out_by_its_distance_from_the_mean_features() -> None:
    features = torch.tensor([0.0, 0.0, 0.0, 4.0]).view(1, 1, 2, 2)
    # From the mean of 1 they are 1, 1, 1 and 3 away; squared, over the mean of 3.
    squared = standing_out(features, 1)
    assert squared is not None
    assert squared.flatten().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 3], rel=1e-5)
    plain = standing_out(features, 0.5)
    assert plain is not None
    assert plain.flatten().tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2], rel=1e-5)
    assert standing_out(features, 0) is None


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_nowhere_does_a_flat_picture_stand_out(value: float) -> None:
    weight = standing_out(torch.full((1, 2, 3, 4), value), 2)
    assert weight is not None
    assert torch.allclose(weight, torch.ones(1, 1, 3, 4))


def test_each_picture_of_a_batch_stands_out_as_it_does_alone() -> None:
    both = torch.cat([field(21), 5 * field(22)])
    together = standing_out(both, 0.5)
    assert together is not None
    for one, weight in zip(both, together, strict=True):
        alone = standing_out(one[None], 0.5)
        assert alone is not None
        assert torch.allclose(alone[0], weight)
        assert float(weight.mean()) == pytest.approx(1)


def test_gram_loss_is_the_mean_square_of_the_gram_matrices_difference() -> None:
    a, b = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    # a a^T - b b^T = [[0, 2], [2, 4]]; (0 + 4 + 4 + 16) / 4 = 6
    assert style_loss(Statistic.of(a, "gram"), Statistic.of(b, "gram")).tolist() == [6.0]


def test_moments_loss_is_mean_and_variance_for_one_channel() -> None:
    a = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)  # mean 2, variance 1
    b = torch.tensor([0.0, 4.0, 0.0, 4.0]).view(1, 1, 2, 2)  # mean 2, variance 4
    c = torch.tensor([5.0, 5.0]).view(1, 1, 1, 2)  # mean 5, variance 0
    of = {name: Statistic.of(x, "moments") for name, x in (("a", a), ("b", b), ("c", c))}
    assert style_loss(of["a"], of["b"], "moments").tolist() == [9.0]  # 0 + (1 - 4)^2
    assert style_loss(of["a"], of["c"], "moments").tolist() == [10.0]  # (2 - 5)^2 + 1^2


def test_scaling_features_by_k_scales_content_by_k2_and_gram_loss_by_k4() -> None:
    features = field(7)
    nothing = torch.zeros_like(features)
    content, style = content_loss(features, nothing), None
    style = style_loss(Statistic.of(features, "gram"), Statistic.of(nothing, "gram"))
    assert content > 0
    assert style > 0
    # k = 2: powers of two are exact.
    assert torch.equal(content_loss(2 * features, nothing), 4 * content)
    doubled = Statistic.of(2 * features, "gram")
    assert torch.equal(style_loss(doubled, Statistic.of(nothing, "gram")), 16 * style)


def test_the_gradient_of_the_gram_loss_is_4w_g_minus_a_f_over_n2_m() -> None:
    features, target = field(8).requires_grad_(True), Statistic.of(field(9), "gram")
    weight, n, m = 0.7, 3, 20
    loss = weight * style_loss(Statistic.of(features, "gram"), target)
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    # L = w/N^2 sum (G - A)^2, G = F F^T / M: dL/dG = 2w (G - A)/N^2, symmetric, so
    # dL/dF = 2 dL/dG F / M = 4w (G - A) F / (N^2 M).
    flat = features.detach()[0].flatten(1)  # (N, M)
    gram = flat @ flat.T / m
    by_hand = 4 * weight * (gram - target.gram[0]) @ flat / (n**2 * m)
    assert by_hand.abs().max() > 1e-3
    assert torch.allclose(gradient[0].flatten(1), by_hand, rtol=1e-12, atol=1e-15)


def test_the_gradient_of_the_content_loss_is_2_f_minus_p_over_n_m() -> None:
    features, target = field(8).requires_grad_(True), field(9)
    (gradient,) = torch.autograd.grad(content_loss(features, target).sum(), features)
    by_hand = 2 * (features.detach() - target) / (3 * 20)  # N = 3, M = 4 * 5
    assert by_hand.abs().max() > 1e-3
    assert torch.allclose(gradient, by_hand, rtol=1e-12, atol=1e-15)


def gaussian(mean: list[float], covariance: Tensor) -> Statistic:
    mu = torch.tensor([mean], dtype=torch.float64)
    return Statistic(covariance[None] + mu[:, :, None] * mu[:, None, :], mu)


def test_wasserstein_of_diagonal_covariances() -> None:
    a = gaussian([1.0, 2.0, 0.0], torch.diag(torch.tensor([1.0, 4, 9], dtype=torch.float64)))
    b = gaussian([1.0, 1.0, 2.0], torch.diag(torch.tensor([4.0, 9, 1], dtype=torch.float64)))
    loss = float(style_loss(a, b, "wasserstein"))
    # ((0 + 1 + 4) + ((1-2)^2 + (2-3)^2 + (3-1)^2)) / 3 = (5 + 6) / 3, if eps were 0; it is 1e-4
    # of the mean variance and shortens each difference by about that.
    assert loss == pytest.approx(11 / 3, rel=2e-4)
    # With eps = 1e-4 tr(S_s)/C = 1e-4 * 14/3 on every variance, exactly:
    eps = 1e-4 * 14 / 3
    roots = sum((math.sqrt(x + eps) - math.sqrt(y + eps)) ** 2 for x, y in ((1, 4), (4, 9), (9, 1)))
    assert loss == pytest.approx((5 + roots) / 3, rel=1e-12)


def test_wasserstein_of_covariances_that_do_not_commute() -> None:
    a = torch.tensor([[4.0, 0], [0, 1]], dtype=torch.float64)
    b = torch.tensor([[2.0, 1], [1, 2]], dtype=torch.float64)
    assert not torch.equal(a @ b, b @ a)
    # For 2x2: tr (B^1/2 A B^1/2)^1/2 = sqrt(tr(AB) + 2 sqrt(det A det B)). eps = 1e-4 * 4/2.
    eps = 2e-4
    trace = (4 + eps) * (2 + eps) + (1 + eps) * (2 + eps)
    det = (4 + eps) * (1 + eps) * ((2 + eps) ** 2 - 1)
    spread = (5 + 2 * eps) + (4 + 2 * eps) - 2 * math.sqrt(trace + 2 * math.sqrt(det))
    loss = style_loss(gaussian([0.0, 0.0], a), gaussian([3.0, 0.0], b), "wasserstein")
    assert float(loss) == pytest.approx((9 + spread) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_statistic_is_at_no_distance_from_itself(kind: str) -> None:
    statistic = Statistic.of(field(10), kind)
    loss = float(style_loss(statistic, statistic, kind))
    # Wasserstein takes a root of S^2: exact up to rounding of its eigenvalues, which are near 1.
    assert abs(loss) < 1e-14 if kind == "wasserstein" else loss == 0


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_black_features_give_finite_losses_and_gradients(kind: str) -> None:
    flat = [torch.zeros(1, 8, 4, 4), torch.full((1, 8, 4, 4), 0.3), field(11, 8, 4, 4).float()]
    for features in flat:
        for target in flat:
            x = features.clone().requires_grad_(True)
            loss = style_loss(Statistic.of(x, kind), Statistic.of(target, kind), kind)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


def test_total_variation_of_a_step_edge() -> None:
    image = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    image[..., 2:] = 0.5  # one step of h = 1/2 across W = 5 columns, in 4 rows and 3 channels
    # mean: of W - 1 = 4 differences in each row one is h: h / 4 = 1/8, and no dy.
    assert total_variation_loss(image).tolist() == [0.125]
    # Turned, the step is in dy: of H - 1 = 4 differences in each column one.
    assert total_variation_loss(image.transpose(2, 3)).tolist() == [0.125]
    # sum over 0-255: 3 channels * 4 rows * 255/2 = 1530.
    assert total_variation_loss(image, "sum").tolist() == [1530.0]
    assert total_variation_loss(torch.full((2, 3, 4, 5), 0.3)).tolist() == [0.0, 0.0]


# Derivatives


def _mask() -> Tensor:
    return torch.rand(1, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _style(kind: str, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    target = Statistic.of(field(12), kind)
    return lambda x: style_loss(Statistic.of(x, kind, mask), target, kind)


@pytest.mark.parametrize(
    "function",
    [
        gram_matrix,
        lambda x: gram_matrix(x, _mask()),
        lambda x: content_loss(x, field(12)),
        *[_style(kind) for kind in KINDS],
        *[_style(kind, _mask()) for kind in KINDS],
        total_variation_loss,
        lambda x: total_variation_loss(x, "sum"),
    ],
    ids=[
        "gram matrix",
        "masked gram matrix",
        "content",
        *KINDS,
        *[f"masked {kind}" for kind in KINDS],
        "tv mean",
        "tv sum",
    ],
)
def test_the_gradient_agrees_with_finite_differences(function: Callable[[Tensor], Tensor]) -> None:
    # Random features: no two neighbours are within gradcheck's 1e-6 of one another, where total
    # variation has its kinks.
    features = field(13, rows=2)
    neighbours = (features[..., 1:] - features[..., :-1]).abs().min()
    below = (features[..., 1:, :] - features[..., :-1, :]).abs().min()
    assert min(neighbours, below) > 1e-4
    assert torch.autograd.gradcheck(function, features.requires_grad_(True))


def test_the_wasserstein_gradient_holds_with_fewer_positions_than_channels() -> None:
    # 4 positions in 6 channels: S has at least 3 zero eigenvalues, which eps lifts.
    target = Statistic.of(field(14, 6, 4, 4), "wasserstein")

    def function(x: Tensor) -> Tensor:
        return style_loss(Statistic.of(x, "wasserstein"), target, "wasserstein")

    # eps is 1e-4 of the variance, so curvature there is some 1e6 times the usual: finite
    # differences of 1e-6 are then good to 1e-3 only.
    features = field(15, 6, 2, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(function, features, rtol=1e-3, atol=1e-4)


# The weighted sum, with the bundled network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["default", "paper", "neural-style"])
def test_the_content_has_content_loss_0_and_the_style_has_style_loss_0(
    bundled: Weights, dtype: torch.dtype, preset: str
) -> None:
    config = StyleConfig.of(preset, relative=False)
    encoder = Encoder(bundled, pooling=config.pooling, padding=config.padding, dtype=dtype)
    content, style = picture(1), picture(2)
    loss = perceptual(encoder, config, content, style)
    at_content, at_style = loss(content.requires_grad_(True)), loss(style.requires_grad_(True))
    assert at_content.content.tolist() == [0.0]
    assert at_style.style.tolist() == [0.0]
    assert at_content.style > 0
    assert at_style.content > 0


def test_the_total_is_the_weighted_sum_and_layer_weights_are_relative(bundled: Weights) -> None:
    encoder = Encoder(bundled)
    weights = {"content_weight": 2.0, "style_weight": 3.0, "tv_weight": 5.0, "relative": False}
    layers = (("relu1_1", 1.0), ("relu2_1", 3.0))
    config = StyleConfig.of("paper", content_layers=(("relu1_2", 7.0),), style_layers=layers)
    config = StyleConfig(**{**vars(config), **weights})
    content, style, x = picture(3), picture(4), picture(5)
    losses = perceptual(encoder, config, content, style, factor=10.0)(x)
    parts = losses.content, losses.style, losses.tv
    assert all(part > 0 for part in parts)
    # 10 * 2 content + 3 style + 5 tv
    assert float(losses.total) == pytest.approx(
        20 * float(parts[0]) + 3 * float(parts[1]) + 5 * float(parts[2]), rel=1e-6
    )
    features = {
        name: encoder(image, ["relu1_1", "relu2_1", "relu1_2"])
        for name, image in (("x", x), ("c", content), ("s", style))
    }

    def one(layer: str) -> float:
        a, b = (Statistic.of(features[n][layer], "gram") for n in "xs")
        return float(style_loss(a, b))

    # 1 : 3 over their sum.
    assert float(parts[1]) == pytest.approx((one("relu1_1") + 3 * one("relu2_1")) / 4, rel=1e-5)
    # A single layer's weight of 7 is 7/7.
    content_part = content_loss(features["x"]["relu1_2"], features["c"]["relu1_2"])
    assert float(parts[0]) == pytest.approx(float(content_part), rel=1e-5)
    assert float(parts[2]) == pytest.approx(float(total_variation_loss(x)), rel=1e-6)


def test_content_loss_of_a_norm_is_the_power_mean_of_the_positions_distances() -> None:
    a = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])
    b = torch.zeros(1, 2, 1, 2)
    distances = torch.tensor([(1 + 9) / 2, (4 + 36) / 2])
    for norm in (2.0, 8.0):
        by_hand = distances.double().pow(norm).mean() ** (1 / norm)
        shifted = content_loss(a + 1, b + 1, norm=norm)  # only the difference counts
        assert shifted.tolist() == pytest.approx([float(by_hand)], rel=1e-5)
    weight = torch.tensor([3.0, 0.5]).view(1, 1, 1, 2)
    weighted = content_loss(a + 1, b + 1, weight, 2)
    assert weighted.tolist() == pytest.approx([((15**2 + 10**2) / 2) ** 0.5])
    assert content_loss(b + 1, b + 1, norm=8).tolist() == [0]


def test_the_content_loss_of_a_norm_has_a_gradient_where_nothing_is_lost() -> None:
    target = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    features = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(content_loss(features, target, norm=8).sum(), features)
    assert torch.equal(gradient, torch.zeros_like(target))


def test_with_a_norm_what_is_lost_in_one_place_costs_more_than_a_little_everywhere() -> None:
    target = torch.ones(1, 1, 4, 4)
    everywhere = target + 0.25
    one_place = target.clone()
    one_place[..., 1, 1] += 1  # the same mean square: 1/16
    costs = {norm: float(content_loss(one_place, target, norm=norm)) for norm in (1.0, 2.0, 8.0)}
    assert costs[1] == float(content_loss(everywhere, target)) == 1 / 16
    assert float(content_loss(everywhere, target, norm=8)) == pytest.approx(1 / 16)
    assert costs[2] == pytest.approx((1 / 16) ** (1 / 2))
    assert costs[8] == pytest.approx((1 / 16) ** (1 / 8))


def test_with_focus_a_change_costs_more_where_the_photograph_stands_out(bundled: Weights) -> None:
    encoder = Encoder(bundled)
    content = torch.full((1, 3, 64, 96), 0.5)
    content[..., 40:, 60:] = picture(1, 24, 36)  # a thing in a corner of a wall
    bump = 0.2 * picture(2, 16, 16)
    wall, thing = content.clone(), content.clone()
    wall[..., 8:24, 8:24] += bump
    thing[..., 44:60, 72:88] += bump
    ratios = []
    for focus in (0.0, 0.5, 1.0):
        config = StyleConfig(style_weight=0, content_layers=(("relu3_1", 1.0),), focus=focus)
        loss = perceptual(encoder, config, content, content)
        assert float(loss(content).content) == 0
        ratios.append(float(loss(thing).content / loss(wall).content))
    assert ratios[0] < 0.5 * ratios[1] < 0.25 * ratios[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_relative_style_loss_is_1_at_the_start_that_it_is_over(
    bundled: Weights, kind: str
) -> None:
    config = StyleConfig(style_loss=kind, style_layers=(("relu1_1", 1.0), ("relu2_1", 3.0)))
    encoder = Encoder(bundled)
    content, style = picture(1), picture(2).square()
    start = (content + style) / 2
    # Each layer is over its own loss at the start, so 1/4 + 3/4 whatever the two pictures are.
    loss = perceptual(encoder, config, content, style, start=start)
    assert float(loss(start).style) == pytest.approx(1, rel=1e-5)


def test_a_start_that_is_the_style_counts_a_twentieth_and_one_that_is_black_no_more_than_whole(
    bundled: Weights,
) -> None:
    config = StyleConfig(style_layers=(("relu1_1", 1.0),))
    encoder = Encoder(bundled)
    content, style, x = picture(1), picture(2), picture(3)
    plain = float(perceptual(encoder, config, content, style)(x).style)
    at_style = perceptual(encoder, config, content, style, start=style)
    assert float(at_style(x).style) == pytest.approx(20 * plain, rel=1e-5)
    beyond = perceptual(encoder, config, content, 0.1 * style, start=1 - 0.1 * style)
    capped = perceptual(encoder, config, content, 0.1 * style)
    assert float(beyond(x).style) == pytest.approx(float(capped(x).style), rel=1e-5)


def test_relative_weights_sum_to_one_and_leave_out_zeros() -> None:
    assert relative((("a", 1.0), ("b", 0.0), ("c", 3.0))) == {"a": 0.25, "c": 0.75}


def test_parts_without_weight_read_0_and_the_rest_is_unchanged(bundled: Weights) -> None:
    encoder, x = Encoder(bundled), picture(6)
    both = perceptual(encoder, StyleConfig.of("paper"), picture(7), picture(8))(x)
    for name in ("content", "style"):
        config = StyleConfig.of("paper", **{f"{name}_weight": 0.0})
        losses = perceptual(encoder, config, picture(7), picture(8))(x)
        assert getattr(losses, name).tolist() == [0.0]
        other = "style" if name == "content" else "content"
        assert torch.allclose(getattr(losses, other), getattr(both, other), rtol=1e-6)


def test_with_no_weight_at_all_the_loss_is_0_and_has_a_gradient_of_0(bundled: Weights) -> None:
    config = StyleConfig.of("paper", content_weight=0.0, style_weight=0.0, tv_weight=0.0)
    x = picture(9).requires_grad_(True)
    total = perceptual(Encoder(bundled), config, picture(7), picture(8))(x).total
    (gradient,) = torch.autograd.grad(total.sum(), x)
    assert total.tolist() == [0.0]
    assert torch.equal(gradient, torch.zeros_like(x))


def test_clamp_shows_the_network_the_clamped_picture_and_keeps_the_gradient(
    bundled: Weights,
) -> None:
    encoder, content, style = Encoder(bundled), picture(10), picture(11)
    outside = (3 * picture(12) - 1).requires_grad_(True)
    inside = outside.detach().clamp(0, 1).requires_grad_(True)
    assert (outside < 0).any()
    assert (outside > 1).any()
    config = StyleConfig.of("paper", clamp=True)
    plain = StyleConfig.of("paper", clamp=False)
    clamped = perceptual(encoder, config, content, style)(outside).total
    wanted = perceptual(encoder, plain, content, style)(inside).total
    # x + (clamp(x) - x) rounds in float32 by 1e-7; the loss follows by a few times that.
    assert torch.allclose(clamped, wanted, rtol=1e-5)
    (gradient,) = torch.autograd.grad(clamped.sum(), outside)
    (straight,) = torch.autograd.grad(wanted.sum(), inside)
    assert torch.linalg.norm(gradient - straight) < 1e-4 * torch.linalg.norm(straight)
    assert (gradient[outside < 0].abs() > 0).any()  # it is not cut off outside
    unclamped = perceptual(encoder, plain, content, style)(outside).total
    assert not torch.allclose(unclamped, wanted, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_losses_of_its_pictures(bundled: Weights, kind: str) -> None:
    layers = (("relu1_1", 1.0), ("relu2_1", 1.0))
    config = StyleConfig.of(
        "paper", style_loss=kind, style_layers=layers, content_layers=layers, tv_weight=1.0
    )
    loss = perceptual(Encoder(bundled, dtype=torch.float64), config, picture(13), picture(14))
    x = torch.cat([picture(15), picture(16)]).double()
    together = loss(x)
    for i in range(2):
        alone = loss(x[i : i + 1])
        for part in ("total", "content", "style", "tv"):
            value = getattr(together, part)[i]
            assert float(value) == pytest.approx(float(getattr(alone, part)[0]), rel=1e-9)


def test_one_layer_at_a_time_has_its_gradient_in_memory(bundled: Weights) -> None:
    config = StyleConfig.of("default")
    loss = perceptual(Encoder(bundled), config, picture(13), picture(14))
    x = picture(15).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.autograd.backward(loss(x).total)
    steps = {"_SecondMomentBackward": "style", "ConvolutionBackward0": "convolution"}
    order = [steps[e.name] for e in sorted(seen.events(), key=lambda e: e.id) if e.name in steps]
    assert order.count("style") == len(config.style_layers)
    assert order[:2] == ["style", "convolution"]
    assert ("style", "style") not in itertools.pairwise(order)


def test_a_white_mask_changes_nothing_and_a_half_one_looks_at_its_half(bundled: Weights) -> None:
    config = StyleConfig.of("paper", style_layers=(("relu1_1", 1.0),))
    encoder, content, style = Encoder(bundled), picture(17), picture(18)
    x = picture(19)
    free = perceptual(encoder, config, content, style)(x).style
    white = perceptual(encoder, config, content, style, torch.ones(1, 1, 32, 48))(x).style
    assert torch.allclose(white, free, rtol=1e-5)
    half = torch.zeros(1, 1, 32, 48)
    half[..., :24] = 1
    masked = perceptual(encoder, config, content, style, half)
    changed = x.clone()
    changed[..., 25:] = 0.5  # relu1_1 at column 23 sees columns 22 to 24
    assert torch.equal(masked(x).style, masked(changed).style)
    changed[..., 10] = 0.5
    assert not torch.allclose(masked(x).style, masked(changed).style, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gram", "moments"])
def test_tiling_everything_two_by_two_changes_no_loss(bundled: Weights, kind: str) -> None:
    # With circular padding a tiled picture's features are the features tiled, as long as no
    # pooling straddles an edge: sides are multiples of 16. Means over positions are then equal.
    # (Total variation is not circular and has no part in this.)
    config = StyleConfig.of("paper", style_loss=kind, content_weight=1.0)
    encoder = Encoder(bundled, padding="circular")
    pictures = [picture(seed) for seed in (20, 21, 22)]
    once, tiled = (
        perceptual(encoder, config, content, style)(x)
        for content, style, x in (pictures, [p.tile(1, 1, 2, 2) for p in pictures])
    )
    assert once.content > 0
    assert once.style > 0
    assert torch.allclose(once.content, tiled.content, rtol=1e-5, atol=0)
    assert torch.allclose(once.style, tiled.style, rtol=1e-5, atol=0)


# The quarters


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (16, 31), (100, 70)])
def test_quarters_are_all_of_the_picture_and_have_no_cut(height: int, width: int) -> None:
    weights = torch.cat(quarters(height, width, torch.empty(0, dtype=torch.float64)))
    assert weights.shape == (4, 1, height, width)
    assert torch.allclose(weights.sum(dim=0), torch.ones(1, height, width).double(), atol=1e-15)
    assert torch.allclose(weights.mean(dim=(1, 2, 3)), torch.full((4,), 0.25).double(), atol=1e-12)
    assert weights.min() >= 0
    for dim, length in ((2, height), (3, width)):
        assert weights.diff(dim=dim).abs().sum(dim).max() <= 1  # from one side down to the other
        steps = weights.diff(dim=dim)
        assert steps.numel() == 0 or steps.abs().max() <= 2 / length + 1e-12
    if min(height, width) >= 4:  # a corner is one quarter's alone
        corners = weights[:, 0, (0, 0, -1, -1), (0, -1, 0, -1)]
        assert torch.equal(corners, torch.eye(4).double())


@pytest.mark.parametrize("kind", KINDS)
def test_spread_is_the_share_of_what_each_quarter_lacks_by_itself(
    bundled: Weights, kind: str
) -> None:
    encoder = Encoder(bundled)
    config = StyleConfig(content_weight=0, style_layers=(("relu2_1", 1.0),), style_loss=kind)
    x, style = picture(1, 64, 96), picture(2, 64, 96)
    whole, apart, mixed = (
        perceptual(encoder, config, x, style, spread=share)(x).style for share in (0.0, 1.0, 0.25)
    )
    with torch.no_grad():
        found, wanted = (encoder(p, ["relu2_1"])["relu2_1"] for p in (x, style))
    target = Statistic.of(wanted, kind)
    over = energy(target, kind)
    by_hand = [
        style_loss(Statistic.of(found, kind, part), target, kind) / over
        for part in quarters(32, 48, found)
    ]
    assert float(apart) == pytest.approx(float(sum(by_hand)) / 4, rel=1e-4)
    assert float(mixed) == pytest.approx(0.75 * float(whole) + 0.25 * float(apart), rel=1e-4)
    assert float(apart) > float(whole)


def test_with_spread_a_quarter_counts_as_much_as_the_mask_leaves_of_it(bundled: Weights) -> None:
    encoder = Encoder(bundled)
    config = StyleConfig(content_weight=0, style_layers=(("relu1_1", 1.0),))
    x, style = picture(1, 64, 64), picture(2)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :16, :16] = 1  # in one quarter alone: what it lacks is what the whole lacks
    whole, apart = (
        float(perceptual(encoder, config, x, style, mask, spread=s)(x).style) for s in (0.0, 1.0)
    )
    assert apart == pytest.approx(whole, rel=1e-4)
