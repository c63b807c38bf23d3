"""The run as it goes: a live display on a terminal, plain or JSON lines elsewhere.

Only shows; a display that cannot be written to (closed pipe, closed terminal) goes silent and
the run goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.records import Pair, Result
from pipeline.tables import quoted
from pipeline.worker import Status

__all__ = ["Estimate", "Progress", "duration", "visible"]

_PLAIN_EVERY = 10.0  # seconds between plain lines while nothing finishes
_LONGEST = 1000  # characters of a message that are shown


def visible(text: str) -> str:
    """Text from files and manifests with control characters made visible, on one line."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return quoted(cut, limit=len(cut))[1:-1]


def duration(seconds: float) -> str:
    """0:42, 12:05, 3:00:00"""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process, and send standard output to nowhere."""
        raise BrokenPipeError


class Estimate:
    """Time left, from the work done so far: pixels x evaluations, pairs in hand included."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._work = {p.pair_id: _work(p) for p in pairs}
        self.total = sum(self._work.values())
        self.finished = 0.0
        self._began: float | None = None

    def finish(self, pair_id: str) -> None:
        self.finished += self._work.get(pair_id, 0.0)

    def left(self, statuses: Sequence[Status]) -> float | None:
        """Seconds left, or None while nothing is known."""
        in_hand = sum(
            self._work.get(s.pair_id, 0.0) * s.step / max(1, s.steps) for s in statuses if s.pair_id
        )
        done = self.finished + in_hand
        if self._began is None:
            if done <= 0:
                return None
            self._began = time.monotonic()
            self._before = done
            return None
        elapsed = time.monotonic() - self._began
        if done <= self._before or elapsed < 1:
            return None
        return (self.total - done) * elapsed / (done - self._before)


def _work(pair: Pair) -> float:
    return float(pair.settings["size"] ** 2 * max(1, pair.settings["steps"]))


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
        self._estimate = Estimate(pairs)
        self._counts = {"ok": 0}
        self._statuses: Sequence[Status] = ()
        self._began = time.monotonic()
        self._said = 0.0
        self._recent: deque[float] = deque(maxlen=50)
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._style == "live":
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._guard(self._live.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._guard(self._live.stop)
            self._live = None

    def result(self, result: Result) -> None:
        """A pair is finished, one way or another."""
        self._counts[result.status] = self._counts.get(result.status, 0) + 1
        self._estimate.finish(result.pair_id)
        self._recent.append(time.monotonic())
        done = sum(self._counts.values())
        if self._style == "json":
            self._json(
                "result",
                pair_id=result.pair_id,
                status=result.status,
                output=result.output,
                loss=result.loss,
                seconds=result.seconds,
                error=result.error_message or None,
                done=done,
                total=self._total,
            )
        elif result.status != "ok":
            kind = f"{result.status}: " if result.status != "failed" else ""
            self._print(
                f"[red]✗[/] {done}/{self._total} {escape(visible(result.pair_id))} (row "
                f"{result.row}): {kind}{escape(visible(result.error_message))}"
            )
        elif self._style == "plain":
            self._print(
                f"✓ {done}/{self._total} {escape(visible(result.output))} "
                f"{duration(result.seconds or 0)}, loss {result.loss:.4g}{self._ahead()}"
            )
            self._said = time.monotonic()

    def status(self, statuses: Sequence[Status]) -> None:
        """What each worker is doing now."""
        self._statuses = statuses
        if self._style == "plain" and time.monotonic() - self._said > _PLAIN_EVERY:
            busy = [s for s in statuses if s.pair_id and s.step]
            if busy:
                one = max(busy, key=lambda s: s.step / max(1, s.steps))
                others = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
                self._print(
                    f"… {escape(visible(one.pair_id))} step {one.step}/{one.steps}{others}"
                    f"{self._ahead()}"
                )
                self._said = time.monotonic()
        elif self._style == "json" and time.monotonic() - self._said > _PLAIN_EVERY:
            self._json("status", workers=[vars(s) for s in statuses if s.pair_id])
            self._said = time.monotonic()

    def note(self, line: str) -> None:
        """Something the user should know."""
        if self._style == "json":
            self._json("note", text=line)
        else:
            self._print(f"[yellow]·[/] {escape(visible(line))}")

    def _ahead(self) -> str:
        left = self._estimate.left(self._statuses)
        return "" if left is None else f", {duration(left)} left"

    def _render(self) -> RenderableType:
        done = sum(self._counts.values())
        failed = done - self._counts["ok"]
        elapsed = time.monotonic() - self._began
        left = self._estimate.left(self._statuses)
        facts = [f"{done}/{self._total}"]
        if failed:
            facts.append(f"[red]{failed} failed[/]")
        if done:
            facts.append(f"{3600 * done / elapsed:.0f} pairs/h")
        if left is not None:
            end = datetime.now() + timedelta(seconds=left)
            facts.append(f"{duration(left)} left, until {end:%H:%M}")
        bar = ProgressBar(total=max(1, self._total), completed=done, width=30)
        head = Table.grid(padding=(0, 1))
        head.add_row(bar, "  ".join(facts))
        busy = [s for s in self._statuses if s.pair_id]
        # A studio has 200 workers and a screen has 24 lines.
        room = max(1, self._console.size.height - 4)
        rows = Table.grid(padding=(0, 1))
        for s in busy[:room]:
            rest = s.seconds / s.step * (s.steps - s.step) if s.step else None
            rows.add_row(
                f"[cyan]{escape(visible(s.pair_id)[:40])}[/]",
                ProgressBar(total=max(1, s.steps), completed=s.step, width=16),
                f"{s.step}/{s.steps}",
                f"loss {s.loss:.4g}" if s.step else "starting",
                "" if rest is None else f"{duration(rest)} left",
            )
        parts: list[RenderableType] = [head, rows]
        if not busy:
            parts = [head, f"starting workers … {duration(elapsed)}"]
        if len(busy) > room:
            parts.append(f"… and {len(busy) - room} more workers")
        return Group(*parts)

    def _print(self, markup: str) -> None:
        if self._style == "none":
            return
        self._guard(lambda: self._console.print(markup))

    def _json(self, event: str, **facts: Any) -> None:
        line = json.dumps(_finite({"event": event, **facts}), ensure_ascii=False)
        self._guard(lambda: print(line, file=self._stream, flush=True))

    def _guard(self, show: Any) -> None:
        try:
            show()
        except (OSError, ValueError):  # the pipe or terminal is closed
            self._style = "none"
            self._live = None


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    clean: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, float) and value != value:
            clean[name] = None
        elif isinstance(value, list):
            clean[name] = [_finite(v) if isinstance(v, dict) else v for v in value]
        else:
            clean[name] = value
    return clean
