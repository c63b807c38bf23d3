"""A run on a Ray cluster of several nodes, which come, go and break while it works.

The nodes are real ones of Ray, each with its own raylet, all on this machine.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import TINY, check_whole, cli, pictures, statuses, wait_for, write_csv

SLOW = (*TINY[:2], "--steps", "400", "--plateau", "0", *TINY[4:])


class Nodes:
    """A cluster in a process of its own, told by lines what to do."""

    CODE = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
common = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**common, "include_dashboard": False})
print(cluster.address, flush=True)
for line in sys.stdin:
    node = cluster.add_node(**common, wait=True, **json.loads(line))
    print(node.all_processes["raylet"][0].process.pid, flush=True)
cluster.shutdown()
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()
        assert ":" in self.address

    def add(self, **options: Any) -> psutil.Process:
        """A node more, as its raylet."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(options), file=self._process.stdin, flush=True)
        return psutil.Process(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


def manifest(folder: Path, number: int) -> Path:
    pictures(folder, number)
    rows = [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in range(number)]
    return write_csv(folder / "m.csv", rows)


def working(progress: Path) -> int:
    """How many workers have been at work at once."""
    lines = progress.read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return max((len(e["workers"]) for e in events if e["event"] == "status"), default=0)


def test_a_node_that_joins_gets_work_and_one_that_dies_costs_no_pair_its_life(
    nodes: Nodes, tmp_path: Path
) -> None:
    path = manifest(tmp_path, 8)
    out, log = path.with_suffix(""), tmp_path / "log"
    with open(log, "w") as stream:
        driver = subprocess.Popen(
            ["stylize-batch", path, *SLOW, "--address", nodes.address, "--progress", "json"],
            stderr=stream,
        )
    try:
        wait_for(lambda: working(log) == 1)
        raylet = nodes.add()
        wait_for(lambda: working(log) == 2)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        assert driver.wait(timeout=200) == 0, log.read_text()
    finally:
        driver.kill()
    assert "worker died" not in log.read_text()
    assert statuses(out) == {f"g{n}": "ok" for n in range(8)}
    check_whole(out)


def test_fewer_pairs_than_nodes_and_a_node_that_cannot_work(nodes: Nodes, tmp_path: Path) -> None:
    """The broken one has a torch that cannot be imported."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch for this machine')")
    nodes.add(env_vars={"PYTHONPATH": str(broken)})
    path = manifest(tmp_path, 1)
    done = cli(path, *TINY, "--address", nodes.address)
    assert done.returncode == 0, done.stderr
    # The network comes along: other nodes need not have it, nor at the driver's path.
    assert len(list((path.with_suffix("") / "_state" / "weights").iterdir())) == 1
    path = manifest(tmp_path, 6)
    done = cli(path, *SLOW, "--address", nodes.address)
    assert done.returncode == 0, done.stderr
    assert "a worker less: " in done.stderr
    assert "no torch for this machine" in done.stderr
    check_whole(path.with_suffix(""))


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    done = cli(manifest(tmp_path, 1), *TINY, "--address", "127.0.0.1:1", timeout=30)
    assert done.returncode == 5
    assert "no Ray cluster at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr
