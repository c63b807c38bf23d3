"""transfer_style: the whole method on one page (Gatys, Ecker, Bethge 2015), coarse to fine."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylize import color, weights
from stylize.calibration import feature_scales
from stylize.config import StyleConfig
from stylize.encoder import Encoder
from stylize.errors import ConfigError, ImageReadError
from stylize.files import write_atomic
from stylize.image import MIN_SIDE, decode, encode, fit, match_size, to_image, to_srgb, to_tensor
from stylize.losses import Losses, PerceptualLoss, Statistic, relative
from stylize.optimize import Step, minimize
from stylize.weights import Weights

__all__ = ["Stage", "StyleResult", "Stylizer", "plan_stages", "transfer_style"]

_GRID = 16
"""Pixels: at multiples of this the four poolings cut nothing off."""

Picture = Image.Image | Tensor | str | Path
"""A PIL image, a tensor (1, 3, H, W) in [0, 1], or the path of a file."""

OnStep = Callable[[Step, Tensor], None]
"""Told each step and the picture there, (1, 3, H, W); may raise `Interrupted` to end it."""


@dataclass(frozen=True)
class Stage:
    """One scale: the picture's size in pixels, and its share of the evaluations."""

    size: tuple[int, int]  # width, height
    evaluations: int


@dataclass(frozen=True)
class StyleResult:
    """A finished transfer. Losses are those of the kept picture, unweighted but for `loss`."""

    image: Image.Image
    config: StyleConfig
    loss: float
    content_loss: float
    style_loss: float
    tv_loss: float
    curve: tuple[Step, ...]
    evaluations: int
    stop_reason: str  # steps, or restarted: once NaN or infinite, gone on from the best picture
    seconds: float

    def save(self, path: str | Path) -> None:
        """Write the picture, whole or not at all. Raises `OSError`, `ImageReadError`."""
        write_atomic(path, encode(self.image, Path(path).suffix, self.config.to_json()))

    def _repr_png_(self) -> bytes:
        return encode(self.image, ".png")


def plan_stages(content_size: tuple[int, int], config: StyleConfig) -> list[Stage]:
    """Sizes from coarse to fine and their evaluations, which sum to `config.steps`.

    The finest has two sevenths of them; the others, each four times cheaper than the next, share
    the rest evenly.
    """
    sizes = [fit(content_size, config.size)]
    for k in range(1, config.scales):
        longest = round(config.size / 2**k)
        if longest < config.coarsest:
            break
        sizes.insert(0, fit(content_size, longest))
    finest = config.steps if len(sizes) == 1 else round(config.steps * 2 / 7)
    coarse, extra = divmod(config.steps - finest, max(1, len(sizes) - 1))
    counts = [coarse + (i < extra) for i in range(len(sizes) - 1)] + [finest]
    return [Stage(size, count) for size, count in zip(sizes, counts, strict=True)]


def transfer_style(
    content: Picture,
    style: Picture | Sequence[Picture],
    config: StyleConfig = StyleConfig(),
    *,
    init: Picture | None = None,
    mask: Picture | None = None,
    device: str = "auto",
    dtype: str = "auto",
    on_step: OnStep | None = None,
) -> StyleResult:
    """Paint a photograph in the style of a picture (or of several, see `config.style_blend`).

    Loads the backbone each time; for many pictures keep a `Stylizer`. `init` and `mask` may be
    given as pictures, or as paths in the config. Raises `StylizeError` in one of its forms.
    """
    found = weights.load(weights.find(config.backbone))
    stylizer = Stylizer(found, device=device, dtype=dtype)
    return stylizer.transfer(content, style, config, init=init, mask=mask, on_step=on_step)


