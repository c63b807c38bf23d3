"""A kill by the kernel for memory, in a real control group, is told from other deaths."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    COMMAND,
    TINY,
    Group,
    begun,
    check_whole,
    memory_group,
    pictures,
    statuses,
    write_csv,
)

from pipeline.paint.resources import Kills, cores, kernel_kills, memory_limit

EAT = "x = [b'1' * 2**24 for _ in range(64)]"  # 1 GB at most, whatever the group lets it have
LOOK = f"""
import subprocess, sys
from pipeline.paint.resources import kernel_kills
def ended(code): return subprocess.run([sys.executable, "-c", code]).returncode
counts = [kernel_kills(), ended("import os; os.kill(os.getpid(), 9)"), kernel_kills()]
print(*counts, ended({EAT!r}), kernel_kills())
"""


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    with memory_group(request.param) as group:
        yield group


@pytest.mark.parametrize("group", [300e6], indirect=True)
def test_a_kill_by_the_kernel_for_memory_is_counted_and_a_kill_by_hand_is_not(
    group: Group,
) -> None:
    done = subprocess.run(group.inside(sys.executable, "-c", LOOK), capture_output=True, text=True)
    assert done.stdout.split() == ["0", "-9", "0", "-9", "1"], done.stderr


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.events": "low 0\noom 5\noom_kill 4\n"}, 4),
        (
            "4:cpu,memory:/a\n0::/\n",
            {"sys/fs/cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 3\n"},
            3,
        ),
        ("0::/\n", {"proc/vmstat": "nr_free 7\noom_kill 2\n"}, 2),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.events": "?\n", "proc/vmstat": "oom_kill 1\n"}, 1),
        ("4:memory:/a\n", {}, 0),
    ],
)
def test_the_count_is_of_the_own_group_or_else_of_the_machine(
    groups: str, files: dict[str, str], count: int, tmp_path: Path
) -> None:
    write(tmp_path, {"proc/self/cgroup": groups, **files})
    assert kernel_kills(str(tmp_path)) == count


def test_all_looks_at_the_count_within_a_second_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(10))
    monkeypatch.setattr("pipeline.paint.resources.kernel_kills", lambda: next(counts))
    times = iter((0.0, 0.0, 0.5, 1.5, 1.5, 1.6, 1.7, 1.8))
    monkeypatch.setattr("pipeline.paint.resources.time.monotonic", lambda: next(times))
    kills = Kills()
    assert [kills.lately(), kills.lately(), kills.lately(), kills.now(), kills.lately()] == [
        0, 0, 1, 2, 2,
    ]  # fmt: skip


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "memory", "quota"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n"}, 4096, None),
        ("0::/\n", {"memory.max": "1000\n", "cpu.max": "100000 100000\n"}, 1000, 1),
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, None, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000\n", "a/memory.max": "max\n"}, None, None),
        # Version 1 in a container, which sees its own group at the top.
        (
            "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n",
            {
                "memory/memory.limit_in_bytes": "2048\n",
                "cpu/cpu.cfs_quota_us": "150000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            2048,
            1,
        ),
        (
            "4:memory:/\n3:cpu:/\n",
            {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n", "cpu/cpu.cfs_quota_us": "-1\n"},
            None,
            None,
        ),
    ],
)
def test_limits_of_control_groups_count(
    groups: str, files: dict[str, str], memory: int | None, quota: int | None, tmp_path: Path
) -> None:
    there = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    write(tmp_path, {"proc/self/cgroup": groups, **there})
    assert memory_limit(str(tmp_path)) == (memory or psutil.virtual_memory().total)
    assert cores(str(tmp_path)) == (quota or len(os.sched_getaffinity(0)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", [4e9], indirect=True)
def test_a_worker_killed_by_the_kernel_for_memory_is_no_fault_of_the_pair_the_first_time(
    group: Group, tmp_path: Path
) -> None:
    pictures(tmp_path, 1)
    rows = [{"id": name, "content": "c0.jpg", "seed": i} for i, name in enumerate("labcd")]
    manifest, out, log = write_csv(tmp_path / "m.csv", rows), tmp_path / "m", tmp_path / "log"
    env = {"STYLIZE_CRASH_AT": "pair-begun@l!eat", "STYLIZE_CRASH_LOG": str(log)}
    done = subprocess.run(
        group.inside(COMMAND, manifest, *TINY, "--workers", 2),
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    assert done.returncode == 3, done.stderr
    assert "l: its worker was killed for memory; it is tried alone" in done.stderr
    assert "the run keeps at most 1 worker" in done.stderr
    assert statuses(out) == {"l": "poison", **dict.fromkeys("abcd", "ok")}
    assert begun(log)["l"] == 3  # one that does not count, and two that do
    check_whole(out)
