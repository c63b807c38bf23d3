"""transfer_style: the whole method on one page (Gatys, Ecker, Bethge 2015), coarse to fine."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylize import color, heap, weights
from stylize.calibration import feature_scales
from stylize.config import AT_ONCE, StyleConfig
from stylize.device import choose_device, choose_dtype, undisturbed
from stylize.encoder import GRID, Encoder
from stylize.errors import ConfigError, DivergedError
from stylize.files import write_atomic
from stylize.image import (
    encode,
    match_size,
    readable,
    scaled,
    style_size,
    to_image,
    to_tensor,
)
from stylize.inputs import Picture, read_picture
from stylize.losses import Losses, PerceptualLoss, Statistic, relative
from stylize.optimize import minimize
from stylize.stages import Stage, plan_stages
from stylize.tiles import TiledLoss, features_in_tiles, statistics_in_tiles
from stylize.weights import Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LOOK_EVERY",
    "Frame",
    "Request",
    "Step",
    "StyleResult",
    "Stylizer",
    "transfer_style",
]

_TILE = 1024
"""Side of a tile, pixels."""

_MEMORY = 2 * 10**9
"""Bytes that L-BFGS's memory may take."""

_FEW = 128**2
"""Pixels of the largest picture whose features are never in half precision: over so few positions
its roundings do not average out, and the coarsest scale decides where strokes go."""

_THREADS = 8
"""That make pictures smaller at once."""

LOOK_EVERY = 10
"""Evaluations on a GPU between two looks of the host at their losses."""


@dataclass(frozen=True)
class Step:
    """One evaluation of loss and gradient. Losses are unweighted but for `loss`, their sum with
    the configured weights."""

    step: int  # evaluations so far, over all scales
    seconds: float  # since the start of the transfer
    loss: float
    content_loss: float
    style_loss: float
    tv_loss: float


OnStep = Callable[[Step, Tensor], None]
"""Told each step and the picture there, (1, 3, H, W); may raise `Interrupted` to end it. On a GPU
several steps are told in one go, with the picture of the latest."""


@dataclass(frozen=True)
class Request:
    """One picture to be made: what goes in, and its own callback."""

    content: Picture
    style: Picture | Sequence[Picture]
    config: StyleConfig = StyleConfig()
    init: Picture | None = None
    mask: Picture | None = None
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, StyleConfig):
            raise ConfigError(
                f"config is {self.config!r}; it must be a StyleConfig, like StyleConfig.of('draft')"
            )

    def styles(self) -> Sequence[Picture]:
        """Of the one or the several that were given."""
        style = self.style
        return style if isinstance(style, Sequence) and not isinstance(style, str) else [style]

    def load(self) -> None:
        """Read the pixels of what was opened only: several requests may have one file open, which
        threads cannot read at once. Raises `ImageReadError`."""
        for picture in (self.content, *self.styles(), self.init, self.mask):
            if isinstance(picture, Image.Image):
                with readable():
                    picture.load()


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
    stop_reason: str  # steps, plateau, stalled; restarted: was NaN, gone on from the best picture
    seconds: float  # of the whole batch that it was made in
    notes: str = ""  # what was done with less to fit the memory

    def save(self, path: str | Path) -> None:
        """Write the picture, whole or not at all. Raises `OSError`, `ImageError`."""
        write_atomic(path, encode(self.image, Path(path).suffix, self.config.to_json()))

    def plot(self) -> Figure:
        """Loss and its weighted parts over the evaluations, as a matplotlib figure, which shows
        itself in a notebook."""
        from stylize.plot import plot_result

        return plot_result(self)

    def _repr_png_(self) -> bytes:
        return encode(self.image, ".png")


def transfer_style(
    content: Picture,
    style: Picture | Sequence[Picture],
    config: StyleConfig = StyleConfig(),
    *,
    init: Picture | None = None,
    mask: Picture | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    on_step: OnStep | None = None,
) -> StyleResult:
    """Paint a photograph in the style of a picture (or of several, see `config.style_blend`).

    Loads the backbone each time; for many pictures keep a `Stylizer`. `init` and `mask` may be
    given as pictures, or as paths in the config. Raises `StylizeError` in one of its forms.
    """
    request = Request(content, style, config, init, mask, on_step)
    stylizer = Stylizer(request.config.backbone, device=device, dtype=dtype)
    return stylizer.transfer(content, style, config, init=init, mask=mask, on_step=on_step)


def _load(backbone: str) -> Weights:
    """The weights of a backbone by name; may download. Raises `ConfigError`, `WeightsError`."""
    return weights.load(weights.find(StyleConfig(backbone=backbone).backbone))


