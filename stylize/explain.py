"""Looking inside one transfer: Gram matrices, feature maps, the loss of each layer. Draws nothing.

explained = explain_transfer(photo, painting, config, stylizer)
explained.grams["relu3_1"].style  # (N, N)
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
from stylize.inputs import Inputs
from stylize.layers import conv_of
from stylize.losses import PerceptualLoss, gram_matrix, relative
from stylize.objective import Frame
from stylize.stages import Stage
from stylize.transfer import OnStep, Step, StyleResult, Stylizer

__all__ = [
    "Explanation",
    "Grams",
    "LayerLosses",
    "Look",
    "Maps",
    "channel_order",
    "explain_transfer",
    "look_at",
    "strongest",
]

MAPS = 8
"""Feature maps that are kept of each layer."""


@dataclass(frozen=True)
class Grams:
    """One layer's Gram matrices (N, N), float32: of the style, the photograph and the result."""

    style: Tensor
    content: Tensor
    result: Tensor


@dataclass(frozen=True)
class Maps:
    """One layer's strongest feature maps (K, h, w) of each picture; row k is channel
    `channels[k]`."""

    channels: tuple[int, ...]
    content: Tensor
    style: Tensor
    result: Tensor


@dataclass(frozen=True)
class Look:
    """The picture at one evaluation, and what each layer adds to `Step.loss` there, but for
    `config.spread`: see `LayerLosses`."""

    step: Step
    picture: Image.Image
    content: Mapping[str, float]  # layer: weight times loss
    style: Mapping[str, float]


@dataclass(frozen=True)
class Explanation:
    """A transfer with its inside: pictures at the size that was worked at, grams by style layer,
    maps by chosen layer, looks in the order of their steps; stages as long as they were."""

    content: Image.Image
    style: Image.Image
    result: StyleResult
    stages: tuple[Stage, ...]
    grams: Mapping[str, Grams]
    maps: Mapping[str, Maps]
    looks: tuple[Look, ...]


