"""The part of a terminal that is redrawn below the printed lines.

It adds two things to `rich.live`: columns keep their places, and no remains of earlier drawings
stay when the terminal is resized.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Column, Table
from rich.text import Text

from pipeline.text import duration

__all__ = ["Row", "Screen", "clock", "download_bar", "download_text", "overview", "table"]

_REDRAW = 0.25  # seconds
_BAR, _SHORT_BAR = 30, 10  # columns of the overall bar
_NARROW = 64  # columns; a narrower terminal has no room for words and bars
_LONGEST_LABEL = 40  # columns
_MEGABYTE = 2**20  # as torchvision counts, which calls VGG-19's file 548 MB


class Screen:
    """Draws `content(width, height)` below the printed lines, four times a second.

    When a terminal is resized, it may cut, fold, push out or bring back the lines it shows. So the
    screen is then wiped and drawn again, together with the last printed lines.
    """

    def __init__(self, console: Console, content: Callable[[int, int], ConsoleRenderable]) -> None:
        self._console = console
        self._content = content
        self._live = Live(self, console=console, auto_refresh=False, transient=True)
        self._size = console.size
        self._drawn: list[list[Segment]] = []
        self._printed: deque[Text] = deque(maxlen=100)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_drawing, daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._console.push_render_hook(self)  # type: ignore[arg-type]  # duck-typed, before Live's
        self._live.start(refresh=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop drawing and remove what is drawn."""
        self._ended.set()
        self._thread.join()
        self._live.stop()
        self._console.pop_render_hook()

    def print(self, markup: str) -> None:
        """Print a line above the drawing, to stay."""
        text = Text.from_markup(markup)
        with self._lock:
            self._console.print(text)
            self._printed.append(text)

    def _keep_drawing(self) -> None:
        while not self._ended.wait(_REDRAW):
            try:
                with self._lock:
                    self._live.refresh()
            except (OSError, ValueError):  # the terminal is closed; the next print raises this, too
                return

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Return what the console writes instead of `renderables`; `Live` appends the drawing."""
        width, height = size = self._console.size
        self._drawn = self._console.render_lines(self._content(width, height), pad=False)
        if size == self._size:
            return renderables
        self._size = size
        return [self._wipe(height), *self._last_printed(width, height), *renderables]

    def _wipe(self, height: int) -> Control:
        """Clear line by line: some terminals copy into their history what is cleared at once."""
        line = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_DOWN, 1)]
        return Control(ControlType.HOME, *line * height, ControlType.HOME)

    def _last_printed(self, width: int, height: int) -> list[Text]:
        """Return the last printed lines, as many as fit above the drawing."""
        room, shown = height - len(self._drawn), 0
        for text in reversed(self._printed):
            room -= -(-text.cell_len // width)
            if room < 1:
                break
            shown += 1
        return list(self._printed)[len(self._printed) - shown :]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._drawn:
            yield from line
            yield Segment.line()


@dataclass(frozen=True)
class Row:
    """The row of one worker. `share` of its pair's work is done. Without a label it is idle."""

    label: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    share: float = 0.0
    left: float | None = None  # seconds


def overview(
    width: int, done: int, failed: int, total: int, per_hour: float | None, left: float | None
) -> ConsoleRenderable:
    """Return the overall bar with the facts beside it, on several lines if one is too narrow.

    `width` is that of the terminal in columns, `left` the seconds left.
    """
    facts = [Text(f"{done:,}/{total:,}")]
    if failed:
        facts.append(Text(f"{failed:,} failed", "red"))
    if per_hour is not None:
        facts.append(Text(f"{per_hour:,.{0 if per_hour >= 20 else 1}f} pairs/h"))
    if left is not None:
        facts.append(Text(f"{duration(left)} left, until {clock(left)}"))
    room = width - 2 - sum(fact.cell_len + 2 for fact in facts)
    bar = ProgressBar(total=max(1, total), completed=done, width=max(_SHORT_BAR, min(_BAR, room)))
    lines: list[list[Text]] = [[]]
    used = bar.width or 0
    for fact in facts:
        used += 2 + fact.cell_len
        if lines[-1] and used >= width:
            lines.append([])
            used = fact.cell_len
        lines[-1].append(fact)
    first, *others = (Text("  ", no_wrap=True, overflow="crop").join(line) for line in lines)
    head = Table.grid(Column(width=bar.width), Column(no_wrap=True), padding=(0, 1, 0, 0))
    head.add_row(bar, first)
    return Group(head, *others)


def download_text(there: int, whole: int, left: float | None) -> str:
    """Return how far a download is: bytes that are there, of the whole (0: unknown), seconds."""
    of = f" of {whole / _MEGABYTE:.0f}" if whole else ""
    time_left = "" if left is None else f", {duration(left)} left"
    return f"VGG-19: {there / _MEGABYTE:.0f}{of} MB{time_left}"


def download_bar(there: int, whole: int, left: float | None) -> ConsoleRenderable:
    """Return a bar of a download with its figures."""
    grid = Table.grid(Column(width=_BAR), Column(no_wrap=True), padding=(0, 1, 0, 0))
    bar = ProgressBar(total=whole or None, completed=there, width=_BAR)
    grid.add_row(bar, Text(download_text(there, whole, left)))
    return grid


def clock(seconds: float) -> str:
    """Return the time of day some seconds from now, with the day if it is not today."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    days = (end.date() - now.date()).days
    return f"{end:%H:%M}" if not days else f"{end:%a %H:%M}" if days < 7 else f"{end:%d %b %H:%M}"


def table(rows: Sequence[Row], width: int, longest: int, most_steps: int) -> ConsoleRenderable:
    """Return a line for each worker.

    `width` is that of the terminal. The widths of the columns depend on the `longest` label and the
    `most_steps` of the run, so that they keep their places.
    """
    digits = len(str(most_steps))
    narrow = width < _NARROW
    widths = [2 * digits + 1, 9, 7] if narrow else [16, 2 * digits + 1, 14, 12]
    label = max(4, min(longest, _LONGEST_LABEL, width - 1 - sum(widths) - len(widths)))
    columns = [Column(width=w, no_wrap=True, overflow="ellipsis") for w in (label, *widths)]
    grid = Table.grid(*columns, padding=(0, 1, 0, 0))
    for row in rows:
        left = "" if row.left is None else duration(row.left)
        loss = f"{row.loss:.4g}" if row.step else "starting"
        cells: list[ConsoleRenderable] = [
            Text(row.label, "cyan"),
            ProgressBar(total=1, completed=row.share, width=16),
            Text(f"{row.step}/{row.steps}", justify="right"),
            Text(loss if narrow or not row.step else f"loss {loss}"),
            Text(left if narrow or not left else f"{left} left", justify="right"),
        ]
        if not row.label:
            cells = [Text("idle", "dim"), *[Text()] * 4]
        if narrow:
            del cells[1]
        grid.add_row(*cells)
    return grid
