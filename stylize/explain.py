"""Looking inside one transfer: its Gram matrices, its feature maps and the loss of each layer.

    explained = explain_transfer(photo, painting, config, stylizer)
    explained.grams["relu3_1"].style  # (N, N)

This computes what is shown; `stylize-batch explain` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylize import color
from stylize.config import StyleConfig
from stylize.device import undisturbed
from stylize.image import to_image
from stylize.inputs import Inputs, Photograph
from stylize.layers import conv_of
from stylize.losses import PerceptualLoss, counts_at, gram_matrix, relative
from stylize.objective import Frame
from stylize.request import OnStep, Request, Step, StyleResult
from stylize.stages import Stage
from stylize.transfer import Stylizer

__all__ = [
    "Explanation",
    "Grams",
    "Look",
    "Maps",
    "channel_order",
    "explain_transfer",
]

_MAPS = 8
"""Number of feature maps that are kept of each layer."""


@dataclass(frozen=True)
class Grams:
    """The Gram matrices (N, N) of one layer, float32."""

    style: Tensor
    content: Tensor  # of the photograph
    result: Tensor


@dataclass(frozen=True)
class Maps:
    """The strongest feature maps (K, h, w) of one layer; map k is that of `channels[k]`."""

    channels: tuple[int, ...]
    content: Tensor
    style: Tensor
    result: Tensor


@dataclass(frozen=True)
class Look:
    """The picture at one evaluation, and what each layer adds to the loss there, see
    `LayerLosses`."""

    step: Step
    picture: Image.Image
    content: Mapping[str, float]  # weight times loss, by layer
    style: Mapping[str, float]


@dataclass(frozen=True)
class Explanation:
    """A transfer and what was kept from inside it."""

    content: Image.Image  # this and the style at the size of the finest stage
    style: Image.Image
    result: StyleResult
    stages: tuple[Stage, ...]  # with the evaluations that were made
    grams: Mapping[str, Grams]  # by style layer
    maps: Mapping[str, Maps]  # by chosen layer
    looks: tuple[Look, ...]  # in the order of their steps


def explain_transfer(
    content: Image.Image | Photograph,
    style: Image.Image,
    config: StyleConfig,
    stylizer: Stylizer,
    *,
    layers: Sequence[str] = (),
    init: Image.Image | None = None,
    mask: Image.Image | Sequence[Image.Image] | None = None,
    style_mask: Image.Image | Sequence[Image.Image | None] | None = None,
    looks: int = 60,
    on_step: OnStep | None = None,
) -> Explanation:
    """Paint `content` in the style of `style`, RGB pictures, and keep what explains the result.

    `layers` are those whose feature maps are kept, by default all that a loss is computed of.
    `looks` is the number of evaluations to look at, see `look_at`; each costs a forward pass.
    Raises `StylizeError`; for layers that are not available, before anything is painted.
    """
    with undisturbed(stylizer.device):
        inputs = Inputs(content, [style], config, init=init, mask=mask, style_mask=style_mask)
        inputs.plan(stylizer.reach(inputs))
        inspector = _Inspector(stylizer, inputs, layers)
        wanted = look_at(inputs.stages, looks)
        watcher = _Watcher(LayerLosses(stylizer, inputs), wanted, on_step)
        request = Request(content, style, config, init, mask, watcher, style_mask)
        result = stylizer.paint(request)
        watcher.look()
        painted = stylizer.tensor(result.image.convert("RGB"))
        if config.preserve_color == "luminance":  # as the losses saw it, without colours
            painted = color.luminance(painted)
        grams, maps = inspector.inspect(painted)
        return Explanation(
            to_image(inspector.finest.content),
            to_image(inspector.finest.styles[0].pixels),
            result,
            tuple(Stage(size, count) for size, count in watcher.counts.items()),
            grams=grams,
            maps=maps,
            looks=tuple(watcher.looks),
        )


class _Inspector:
    """Computes the Gram matrices and feature maps of the photograph, the painting and the result.

    Only these are kept, not the features, which for large pictures take gigabytes.
    """

    def __init__(self, stylizer: Stylizer, inputs: Inputs, layers: Sequence[str]) -> None:
        config, size = inputs.config, inputs.stages[-1].size
        self.finest = stylizer.stage_inputs(inputs, Stage(size, 0), {})
        self._encoder = stylizer.encoder(config, math.prod(size))
        self._style_layers = tuple(relative(config.style_layers))
        layers = layers or _by_depth([*self._style_layers, *relative(config.content_layers)])
        self._wanted = {*layers, *self._style_layers}
        self._weight = self.finest.weight()
        photo = self._features(self.finest.frame.pad(self.finest.content))
        painting = self._features(self.finest.styles[0].pixels)
        self._channels = {
            layer: strongest([photo[layer], painting[layer]], _MAPS) for layer in layers
        }
        self._photo = self._grams(photo, self._weight), self._maps(photo)
        of_part = {
            layer: _gram(painting[layer], counts_at(self.finest.styles[0].mask, layer))
            for layer in self._style_layers
        }
        self._painting = of_part, self._maps(painting)

    def inspect(self, result: Tensor) -> tuple[dict[str, Grams], dict[str, Maps]]:
        """Return grams by style layer and maps by chosen layer; `result` is (1, 3, H, W)."""
        features = self._features(self.finest.frame.pad(result))
        grams, maps = self._grams(features, self._weight), self._maps(features)
        photo_grams, photo_maps = self._photo
        painting_grams, painting_maps = self._painting
        return (
            {n: Grams(painting_grams[n], photo_grams[n], grams[n]) for n in self._style_layers},
            {
                n: Maps(channels, photo_maps[n], painting_maps[n], maps[n])
                for n, channels in self._channels.items()
            },
        )

    @torch.no_grad()
    def _features(self, picture: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self._encoder(picture, self._wanted)
        return features

    def _grams(self, features: Mapping[str, Tensor], weight: Tensor | None) -> dict[str, Tensor]:
        return {layer: _gram(features[layer], weight) for layer in self._style_layers}

    def _maps(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            layer: features[layer][0, list(channels)].float().cpu()
            for layer, channels in self._channels.items()
        }


class _Watcher:
    """A callback that looks at the picture at the wanted evaluations and at each stage's last.

    On a GPU several evaluations are reported at once with the picture of the latest, and that one
    is looked at. Which evaluation was a stage's last is known only when another picture comes.
    """

    def __init__(self, losses: LayerLosses, wanted: set[int], on_step: OnStep | None) -> None:
        self.looks: list[Look] = []
        self.counts: dict[tuple[int, int], int] = {}  # evaluations made, by size of the picture
        self._losses, self._wanted, self._on_step = losses, wanted, on_step
        self._latest: tuple[Step, Tensor] | None = None
        self._due = False

    def __call__(self, step: Step, picture: Tensor) -> None:
        if self._on_step:
            self._on_step(step, picture)
        if self._latest is not None and picture.data_ptr() != self._latest[1].data_ptr():
            if self._due or picture.shape != self._latest[1].shape:
                self.look()
            self._due = False
        self._due |= step.step in self._wanted
        self._latest = step, picture
        size = (picture.shape[-1], picture.shape[-2])
        self.counts[size] = self.counts.get(size, 0) + 1

    def look(self) -> None:
        """Keep a `Look` at the latest picture."""
        if self._latest is not None:
            step, picture = self._latest
            self.looks.append(Look(step, to_image(picture), *self._losses(picture)))


class LayerLosses:
    """Computes what each layer adds to the loss: its weight times its loss.

    All of them and the total variation add up to `Step.loss`, with two exceptions. In a stage with
    `spread` the style loss is partly that of the quarters, but here that of the whole picture. And
    where sides are not multiples of 16, the picture has been cropped, and its edge is repeated
    again here, so there are small differences at the right and bottom edges.
    """

    def __init__(self, stylizer: Stylizer, inputs: Inputs) -> None:
        self._stylizer = stylizer
        self._inputs = inputs
        self._stages: dict[tuple[int, int], tuple[Frame, PerceptualLoss]] = {}

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Return what each content layer and each style layer adds.

        `picture` is (1, 3, H, W) of the size of any stage.
        """
        frame, loss = self._stage((picture.shape[-1], picture.shape[-2]))
        seen = frame.pad(picture.clamp(0, 1) if loss.config.clamp else picture)
        content = dict.fromkeys(loss.content_layers, 0.0)
        style = dict.fromkeys(loss.style_layers, 0.0)
        for part, layer, share in loss.by_layer(seen) if loss.layers else ():
            if part == "content":
                content[layer] = loss.content_weight * float(share)
            else:
                style[layer] = loss.style_weight * float(share)
        return content, style

    def _stage(self, size: tuple[int, int]) -> tuple[Frame, PerceptualLoss]:
        if size not in self._stages:
            stage = Stage(size, 0)  # like the finest: no factor on the content, no spread
            inputs = self._stylizer.stage_inputs(self._inputs, stage, {})
            loss = self._stylizer.loss(self._inputs.config, stage, [inputs])
            self._stages[size] = inputs.frame, loss
        return self._stages[size]