def explain_transfer(
    content: Image.Image,
    style: Image.Image,
    config: StyleConfig,
    stylizer: Stylizer,
    *,
    layers: Sequence[str] = (),
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    looks: int = 60,
    on_step: OnStep | None = None,
) -> Explanation:
    """Paint `content` in the style of `style`, RGB pictures, and keep what explains the result.

    `layers`: those of the feature maps, by default all that a loss looks at. `looks`: at how many
    evaluations, see `look_at`; each costs a pass through the network without its gradient.
    Raises `StylizeError` in its forms, for layers that cannot be had before anything is painted.
    """
    with undisturbed(stylizer.device):
        inputs = Inputs(content, [style], config, init=init, mask=mask)
        inputs.plan(stylizer.reach(inputs))
        losses = LayerLosses(stylizer, inputs)
        stages = inputs.stages
        last = stylizer.stage_inputs(inputs, Stage(stages[-1].size, 0), {})
        encoder = stylizer.encoder(config, math.prod(stages[-1].size))
        style_layers = tuple(relative(config.style_layers))
        layers = layers or _by_depth([*style_layers, *relative(config.content_layers)])
        wanted = {*layers, *style_layers}

        @torch.no_grad()
        def features_of(picture: Tensor) -> dict[str, Tensor]:
            features: dict[str, Tensor] = encoder(picture, wanted)
            return features

        painting = last.styles[0].pixels
        photo, paint = features_of(last.frame.pad(last.content)), features_of(painting)
        channels = {layer: strongest([photo[layer], paint[layer]], MAPS) for layer in layers}
        weight = last.weight()

        def grams_of(features: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
            return {layer: _gram(features[layer], mask) for layer in style_layers}

        def maps_of(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: features[n][0, list(kept)].float().cpu() for n, kept in channels.items()}

        grams = [grams_of(paint, None), grams_of(photo, weight)]
        maps = [maps_of(photo), maps_of(paint)]
        del photo, paint  # of a large picture gigabytes, which painting may need
        watcher = _Watcher(losses, look_at(stages, looks), on_step)
        result = stylizer.transfer(content, style, config, init=init, mask=mask, on_step=watcher)
        watcher.look()
        made = stylizer.tensor(result.image)
        if config.preserve_color == "luminance":  # the losses never saw the colours put back
            made = color.luminance(made)
        after = features_of(last.frame.pad(made))
        grams.append(grams_of(after, weight))
        maps.append(maps_of(after))
        done = tuple(Stage(size, count) for size, count in watcher.counts.items())
        return Explanation(
            to_image(last.content),
            to_image(painting),
            result,
            done,
            grams={layer: Grams(*(g[layer] for g in grams)) for layer in style_layers},
            maps={n: Maps(kept, *(m[n] for m in maps)) for n, kept in channels.items()},
            looks=tuple(watcher.looks),
        )


class _Watcher:
    """Looks at pictures on the way, at the wanted evaluations and the last of each stage.

    On a GPU several evaluations are told at once with the picture of the last: that one is looked
    at. Which was the last is only known when another picture comes.
    """

    def __init__(self, losses: LayerLosses, wanted: set[int], on_step: OnStep | None) -> None:
        self.looks: list[Look] = []
        self.counts: dict[tuple[int, int], int] = {}  # evaluations by size: a stage may end early
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
    """What each layer adds to the loss: its weight times its loss, so that all of them and the
    total variation make up `Step.loss`. In a stage with `spread` that has a share of the style
    loss quarter by quarter; here it is the whole picture's.

    Where sides are no multiples of 16 a little differs at the right and the bottom edge: the
    picture as it is told has been cropped, and is extended by its edge again.
    """

    def __init__(self, stylizer: Stylizer, inputs: Inputs) -> None:
        self._stylizer = stylizer
        self._inputs = inputs
        self._stages: dict[tuple[int, int], tuple[Frame, PerceptualLoss]] = {}

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """What each content layer and each style layer adds, for a picture (1, 3, H, W) of any
        stage's size."""
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
            stage = Stage(size, 0)  # as the finest: no factor on the content, no quarters
            inputs = self._stylizer.stage_inputs(self._inputs, stage, {})
            loss = self._stylizer.loss(self._inputs.config, stage, [inputs])
            self._stages[size] = inputs.frame, loss
        return self._stages[size]


def _shrunk(mask: Tensor | None, features: Tensor) -> Tensor | None:
    if mask is None:
        return None
    return F.adaptive_avg_pool2d(mask, (features.shape[-2], features.shape[-1]))


def _gram(features: Tensor, mask: Tensor | None) -> Tensor:
    return gram_matrix(features, _shrunk(mask, features))[0].float().cpu()


def _by_depth(layers: Iterable[str]) -> tuple[str, ...]:
    """Layers once each, from the picture inwards."""
    return tuple(sorted(set(layers), key=lambda layer: (conv_of(layer), layer)))


def look_at(stages: Sequence[Stage], number: int) -> set[int]:
    """Some `number` of the evaluations 1, 2, …: first and last of each stage, and between them
    more at its beginning, where most happens."""
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
    """The channels that are strong in all of several pictures' features (1, N, h, w), strongest
    first: by the product of their shares of each picture's energy, the sum of F^2."""
    shares = []
    for one in features:
        power = one[0].float().square().mean(dim=(1, 2))  # (N,)
        shares.append(power / power.sum().clamp(min=1e-12))
    product = torch.stack(shares).prod(dim=0)
    return tuple(product.topk(min(number, len(product))).indices.tolist())


def channel_order(gram: Tensor) -> Tensor:
    """An order of the channels of a Gram matrix (N, N), N > 2, in which its structure shows: (N,).

    Four groups, by the signs of the second and third eigenvectors of G_ij / sqrt(G_ii G_jj), so
    that channels of a group respond in the same places; in each the strongest first. Those that
    are all but silent, G_ii <= 1e-6 of the largest, come last.
    """
    power = gram.diagonal().double()
    silent = power <= 1e-6 * power.max()
    scale = power.sqrt().where(~silent, torch.inf)
    values, vectors = torch.linalg.eigh(gram.double() / (scale[:, None] * scale))
    values, vectors = values[-3:-1], vectors[:, -3:-1]
    vectors = vectors * vectors.sum(dim=0).sign()  # else either sign, by chance
    some = (values > 1e-6 * len(gram)) & (vectors > 1e-6)  # not what is rounding
    third, second = some.long().unbind(dim=1)
    # Around the circle, not by rows: neighbouring groups have one sign in common.
    group = torch.tensor([[0, 1], [3, 2]], device=gram.device)[second, third].where(~silent, 4)
    by_power = power.argsort(descending=True, stable=True)
    return by_power[group[by_power].argsort(stable=True)]