class Stylizer:
    """A backbone ready for many transfers; encoders and style targets are kept between them.

    `weights`: a backbone's name, which may be downloaded, or what `stylize.weights.load` gave.
    `tile`: pictures larger than 2048x2048 pixels are seen in tiles of about so many pixels a
    side, 0 chooses; any other number is the side whatever the picture's size. `compile`: the
    network goes through `torch.compile`, with CUDA graphs on a GPU: worth its minute of compiling
    for many pictures of one size.
    """

    def __init__(
        self,
        weights: Weights | str = "auto",
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        tile: int = 0,
        compile: bool = False,
    ) -> None:
        self.device = choose_device(device)  # before anything is downloaded
        self.dtype = choose_dtype(dtype, self.device)
        self.weights = weights if isinstance(weights, Weights) else _load(weights)
        self.tile = tile
        self.compile = compile
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._styles: dict[tuple[object, ...], dict[str, Statistic]] = {}
        if self.device.type == "cuda":
            # Products of float32 in TF32: exact for features in bfloat16, of others 11 bits.
            torch.set_float32_matmul_precision("high")

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
        (result,) = self.transfer_batch([Request(content, style, config, init, mask, on_step)])
        if isinstance(result, DivergedError):
            raise result
        return result

    @heap.kept()
    def transfer_batch(self, requests: Sequence[Request]) -> list[StyleResult | DivergedError]:
        """Pictures of one size and one objective, optimised together: on a GPU that one alone
        does not fill, this is faster. Each has its own L-BFGS memory and its own end, so that it
        becomes what it becomes alone, and one that diverges takes no other with it.

        Raises `ConfigError` where sizes, settings or the number of styles differ.
        """
        with undisturbed(self.device):
            return self._paint(requests)

    def _paint(self, requests: Sequence[Request]) -> list[StyleResult | DivergedError]:
        """`transfer_batch`."""
        if not requests:
            return []
        began = time.perf_counter()
        config = requests[0].config
        if config.backbone not in ("auto", self.weights.backbone):
            raise ConfigError(f"backbone is {config.backbone!r}, not {self.weights.backbone!r}")
        for request in requests:
            request.load()
        with ThreadPoolExecutor(_THREADS) as pool:  # Pillow resizes outside the interpreter
            each = pool.map if len(requests) > 1 else map
            sitters = list(each(functools.partial(_Sitter, began=began), requests))
        stages = sitters[0].stages
        for sitter in sitters[1:]:
            _check_alike(sitters[0], sitter)
        result = before = None
        for stage in stages:
            frame = Frame(stage.size, config.padding == "replicate")
            side = self._side(stage.size)
            shared: dict[object, _Style] = {}
            scenes = [self._scene(sitter, stage, shared) for sitter in sitters]
            start = torch.cat([scene.start for scene in scenes])
            start_here = start
            if result is not None and before is not None:
                # Coarse to fine: what the coarser picture gained over its own start is added to
                # the finer start, so that the photograph's fine detail is kept. Noise has none.
                keep = config.init != "noise"
                gained = result - before if keep else result
                grown = F.interpolate(gained, start.shape[-2:], mode="bicubic")
                start_here = start + grown if keep else grown
            minimum = minimize(
                self._loss(config, scenes, frame, side, stage),
                frame.pad(start_here),
                evaluations=stage.evaluations,
                optimizer=config.optimizer,
                history=_history(config, stage),
                learning_rate=config.learning_rate,
                plateau=config.plateau,
                look_every=1 if self.device.type == "cpu" else LOOK_EVERY,
                record=self._recordable(config, side),
                on_evaluation=functools.partial(_tell, sitters, frame),
            )
            for sitter, end in zip(sitters, minimum.ended, strict=True):
                sitter.end(end)
            result, before = frame.crop(minimum.image), start
            if config.clamp:
                result = result.clamp(0, 1)
        assert result is not None
        notes = _notes(config, stages[-1], side)
        finished: list[StyleResult | DivergedError] = []
        ends = zip(*(part.tolist() for part in minimum.losses.parts()), strict=True)
        for row, (sitter, scene, losses) in enumerate(zip(sitters, scenes, ends, strict=True)):
            picture = self._finish(result[row : row + 1], sitter, stages[-1].size, scene.weight)
            finished.append(sitter.finish(picture, losses[1:], notes))
        return finished

    def in_tiles(self) -> Stylizer:
        """One that sees pictures in smaller tiles, for want of memory; the rest is shared."""
        other = copy.copy(self)
        other.tile = min(self.tile or _TILE, _TILE) // 2
        return other

    def _scene(self, sitter: _Sitter, stage: Stage, shared: dict[object, _Style]) -> _Scene:
        """Everything that a stage's loss needs of one picture, at the stage's size; style pictures
        that several have in common are `shared`."""
        config = sitter.config
        target = self._tensor(sitter.photos[stage.size])
        styles = []
        # A style gets the photograph's colours as they are at a stage's size.
        of = (sitter.digest, stage.size) if config.preserve_color != "none" else ()
        for painting, digest in sitter.paintings:
            key = (digest, of)
            if key not in shared:
                style = self._style(painting, target, stage, config)
                shared[key] = _Style(style, (*key, config.preserve_color, style.shape))
            styles.append(shared[key])
        if config.preserve_color == "luminance":
            target = color.luminance(target)
        weight = None
        if sitter.mask is not None:
            weight = self._tensor(match_size(sitter.mask, stage.size))
        pixels = [style.pixels for style in styles]
        start = self._start(config, target, pixels, sitter.start, weight)
        return _Scene(target, styles, weight, start)

    def _side(self, size: tuple[int, int]) -> int:
        """The side of tiles of a picture of a size, pixels; 0: it is seen at once."""
        width, height = size
        if self.tile:
            return self.tile if max(width, height) > self.tile else 0
        return 0 if width * height <= AT_ONCE else _TILE

    def _recordable(self, config: StyleConfig, side: int) -> bool:
        """Whether evaluations may be a CUDA graph: eigenvalues are waited for, tiles keep a GPU
        busy as it is, and compiled code has graphs of its own."""
        plain = config.style_loss != "wasserstein" and not side and not self.compile
        return plain and self.device.type == "cuda" and not torch.version.hip

    def _tensor(self, picture: Image.Image) -> Tensor:
        return to_tensor(picture).to(self.device, self._pixel_dtype)

    @property
    def _pixel_dtype(self) -> torch.dtype:
        """What is optimised stays in full precision, whatever the network computes in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @torch.inference_mode(False)  # kept: filters made in there could not be used for gradients
    def encoder(self, config: StyleConfig, pixels: int = AT_ONCE) -> Encoder:
        """The encoder for a config's pooling, padding and feature scale, and for pictures of so
        many pixels; made once."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if half and pixels <= _FEW else self.dtype
        key = (config.pooling, config.padding, config.feature_scale, dtype)
        if key not in self._encoders:
            self._encoders[key] = Encoder(
                self.weights,
                pooling=config.pooling,
                padding=config.padding,
                scales=feature_scales(self.weights, config.pooling, config.feature_scale),
                winograd=True,
                device=self.device,
                dtype=dtype,
            )
            if self.compile:
                graphs = self.device.type == "cuda"
                self._encoders[key].compile_features("reduce-overhead" if graphs else "default")
        return self._encoders[key]

    def _style(
        self, painting: Image.Image, target: Tensor, stage: Stage, config: StyleConfig
    ) -> Tensor:
        """A style picture at a stage's scale, its colours replaced where they are not wanted."""
        size = style_size(painting.size, config.style_side(max(stage.size)))
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
        styles: Sequence[Tensor],
        picture: Image.Image | None,
        weight: Tensor | None,
    ) -> Tensor:
        size = (target.shape[-1], target.shape[-2])
        if picture is not None:
            start = self._tensor(match_size(picture, size))
        elif config.init == "noise":
            generator = torch.Generator().manual_seed(config.seed)  # the CPU's: same on any device
            noise = torch.randn(
                target.shape, generator=generator, dtype=torch.float32, device="cpu"
            )
            mean = noise.new_tensor(self.weights.mean).view(1, 3, 1, 1)
            return (mean + config.noise * noise).to(target)
        elif config.init == "style":
            start = F.interpolate(styles[0], (size[1], size[0]), mode="bicubic", antialias=True)
        elif config.init == "matched" and config.weights()[1]:
            start = color.transport(target, *styles, shares=config.shares(len(styles)))
        else:
            start = target
        return start if weight is None else weight * start + (1 - weight) * target

    def _loss(
        self, config: StyleConfig, scenes: Sequence[_Scene], frame: Frame, side: int, stage: Stage
    ) -> PerceptualLoss:
        encoder = self.encoder(config, math.prod(stage.size))
        shares = config.shares(len(scenes[0].styles))
        content_weight, style_weight = config.weights()
        with torch.no_grad():
            content: Mapping[str, Tensor] = {}
            if content_weight and (layers := relative(config.content_layers)):
                target = torch.cat([frame.pad(scene.target) for scene in scenes])
                content = features_in_tiles(encoder, target, layers, side)
            style: Mapping[str, Statistic] = {}
            start: Mapping[str, Statistic] = {}
            if style_weight:
                style = _stack(
                    [
                        _blend(
                            [self._statistics(config, encoder, one) for one in scene.styles],
                            shares,
                        )
                        for scene in scenes
                    ]
                )
            if style_weight and config.relative:
                near = torch.cat([scene.in_colours_of_styles(frame, shares) for scene in scenes])
                layers = relative(config.style_layers)
                start = statistics_in_tiles(encoder, near, layers, config.style_loss, side)
        weighed = (frame.weigh(scene.weight, scene.target) for scene in scenes)
        weights = [weight for weight in weighed if weight is not None]  # of all, or of none
        mask = torch.cat(weights) if weights else None
        make: Callable[..., PerceptualLoss] = PerceptualLoss
        if side:
            make = functools.partial(TiledLoss, side=side)
        return make(
            encoder,
            config,
            content,
            style,
            mask=mask,
            content_factor=stage.content_factor,
            start=start,
            spread=stage.spread,
        )

    def _statistics(
        self, config: StyleConfig, encoder: Encoder, style: _Style
    ) -> dict[str, Statistic]:
        """A style's targets, kept: in a batch many photographs share a style."""
        layers = relative(config.style_layers)
        kind = config.style_loss
        side = self._side((style.pixels.shape[-1], style.pixels.shape[-2]))
        key = (style.key, tuple(sorted(layers)), kind, side, id(encoder))
        if key not in self._styles:
            if len(self._styles) >= 32:  # the oldest goes: some 2 MB each
                del self._styles[next(iter(self._styles))]
            self._styles[key] = statistics_in_tiles(encoder, style.pixels, layers, kind, side)
        return self._styles[key]

    def _finish(
        self, result: Tensor, sitter: _Sitter, size: tuple[int, int], weight: Tensor | None
    ) -> Image.Image:
        """Colours and unpainted parts of the photograph put back; clamped and rounded."""
        original = self._tensor(sitter.photos[size])
        if sitter.config.preserve_color == "luminance":
            result = color.restore_color(result.clamp(0, 1), original)
        if weight is not None:
            result = weight * result + (1 - weight) * original
        return to_image(result)