def _gram(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the Gram matrix (N, N) of features, with a mask of the picture's size."""
    if mask is not None:
        mask = F.adaptive_avg_pool2d(mask, (features.shape[-2], features.shape[-1]))
    return gram_matrix(features, mask)[0].float().cpu()


def _by_depth(layers: Iterable[str]) -> tuple[str, ...]:
    """Sort layers from the first to the deepest, without repetitions."""
    return tuple(sorted(set(layers), key=lambda layer: (conv_of(layer), layer)))


def look_at(stages: Sequence[Stage], number: int) -> set[int]:
    """Choose about `number` of the evaluations 1, 2, …

    They are the first and the last of each stage, and others between them, more of them near the
    beginning, where most happens.
    """
    wanted: set[int] = set()
    total = sum(stage.evaluations for stage in stages)
    before = 0
    for stage in stages:
        last = stage.evaluations - 1
        share = max(2, round(number * stage.evaluations / max(1, total)))
        if last >= 0:
            places = ((k / (share - 1)) ** 1.5 for k in range(share))
            wanted |= {before + 1 + round(last * place) for place in places}
        before += stage.evaluations
    return wanted


def strongest(features: Sequence[Tensor], number: int) -> tuple[int, ...]:
    """Return the channels that are strongest in all of several pictures' features (1, N, h, w).

    They are sorted by the product of their shares of each picture's energy, the sum of F^2.
    """
    shares = []
    for picture in features:
        power = picture[0].float().square().mean(dim=(1, 2))  # (N,)
        shares.append(power / power.sum().clamp(min=1e-12))
    product = torch.stack(shares).prod(dim=0)
    return tuple(product.topk(min(number, len(product))).indices.tolist())


def channel_order(gram: Tensor) -> Tensor:
    """Return an order (N,) of the channels of a Gram matrix (N, N), N > 2, to show its structure.

    Channels form four groups by the signs of the second and third eigenvectors of
    G_ij / sqrt(G_ii G_jj), so that those of a group respond in the same places. Within a group the
    strongest come first. Channels that are nearly silent, G_ii <= 1e-6 of the largest, come last.
    """
    power = gram.diagonal().double()
    silent = power <= 1e-6 * power.max()
    scale = power.sqrt().where(~silent, torch.inf)
    values, vectors = torch.linalg.eigh(gram.double() / (scale[:, None] * scale))
    values, vectors = values[-3:-1], vectors[:, -3:-1]
    vectors = vectors * vectors.sum(dim=0).sign()  # `eigh` leaves the signs open
    positive = (values > 1e-6 * len(gram)) & (vectors > 1e-6)  # more than rounding errors
    third, second = positive.long().unbind(dim=1)
    # In a circle, so that neighbouring groups have one sign in common.
    group = torch.tensor([[0, 1], [3, 2]], device=gram.device)[second, third].where(~silent, 4)
    by_power = power.argsort(descending=True, stable=True)
    return by_power[group[by_power].argsort(stable=True)]