def choose_device(name: str = "auto") -> torch.device:
    """cuda, else mps, else cpu. Raises `ConfigError` for one that this machine has not."""
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in have.items() if there)
    if not have.get(name.split(":")[0], False):
        there = ", ".join(device for device, is_there in have.items() if is_there)
        raise ConfigError(f"device is {name!r}; torch can use {there} here")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of weights and features: bfloat16 where the hardware multiplies it, else float32.

    Raises `ConfigError` for a type that is none of float32, bfloat16, float16, float64.
    """
    named = {n: getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64")}
    if name in named:
        return named[name]  # type: ignore[no-any-return]
    if name != "auto":
        raise ConfigError(f"dtype is {name!r}; it must be auto or {' or '.join(named)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class Stylizer:
    """A backbone ready for many transfers; encoders and style targets are kept between them."""

    def __init__(self, weights: Weights, *, device: str = "auto", dtype: str = "auto") -> None:
        self.weights = weights
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self._encoders: dict[tuple[str, str, str], Encoder] = {}
        self._styles: dict[tuple[object, ...], dict[str, Statistic]] = {}

    def transfer(
        self,
        content: Picture,
        style: Picture | Sequence[Picture],
        config: StyleConfig = StyleConfig(),
        *,
        init: Picture | None = None,
        mask: Picture | None = None,
        on_step: OnStep | None = None,
    ) -> StyleResult:
        """Like `transfer_style`, with this backbone."""
        if config.backbone not in ("auto", self.weights.backbone):
            raise ConfigError(f"backbone is {config.backbone!r}, not {self.weights.backbone!r}")
        began = time.perf_counter()
        photo = _picture(content)
        several = style if isinstance(style, Sequence) and not isinstance(style, str) else [style]
        paintings = [_picture(one) for one in several]
        start_from = init if init is not None else config.init_path or None
        mask = mask if mask is not None else config.mask or None
        mask_picture = None if mask is None else _picture(mask).convert("L")
        start_picture = None if start_from is None else _picture(start_from)

        curve: list[Step] = []
        result = before = None
        restarts = 0
        for stage in (stages := plan_stages(photo.size, config)):
            frame = _Frame(stage.size, config.padding == "replicate")
            target = self._tensor(match_size(photo, stage.size))
            styles = [self._style(one, target, stage, config) for one in paintings]
            if config.preserve_color == "luminance":
                target = color.luminance(target)
            weight = None
            if mask_picture is not None:
                weight = self._tensor(match_size(mask_picture, stage.size))
            start = self._start(config, target, styles[0], start_picture, weight)
            if result is not None and before is not None:
                # Coarse to fine: what the coarser picture gained over its own start is added to
                # the finer start, so that the photograph's fine detail is kept. Noise has none.
                keep = config.init != "noise"
                gained = result - before if keep else result
                grown = F.interpolate(gained, start.shape[-2:], mode="bicubic")
                start_here = start + grown if keep else grown
            else:
                start_here = start
            loss = self._loss(
                config,
                frame.pad(target),
                styles,
                None if weight is None else frame.pad(weight),
                1.0 if stage is stages[-1] else config.coarse_content,
            )

            def record(losses: Losses, x: Tensor, frame: _Frame = frame) -> None:
                step = _step(len(curve) + 1, began, losses, config)
                curve.append(step)
                if on_step:
                    on_step(step, frame.crop(x))

            minimum = minimize(
                loss,
                frame.pad(start_here),
                evaluations=stage.evaluations,
                optimizer=config.optimizer,
                history=config.history,
                learning_rate=config.learning_rate,
                on_step=record,
            )
            restarts += minimum.restarts
            result, before = frame.crop(minimum.image), start
            if config.clamp:
                result = result.clamp(0, 1)

        assert result is not None
        final = _step(len(curve), began, minimum.losses, config)
        picture = self._finish(result, photo, stages[-1].size, weight, config)
        return StyleResult(
            image=picture,
            config=config,
            loss=final.loss,
            content_loss=final.content_loss,
            style_loss=final.style_loss,
            tv_loss=final.tv_loss,
            curve=tuple(curve),
            evaluations=len(curve),
            stop_reason="restarted" if restarts else "steps",
            seconds=time.perf_counter() - began,
        )

    def _tensor(self, picture: Image.Image) -> Tensor:
        return to_tensor(picture).to(self.device, self._pixel_dtype)

    @property
    def _pixel_dtype(self) -> torch.dtype:
        """What is optimised stays in full precision, whatever the network computes in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def encoder(self, config: StyleConfig) -> Encoder:
        """The encoder for a config's pooling, padding and feature scale; made once."""
        key = (config.pooling, config.padding, config.feature_scale)
        if key not in self._encoders:
            self._encoders[key] = Encoder(
                self.weights,
                pooling=config.pooling,
                padding=config.padding,
                scales=feature_scales(self.weights, config.pooling, config.feature_scale),
                device=self.device,
                dtype=self.dtype,
            )
        return self._encoders[key]

    def _style(
        self, painting: Image.Image, target: Tensor, stage: Stage, config: StyleConfig
    ) -> Tensor:
        """A style picture at a stage's scale, its colours replaced where they are not wanted."""
        size = fit(painting.size, max(16, round(max(stage.size) * config.style_scale)))
        if min(size) < MIN_SIDE:  # a panorama at a coarse scale
            size = fit(size, math.ceil(max(size) * MIN_SIDE / min(size)))
        style = self._tensor(match_size(painting, size))
        if config.preserve_color == "histogram":
            return color.recolor(style, target)
        if config.preserve_color == "luminance":
            return color.keep_luminance(style, target)
        return style

    def _start(
        self,
        config: StyleConfig,
        target: Tensor,
        style: Tensor,
        picture: Image.Image | None,
        weight: Tensor | None,
    ) -> Tensor:
        size = (target.shape[-1], target.shape[-2])
        if picture is not None:
            start = self._tensor(match_size(picture, size))
        elif config.init == "noise":
            generator = torch.Generator().manual_seed(config.seed)  # the CPU's: same on any device
            noise = torch.randn(target.shape, generator=generator, dtype=torch.float32)
            mean = torch.tensor(self.weights.mean).view(1, 3, 1, 1)
            return (mean + config.noise * noise).to(target)
        elif config.init == "style":
            start = F.interpolate(style, (size[1], size[0]), mode="bicubic", antialias=True)
        elif config.init == "matched" and config.weights()[1]:
            start = color.transport(target, style)
        else:
            start = target
        return start if weight is None else weight * start + (1 - weight) * target

    def _loss(
        self,
        config: StyleConfig,
        target: Tensor,
        styles: list[Tensor],
        weight: Tensor | None,
        content_factor: float,
    ) -> PerceptualLoss:
        encoder = self.encoder(config)
        blend = config.style_blend or tuple(1.0 for _ in styles)
        if len(blend) != len(styles):
            raise ConfigError(f"style_blend has {len(blend)} weights for {len(styles)} styles")
        content_weight, style_weight = config.weights()
        with torch.no_grad():
            content: Mapping[str, Tensor] = {}
            if content_weight and (layers := relative(config.content_layers)):
                content = encoder(target, layers)
            style: dict[str, Statistic] = {}
            if style_weight:
                shares = [share / sum(blend) for share in blend]
                style = _blend([self._statistics(config, s) for s in styles], shares)
        return PerceptualLoss(encoder, config, content, style, weight, content_factor)

    def _statistics(self, config: StyleConfig, style: Tensor) -> dict[str, Statistic]:
        """A style's targets, kept: in a batch many photographs share a style."""
        layers = relative(config.style_layers)
        encoder = self.encoder(config)
        pixels = hashlib.blake2b(style.cpu().numpy().tobytes()).digest()
        key = (pixels, tuple(style.shape), tuple(sorted(layers)), config.style_loss, id(encoder))
        if key not in self._styles:
            if len(self._styles) >= 32:  # the oldest goes: some 2 MB each
                del self._styles[next(iter(self._styles))]
            features = encoder(style, layers)
            self._styles[key] = {
                layer: Statistic.of(features[layer], config.style_loss) for layer in layers
            }
        return self._styles[key]

    def _finish(
        self,
        result: Tensor,
        photo: Image.Image,
        size: tuple[int, int],
        weight: Tensor | None,
        config: StyleConfig,
    ) -> Image.Image:
        """Colours and unpainted parts of the photograph put back; clamped and rounded."""
        original = self._tensor(match_size(photo, size))
        if config.preserve_color == "luminance":
            result = color.restore_color(result.clamp(0, 1), original)
        if weight is not None:
            result = weight * result + (1 - weight) * original
        return to_image(result)


