"""The method: a photograph painted in the style of a picture. Gatys, Ecker, Bethge 2015.

The picture is optimised directly, until the features that a trained network computes from it
resemble those of the photograph, and the statistics of its features those of the painting. This is
how `Stylizer.transfer_batch` goes about it, with the module that has the details:

1. `_decode`: read the pictures and cut off a painting's margins (`inputs`, `margins`), measure how
   much of the painting a layer may see (`motifs`), and plan the scales (`stages`).
2. `_optimize`: go through the scales, from coarse to fine. At each of them
   - `stage_inputs` resizes the pictures and replaces colours (`objective`, `color`);
   - `_start` chooses what to start from: at first the photograph in the style's colours, then the
     result of the coarser scale, enlarged;
   - `loss` computes the targets, features of the photograph and statistics of the painting
     (`encoder`), and makes the function to minimise (`losses`; `tiles` for large pictures);
   - `_minimize` minimises it by L-BFGS (`optimize`).
3. `_finish`: put back the photograph's colours and masked parts, and round to 8 bits (`image`).

Pictures with equal sizes and settings form a batch; only seeds may differ. They are optimised in
one tensor (B, 3, H, W), but independently of each other.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylize import color, heap, weights
from stylize.calibration import feature_scales
from stylize.checkpoint import Checkpoint
from stylize.config import AT_ONCE, StyleConfig
from stylize.device import choose_device, choose_dtype, undisturbed
from stylize.encoder import Encoder
from stylize.errors import ConfigError, DivergedError
from stylize.image import match_size, style_size, to_tensor
from stylize.inputs import Inputs, Painting, Photograph, Picture
from stylize.layers import CONVS, conv_of
from stylize.losses import Losses, PerceptualLoss, Statistic, counts_at, relative
from stylize.making import Transfer, keeper, report
from stylize.motifs import MEASURED_LAYER, evenness, reach_of
from stylize.objective import Frame, StageInputs, Style, stage_loss, start_of
from stylize.optimize import Minimum, minimize
from stylize.regions import covered, regions_of
from stylize.request import OnStep, Request, Step, StyleResult
from stylize.stages import Stage
from stylize.tiles import statistics_in_tiles
from stylize.weights import Weights

__all__ = [
    "LOOK_EVERY",
    "Request",
    "Step",
    "StyleResult",
    "Stylizer",
    "transfer_style",
]

LOOK_EVERY = 10
"""Number of evaluations after which the host reads the losses from a GPU."""

_TILE = 1024
"""Side of a tile in pixels."""

_MEMORY = 2 * 10**9
"""Bytes that the memory of L-BFGS may take."""

_FEW = 128**2
"""Pixels up to which features are never in half precision. Over so few positions rounding errors do
not average out, and the coarsest scale decides where strokes go."""

_THREADS = 8
"""Number of threads that resize pictures."""

_STYLES = 32
"""Number of styles whose targets are cached, some 2 MB each."""

_AGAIN = 10
"""Evaluations more for a stage that goes on from a checkpoint. The first is of the picture that was
kept; in the others L-BFGS's memory fills again. Without them the loss after 60 evaluations was up
to 4 % higher."""


def transfer_style(
    content: Picture | Photograph,
    style: Picture | Sequence[Picture],
    config: StyleConfig = StyleConfig(),
    *,
    init: Picture | None = None,
    mask: Picture | Sequence[Picture] | None = None,
    style_mask: Picture | Sequence[Picture | None] | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    on_step: OnStep | None = None,
) -> StyleResult:
    """Paint a photograph in the style of a picture, or of several, see `config.style_blend`.

    This loads the network each time; for many pictures keep a `Stylizer`. `init` and the masks take
    precedence over the paths in the config. Raises `StylizeError`, see `stylize.errors`.
    """
    request = Request(content, style, config, init, mask, on_step, style_mask)
    return Stylizer(request.config.backbone, device=device, dtype=dtype).paint(request)


class Stylizer:
    """A network ready for many transfers, which caches encoders and the targets of styles.

    `weights` is a backbone's name, for which they may be downloaded, or the result of
    `stylize.weights.load`. `tile` is the side in pixels of the tiles that a picture is seen in; 0:
    pictures with more than `AT_ONCE` pixels are seen in tiles of a size that is chosen
    automatically, others as a whole. `compile` passes the network through `torch.compile`, on a GPU
    with CUDA graphs; that takes a minute, so it is for many pictures of one size.

    Raises `ConfigError` for a backbone, device or type that is not available, `WeightsError` for
    weights that cannot be loaded.
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
        self.device = choose_device(device)  # first, so that nothing is downloaded in vain
        self.dtype = choose_dtype(dtype, self.device)
        loaded = weights if isinstance(weights, Weights) else _load(weights)
        self.weights = loaded.with_mean()  # one mean colour for zeros and noise
        self.tile = tile
        self.compile = compile
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._targets: dict[tuple[object, ...], dict[str, Statistic]] = {}
        self._evenness: dict[bytes, float] = {}  # by a painting's digest

    def transfer(
        self,
        content: Picture | Photograph,
        style: Picture | Sequence[Picture],
        config: StyleConfig = StyleConfig(),
        *,
        init: Picture | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        style_mask: Picture | Sequence[Picture | None] | None = None,
        on_step: OnStep | None = None,
    ) -> StyleResult:
        """Paint one picture, like `transfer_style`. Raises `StylizeError`."""
        return self.paint(Request(content, style, config, init, mask, on_step, style_mask))

    def paint(self, request: Request) -> StyleResult:
        """Paint what a request says. Raises `StylizeError`."""
        (result,) = self.transfer_batch([request])
        if isinstance(result, DivergedError):
            raise result
        return result

    @heap.kept()
    def transfer_batch(self, requests: Sequence[Request]) -> list[StyleResult | DivergedError]:
        """Paint pictures of one size with equal settings together.

        This is faster on a GPU that one picture does not fill. Each picture has its own L-BFGS
        memory and its own end, so the result is as if painted alone, and one that diverges does not
        affect the others: its entry in the result is the `DivergedError`.

        Seeds may differ. Raises `ConfigError` where sizes, other settings or the numbers of styles
        differ, `ImageError` for inputs that cannot be used, and `DivergedError` if all pictures
        with the same stages diverge.
        """
        with undisturbed(self.device):
            return self._paint(requests)

    def in_tiles(self) -> Stylizer:
        """Return a stylizer with smaller tiles, which needs less memory; it shares the caches."""
        other = copy.copy(self)
        other.tile = min(self.tile or _TILE, _TILE) // 2
        return other

    # The steps, in the order of the module's docstring

    def _paint(self, requests: Sequence[Request]) -> list[StyleResult | DivergedError]:
        """Decode the requests, and paint those with the same stages together."""
        if len(requests) > 1:
            requests = [dataclasses.replace(r, checkpoint=None, on_look=None) for r in requests]
        transfers = self._decode(requests) if requests else []
        groups: dict[tuple[Stage, ...], list[Transfer]] = {}
        for transfer in transfers:  # stages differ where a painting of things has fewer scales
            groups.setdefault(tuple(transfer.inputs.stages), []).append(transfer)
        results: dict[int, StyleResult | DivergedError] = {}
        for group in groups.values():
            results.update(zip(map(id, group), self._optimize(group), strict=True))
        return [results[id(transfer)] for transfer in transfers]

    def _decode(self, requests: Sequence[Request]) -> list[Transfer]:
        """Decode pictures and plan stages. Raises `ConfigError`, also where requests differ."""
        began = time.perf_counter()
        backbone = requests[0].config.backbone
        if backbone not in ("auto", self.weights.backbone):
            raise ConfigError(f"backbone is {backbone!r}, not {self.weights.backbone!r}")
        for request in requests:
            request.load()
        with ThreadPoolExecutor(_THREADS) as pool:  # Pillow releases the interpreter to resize
            each = pool.map if len(requests) > 1 else map
            transfers = list(each(functools.partial(Transfer, began=began), requests))
            for other in transfers[1:]:
                transfers[0].inputs.check_like(other.inputs)
            reaches = [self.reach(transfer.inputs) for transfer in transfers]
            list(each(lambda transfer, reach: transfer.plan(reach), transfers, reaches))
        return transfers

    @torch.no_grad()
    def reach(self, inputs: Inputs) -> float:
        """Return the share of its paintings that a layer may see, see `stylize.motifs`.

        Of several paintings it is the geometric mean, weighted by their shares.
        """
        config = inputs.config
        if config.motifs == 1 or not config.weights()[1]:
            return math.inf
        for painting in inputs.styles:
            if painting.digest not in self._evenness:
                small = to_tensor(painting.small).to(self.device)
                features = self._first_layers(small, [MEASURED_LAYER])[MEASURED_LAYER]
                part = counts_at(_part(painting, small), MEASURED_LAYER)
                self._evenness[painting.digest] = evenness(features, part)
        reaches = [reach_of(self._evenness[p.digest], config.motifs) for p in inputs.styles]
        shares = config.shares(len(reaches))
        return math.exp(sum(s * math.log(r) for r, s in zip(reaches, shares, strict=True)))

    def _optimize(self, transfers: Sequence[Transfer]) -> list[StyleResult | DivergedError]:
        """Paint pictures with the same stages, stage by stage."""
        config, stages = transfers[0].config, transfers[0].inputs.stages
        coarser: _Coarser | None = None
        kept = transfers[0].checkpoint
        for number, stage in enumerate(stages):
            if kept and number < kept.stage:
                continue
            shared: dict[object, Style] = {}
            inputs = [self.stage_inputs(transfer.inputs, stage, shared) for transfer in transfers]
            starts = [
                start_of(transfer.config, pictures, self.weights.mean)  # each by its own seed
                for transfer, pictures in zip(transfers, inputs, strict=True)
            ]
            start = torch.cat(starts)
            goes_on = kept if kept and number == kept.stage else None
            begin = inputs[0].frame.pad(_start(config, start, coarser))
            minimum = self._minimize(transfers, inputs, number, begin, goes_on)
            result = inputs[0].frame.crop(minimum.image)
            coarser = _Coarser(result.clamp(0, 1) if config.clamp else result, start)
        assert coarser is not None
        return self._finish(transfers, inputs, coarser.result, minimum.losses)

    def stage_inputs(
        self, inputs: Inputs, stage: Stage, shared: dict[object, Style]
    ) -> StageInputs:
        """Return a transfer's pictures at the size of a stage, with the colours that are wanted.

        `shared` keeps style pictures from one transfer to the next of a batch.
        """
        config = inputs.config
        content = self.tensor(inputs.contents[stage.size])
        styles = []
        # With preserve_color a style's colours depend on the photograph at the stage's size.
        photograph = (inputs.digest, stage.size) if config.preserve_color != "none" else ()
        for painting in inputs.styles:
            key = (painting.digest, photograph)
            if key not in shared:
                style = self._style(painting, content, stage, config)
                shared[key] = dataclasses.replace(style, key=(*key, *style.key))
            styles.append(shared[key])
        if config.preserve_color == "luminance":
            content = color.luminance(content)
        init = None
        if inputs.init is not None:
            init = self.tensor(match_size(inputs.init, stage.size))
        mask = None
        if inputs.masks:
            masks = [self.tensor(match_size(picture, stage.size)) for picture in inputs.masks]
            mask = regions_of(masks)
        frame = Frame(stage.size, config)
        return StageInputs(frame, content, styles, init, mask, inputs.reach)

    def _style(
        self, painting: Painting, content: Tensor, stage: Stage, config: StyleConfig
    ) -> Style:
        """Return a style picture at a stage's scale, recoloured as `preserve_color` says."""
        size = style_size(painting.picture.size, config.style_side(max(stage.size)))
        style = self.tensor(match_size(painting.picture, size))
        part = _part(painting, style)
        if config.preserve_color == "histogram":
            style = color.recolor(style, content, part)
        elif config.preserve_color == "luminance":
            style = color.keep_luminance(style, content, part)
        return Style(style, (config.preserve_color, style.shape), part)

    def loss(
        self, config: StyleConfig, stage: Stage, inputs: Sequence[StageInputs]
    ) -> PerceptualLoss:
        """Compute the targets of a batch at a stage, and return the loss to minimise."""
        encoder = self.encoder(config, math.prod(stage.size))
        targets = []
        if config.weights()[1]:
            targets = [
                [self._statistics(config, encoder, style) for style in pictures.styles]
                for pictures in inputs
            ]
        return stage_loss(encoder, config, stage, inputs, targets, self._tile_side(stage.size))

    @torch.no_grad()
    def _statistics(
        self, config: StyleConfig, encoder: Encoder, style: Style
    ) -> dict[str, Statistic]:
        """Return a style's targets, from the cache if possible: many photographs share a style."""
        layers = relative(config.style_layers)
        kind = config.style_loss
        side = self._tile_side((style.pixels.shape[-1], style.pixels.shape[-2]))
        key = (style.key, tuple(sorted(layers)), kind, side, id(encoder))
        if key not in self._targets:
            if len(self._targets) >= _STYLES:
                del self._targets[next(iter(self._targets))]  # the oldest
            self._targets[key] = statistics_in_tiles(
                encoder, style.pixels, layers, kind, side, style.mask
            )
        return self._targets[key]

    def _minimize(
        self,
        transfers: Sequence[Transfer],
        inputs: Sequence[StageInputs],
        number: int,
        start: Tensor,
        kept: Checkpoint | None,
    ) -> Minimum:
        """Minimise the loss of a batch at the stage with this number.

        It begins with pictures `start` (B, 3, H, W), or goes on from a checkpoint.
        """
        config, frame = transfers[0].config, inputs[0].frame
        stage = transfers[0].inputs.stages[number]
        before = kept.evaluations if kept else 0
        again = min(before, _AGAIN if config.optimizer == "lbfgs" else 1)
        minimum = minimize(
            self.loss(config, stage, inputs),
            kept.picture.to(start) if kept else start,
            evaluations=stage.evaluations - before + again,
            optimizer=config.optimizer,
            history=_history(config, stage),
            learning_rate=config.learning_rate,
            plateau=config.plateau,
            look_every=1 if self.device.type == "cpu" else LOOK_EVERY,
            record=self._recordable(config, stage),
            on_evaluation=functools.partial(report, transfers, frame),
            on_pause=keeper(transfers[0], number, before),
            memory=tuple(part.to(start) for part in kept.memory) if kept else (),
        )
        for transfer, reason in zip(transfers, minimum.ended, strict=True):
            transfer.end(reason)
        return minimum

    def _finish(
        self,
        transfers: Sequence[Transfer],
        inputs: Sequence[StageInputs],
        result: Tensor,
        losses: Losses,
    ) -> list[StyleResult | DivergedError]:
        """Turn the optimised pictures (B, 3, H, W) and their losses into results."""
        config, stage = transfers[0].config, transfers[0].inputs.stages[-1]
        saved_memory = _memory_notes(config, stage, self._tile_side(stage.size))
        by_row = zip(*(part.tolist() for part in losses.parts()), strict=True)
        results = []
        for row, (transfer, pictures, (_, *parts)) in enumerate(
            zip(transfers, inputs, by_row, strict=True)
        ):
            picture = self._picture(result[row : row + 1], transfer.inputs, pictures.mask)
            notes = [painting.note for painting in transfer.inputs.styles]
            notes += [transfer.inputs.mask_note, *saved_memory, transfer.inputs.photograph.note]
            notes.append(transfer.note)
            results.append(transfer.finish(picture, *parts, notes="; ".join(filter(None, notes))))
        return results

    def _picture(self, result: Tensor, inputs: Inputs, mask: Tensor | None) -> Tensor:
        """Put back the photograph's colours and masked parts."""
        original = self.tensor(inputs.contents[inputs.stages[-1].size])
        if inputs.config.preserve_color == "luminance":
            result = color.restore_color(result.clamp(0, 1), original)
        if mask is not None:
            mask = covered(mask)
            result = mask * result + (1 - mask) * original
        return result

    # What the steps use

    @torch.inference_mode(False)  # a caller's inference mode would make filters without gradients
    def encoder(self, config: StyleConfig, pixels: int = AT_ONCE) -> Encoder:
        """Return the encoder for a config and for pictures of this many pixels, from the cache."""
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

    @functools.cached_property
    def _first_layers(self) -> Encoder:
        """The network up to `MEASURED_LAYER`, in float32 whatever the settings, for `reach`."""
        convs = CONVS[self.weights.backbone]
        first = convs[: convs.index(conv_of(MEASURED_LAYER)) + 1]
        filters = {conv: self.weights.filters[conv] for conv in first}
        return Encoder(
            dataclasses.replace(self.weights, filters=filters),
            padding="replicate",
            scales=feature_scales(self.weights, "average", "caffe"),
            device=self.device,
        )

    def tensor(self, picture: Image.Image) -> Tensor:
        """Return a picture as a tensor (1, C, H, W) in [0, 1] on the device.

        It is in full precision, even where the network computes in half.
        """
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return to_tensor(picture).to(self.device, dtype)

    def _tile_side(self, size: tuple[int, int]) -> int:
        """Return the side of tiles in pixels for a picture of this size; 0: it is seen at once."""
        width, height = size
        if self.tile:
            return self.tile if max(width, height) > self.tile else 0
        return 0 if width * height <= AT_ONCE else _TILE

    def _recordable(self, config: StyleConfig, stage: Stage) -> bool:
        """Tell whether evaluations can and should be recorded as a CUDA graph.

        The host waits for the eigenvalues of "wasserstein". Tiles keep a GPU busy without a graph,
        and compiled code has graphs of its own.
        """
        waits = config.style_loss == "wasserstein" or self._tile_side(stage.size) or self.compile
        return not waits and self.device.type == "cuda" and not torch.version.hip


