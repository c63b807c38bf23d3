"""The optimiser: torch's L-BFGS where that is sound, no units, one memory a row, the best kept."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stylize.config import StyleConfig
from stylize.encoder import Encoder
from stylize.errors import DivergedError, Interrupted
from stylize.losses import Losses, PerceptualLoss, Statistic
from stylize.optimize import (
    LBFGS,
    LONGEST_STEP,
    PLATEAU_WINDOW,
    STALLED_AFTER,
    Minimum,
    minimize,
)
from stylize.weights import Weights

FIRST_RMS = 2 / 255  # METHOD: "first step of RMS 2/255"


def losses(total: Tensor) -> Losses:
    return Losses(total, total, 0 * total, 0 * total)


def rosenbrock(x: Tensor) -> Tensor:
    """sum (1 - x_i)^2 + 100 (x_i+1 - x_i^2)^2 of (B, n) -> (B,)"""
    a, b = x[:, :-1], x[:, 1:]
    return ((1 - a) ** 2 + 100 * (b - a**2) ** 2).sum(dim=1)


def bowl(seed: int, factor: float = 1.0) -> Callable[[Tensor], Losses]:
    """A convex quartic over (B, 3, 4, 4) with curvatures from 1 to 100."""
    generator = torch.Generator().manual_seed(1000 + seed)
    curvature = torch.logspace(0, 2, 48, dtype=torch.float64)
    centre = torch.rand(48, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64)).Q

    def loss(x: Tensor) -> Losses:
        d = (x.flatten(1) - centre) @ turn
        return losses(factor * (curvature * (d**2 + d**4)).mean(dim=1))

    return loss


def start(rows: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


def visited(loss: Callable[[Tensor], Losses], x: Tensor, **options: Any) -> list[Tensor]:
    """All the pictures looked at."""
    seen: list[Tensor] = []
    minimize(loss, x, on_evaluation=lambda _, x: seen.append(x.clone()), **options)
    return seen


@pytest.mark.parametrize("history", [5, 20])
@pytest.mark.parametrize("size", [2, 10])
def test_lbfgs_is_torchs_for_20_rosenbrock_steps(history: int, size: int) -> None:
    begin = torch.linspace(-1.2, 1.0, size, dtype=torch.float64)
    theirs = begin.clone().requires_grad_(True)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [theirs], lr=1, max_iter=1, history_size=history, tolerance_grad=0, tolerance_change=0
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = rosenbrock(theirs[None]).sum()
        torch.autograd.backward(value)
        return value.item()

    ours = begin[None].clone()
    lbfgs = LBFGS(history, first_step=None, longest_step=None)
    for _ in range(20):
        optimizer.step(closure)
        x = ours.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(rosenbrock(x).sum(), x)
        ours = ours + lbfgs.step(gradient)
        # Without line search both wander far and rounding grows from step to step; it starts at
        # 1e-16, and 1e-9 is well below what a wrong formula would show.
        assert torch.allclose(ours[0], theirs.detach(), rtol=1e-9, atol=1e-12)
    assert (ours[0] - begin).abs().max() > 0.1


def test_lbfgs_solves_a_quadratic_bowl_in_many_dimensions() -> None:
    curvature = torch.logspace(0, 2, 30, dtype=torch.float64)
    x = torch.ones(1, 30, dtype=torch.float64)
    lbfgs = LBFGS(20, longest_step=None)
    for _ in range(100):
        x = x + lbfgs.step(curvature * x)
    # Gradient descent with the best fixed step shrinks by (100-1)/(100+1) a step, to 0.14.
    assert x.abs().max() < 1e-6


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_the_loss_times_a_factor_gives_the_same_iterates(factor: float) -> None:
    plain = visited(bowl(1), start(), evaluations=30)
    scaled = visited(bowl(1, factor), start(), evaluations=30)
    assert (plain[-1] - plain[0]).abs().max() > 0.1
    # float64 rounding, amplified over 30 steps.
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("power", [20, -20])
def test_a_perceptual_loss_times_a_power_of_two_gives_the_very_same_pictures(
    bundled: Weights, power: int
) -> None:
    # 2^20 is about 1e6. Multiplying by a power of two is exact, so in float32 not one bit may
    # differ: any absolute threshold on the way would show.
    encoder = Encoder(bundled)
    generator = torch.Generator().manual_seed(2)
    content, style = (torch.rand(1, 3, 32, 32, generator=generator) for _ in range(2))

    def run(factor: float) -> list[Tensor]:
        config = StyleConfig.of(
            "paper",
            content_weight=factor,
            style_weight=4 * factor,
            content_layers=(("relu3_1", 1.0),),
            style_layers=(("relu1_1", 1.0), ("relu2_1", 1.0)),
        )
        with torch.no_grad():
            targets = encoder(content, ["relu3_1"])
            features = encoder(style, ["relu1_1", "relu2_1"])
        statistics = {name: Statistic.of(f, "gram") for name, f in features.items()}
        loss = PerceptualLoss(encoder, config, targets, statistics)
        return visited(loss, content, evaluations=15)

    plain, scaled = run(1.0), run(2.0**power)
    assert not torch.equal(plain[0], plain[-1])
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_batch_gives_what_separate_runs_give(optimizer: str) -> None:
    x = start(rows=4, seed=3)
    x[2] = x[2] * 1e-3  # rows far apart in scale
    together = minimize(bowl(4), x, evaluations=20, optimizer=optimizer)
    for i in range(4):
        alone = minimize(bowl(4), x[i : i + 1], evaluations=20, optimizer=optimizer)
        assert torch.allclose(together.image[i], alone.image[0], rtol=0, atol=1e-6)
        assert float(together.losses.total[i]) == pytest.approx(
            float(alone.losses.total[0]), rel=1e-6
        )


def test_a_row_without_accepted_pair_goes_on_with_first_steps() -> None:
    # |x| has a constant gradient: y = 0, so no pair is ever accepted; the other row's are.
    def loss(x: Tensor) -> Losses:
        first, second = x[:1].flatten(1), x[1:].flatten(1)
        return losses(torch.cat([first.abs().mean(dim=1), second.square().mean(dim=1)]))

    x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    seen = visited(loss, x, evaluations=6)
    for k, image in enumerate(seen):
        # Each first step has RMS 2/255 and, all gradients being equal, moves each value by it.
        assert torch.allclose(image[0], x[0] - k * FIRST_RMS, rtol=0, atol=1e-12)
    # x^2 is solved by its first pair: the third picture is the minimum, but for the longest step.
    moved = 0.5 - FIRST_RMS - LONGEST_STEP
    assert torch.allclose(seen[2][1], torch.full_like(x[1], moved), rtol=0, atol=1e-12)


def test_a_refused_pair_pushes_out_no_other_in_any_row() -> None:
    # Gradients by table: y_k = g_k+1 - g_k is along the step (accepted) or against it (refused).
    curvature = torch.tensor([1, 2, -1, 3, -1, -1, 2, 1, -1, 2], dtype=torch.float64)

    def steps(rows: list[int], history: int) -> Tensor:
        """Row 1 refuses where the table is negative, row 0 two evaluations later."""
        lbfgs = LBFGS(history, longest_step=None)
        gradient = start(rows=2, seed=5).flatten(1)[rows]
        taken = []
        for k in range(10):
            taken.append(lbfgs.step(gradient))
            factor = torch.stack([curvature[k - 2], curvature[k]])[rows][:, None]
            spread = torch.linspace(0.5, 1.5, 48, dtype=torch.float64)
            gradient = gradient + factor * spread * taken[-1]
        return torch.stack(taken, dim=1)  # (rows, 10, n)

    together = steps([0, 1], 3)
    for row in range(2):
        assert torch.allclose(together[row], steps([row], 3)[0], rtol=1e-9, atol=1e-15)
    assert not torch.allclose(together, steps([0, 1], 2))  # the third pair is in use


def test_at_a_point_without_slope_nothing_moves() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    seen = visited(lambda x: losses((x - 0.5).square().mean(dim=(1, 2, 3))), x, evaluations=5)
    assert all(torch.equal(image, x) for image in seen)


def test_the_first_step_has_rms_2_over_255_and_points_down_the_gradient() -> None:
    gradient = torch.randn(2, 48, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    gradient[1] *= 1e12  # whatever its size
    step = LBFGS(20).step(gradient)
    rms = step.square().mean(dim=1).sqrt()
    assert torch.allclose(rms, torch.full((2,), FIRST_RMS, dtype=torch.float64), rtol=1e-12)
    cosine = torch.nn.functional.cosine_similarity(step, -gradient, dim=1)
    assert torch.allclose(cosine, torch.ones(2, dtype=torch.float64), rtol=1e-12)


def test_no_step_is_longer_than_the_longest() -> None:
    # A bowl so flat that the first pair asks for a step to 0.5 at once.
    x = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    seen = visited(lambda x: losses(x.square().mean(dim=(1, 2, 3))), x, evaluations=15)
    steps = [float((b - a).square().mean().sqrt()) for a, b in itertools.pairwise(seen)]
    assert max(steps) <= LONGEST_STEP * (1 + 1e-12)
    assert steps[1] == pytest.approx(LONGEST_STEP)
    assert float(seen[-1].abs().max()) < 1e-6  # shorter steps still end in the minimum


def test_history_limits_what_is_remembered() -> None:
    short, long = (visited(bowl(7), start(), evaluations=8, history=n) for n in (2, 20))
    # Two pairs are there after three steps: up to the fourth picture nothing can differ.
    assert all(torch.equal(a, b) for a, b in zip(short[:4], long[:4], strict=True))
    assert not torch.allclose(short[4], long[4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_loss_falls_and_the_start_is_left_alone(optimizer: str) -> None:
    x = start(seed=8)
    before = x.clone()
    minimum = minimize(bowl(8), x, evaluations=40, optimizer=optimizer)
    assert torch.equal(x, before)
    assert not minimum.image.requires_grad
    assert float(minimum.losses.total[0]) < 0.2 * float(bowl(8)(x).total[0])


def test_adam_moves_each_value_by_the_learning_rate_first_and_stays_in_range() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)

    def rising(x: Tensor) -> Losses:
        return losses(-x.mean(dim=(1, 2, 3)))

    seen = visited(rising, x, evaluations=8, optimizer="adam", learning_rate=0.125)
    # Adam's first step is lr * g/|g|, and so is each while the gradient stays the same.
    assert torch.allclose(seen[1], x + 0.125, atol=1e-5)
    assert torch.allclose(seen[3], x + 0.375, atol=1e-5)
    assert torch.equal(seen[-1], torch.ones_like(x))  # clamped after the fourth


def test_the_best_picture_is_kept_row_by_row() -> None:
    # Losses by evaluation; the first row is best at its second, the second at its fourth.
    table = torch.tensor([[5.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 2.0]])
    count = 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        value = table[count] + 0 * x.flatten(1).sum(dim=1) + 1e-9 * x.flatten(1).sum(dim=1)
        count += 1
        return Losses(value, 10 * value, 100 * value, 1000 * value)

    seen: list[Tensor] = []
    minimum = minimize(
        loss,
        torch.rand(2, 3, 2, 2),
        evaluations=5,
        on_evaluation=lambda _, x: seen.append(x.clone()),
    )
    assert minimum.losses.total.tolist() == pytest.approx([1.0, 1.0])
    assert minimum.losses.tv.tolist() == pytest.approx([1000.0, 1000.0])
    assert torch.equal(minimum.image[0], seen[1][0])
    assert torch.equal(minimum.image[1], seen[3][1])
    assert not torch.equal(seen[1][0], seen[3][0])


def broken(at: set[int], value: float = float("nan")) -> Callable[[Tensor], Losses]:
    """A bowl whose n-th evaluations, from 1, are not finite."""
    count = 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        count += 1
        total = bowl(9)(x).total
        return losses(total * value if count in at else total)

    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_loss_that_is_not_finite_restarts_once_from_the_best(
    optimizer: str, value: float
) -> None:
    x = start(seed=10)
    seen: list[tuple[float, Tensor]] = []
    minimum = minimize(
        broken({6}, value),
        x,
        evaluations=12,
        optimizer=optimizer,
        on_evaluation=lambda losses, x: seen.append((float(losses.total[0]), x.clone())),
    )
    assert minimum.restarts == 1
    assert len(seen) == 11  # the sixth was not told
    best = min(seen[:5], key=lambda pair: pair[0])[1]
    assert torch.equal(seen[5][1], best)  # the seventh evaluation is of the best so far
    # With an empty memory: the next pictures are those of a fresh start there.
    fresh = visited(bowl(9), best, evaluations=6, optimizer=optimizer)
    for (_, a), b in zip(seen[5:], fresh, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_a_second_loss_that_is_not_finite_raises() -> None:
    with pytest.raises(DivergedError, match="became nan at evaluation 9"):
        minimize(broken({6, 9}), start(seed=10), evaluations=12)


def test_a_start_that_is_not_finite_raises_at_once() -> None:
    with pytest.raises(DivergedError, match="at evaluation 1"):
        minimize(broken({1}), start(seed=10), evaluations=12)


def test_a_gradient_that_is_not_finite_counts_as_divergence() -> None:
    def root(x: Tensor) -> Losses:  # sqrt has no slope at 0
        return losses((x.flatten(1) - 0.5).abs().sum(dim=1).sqrt())

    with pytest.raises(DivergedError):
        minimize(root, torch.full((1, 3, 2, 2), 0.5), evaluations=3)


def test_what_the_callback_raises_ends_it() -> None:
    calls = 0

    def stop(_: Losses, x: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        minimize(bowl(11), start(), evaluations=10, on_evaluation=stop)
    assert calls == 3


def test_evaluations_counts_calls_of_the_loss() -> None:
    count = 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        count += 1
        return bowl(12)(x)

    assert minimize(loss, start(), evaluations=7).evaluations == count == 7


def test_no_evaluations_give_the_start_and_its_loss() -> None:
    x = start(seed=13)
    minimum: Minimum = minimize(bowl(13), x, evaluations=0)
    assert torch.equal(minimum.image, x)
    assert float(minimum.losses.total[0]) == float(bowl(13)(x).total[0])
    assert (minimum.evaluations, minimum.restarts) == (0, 0)


def test_a_row_that_diverges_takes_no_other_with_it() -> None:
    """The second of three rows is not finite at its sixth and ninth evaluation."""
    count = 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        count += 1
        total = bowl(14)(x).total
        return losses(total * torch.tensor([1, math.nan if count in (6, 9) else 1, 1]))

    x = start(rows=3, seed=14)
    together = minimize(loss, x, evaluations=20)
    assert together.ended == ("steps", "diverged", "steps")
    for row in (0, 2):
        alone = minimize(bowl(14), x[row : row + 1], evaluations=20)
        assert torch.allclose(together.image[row], alone.image[0], rtol=0, atol=1e-12)
    # Of the second the best of its first eight is kept.
    assert float(together.losses.total[1]) == float(bowl(14)(together.image).total[1])


def test_each_row_ends_on_its_own_plateau_and_keeps_its_best() -> None:
    """Losses by evaluation n: 1 + 1/n has fallen by 1 % over 15 evaluations until n = 32."""
    rate = torch.tensor([1.0, 100.0], dtype=torch.float64)  # the second row falls on and on
    count = 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        count += 1
        return losses(1 + rate / count + 0 * x.flatten(1).sum(dim=1))

    seen: list[Losses] = []
    minimum = minimize(
        loss,
        start(rows=2),
        evaluations=60,
        plateau=0.01,
        on_evaluation=lambda losses, _: seen.append(losses),
    )

    def flat(n: int) -> bool:
        return (1 / (n - PLATEAU_WINDOW) - 1 / n) < 0.01 * (1 + 1 / (n - PLATEAU_WINDOW))

    end = next(n for n in range(PLATEAU_WINDOW + 1, 60) if flat(n))
    assert minimum.ended == ("plateau", "steps")
    assert [n for n, told in enumerate(seen, 1) if not told.total[0].isnan()][-1] == end
    assert float(minimum.losses.total[0]) == pytest.approx(1 + 1 / end)
    assert float(minimum.losses.total[1]) == pytest.approx(1 + 100 / 60)


def test_a_row_that_finds_nothing_better_is_called_stalled_and_ends() -> None:
    count = 0

    def loss(x: Tensor) -> Losses:  # the third evaluation is the best for ever
        nonlocal count
        count += 1
        return losses((1 + abs(count - 3)) + bowl(15)(x).total * 0)

    minimum = minimize(loss, start(seed=15), evaluations=500)
    assert minimum.ended == ("stalled",)
    assert minimum.evaluations == 3 + STALLED_AFTER
    assert float(minimum.losses.total[0]) == 1


class _Waits(TorchFunctionMode):
    """Counts what makes the host wait for a device: numbers and copies that leave it."""

    NAMES = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__")
    waits = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.waits += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_host_waits_for_the_device_only_where_it_looks(
    bundled: Weights, optimizer: str
) -> None:
    encoder = Encoder(bundled)
    config = StyleConfig.of("draft", style_layers=(("relu2_1", 1.0),))
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(16))
    with torch.no_grad():
        features = encoder(pictures, ["relu4_2", "relu2_1"])
    style = {"relu2_1": Statistic.of(features["relu2_1"].flip(0), "gram")}
    loss = PerceptualLoss(encoder, config, {"relu4_2": features["relu4_2"]}, style)

    def waits(evaluations: int) -> int:
        mode = _Waits()
        with mode:
            minimize(loss, pictures, evaluations=evaluations, look_every=10, optimizer=optimizer)
        return mode.waits

    assert waits(9) == waits(2) > 0  # one look, at the end
    assert waits(20) > waits(10)


def teller(values: list[float]) -> Callable[[Losses, Tensor], None]:
    """Puts the losses that it is told at the end of a list."""

    def tell(losses: Losses, _: Tensor) -> None:
        values.extend(losses.total.tolist())

    return tell


def test_looking_seldom_changes_nothing_but_when_it_is_told() -> None:
    x = start(rows=2, seed=17)
    told: dict[int, list[float]] = {1: [], 7: []}
    images = []
    for every, values in told.items():
        minimum = minimize(
            bowl(17),
            x,
            evaluations=30,
            look_every=every,
            on_evaluation=teller(values),
        )
        images.append(minimum.image)
    assert len(told[1]) == 60
    assert told[1] == told[7]
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize("every", [1, 10])
def test_one_huge_loss_is_got_over_however_seldom_is_looked(every: int) -> None:
    smooth, count = bowl(19), 0

    def loss(x: Tensor) -> Losses:
        nonlocal count
        count += 1
        return smooth(x).map(lambda part: part * (1e19 if count == 6 else 1))

    minimum = minimize(loss, start(seed=19).float(), evaluations=40, look_every=every)
    assert minimum.ended == ("steps",)
    assert minimum.losses.total.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_on_the_gpu_waits_for_it(bundled: Weights) -> None:
    encoder = Encoder(bundled, device="cuda", dtype=torch.bfloat16)
    config = StyleConfig.of("draft", style_layers=(("relu2_1", 1.0),))
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(18)).cuda()
    with torch.no_grad():
        features = encoder(pictures, ["relu4_2", "relu2_1"])
    style = {"relu2_1": Statistic.of(features["relu2_1"].flip(0), "gram")}
    loss = PerceptualLoss(encoder, config, {"relu4_2": features["relu4_2"]}, style)
    minimize(loss, pictures, evaluations=3)  # libraries start
    waited: list[int] = []

    def guarded(x: Tensor) -> Losses:
        # From the second evaluation to the last before the look nothing may wait.
        torch.cuda.set_sync_debug_mode("error" if len(waited) < 8 else "default")
        waited.append(1)
        return loss(x)

    try:
        minimize(guarded, pictures, evaluations=10, look_every=10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waited) == 10