class _Frame:
    """A picture's size, and the larger one on the grid that it is worked on, edges repeated."""

    def __init__(self, size: tuple[int, int], on_grid: bool) -> None:
        self.width, self.height = size
        self.right = -self.width % _GRID if on_grid else 0
        self.bottom = -self.height % _GRID if on_grid else 0

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.right, 0, self.bottom), mode="replicate")

    def crop(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


def _picture(source: Picture) -> Image.Image:
    if isinstance(source, Image.Image):
        return source if source.mode == "RGB" else to_srgb(source)
    if isinstance(source, Tensor):
        return to_image(source)
    try:
        return decode(Path(source).read_bytes())
    except OSError as error:
        raise ImageReadError(f"{source} cannot be read: {error.strerror or error}") from error


def _step(number: int, began: float, losses: Losses, config: StyleConfig) -> Step:
    content_weight, style_weight = config.weights()
    content, style, tv = (float(part[0]) for part in (losses.content, losses.style, losses.tv))
    loss = content_weight * content + style_weight * style + config.tv_weight * tv
    return Step(number, time.perf_counter() - began, loss, content, style, tv)


def _blend(statistics: list[dict[str, Statistic]], shares: list[float]) -> dict[str, Statistic]:
    if len(statistics) == 1:
        return statistics[0]

    def mix(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        if not there:
            return None
        return torch.stack([w * p for w, p in zip(shares, there, strict=True)]).sum(dim=0)

    mixed = {}
    for layer in statistics[0]:
        gram = mix([s[layer].gram for s in statistics])
        assert gram is not None
        mixed[layer] = Statistic(gram, mix([s[layer].mean for s in statistics]))
    return mixed
