"""A run on a Ray cluster of several nodes, which come, go and break while it works.

The nodes are real ones of Ray, each with its own raylet, all on this machine.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from buckets import Answer, Fault, Request, Studio
from buckets import bucket as bucket
from buckets import studio as studio
from helpers import (
    QUICK_TO_MISS,
    TINY,
    Gate,
    check_whole,
    cli,
    index_rows,
    log_of,
    painters,
    pictures,
    start,
    statuses,
    tiny,
    wait_for,
    write_csv,
)


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
    node = cluster.add_node(**{**common, "wait": True, **json.loads(line)})
    print(node.all_processes["raylet"][0].process.pid, node.node_id, flush=True)
cluster.shutdown()
"""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            env={**os.environ, **QUICK_TO_MISS, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        self.address, head = self._process.stdout.readline().split()
        self.head = psutil.Process(int(head))
        self.newest = ""  # the id of the node that was added last
        assert ":" in self.address

    def add(self, **options: Any) -> psutil.Process:
        """A node more, as its raylet."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(options), file=self._process.stdin, flush=True)
        raylet, self.newest = self._process.stdout.readline().split()
        return psutil.Process(int(raylet))

    def drain(self, node: str) -> None:
        """Tell the cluster that a node will soon be taken away."""
        ray = str(Path(sys.executable).with_name("ray"))
        why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        where = ("--address", self.address, "--node-id", node)
        seconds = ("--deadline-remaining-seconds", "300")
        subprocess.run([ray, "drain-node", *where, *why, *seconds], check=True, timeout=60)

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def nodes(gate: Gate) -> Iterator[Nodes]:
    """A cluster of one node, on which pairs wait at a gate."""
    nodes = Nodes(gate.env())
    try:
        yield nodes
    finally:
        nodes.close()


def kill_node(raylet: psutil.Process) -> None:
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()


def manifest(folder: Path, number: int) -> Path:
    pictures(folder, number)
    rows = [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in range(number)]
    return write_csv(folder / "m.csv", rows)


def with_code(folder: Path, name: str, code: str) -> dict[str, str]:
    """The environment of a node whose Python finds this module first."""
    (folder / "code").mkdir()
    (folder / "code" / f"{name}.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder / "code"), os.environ.get("PYTHONPATH", "")])}


WITHOUT_THE_PACKAGE = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pipeline":
            raise ModuleNotFoundError("No module named 'pipeline'", name="pipeline")

sys.meta_path.insert(0, Nowhere())
"""

# Nothing below a folder is there for the processes of the node.
WITHOUT_A_FOLDER = """
import builtins, errno, os

def guarded(original):
    def call(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(FOLDER):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return original(path, *arguments, **options)
    return call

for module, name in ((builtins, "open"), (os, "stat"), (os, "open"), (os, "listdir")):
    setattr(module, name, guarded(getattr(module, name)))
"""


@pytest.mark.timeout(600)
def test_a_node_that_joins_gets_work_and_one_that_dies_costs_no_pair_its_life(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    path = manifest(tmp_path, 4)
    out = path.with_suffix("")
    driver = start(path, *TINY, "--address", nodes.address)
    try:
        wait_for(lambda: len(gate.begun()) == 1)
        raylet = nodes.add()
        wait_for(lambda: len(gate.begun()) == 2)
        kill_node(raylet)
        gate.open()
        _, stderr = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert driver.returncode == 0, stderr
    assert "worker died" not in stderr
    assert statuses(out) == {f"g{n}": "ok" for n in range(4)}
    assert max(gate.begun().values()) == 2  # the one that the dead node had in hand
    check_whole(out)


def test_a_worker_that_gets_a_sigterm_and_a_drained_node_put_their_pairs_back(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    path = manifest(tmp_path, 3)
    out = path.with_suffix("")
    raylet = nodes.add()
    long = tiny(size=64, steps=250, plateau=0)
    driver = start(path, *long, "--address", nodes.address, "--checkpoint-every", 2)
    try:
        wait_for(lambda: len(gate.begun()) == 2)  # one on each node; they begin together
        gate.open()
        wait_for(lambda: len(list((out / "_state" / "checkpoints").glob("*.kept"))) == 2)
        gate.close()
        (worker,) = painters(raylet.pid)
        worker.terminate()
        wait_for(lambda: "was told to end by SIGTERM" in log_of(out))
        wait_for(lambda: len(gate.begun()) == 2)  # the third pair, and the one that went back
        nodes.drain(nodes.newest)
        wait_for(lambda: "it is being drained" in log_of(out))
        gate.open()
        _, stderr = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert driver.returncode == 0, stderr
    assert stderr.count("a worker was told to end by SIGTERM; 1 pair goes back") == 1, stderr
    assert stderr.count("one node fewer: it is being drained") == 1
    assert "worker died" not in log_of(out)
    rows = index_rows(out)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["attempt"] for row in rows.values()} == {1}
    assert any("went on from evaluation" in row["notes"] for row in rows.values())
    check_whole(out)


def painted(path: Path, nodes: Nodes, gate: Gate, refusals: int) -> str:
    """What a run says whose pairs wait until so many nodes are left out."""
    driver = start(path, *TINY, "--address", nodes.address, "--out", path.with_name("out"))
    try:
        log = path.with_name("out")
        wait_for(lambda: log_of(log).count("one node fewer: ") == refusals and gate.begun())
        gate.open()
        _, stderr = driver.communicate(timeout=200)
    finally:
        driver.kill()
    assert driver.returncode == 0, stderr
    assert stderr.count("one node fewer: ") == refusals, stderr
    check_whole(path.with_name("out"))
    return stderr


def test_fewer_pairs_than_nodes_and_a_node_that_cannot_work(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    """The broken one has a torch that cannot be imported."""
    nodes.add(env_vars=with_code(tmp_path, "torch", "raise ImportError('not for this machine')"))
    path = manifest(tmp_path, 1)
    gate.open()
    done = cli(path, *TINY, "--address", nodes.address)
    assert done.returncode == 0, done.stderr
    # The network comes along: other nodes need not have it, nor at the driver's path.
    assert len(list((path.with_suffix("") / "_state" / "weights").iterdir())) == 1
    gate.close()
    assert "not for this machine" in painted(manifest(tmp_path, 3), nodes, gate, 1)


def test_a_node_that_lacks_the_inputs_is_named_and_left_out_and_no_pair_fails(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    path = manifest(tmp_path / "inputs", 4)
    code = f"FOLDER = {str(tmp_path / 'inputs')!r}" + WITHOUT_A_FOLDER
    nodes.add(env_vars=with_code(tmp_path, "sitecustomize", code))
    missing = write_csv(
        tmp_path / "inputs" / "m.csv",
        [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in (*range(4), 99)],
    )
    assert path == missing
    out = tmp_path / "out"
    driver = start(path, *TINY, "--address", nodes.address, "--out", out)
    try:
        wait_for(lambda: len(gate.begun()) == 2)  # one on each node
        gate.open()
        _, stderr = driver.communicate(timeout=200)
    finally:
        driver.kill()
    assert driver.returncode == 3, stderr
    assert statuses(out) == {**{f"g{n}": "ok" for n in range(4)}, "g99": "failed"}
    assert stderr.count("one node fewer: ") == 1, stderr
    assert "cannot open what other nodes can" in stderr
    assert index_rows(out)["g99"]["error_message"] == "content c99.jpg: there is no such file"


def test_a_node_that_lacks_out_or_the_package_is_named_once_in_plain_words(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    out = tmp_path / "out"
    code = f"FOLDER = {str(out)!r}" + WITHOUT_A_FOLDER
    nodes.add(num_cpus=2, env_vars=with_code(tmp_path / "a", "sitecustomize", code))
    bare = with_code(tmp_path / "b", "sitecustomize", WITHOUT_THE_PACKAGE)
    nodes.add(num_cpus=2, env_vars=bare)
    stderr = painted(manifest(tmp_path, 3), nodes, gate, 2)
    assert "cannot read the output folder" in stderr
    assert "stylize-batch is not installed there (No module named 'pipeline')" in stderr
    assert "TemporaryActor" not in stderr


# A process that finds no credentials where it looks first, as one without a login.
WITHOUT_CREDENTIALS = """
import os
for name in [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]:
    del os.environ[name]
"""


def _as_a_store_would(request: Request) -> Fault:
    """Refuses whoever shows no credentials, and a reader who writes."""
    credentials = request.headers.get("authorization", "")
    may = bool(credentials) and not ("READER" in credentials and request.method == "PUT")
    return None if may else Answer(403, "AccessDenied")


@pytest.mark.slow
def test_object_storage_survives_a_dead_driver_a_dead_node_and_nodes_that_it_refuses(
    studio: Studio, nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    studio.fill(6)
    studio.bucket.fault = _as_a_store_would
    nodes.add(env_vars=with_code(tmp_path, "sitecustomize", WITHOUT_CREDENTIALS))
    nodes.add(env_vars={"AWS_ACCESS_KEY_ID": "READER"})
    raylet = nodes.add()
    run = (studio.manifest, "--out", studio.out, *TINY, "--address", nodes.address)
    driver = start(*run)
    try:
        wait_for(lambda: len(gate.begun()) == 3)  # one on each node but the first
    finally:
        driver.kill()
        driver.communicate()
    studio.bucket.requests.clear()
    again = start(*run)
    try:
        wait_for(lambda: sum(gate.begun().values()) == 6)
        kill_node(raylet)
        gate.open()
        _, stderr = again.communicate(timeout=200)
    finally:
        again.kill()
    assert again.returncode == 0, stderr
    assert stderr.count("one node fewer: ") == 2, stderr
    refused = "s3://studio: access is refused"
    assert f"cannot read the output folder: {refused}; allow it" in stderr
    assert f": {refused} (AccessDenied); allow it for these credentials" in stderr
    assert "worker died" not in stderr
    painted = [r for r in studio.bucket.requests if r.method == "PUT" and "/images/" in r.key]
    assert len(painted) == 6 + 1  # that of the reader
    studio.check_whole(6)


def test_a_run_waits_for_a_gpu_and_auto_changes_to_one_that_joins(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    """The GPU is one by name only: the workers that it is granted to paint on the CPU."""
    path = manifest(tmp_path, 4)
    gone = cli(
        *(path, *TINY, "--address", nodes.address, "--device", "cuda", "--wait-nodes", 2),
        before="import pipeline.paint.ray_driver as d; d._LOST = 2.0",
        STYLIZE_LOGICAL_GPUS="1",
    )
    assert gone.returncode == 5
    assert "waiting for a node with a GPU, at most 0:02 (--wait-nodes 2)" in gone.stderr
    assert "a node with a GPU did not join within 0:02" in gone.stderr

    auto = start(path, *TINY, "--address", nodes.address, STYLIZE_LOGICAL_GPUS="1")
    waits = None
    try:
        wait_for(gate.begun)
        (first,) = workers_of(tmp_path / "m")
        other = manifest(tmp_path / "other", 1)
        waits = start(
            *(other, *TINY, "--address", nodes.address, "--device", "cuda", "--batch", 1),
            STYLIZE_LOGICAL_GPUS="1",
        )
        wait_for(lambda: "waiting for a node with a GPU" in log_of(tmp_path / "other" / "m"))
        nodes.add(num_gpus=4, num_cpus=4)
        wait_for(lambda: workers_of(tmp_path / "m") - {first})  # of the run that began on the CPU
        gate.open()
        _, stderr = waits.communicate(timeout=100)
        assert waits.returncode == 0, stderr
        _, stderr = auto.communicate(timeout=200)
        assert auto.returncode == 0, stderr
        check_whole(tmp_path / "m")
    finally:
        auto.kill()
        if waits:
            waits.kill()


# Lets `patch` change the worker as soon as a process imports it.
PATCHED = """
import importlib.machinery, os, sys

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name != "pipeline.paint.worker":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hook())
"""

# The first pair that a node tries finds the GPU full of what others hold.
FULL_AT_FIRST = """
def patch(module):
    transfer = module.Worker._transfer

    def full_at_first(self, *arguments):
        try:
            os.close(os.open(FILE, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return transfer(self, *arguments)
        raise module.DeviceFullError("here: other programs hold 70 of the 80 GB of a GPU")

    module.Worker._transfer = full_at_first
"""

# A device with so much memory, in bytes, which holds pictures of so many pixels.
OF_SIZE = """
def patch(module):
    transfer = module.Worker._transfer

    def limited(self, stylizer, group, *arguments):
        with open(FILE, "a") as file:
            print(MEMORY, *(opened.pair.pair_id for opened in group), file=file)
        if group[0].size[0] > MEMORY:
            raise MemoryError(f"no room in {MEMORY}")
        return transfer(self, stylizer, group, *arguments)

    module.Worker._transfer = limited
    module.Worker.memory = lambda self: MEMORY
"""


@pytest.mark.slow
def test_what_does_not_fit_here_goes_where_a_gpu_has_more_memory(
    nodes: Nodes, tmp_path: Path, gate: Gate
) -> None:
    """The GPUs are such by name only."""
    tried = tmp_path / "tried"
    for number, memory in enumerate((40, 40, 56)):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = f"FILE, MEMORY = {str(tried)!r}, {memory}" + OF_SIZE + PATCHED
        nodes.add(num_gpus=1, env_vars=with_code(folder, "sitecustomize", code))
    pictures(tmp_path, 4)
    sizes = {"too-large": 64, "large-1": 48, "large-2": 48, "fits": 32}
    rows = [
        {"id": pair_id, "content": f"c{n}.jpg", "size": size}
        for n, (pair_id, size) in enumerate(sizes.items())
    ]
    path = write_csv(tmp_path / "m.csv", rows)
    run = (path, *tiny(size=None), "--address", nodes.address, "--device", "cuda", "--batch", 1)
    driver = start(*run, STYLIZE_LOGICAL_GPUS="1")
    try:
        wait_for(lambda: len(gate.begun()) == 3)  # the largest, one on each GPU
        gate.open()
        _, stderr = driver.communicate(timeout=200)
    finally:
        driver.kill()
    assert driver.returncode == 3, stderr
    out = tmp_path / "m"
    assert statuses(out) == {name: "failed" if name == "too-large" else "ok" for name in sizes}
    assert index_rows(out)["too-large"]["error_message"] == "no room in 56"
    assert "one node fewer" not in stderr
    tries = [line.split() for line in tried.read_text().splitlines()]
    for pair_id in sizes:  # never on two of one size
        on = [memory for memory, name in tries if name == pair_id]
        assert len(on) == len(set(on)) <= 2
        assert "56" in on or pair_id == "fits"
    assert any(name.startswith("large") for memory, name in tries if memory == "40")


@pytest.mark.slow
def test_a_full_gpu_rests_for_a_minute_and_its_pair_is_painted_all_the_same(tmp_path: Path) -> None:
    code = f"FILE = {str(tmp_path / 'tried')!r}" + FULL_AT_FIRST + PATCHED
    env = with_code(tmp_path, "sitecustomize", code)
    path = manifest(tmp_path, 3)
    began = time.monotonic()
    done = cli(path, *TINY, "--workers", 1, timeout=300, **env)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 60
    assert done.stderr.count("it gets no pairs until there is room again") == 1
    assert statuses(path.with_suffix("")) == {f"g{n}": "ok" for n in range(3)}
    assert {row["attempt"] for row in index_rows(path.with_suffix("")).values()} == {1}


def workers_of(out: Path) -> set[str]:
    """The nodes on which workers have started, as whole lines of the log say."""
    events = map(json.loads, log_of(out).rpartition("\n")[0].splitlines())
    return {event["node"] for event in events if event["event"] == "worker started"}


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    done = cli(manifest(tmp_path, 1), *TINY, "--address", "127.0.0.1:1", timeout=30)
    assert done.returncode == 5
    assert "no Ray cluster at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_head_that_is_gone_ends_the_run_with_5(nodes: Nodes, tmp_path: Path, gate: Gate) -> None:
    path = manifest(tmp_path, 2)
    driver = start(path, *TINY, "--address", nodes.address)
    try:
        wait_for(gate.begun)
        nodes.head.kill()
        _, stderr = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 5, stderr
    assert "the cluster's head does not answer" in stderr
    assert "Traceback" not in stderr