@dataclass(frozen=True)
class _Style:
    """A style picture at one stage, (1, 3, H, W), and what tells it from all others."""

    pixels: Tensor
    key: tuple[object, ...]


@dataclass(frozen=True)
class _Scene:
    """One picture at one stage: (1, 3, H, W) tensors."""

    target: Tensor
    styles: list[_Style]
    weight: Tensor | None  # the mask, (1, 1, H, W)
    start: Tensor

    def in_colours_of_styles(self, frame: Frame, shares: Sequence[float]) -> Tensor:
        """The photograph on the grid, as `init=matched` starts from it, but as it can be saved."""
        pixels = [style.pixels for style in self.styles]
        return color.transport(frame.pad(self.target), *pixels, shares=shares).clamp(0, 1)


class _Sitter:
    """One picture in the making: its inputs, decoded, and its curve so far."""

    def __init__(self, request: Request, began: float) -> None:
        config = request.config
        start = request.init if request.init is not None else config.init_path or None
        mask = request.mask if request.mask is not None else config.mask or None
        self.config = config
        # Coarser stages see these made smaller: from the pictures as they came each would take as
        # long as this.
        photo = scaled(read_picture(request.content), config.size)
        longest = config.style_side(config.size)
        paintings = [read_picture(one) for one in request.styles()]
        if not paintings:
            raise ConfigError("there is no style; give a picture, or several")
        paintings = [match_size(one, style_size(one.size, longest)) for one in paintings]
        self.paintings = [(painting, _digest(painting)) for painting in paintings]
        self.start = None if start is None else match_size(read_picture(start), photo.size)
        self.mask = (
            None if mask is None else match_size(read_picture(mask).convert("L"), photo.size)
        )
        self.stages = plan_stages(photo.size, config)
        self.photos = {stage.size: match_size(photo, stage.size) for stage in self.stages}
        self.digest = _digest(photo)
        self.on_step = request.on_step
        self.began = began
        self.curve: list[Step] = []
        self.ended = ""

    def step(self, content: float, style: float, tv: float) -> Step:
        """One evaluation, by its losses."""
        step = _step(len(self.curve) + 1, self.began, (content, style, tv), self.config)
        self.curve.append(step)
        return step

    def end(self, reason: str) -> None:
        """A stage is over; what went wrong in an earlier one is not forgotten."""
        if self.ended not in ("diverged", "restarted"):
            self.ended = reason

    def finish(
        self, picture: Image.Image, losses: tuple[float, float, float], notes: str
    ) -> StyleResult | DivergedError:
        if self.ended == "diverged":
            return DivergedError(
                "the loss became infinite or no number, twice; lower the weights, or start from "
                "the content image"
            )
        final = _step(len(self.curve), self.began, losses, self.config)
        return StyleResult(
            image=picture,
            config=self.config,
            loss=final.loss,
            content_loss=final.content_loss,
            style_loss=final.style_loss,
            tv_loss=final.tv_loss,
            curve=tuple(self.curve),
            evaluations=len(self.curve),
            stop_reason=self.ended,
            seconds=time.perf_counter() - self.began,
            notes=notes,
        )


