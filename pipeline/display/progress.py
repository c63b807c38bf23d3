"""The display of a run: live on a terminal, elsewhere plain lines or JSON lines.

It never stops a run: if its pipe or terminal is closed, it goes silent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console, ConsoleDimensions, ConsoleRenderable, Group
from rich.markup import escape
from rich.text import Text

from pipeline.cost import work
from pipeline.display.terminal import (
    Row,
    Screen,
    download_bar,
    download_text,
    overview,
    table,
)
from pipeline.records import FAILURES, Pair, Result, Status
from pipeline.text import duration, utc_now, visible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Estimate", "Pace", "Progress", "shown"]

_STATUS_EVERY = 10.0  # seconds between status lines while no pair finishes
_LOOK_EVERY = 0.5  # seconds between looks at the workers on a terminal
_TELLING = 0.1  # the share of a pair after which its time left can be told
_RESULT_EVERY = 1.0  # seconds between plain lines of painted pairs


class _Step(Protocol):
    """What the display needs of `stylize.Step`: this package does not import the library."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise, because Rich would end the process and redirect standard output."""
        raise BrokenPipeError

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size now.

        Rich prefers COLUMNS and LINES, which may still have the size that the shell started with.
        """
        try:
            width, height = os.get_terminal_size(self.file.fileno())
            # A terminal that was never given a size says 0.
            return ConsoleDimensions(width or 80, height or 24)
        except (OSError, ValueError, AttributeError):  # not a terminal
            return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError("the size is that of the terminal")


class Pace:
    """The pace of work that begins slowly, judged by the later half of what is done.

    The coarse scales, which come first, take long for their few pixels.
    """

    def __init__(self) -> None:
        self._seen = deque([(0.0, 0.0)])  # seconds since the beginning, and what was done by then

    def add(self, seconds: float, done: float) -> None:
        """Take in how much is done after some seconds."""
        self._seen.append((seconds, done))
        while len(self._seen) > 2 and self._seen[1][1] <= done / 2:
            self._seen.popleft()

    def seconds(self, work_left: float) -> float | None:
        """Return the time that the work left will take, or None while nothing is done."""
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return work_left * (now - began) / (done - before) if done > before else None


class Estimate:
    """An estimate of the time left, from the work done so far, including pairs in hand.

    Failed pairs do not count as work done, because the other pairs will not be as quick.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._open = {pair.pair_id: float(max(1, work(pair.config))) for pair in pairs}
        self._painted = self._in_hand = self._chosen = 0.0
        self._pace = Pace()
        self._began: float | None = None  # when the first pair was seen in hand
        self._before = 0.0  # the work that was done by then

    def update(self, statuses: Sequence[Status]) -> None:
        """Take in the status of the workers."""
        busy = [status for status in statuses if status.pair_id]
        works = [self._open.get(status.pair_id, 0.0) * status.batch for status in busy]
        self._chosen = sum(works)
        self._in_hand = sum(w * status.share for w, status in zip(works, busy, strict=True))
        if self._began is None and busy:
            self._began, self._before = time.monotonic(), self._in_hand
        self._pace.add(self.elapsed(), self._done())

    def finish(self, pair_id: str, painted: bool) -> None:
        """Take in the end of a pair."""
        pair_work = self._open.pop(pair_id, 0.0)
        self._painted += pair_work if painted else 0.0

    def elapsed(self) -> float:
        """Return the seconds since the first pair was begun."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def _done(self) -> float:
        return self._painted + self._in_hand - self._before

    def left(self) -> float | None:
        """Return the seconds left, or None while it is too early to tell."""
        done, elapsed = self._done(), self.elapsed()
        if done <= 0 or elapsed < 1:
            return None
        work_left = max(0.0, sum(self._open.values()) - self._in_hand)
        if self._painted:  # whole pairs, with their slow and their quick parts
            return work_left * elapsed / done
        return self._pace.seconds(work_left) if done >= _TELLING * self._chosen else None


def _label(pair: Pair) -> str:
    """Return the id that the manifest gives, or else the names of photograph and styles."""
    return _names(pair.content, pair.styles) if pair.generated_id else visible(pair.pair_id)


def _names(content: str, styles: Sequence[str]) -> str:
    stems = "+".join(PurePath(path).stem for path in styles)
    return visible(f"{PurePath(content).stem} \N{MULTIPLICATION SIGN} {stems}")


def _left(pace: Pace, share: float) -> float | None:
    """Return the seconds left of a pair whose pace is known, or None while it is too early."""
    return pace.seconds(1 - share) if share >= _TELLING else None


@contextlib.contextmanager
def shown(
    content: str, styles: Sequence[str], steps: int, share_of: Callable[[Tensor], float]
) -> Iterator[Callable[[_Step, Tensor], None]]:
    """Show one pair outside a run, if standard error is a terminal.

    Yields an `on_step` for at most `steps` steps. `share_of` returns the share of work done and is
    called with each picture: see `cost.share_done`.
    """
    console = _Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda step, picture: None
        return
    label, began, pace = _names(content, styles), time.monotonic(), Pace()
    row = Row(label, 0, steps)

    def draw(width: int, height: int) -> ConsoleRenderable:
        return table([row], width, len(label), steps)

    def show(step: _Step, picture: Tensor) -> None:
        nonlocal row
        share = share_of(picture)
        pace.add(time.monotonic() - began, share)
        row = Row(label, step.step, steps, step.loss, share, _left(pace, share))

    screen = Screen(console, draw)
    closed = contextlib.suppress(OSError, ValueError)  # a closed terminal does not stop the pair
    with closed:
        screen.start()
    try:
        yield show
    finally:
        with closed:
            screen.stop()


class Progress:
    """Shows a run of `pairs` on `stream`, by default standard error.

    `style` is auto, live, plain, json or none.
    """

    def __init__(
        self, pairs: Sequence[Pair], *, style: str = "auto", stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._console = _Console(file=self._stream, highlight=False, soft_wrap=True)
        if style == "auto":
            style = "live" if self._console.is_terminal else "plain"
        self._style = style
        self._total = len(pairs)
        self._labels = {pair.pair_id: _label(pair) for pair in pairs}
        self._longest = max((len(label) for label in self._labels.values()), default=0)
        self._most_steps = max((pair.config.steps for pair in pairs), default=0)
        self._estimate = Estimate(pairs)
        self._counts: Counter[str] = Counter(dict.fromkeys(("ok", *FAILURES), 0))
        self._statuses: Sequence[Status] = ()
        self._paces: dict[str, Pace] = {}  # of the pairs in hand
        self._began = time.monotonic()
        self._last_line = self._last_painted = -math.inf  # when such a line was printed
        self._unreported = 0  # pairs painted since the last line about one
        self._download: tuple[int, int, float | None] | None = None  # while there is one
        self._began_download: float | None = None
        self._screen: Screen | None = None

    def __enter__(self) -> Progress:
        if self._style == "live":
            self._screen = Screen(self._console, self._content)
            self._guard(self._screen.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen:
            self._guard(self._screen.stop)
            self._screen = None

    @property
    def every(self) -> float:
        """The seconds between two looks at the workers that this display needs."""
        return {"live": _LOOK_EVERY, "none": math.inf}.get(self._style, _STATUS_EVERY / 2)

    @property
    def _done(self) -> int:
        return sum(self._counts.values())

    def result(self, result: Result) -> None:
        """Show the result of a pair."""
        self._counts[result.status] += 1
        self._estimate.finish(result.pair_id, result.status == "ok")
        if self._style == "json":
            self._json(
                "result",
                pair_id=result.pair_id,
                status=result.status,
                output=result.output,
                loss=result.loss,
                seconds=result.seconds,
                error=result.error_message or None,
                done=self._done,
                total=self._total,
            )
        elif result.status != "ok":
            kind = "" if result.status == "failed" else f"{result.status}: "
            self._print(
                f"[red]✗[/] {self._done}/{self._total} {escape(visible(result.pair_id))} (row "
                f"{result.row}): {kind}{escape(visible(result.error_message))}"
            )
        elif self._style == "plain":
            self._show_painted(result)

    def _show_painted(self, result: Result) -> None:
        """Print a plain line, at most one a second; it also counts the pairs since the last one."""
        self._unreported += 1
        now = time.monotonic()
        if now - self._last_painted < _RESULT_EVERY and self._done < self._total:
            return
        others = f" and {self._unreported - 1} more" if self._unreported > 1 else ""
        self._print(
            f"✓ {self._done}/{self._total} {escape(visible(result.output))}{others} "
            f"{duration(result.seconds or 0)}, loss {result.loss:.4g}{self._time_left()}"
        )
        self._last_line = self._last_painted = now
        self._unreported = 0

    def status(self, statuses: Sequence[Status]) -> None:
        """Show the status of each worker."""
        self._statuses = statuses
        self._estimate.update(statuses)
        self._paces = {s.pair_id: self._paces.get(s.pair_id, Pace()) for s in statuses}
        for status in statuses:
            self._paces[status.pair_id].add(status.seconds, status.share)
        busy = [status for status in statuses if status.pair_id and status.step]
        if not busy or time.monotonic() - self._last_line < _STATUS_EVERY:
            return
        if self._style == "plain":
            nearest = max(busy, key=lambda status: status.share)  # to its end
            others = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
            step = f"step {nearest.step}/{nearest.steps}"
            self._print(f"… {escape(self._name(nearest))} {step}{others}{self._time_left()}")
        elif self._style == "json":
            self._json(
                "status",
                done=self._done,
                total=self._total,
                seconds_left=self._estimate.left(),
                workers=[_finite(vars(status)) for status in busy],
            )
        self._last_line = time.monotonic()

    def note(self, line: str) -> None:
        """Show a line that the user should know."""
        if self._style == "json":
            self._json("note", text=line)
        else:
            self._print(f"[yellow]·[/] {escape(visible(line))}")

    def download(self, there: int, whole: int) -> None:
        """Show how many bytes of a file are there; `whole` is 0 while that is not known."""
        if self._began_download is None:
            self._began_download = self._last_line = time.monotonic()
        seconds = time.monotonic() - self._began_download
        left = (whole - there) / there * seconds if there and whole and seconds > 1 else None
        self._download = (there, whole, left) if there < whole or not whole else None
        if self._style == "live" or time.monotonic() - self._last_line < _STATUS_EVERY:
            return
        self._last_line = time.monotonic()
        if self._style == "json":
            self._json("download", bytes=there, total=whole or None, seconds_left=left)
        else:
            self._print(f"… {download_text(there, whole, left)}")

    def _name(self, status: Status) -> str:
        name = self._labels.get(status.pair_id, visible(status.pair_id))
        return name if status.batch == 1 else f"{name} +{status.batch - 1}"

    def _time_left(self) -> str:
        left = self._estimate.left()
        return f", {duration(left)} left" if left else ""

    def _content(self, width: int, height: int) -> ConsoleRenderable:
        """Return what the live display shows on a terminal of this size, columns and lines."""
        if self._download:
            return download_bar(*self._download)
        if not self._total:  # there is no pair yet
            return Group()
        painted, elapsed = self._counts["ok"], self._estimate.elapsed()
        head = overview(
            width,
            self._done,
            self._done - painted,
            self._total,
            3600 * painted / elapsed if painted and elapsed > 1 else None,
            self._estimate.left(),
        )
        workers = self._statuses
        if not any(status.pair_id for status in workers):
            waited = duration(time.monotonic() - self._began)
            return Group(head, Text("" if self._done else f"starting workers … {waited}"))
        # There may be 200 workers and 24 lines, of which one stays free for printed lines.
        room = max(1, height - 5)
        if len(workers) > room:
            workers = [status for status in workers if status.pair_id][:room]
        rows = [self._row(status) for status in workers]
        hidden = len(self._statuses) - len(rows)
        more = [Text(f"… and {hidden} more workers")] if hidden else []
        return Group(head, table(rows, width, self._longest, self._most_steps), *more)

    def _row(self, status: Status) -> Row:
        if not status.pair_id:
            return Row()
        left = _left(self._paces[status.pair_id], status.share)
        name = self._name(status)
        return Row(name, status.step, status.steps, status.loss, status.share, left)

    def _print(self, markup: str) -> None:
        if self._style != "none":
            show = self._screen.print if self._screen else self._console.print
            self._guard(lambda: show(markup))

    def _json(self, event: str, **facts: object) -> None:
        known = {"time": utc_now(), "event": event, **_finite(facts)}
        line = json.dumps(known, ensure_ascii=False, allow_nan=False)
        self._guard(lambda: print(line, file=self._stream, flush=True))

    def _guard(self, show: Callable[[], object]) -> None:
        """Call `show`; go silent if the pipe or terminal is closed."""
        try:
            show()
        except (OSError, ValueError):
            self._style = "none"
            self._screen = None


def _finite(facts: Mapping[str, object]) -> dict[str, object]:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