@dataclasses.dataclass(frozen=True)
class _Coarser:
    """What a stage leaves to the next finer one."""

    result: Tensor  # (B, 3, H, W)
    start: Tensor  # what that stage would have started from without a coarser one


def _start(config: StyleConfig, start: Tensor, coarser: _Coarser | None) -> Tensor:
    """Return the picture (B, 3, H, W) that a stage begins with.

    The first one begins with `start`. A finer one adds to it what the coarser result gained over
    its own start, enlarged, so that the photograph's fine detail is kept. Noise has no detail worth
    keeping: there the coarser result is enlarged.
    """
    if coarser is None:
        return start
    keep_detail = config.init != "noise"
    gained = coarser.result - coarser.start if keep_detail else coarser.result
    enlarged = F.interpolate(gained, start.shape[-2:], mode="bicubic")
    return start + enlarged if keep_detail else enlarged


def _part(painting: Painting, picture: Tensor) -> Tensor | None:
    """Return how much each pixel of a painting counts, (1, 1, H, W), at the size of `picture`.

    None stands for 1. It is averaged, so that a small part does not vanish at small sizes.
    """
    if painting.part is None:
        return None
    height, width = picture.shape[-2:]
    return F.adaptive_avg_pool2d(to_tensor(painting.part), (height, width)).to(picture)


def _history(config: StyleConfig, stage: Stage) -> int:
    """Return how many steps L-BFGS remembers: fewer where they would not fit into `_MEMORY`."""
    pair = 2 * 4 * 3 * stage.size[0] * stage.size[1]  # bytes of s and y in float32
    return max(3, min(config.history, _MEMORY // pair))


def _memory_notes(config: StyleConfig, stage: Stage, side: int) -> list[str]:
    """Say what was reduced at a stage to save memory; `side` is that of its tiles."""
    notes = []
    if side:
        notes.append(f"seen in tiles of {side} pixels")
    if _history(config, stage) < config.history:
        notes.append(f"history {config.history} -> {_history(config, stage)} to fit the memory")
    return notes


def _load(backbone: str) -> Weights:
    """Load the weights of a backbone by name, see `stylize.weights.find`.

    May download them. Raises `ConfigError` and `WeightsError`.
    """
    return weights.load(weights.find(StyleConfig(backbone=backbone).backbone))
