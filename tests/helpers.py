"""What the end-to-end tests share: the real command, small pictures, a look at what it left."""

import contextlib
import csv
import glob
import hashlib
import io
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageDraw

from pipeline.paint.ray_folder import base_folder

COMMAND = str(Path(sys.executable).with_name("stylize-batch"))


def tiny(**changes: object) -> tuple[str, ...]:
    """Options of a run that takes a moment, with changes; None leaves an option out."""
    values = {"size": 32, "steps": 3, "scales": 1, "backbone": "vgg16", "threads": 1, **changes}
    named = ((f"--{name}", str(value)) for name, value in values.items() if value is not None)
    return tuple(part for option in named for part in option)


TINY = tiny()

# Runs the command and leaves in a file which of the heavy modules it loaded.
_SPY = """
import sys
from pipeline.cli import main
target = sys.argv.pop(1)
try:
    main()
finally:
    heavy = {"torch", "ray", "pyarrow"} & set(sys.modules)
    open(target, "w").write(" ".join(sorted(heavy)))
"""


SOON = 10.0
"""Seconds in which a run that is told to stop has ended: the promise of docs/reliability.md."""


def soon() -> float:
    """`SOON`, and more where it takes longer than usual to start a Python: beside other programs,
    or on a slow machine."""
    began = time.monotonic()
    for _ in range(4):
        subprocess.run([sys.executable, "-I", "-c", "import json, typing"], check=True)
    return SOON * max(1.0, (time.monotonic() - began) / 4 / 0.05)


QUICK_TO_MISS: Mapping[str, str] = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
}
"""The environment of a Ray that misses a node some seconds after it died, and not 30."""


def program(before: str = "") -> list[str]:
    """The command, or a Python that runs a line of code and then the command."""
    code = f"{before}; from pipeline.cli import main; main()"
    return [sys.executable, "-c", code] if before else [COMMAND]