def _digest(picture: Image.Image) -> bytes:
    """What tells a picture's pixels from others."""
    return hashlib.blake2b(picture.tobytes() + repr(picture.size).encode()).digest()


def _check_alike(first: _Sitter, other: _Sitter) -> None:
    """Raise `ConfigError` unless two pictures can be optimised together."""
    if first.config.digest() != other.config.digest():
        raise ConfigError("the settings of pictures in one batch differ; they must be the same")
    if first.stages != other.stages:
        sizes = " and ".join("{}x{}".format(*s.stages[-1].size) for s in (first, other))
        raise ConfigError(f"pictures in one batch are {sizes}; they must be of one size")
    if len(first.paintings) != len(other.paintings) or (first.mask is None) != (other.mask is None):
        raise ConfigError(
            "pictures in one batch must have as many styles each, and masks all or none"
        )


def _tell(sitters: Sequence[_Sitter], frame: Frame, losses: Losses, x: Tensor) -> None:
    rows = zip(*(part.tolist() for part in losses.parts()), strict=True)
    for row, (sitter, (total, *parts)) in enumerate(zip(sitters, rows, strict=True)):
        if not math.isnan(total):
            step = sitter.step(*parts)
            if sitter.on_step:
                sitter.on_step(step, frame.crop(x[row : row + 1]))


