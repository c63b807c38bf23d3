"""A run on a Ray cluster of several nodes, which come, go and break while it works.

The nodes are real ones of Ray, each with its own raylet, all on this machine.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import (
    TINY,
    check_whole,
    cli,
    painters,
    pictures,
    start,
    statuses,
    tiny,
    wait_for,
    write_csv,
)

SLOW = tiny(steps=120, plateau=0, optimizer="adam")


class Nodes:
    """A cluster in a process of its own, told by lines what to do."""

    CODE = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
common = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**common, "include_dashboard": False})
print(cluster.address, cluster.head_node.all_processes["gcs_server"][0].process.pid, flush=True)
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
        self.address, head = self._process.stdout.readline().split()
        self.head = psutil.Process(int(head))
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


@pytest.mark.timeout(600)
def test_a_node_that_joins_gets_work_and_one_that_dies_costs_no_pair_its_life(
    nodes: Nodes, tmp_path: Path
) -> None:
    path = manifest(tmp_path, 14)
    out = path.with_suffix("")
    driver = start(path, *SLOW, "--address", nodes.address)
    try:
        wait_for(lambda: any((out / "images").glob("*.png")))
        raylet = nodes.add()
        wait_for(lambda: painters(raylet.pid))
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        _, stderr = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert driver.returncode == 0, stderr
    assert "worker died" not in stderr
    assert statuses(out) == {f"g{n}": "ok" for n in range(14)}
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
    assert "one worker fewer: " in done.stderr
    assert "no torch for this machine" in done.stderr
    check_whole(path.with_suffix(""))


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    done = cli(manifest(tmp_path, 1), *TINY, "--address", "127.0.0.1:1", timeout=30)
    assert done.returncode == 5
    assert "no Ray cluster at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_head_that_is_gone_ends_the_run_with_5(nodes: Nodes, tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    out = path.with_suffix("")
    slow = (*SLOW, "--steps", 20_000, "--size", 96)
    driver = start(path, *slow, "--address", nodes.address)
    try:
        wait_for(lambda: list((out / "_state").glob("weights/*")))
        time.sleep(12)  # a pair is in hand
        nodes.head.kill()
        _, stderr = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 5, stderr
    assert "the cluster's head does not answer" in stderr
    assert "Traceback" not in stderr