def cli(
    *arguments: object, timeout: float = 240, before: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end, after the code `before`."""
    return subprocess.run(
        [*program(before), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
    )


def start(*arguments: object, before: str = "", **env: str) -> subprocess.Popen[str]:
    """The command, in a session of its own, left running, after the code `before`."""
    return subprocess.Popen(
        [*program(before), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **env},
    )


def loaded_by(tmp_path: Path, *arguments: object) -> tuple[int, set[str]]:
    """Exit code, and which of torch, ray and pyarrow the command had imported at its end."""
    target = tmp_path / "loaded"
    done = subprocess.run(
        [sys.executable, "-c", _SPY, str(target), *map(str, arguments)],
        capture_output=True,
        timeout=120,
    )
    return done.returncode, set(target.read_text().split())


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 36)) -> Path:
    """A picture of coloured discs, the same for the same seed."""
    chance = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return chance.randrange(256), chance.randrange(256), chance.randrange(256)

    image = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, r = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(3, 12)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def pictures(folder: Path, number: int) -> None:
    """c0.jpg, c1.jpg … and the style s.png."""
    for seed in range(number):
        picture(folder / f"c{seed}.jpg", seed)
    picture(folder / "s.png", 1000)


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """A manifest; a row without style gets s.png."""
    rows = [{"style": "s.png", **row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue())
    return path


def index_rows(out: Path | str) -> dict[str, dict[str, Any]]:
    """pair_id -> newest row, as `pipeline.read_index` gives it."""
    from pipeline import read_index

    return {row["pair_id"]: row for row in read_index(str(out)).to_pylist()}


def log_of(out: Path) -> str:
    """What the runs of an output folder have logged."""
    return "".join(path.read_text() for path in (out / "_state" / "log").glob("*.jsonl"))


def statuses(out: Path) -> dict[str, str]:
    return {pair_id: row["status"] for pair_id, row in index_rows(out).items()}


def check_whole(out: Path) -> None:
    """After a clean exit: each pair once in the files themselves, every ok row's picture opens
    and has the recorded hash, no picture without a row, nothing temporary left."""
    import pyarrow.dataset

    raw = pyarrow.dataset.dataset(out / "index").to_table(["pair_id"])["pair_id"].to_pylist()
    assert len(raw) == len(set(raw))
    rows = index_rows(out)
    assert set(raw) == set(rows)
    named = {row["output"] for row in rows.values() if row["output_sha256"]}
    for row in rows.values():
        if row["status"] == "ok":
            data = (out / row["output"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["output_sha256"]
            assert len(data) == row["output_bytes"]
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                assert image.size == (row["width"], row["height"])
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    state = {name for name in files if name.startswith("_state/")}
    files -= {name for name in state if name.startswith("_state/weights/")}  # for a cluster
    files -= {name for name in state if name.startswith("_state/log/")}
    files -= {name for name in state if name.startswith("_state/lock-")}  # of shards
    assert state & files <= {"_state/run.json", "_state/lock"}
    assert {n for n in files - state if not n.startswith("index/")} == named


def _pyarrow(folder: Path) -> int:
    import pyarrow.dataset

    return int(pyarrow.dataset.dataset(folder).to_table().num_rows)


def _pandas(folder: Path) -> int:
    import pandas as pd

    return len(pd.read_parquet(folder))


def _duckdb(folder: Path) -> int:
    import duckdb

    with duckdb.connect() as own:  # the shared one is for one thread
        return len(own.sql(f"select * from '{folder}/*.parquet'").fetchall())


def _polars(folder: Path) -> int:
    import polars as pl

    return len(pl.read_parquet(folder))


READERS: tuple[Callable[[Path], int], ...] = (_pyarrow, _pandas, _duckdb, _polars)


def count_by_readers(out: Path) -> list[int]:
    """Rows of the index folder as pyarrow, pandas, duckdb and polars read it."""
    return [read(out / "index") for read in READERS]


class Reader(threading.Thread):
    """Reads the index by four programs, over and over, while others write it; as a context.

    A read may fail only because a part that it had listed was removed before it was opened, and
    then the next one must succeed.
    """

    def __init__(self, out: Path, pause: float = 0.2) -> None:
        super().__init__()
        self.out, self.pause, self.over = out, pause, threading.Event()
        self.reads, self.again = 0, 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.over.wait(self.pause):
            for read in READERS if (self.out / "index").exists() else ():
                while (failure := self._read(read)) == "removed":
                    self.again += 1
                self.failures += [failure] if failure else []

    def _read(self, read: Callable[[Path], int]) -> str:
        self.reads += 1
        try:
            read(self.out / "index")
        except Exception as error:
            named = re.findall(r"part-[\w.-]+\.parquet", str(error))
            if named and not any((self.out / "index" / name).exists() for name in named):
                return "removed"
            return f"{read.__name__}: {error!r}"
        return ""

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        assert self.reads
        assert not self.failures, self.failures


@dataclass(frozen=True)
class Gate:
    """Where pairs wait as soon as they are begun, so that a run surely does not end sooner.

    `log` is one that misses no beginning.
    """

    file: Path
    log: Path

    def env(self, *pair_ids: str) -> dict[str, str]:
        """The environment in which these pairs wait, or all."""
        orders = [f"pair-begun@{name}!wait:{self.file}" for name in pair_ids or ("",)]
        return {"STYLIZE_CRASH_AT": ";".join(orders), "STYLIZE_CRASH_LOG": str(self.log)}

    def begun(self) -> "Counter[str]":
        """How often the painting of each pair was begun."""
        return begun(self.log)

    def open(self) -> None:
        """Let the pairs go on."""
        self.file.touch()

    def close(self) -> None:
        """Let those that come wait again."""
        self.file.unlink()
        self.log.unlink()


def begun(log: Path) -> Counter[str]:
    """How often the painting of each pair was begun, from a log that misses none."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith("pair-begun "))


def begun_again(log: Path) -> int:
    """Paintings that were begun after they had been begun before."""
    return sum(begun(log).values()) - len(begun(log))


@dataclass
class Group:
    """A control group of the kernel's."""

    folder: Path

    def inside(self, *command: object) -> list[str]:
        """The command, begun in it; so are all processes that it starts."""
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["bash", "-c", enter, str(self.folder), *map(str, command)]


def _make_group(mount: str, file: str, limit: float) -> Path | None:
    folder = Path(mount, f"stylize-test-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        if (folder / file).exists():  # the kernel's: in a folder of another kind it would be made
            (folder / file).write_text(str(int(limit)))
            return folder
    except OSError:
        pass
    folder.rmdir()
    return None


@contextlib.contextmanager
def memory_group(limit: float) -> Iterator[Group]:
    """A control group that may have so many bytes; skips the test where none can be made."""
    folder = _make_group("/sys/fs/cgroup", "memory.max", limit) or _make_group(
        "/sys/fs/cgroup/memory", "memory.limit_in_bytes", limit
    )
    if folder is None:
        pytest.skip("no control group with a limit of memory can be made here")
    try:
        yield Group(folder)
    finally:
        wait_for(lambda: _removed(folder))  # its processes may be a moment from their end


def _removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def journal_lines(out: Path) -> int:
    """Rows that are recorded but not in a part yet."""
    folder = out / "_state" / "journal"
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def wait_for(claim: Callable[[], object], seconds: float = 120) -> Any:
    """The first true value of `claim`; fails when it stays false."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := claim():
            return value
        time.sleep(0.05)
    raise AssertionError(f"still not so after {seconds} s: {claim}")


def seconds_of_children() -> float:
    """Seconds of a processor that programs took that this one started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


def painters(pid: int) -> list[psutil.Process]:
    """Ray's worker processes below a driver."""
    found = []
    for process in descendants(pid):
        try:
            if any("ray::StyleWorker" in part for part in process.cmdline()):
                found.append((process, process.ppid()))
        except psutil.Error:
            continue
    # A worker that starts a program is there twice for a moment, by fork.
    workers = {process.pid for process, _ in found}
    return [process for process, parent in found if parent not in workers]


def alive(processes: Iterable[psutil.Process]) -> list[str]:
    """Names of those that still run."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except psutil.Error:
            continue
    return found


def ray_folders(pid: int) -> list[str]:
    """The temporary folders of the Ray that a driver started."""
    return glob.glob(os.path.join(base_folder(), f"stylize-{pid}-*"))
