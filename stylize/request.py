"""What a caller of `stylize.transfer` passes in and gets back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from stylize.checkpoint import Checkpoint, OnLook
from stylize.config import StyleConfig, depth_problem
from stylize.errors import ConfigError, ImageSizeError
from stylize.files import write_atomic
from stylize.image import encode, readable
from stylize.inputs import Painting, Photograph, Picture, one_or_several
from stylize.kept import Kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stylize.deep import Deep

__all__ = ["OnStep", "Request", "Step", "StyleResult"]


@dataclass(frozen=True)
class Step:
    """One evaluation of the loss. `loss` is the weighted sum of the other three, which are
    unweighted."""

    step: int  # number of evaluations so far, over all scales
    seconds: float  # since the start of the transfer
    loss: float
    content_loss: float
    style_loss: float
    tv_loss: float


OnStep = Callable[[Step, Tensor], None]
"""A callback that is given each step and the picture there, (1, 3, H, W). It may raise
`Interrupted` to end the transfer. On a GPU several steps are reported at once, all of them with the
picture of the latest."""


@dataclass(frozen=True)
class Request:
    """A picture to be painted: the inputs, the settings and a callback.

    `init` and the masks take precedence over the paths in the config. A picture that is painted
    alone may go on from a `checkpoint`, and have `on_look` keep new ones; in a batch both are
    ignored. Raises `ConfigError` unless `config` is a `StyleConfig`.
    """

    content: Picture | Photograph
    style: Picture | Painting | Sequence[Picture | Painting]
    config: StyleConfig = StyleConfig()
    init: Picture | None = None
    mask: Picture | Sequence[Picture] | None = None  # one, or one for each style
    on_step: OnStep | None = None
    style_mask: Picture | Sequence[Picture | None] | None = None  # one for each style
    checkpoint: Checkpoint | None = None
    on_look: OnLook | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, StyleConfig):
            raise ConfigError(
                f"config is {self.config!r}; it must be a StyleConfig, like StyleConfig.of('draft')"
            )

    def styles(self) -> Sequence[Picture | Painting]:
        """Return the style pictures as a sequence, also where only one was given."""
        style = self.style
        return style if isinstance(style, Sequence) and not isinstance(style, str) else [style]

    def load(self) -> None:
        """Read the pixels of PIL images that have only been opened. Raises `ImageReadError`.

        To be called by one thread: requests may share an image, and two threads cannot read its
        file at the same time.
        """
        masks = [*one_or_several(self.mask), *one_or_several(self.style_mask)]
        for picture in (self.content, *self.styles(), self.init, *masks):
            if isinstance(picture, Image.Image):
                with readable():
                    picture.load()


@dataclass(frozen=True)
class StyleResult:
    """A finished transfer. `loss` is the weighted sum of the other three losses; all four are those
    of the picture that was kept."""

    image: Image.Image  # RGB, or RGBA where the photograph is transparent
    config: StyleConfig
    loss: float
    content_loss: float
    style_loss: float
    tv_loss: float
    curve: tuple[Step, ...]
    evaluations: int
    stop_reason: str  # steps, plateau, stalled or restarted, see `stylize.optimize.Minimum`
    seconds: float  # of the whole batch
    notes: str = ""  # margins that were cut off, and what was reduced to save memory
    deep: Deep | None = None  # the pixels (H, W, 3) with 16 bits, where the config says so
    kept: Kept = Kept()  # the photograph's metadata that is kept

    def encode(self, suffix: str, metadata: str) -> bytes:
        """Encode the picture for a file with this suffix, with `metadata` (JSON) in it.

        Raises `ImageError` for a suffix, size or depth that cannot be written.
        """
        if problem := depth_problem(suffix, self.config.bits):
            raise ImageSizeError(problem)
        return encode(
            self.image,
            suffix,
            metadata,
            quality=self.config.quality,
            deep=self.deep,
            kept=self.kept,
            ground=self.config.background or "white",
        )

    def save(self, path: str | Path) -> None:
        """Write the picture with its settings, completely or not at all.

        Raises `OSError`, and `ImageError` for a suffix, size or depth that cannot be written.
        """
        settings = self.config.without_folders().to_json()
        write_atomic(path, self.encode(Path(path).suffix, settings))

    def plot(self) -> Figure:
        """Plot the loss and its weighted parts over the evaluations, for a notebook or a file."""
        from stylize.plot import plot_result

        return plot_result(self)

    def _repr_png_(self) -> bytes:
        return encode(self.image, ".png")
