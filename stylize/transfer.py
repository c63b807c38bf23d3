"""transfer_style and Stylizer: a batch of pictures optimised stage by stage, coarse to fine.

Gatys, Ecker, Bethge 2015. What a stage minimises is in `stylize.objective`, and how in
`stylize.optimize`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from stylize.encoder import Encoder
from stylize.errors import ConfigError, DivergedError
from stylize.files import write_atomic
from stylize.image import (
    encode,
    match_size,
    readable,
    style_size,
    to_image,
    to_tensor,
)
from stylize.inputs import Inputs, Painting, Picture
from stylize.layers import CONVS, conv_of
from stylize.losses import Losses, PerceptualLoss, Statistic, relative
from stylize.motifs import MEASURED_LAYER, evenness, reach_of
from stylize.objective import Frame, StageInputs, Style, stage_loss, start_of
from stylize.optimize import Minimum, minimize
from stylize.stages import Stage
from stylize.tiles import statistics_in_tiles
from stylize.weights import Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LOOK_EVERY",
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
"""Threads that resize pictures."""

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
"""A callback that is told each step and the picture there, (1, 3, H, W); may raise `Interrupted` to
end the transfer. On a GPU several steps are told in one go, with the picture of the latest."""


@dataclass(frozen=True)
class Request:
    """One picture to be made: what goes in, and its own callback."""

    content: Picture
    style: Picture | Painting | Sequence[Picture | Painting]
    config: StyleConfig = StyleConfig()
    init: Picture | None = None
    mask: Picture | None = None
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, StyleConfig):
            raise ConfigError(
                f"config is {self.config!r}; it must be a StyleConfig, like StyleConfig.of('draft')"
            )

    def styles(self) -> Sequence[Picture | Painting]:
        """The style pictures, of which one or several were given."""
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
    notes: str = ""  # what was left out of a style, or done with less to fit the memory

    def save(self, path: str | Path) -> None:
        """Write the picture, whole or not at all. Raises `OSError`, `ImageError`."""
        settings = self.config.without_folders().to_json()
        write_atomic(path, encode(self.image, Path(path).suffix, settings))

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
        found = weights if isinstance(weights, Weights) else _load(weights)
        self.weights = found.with_mean()  # zeros and noise are one colour, whatever the file
        self.tile = tile
        self.compile = compile
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._styles: dict[tuple[object, ...], dict[str, Statistic]] = {}
        self._evenness: dict[bytes, float] = {}  # by a painting's digest

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
        """What `transfer_batch` does, with the caller's switches set aside."""
        alike: dict[tuple[Stage, ...], list[_Transfer]] = {}
        transfers = self._read(requests) if requests else []
        for transfer in transfers:  # a painting of things leaves out the coarsest scales
            alike.setdefault(tuple(transfer.inputs.stages), []).append(transfer)
        finished = {id(one): end for group in alike.values() for one, end in self._optimize(group)}
        return [finished[id(transfer)] for transfer in transfers]

    def _optimize(
        self, transfers: Sequence[_Transfer]
    ) -> Iterator[tuple[_Transfer, StyleResult | DivergedError]]:
        """Optimise pictures with the same stages together, and finish each."""
        config, stages = transfers[0].config, transfers[0].inputs.stages
        result = before = None
        for stage in stages:
            shared: dict[object, Style] = {}
            inputs = [self.stage_inputs(one.inputs, stage, shared) for one in transfers]
            start = torch.cat([start_of(config, one, self.weights.mean) for one in inputs])
            begin = start
            if result is not None and before is not None:
                begin = _carried_over(result, before, start, detail=config.init != "noise")
            minimum = self._minimize(transfers, inputs, stage, begin)
            result, before = inputs[0].frame.crop(minimum.image), start
            if config.clamp:
                result = result.clamp(0, 1)
        assert result is not None
        notes = _notes(config, stages[-1], self._side(stages[-1].size))
        ends = zip(*(part.tolist() for part in minimum.losses.parts()), strict=True)
        for row, (one, at, losses) in enumerate(zip(transfers, inputs, ends, strict=True)):
            picture = self._picture(result[row : row + 1], one.inputs, at.mask)
            said = [
                *(painting.note for painting in one.inputs.styles),
                one.inputs.mask_note,
                *notes,
            ]
            yield one, one.finish(picture, losses[1:], "; ".join(filter(None, said)))

    def _read(self, requests: Sequence[Request]) -> list[_Transfer]:
        """Decode what was given. Raises `ConfigError` for what cannot be painted together."""
        began = time.perf_counter()
        backbone = requests[0].config.backbone
        if backbone not in ("auto", self.weights.backbone):
            raise ConfigError(f"backbone is {backbone!r}, not {self.weights.backbone!r}")
        for request in requests:
            request.load()
        with ThreadPoolExecutor(_THREADS) as pool:  # Pillow resizes outside the interpreter
            each = pool.map if len(requests) > 1 else map
            transfers = list(each(functools.partial(_Transfer, began=began), requests))
            for other in transfers[1:]:
                transfers[0].inputs.check_like(other.inputs)
            reaches = [self.reach(one.inputs) for one in transfers]
            list(each(lambda one, reach: one.inputs.plan(reach), transfers, reaches))
        return transfers

    def _minimize(
        self,
        transfers: Sequence[_Transfer],
        inputs: Sequence[StageInputs],
        stage: Stage,
        start: Tensor,
    ) -> Minimum:
        """One stage of a batch, from a start (B, 3, H, W) of its size."""
        config, frame = transfers[0].config, inputs[0].frame
        minimum = minimize(
            self.loss(config, stage, inputs),
            frame.pad(start),
            evaluations=stage.evaluations,
            optimizer=config.optimizer,
            history=_history(config, stage),
            learning_rate=config.learning_rate,
            plateau=config.plateau,
            look_every=1 if self.device.type == "cpu" else LOOK_EVERY,
            record=self._recordable(config, self._side(stage.size)),
            on_evaluation=functools.partial(_tell, transfers, frame),
        )
        for one, end in zip(transfers, minimum.ended, strict=True):
            one.end(end)
        return minimum

    @functools.cached_property
    def _first_layers(self) -> Encoder:
        """The network up to `MEASURED_LAYER` in float32: the same measure whatever the settings."""
        convs = CONVS[self.weights.backbone]
        first = convs[: convs.index(conv_of(MEASURED_LAYER)) + 1]
        filters = {conv: self.weights.filters[conv] for conv in first}
        return Encoder(
            dataclasses.replace(self.weights, filters=filters),
            padding="replicate",
            scales=feature_scales(self.weights, "average", "caffe"),
            device=self.device,
        )

    @torch.no_grad()
    def reach(self, inputs: Inputs) -> float:
        """Return the share of its paintings that a layer may see in a transfer: of several, the
        geometric mean by their shares. See `stylize.motifs`."""
        config = inputs.config
        if config.motifs == 1 or not config.weights()[1]:
            return math.inf
        for painting in inputs.styles:
            if painting.digest not in self._evenness:
                small = to_tensor(painting.small).to(self.device)
                features = self._first_layers(small, [MEASURED_LAYER])[MEASURED_LAYER]
                self._evenness[painting.digest] = evenness(features)
        reaches = [reach_of(self._evenness[p.digest], config.motifs) for p in inputs.styles]
        shares = config.shares(len(reaches))
        together = sum(s * math.log(r) for r, s in zip(reaches, shares, strict=True))
        return math.exp(together)

    def in_tiles(self) -> Stylizer:
        """One that sees pictures in smaller tiles, for want of memory; the rest is shared."""
        other = copy.copy(self)
        other.tile = min(self.tile or _TILE, _TILE) // 2
        return other

    def stage_inputs(
        self, inputs: Inputs, stage: Stage, shared: dict[object, Style]
    ) -> StageInputs:
        """A transfer's pictures as the losses of a stage see them; style pictures that several
        transfers have in common are `shared`."""
        config = inputs.config
        content = self.tensor(inputs.contents[stage.size])
        styles = []
        # A style gets the photograph's colours as they are at a stage's size.
        of = (inputs.digest, stage.size) if config.preserve_color != "none" else ()
        for painting in inputs.styles:
            key = (painting.digest, of)
            if key not in shared:
                style = self._style(painting.picture, content, stage, config)
                shared[key] = Style(style, (*key, config.preserve_color, style.shape))
            styles.append(shared[key])
        if config.preserve_color == "luminance":
            content = color.luminance(content)
        init, mask = (
            None if picture is None else self.tensor(match_size(picture, stage.size))
            for picture in (inputs.init, inputs.mask)
        )
        frame = Frame(stage.size, config)
        return StageInputs(frame, content, styles, init, mask, inputs.reach)

    def loss(
        self, config: StyleConfig, stage: Stage, inputs: Sequence[StageInputs]
    ) -> PerceptualLoss:
        """What a stage minimises over the pictures of a batch."""
        encoder = self.encoder(config, math.prod(stage.size))
        styles = []
        if config.weights()[1]:
            styles = [
                [self._statistics(config, encoder, style) for style in one.styles] for one in inputs
            ]
        return stage_loss(encoder, config, stage, inputs, styles, self._side(stage.size))

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

    def tensor(self, picture: Image.Image) -> Tensor:
        """A picture on the device."""
        return to_tensor(picture).to(self.device, self._pixel_dtype)

    @property
    def _pixel_dtype(self) -> torch.dtype:
        """The type of what is optimised: full precision, whatever the network computes in."""
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
        self, painting: Image.Image, content: Tensor, stage: Stage, config: StyleConfig
    ) -> Tensor:
        """A style picture at a stage's scale, its colours replaced where they are not wanted."""
        size = style_size(painting.size, config.style_side(max(stage.size)))
        style = self.tensor(match_size(painting, size))
        if config.preserve_color == "histogram":
            return color.recolor(style, content)
        if config.preserve_color == "luminance":
            return color.keep_luminance(style, content)
        return style

    @torch.no_grad()
    def _statistics(
        self, config: StyleConfig, encoder: Encoder, style: Style
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

    def _picture(self, result: Tensor, inputs: Inputs, mask: Tensor | None) -> Image.Image:
        """The finished picture: the photograph's colours and unpainted parts put back into the
        result, clamped and rounded."""
        original = self.tensor(inputs.contents[inputs.stages[-1].size])
        if inputs.config.preserve_color == "luminance":
            result = color.restore_color(result.clamp(0, 1), original)
        if mask is not None:
            result = mask * result + (1 - mask) * original
        return to_image(result)


def _carried_over(result: Tensor, before: Tensor, start: Tensor, *, detail: bool) -> Tensor:
    """Where a finer stage goes on from a coarser one's result, (B, 3, H, W).

    What the coarser picture gained over its own start, `before`, is added to the finer start, so
    that the photograph's fine detail is kept. Without `detail`, as of noise, it is only enlarged.
    """
    gained = result - before if detail else result
    grown = F.interpolate(gained, start.shape[-2:], mode="bicubic")
    return start + grown if detail else grown


class _Transfer:
    """One picture in the making: its inputs, and its curve so far."""

    def __init__(self, request: Request, began: float) -> None:
        self.inputs = Inputs(
            request.content,
            request.styles(),
            request.config,
            init=request.init,
            mask=request.mask,
        )
        self.config = request.config
        self.on_step = request.on_step
        self.began = began
        self.curve: list[Step] = []
        self.ended = ""

    def step(self, content: float, style: float, tv: float) -> Step:
        """Add an evaluation to the curve, by its losses."""
        step = _step(len(self.curve) + 1, self.began, (content, style, tv), self.config)
        self.curve.append(step)
        return step

    def end(self, reason: str) -> None:
        """Note why a stage is over; what went wrong in an earlier one is not forgotten."""
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


def _tell(transfers: Sequence[_Transfer], frame: Frame, losses: Losses, x: Tensor) -> None:
    rows = zip(*(part.tolist() for part in losses.parts()), strict=True)
    for row, (one, (total, *parts)) in enumerate(zip(transfers, rows, strict=True)):
        if not math.isnan(total):
            step = one.step(*parts)
            if one.on_step:
                one.on_step(step, frame.crop(x[row : row + 1]))


def _history(config: StyleConfig, stage: Stage) -> int:
    """Gradients that L-BFGS remembers: fewer where they would not fit into `_MEMORY`."""
    pair = 2 * 4 * 3 * stage.size[0] * stage.size[1]  # bytes, of s and y in float32
    return max(3, min(config.history, _MEMORY // pair))


def _notes(config: StyleConfig, stage: Stage, side: int) -> list[str]:
    notes = []
    if side:
        notes.append(f"seen in tiles of {side} pixels")
    if _history(config, stage) < config.history:
        notes.append(f"history {config.history} -> {_history(config, stage)} to fit the memory")
    return notes


def _step(
    number: int, began: float, losses: tuple[float, float, float], config: StyleConfig
) -> Step:
    content_weight, style_weight = config.weights()
    content, style, tv = losses
    loss = content_weight * content + style_weight * style + config.tv_weight * tv
    return Step(number, time.perf_counter() - began, loss, content, style, tv)
