"""The run as it goes: a live display on a terminal, plain or JSON lines elsewhere.

Only shows; a display that cannot be written to (closed pipe, closed terminal) goes silent and
the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions, ConsoleRenderable, Group
from rich.markup import escape
from rich.text import Text

from pipeline.cost import work
from pipeline.display.terminal import Row, Screen, overview, table
from pipeline.records import FAILURES, Pair, Result, Status
from pipeline.text import duration, visible

__all__ = ["Estimate", "Progress", "shown"]

_STATUS_EVERY = 10.0  # seconds between lines while nothing finishes
_RESULT_EVERY = 1.0  # seconds between plain lines of what was painted


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process, and send standard output to nowhere."""
        raise BrokenPipeError

    @property
    def size(self) -> ConsoleDimensions:
        """As the terminal has it now. Rich believes COLUMNS and LINES, where a shell or readline
        may have left those of the start."""
        try:
            width, height = os.get_terminal_size(self.file.fileno())
            # 0 is what a terminal has that nobody gave a size.
            return ConsoleDimensions(width or 80, height or 24)
        except (OSError, ValueError, AttributeError):  # no terminal
            return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError("it is the terminal's")


class Estimate:
    """Time left, from the work done so far, pairs in hand included.

    Pairs that failed are no work done: they would promise that the others are as quick.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._open = {pair.pair_id: float(max(1, work(pair.config))) for pair in pairs}
        self._painted = self._in_hand = 0.0
        self._began: float | None = None  # when the first pair was in hand
        self._before = 0.0  # what was done of it then

    def update(self, statuses: Sequence[Status]) -> None:
        """What the workers have in hand now."""
        busy = [status for status in statuses if status.pair_id]
        self._in_hand = sum(self._open.get(s.pair_id, 0.0) * s.share * s.batch for s in busy)
        if self._began is None and busy:
            self._began, self._before = time.monotonic(), self._in_hand

    def finish(self, pair_id: str, painted: bool) -> None:
        work = self._open.pop(pair_id, 0.0)
        self._painted += work if painted else 0.0

    def elapsed(self) -> float:
        """Seconds since the first pair was begun."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def left(self) -> float | None:
        """Seconds left, or None while nothing is known."""
        done = self._painted + self._in_hand - self._before
        elapsed = self.elapsed()
        if done <= 0 or elapsed < 1:
            return None
        return max(0.0, sum(self._open.values()) - self._in_hand) * elapsed / done


def _label(pair: Pair) -> str:
    """Return the id that the manifest gives, else the names of photograph and styles."""
    return _names(pair.content, pair.styles) if pair.generated_id else visible(pair.pair_id)


def _names(content: str, styles: Sequence[str]) -> str:
    stems = "+".join(PurePath(path).stem for path in styles)
    return visible(f"{PurePath(content).stem} \N{MULTIPLICATION SIGN} {stems}")


@contextlib.contextmanager
def shown(
    content: str, styles: Sequence[str], steps: int, share_of: Callable[[Any], float]
) -> Iterator[Callable[[Any, Any], None]]:
    """Show one pair without a run: gives an `on_step` that shows each of at most `steps` steps,
    where standard error is a terminal. `share_of` is told each picture: `timing.share_done`."""
    console = _Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda step, picture: None
        return
    label, began = _names(content, styles), time.monotonic()
    row = Row(label, 0, steps)

    def draw(width: int, height: int) -> ConsoleRenderable:
        return table([row], width, len(label), steps)

    def show(step: Any, picture: Any) -> None:
        nonlocal row
        share = share_of(picture)
        row = Row(label, step.step, steps, step.loss, share, time.monotonic() - began)

    screen = Screen(console, draw)
    closed = contextlib.suppress(OSError, ValueError)  # the terminal is; the picture is still made
    with closed:
        screen.start()
    try:
        yield show
    finally:
        with closed:
            screen.stop()


class Progress:
    """Shows a run of `pairs` on `stream`; `style` is auto, live, plain, json or none."""

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
        self._began = time.monotonic()
        self._said = self._said_painted = -math.inf  # when the last line was printed, and of these
        self._unsaid = 0  # pairs painted since
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
    def _done(self) -> int:
        return sum(self._counts.values())

    def result(self, result: Result) -> None:
        """A pair is finished, one way or another."""
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
            kind = f"{result.status}: " if result.status != "failed" else ""
            self._print(
                f"[red]✗[/] {self._done}/{self._total} {escape(visible(result.pair_id))} (row "
                f"{result.row}): {kind}{escape(visible(result.error_message))}"
            )
        elif self._style == "plain":
            self._painted(result)

    def _painted(self, result: Result) -> None:
        """A plain line, at most one a second; the next has the count of those between."""
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said_painted < _RESULT_EVERY and self._done < self._total:
            return
        others = f" and {self._unsaid - 1} more" if self._unsaid > 1 else ""
        self._print(
            f"✓ {self._done}/{self._total} {escape(visible(result.output))}{others} "
            f"{duration(result.seconds or 0)}, loss {result.loss:.4g}{self._ahead()}"
        )
        self._said = self._said_painted = now
        self._unsaid = 0

    def status(self, statuses: Sequence[Status]) -> None:
        """What each worker is doing now."""
        self._statuses = statuses
        self._estimate.update(statuses)
        busy = [status for status in statuses if status.pair_id and status.step]
        if not busy or time.monotonic() - self._said < _STATUS_EVERY:
            return
        if self._style == "plain":
            one = max(busy, key=lambda s: s.share)
            others = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
            self._print(
                f"… {escape(self._name(one))} step {one.step}/{one.steps}{others}{self._ahead()}"
            )
        elif self._style == "json":
            self._json(
                "status",
                done=self._done,
                total=self._total,
                seconds_left=self._estimate.left(),
                workers=[_finite(vars(status)) for status in busy],
            )
        self._said = time.monotonic()

    def note(self, line: str) -> None:
        """Something the user should know."""
        if self._style == "json":
            self._json("note", text=line)
        else:
            self._print(f"[yellow]·[/] {escape(visible(line))}")

    def _name(self, status: Status) -> str:
        name = self._labels.get(status.pair_id, visible(status.pair_id))
        return name if status.batch == 1 else f"{name} +{status.batch - 1}"

    def _ahead(self) -> str:
        left = self._estimate.left()
        return f", {duration(left)} left" if left else ""

    def _content(self, width: int, height: int) -> ConsoleRenderable:
        """What the live display shows on a terminal of this size."""
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
        # A studio has 200 workers and a screen has 24 lines; one stays free for what is printed.
        room = max(1, height - 5)
        if len(workers) > room:
            workers = [status for status in workers if status.pair_id][:room]
        rows = [
            Row(self._name(s), s.step, s.steps, s.loss, s.share, s.seconds) if s.pair_id else Row()
            for s in workers
        ]
        hidden = len(self._statuses) - len(rows)
        more = [Text(f"… and {hidden} more workers")] if hidden else []
        return Group(head, table(rows, width, self._longest, self._most_steps), *more)

    def _print(self, markup: str) -> None:
        if self._style != "none":
            show = self._screen.print if self._screen else self._console.print
            self._guard(lambda: show(markup))

    def _json(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **_finite(facts)}, ensure_ascii=False, allow_nan=False)
        self._guard(lambda: print(line, file=self._stream, flush=True))

    def _guard(self, show: Any) -> None:
        try:
            show()
        except (OSError, ValueError):  # the pipe or terminal is closed
            self._style = "none"
            self._screen = None


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