def _history(config: StyleConfig, stage: Stage) -> int:
    """Gradients that L-BFGS remembers: fewer where they would not fit into `_MEMORY`."""
    pair = 2 * 4 * 3 * stage.size[0] * stage.size[1]  # bytes, of s and y in float32
    return max(3, min(config.history, _MEMORY // pair))


def _notes(config: StyleConfig, stage: Stage, side: int) -> str:
    notes = []
    if side:
        notes.append(f"seen in tiles of {side} pixels")
    if _history(config, stage) < config.history:
        notes.append(f"history {config.history} -> {_history(config, stage)} to fit the memory")
    return "; ".join(notes)


class Frame:
    """A picture's size, and the larger one on the grid that it is worked on, edges repeated."""

    def __init__(self, size: tuple[int, int], on_grid: bool) -> None:
        self.width, self.height = size
        self.right = -self.width % GRID if on_grid else 0
        self.bottom = -self.height % GRID if on_grid else 0

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.right, 0, self.bottom), mode="replicate")

    def weigh(self, mask: Tensor | None, picture: Tensor) -> Tensor | None:
        """Where the style counts, (1, 1, H, W): not beyond the picture (1, 3, h, w), for what is
        painted there is cut off. None: everywhere."""
        if not (self.right or self.bottom):
            return mask
        inside = torch.ones_like(picture[:, :1]) if mask is None else mask
        return F.pad(inside, (0, self.right, 0, self.bottom))

    def crop(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


def _step(
    number: int, began: float, losses: tuple[float, float, float], config: StyleConfig
) -> Step:
    content_weight, style_weight = config.weights()
    content, style, tv = losses
    loss = content_weight * content + style_weight * style + config.tv_weight * tv
    return Step(number, time.perf_counter() - began, loss, content, style, tv)


def _stack(statistics: Sequence[Mapping[str, Statistic]]) -> Mapping[str, Statistic]:
    """Targets of several pictures as those of a batch."""
    if len(statistics) == 1:
        return statistics[0]
    return {
        layer: Statistic(
            *(
                torch.cat(parts)
                for parts in zip(*(s[layer].parts() for s in statistics), strict=True)
            )
        )
        for layer in statistics[0]
    }


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
