"""`ray job submit` against a real job server, and what a run tells Prometheus at a real node.

Needs ``ray[default]``, which `make cluster-test` installs; without it these tests are skipped.
"""

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers import COMMAND, TINY, check_whole, pictures, start, statuses, wait_for, write_csv

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
pytest.importorskip("prometheus_client", reason="ray[default] is not installed")

CODE = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
dashboard, agent, metrics = map(int, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": True,
    "dashboard_host": "127.0.0.1", "dashboard_port": dashboard, "metrics_export_port": metrics,
    "dashboard_agent_listen_port": agent,  # another Ray may have the usual one
})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Head:
    """A cluster of one node, with a job server and the figures of the node."""

    address: str
    jobs: str
    metrics: str

    def submit(self, *command: object, working_dir: Path | None = None) -> tuple[int, str]:
        """A job, to its end: its exit code, as Ray passes it on, and what it printed."""
        where = ("--working-dir", str(working_dir)) if working_dir else ()
        ray = str(Path(sys.executable).with_name("ray"))
        done = subprocess.run(
            [ray, "job", "submit", "--address", self.jobs, *where, "--", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout + done.stderr

    def figures(self, out: Path) -> dict[str, float]:
        """The samples of one output folder: name and labels of interest -> value."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("ray_stylize_") and f'out="{out}"' in line:
                name, value = line.rsplit(" ", 1)
                labels = re.findall(r'(?:status|kind)="([^"]*)"', name)
                found[":".join([name.partition("{")[0], *labels])] = float(value)
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    dashboard, agent, metrics = free_port(), free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(dashboard), str(agent), str(metrics)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        jobs = f"http://127.0.0.1:{dashboard}"
        wait_for(lambda: is_up(f"{jobs}/api/version"), 60)
        yield Head(address, jobs, f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.communicate(timeout=60)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    pictures(tmp_path, 2)
    rows = [{"id": name, "content": f"{name}.jpg"} for name in ("c0", "c1", "gone")]
    return write_csv(tmp_path / "m.csv", rows)


def test_a_job_paints_on_the_cluster_that_it_was_submitted_to(head: Head, manifest: Path) -> None:
    code, said = head.submit(COMMAND, manifest, *TINY)
    assert code == 1  # Ray's own code for a job that failed
    assert "3 pairs: 2 painted, 1 failed" in said
    assert "exit code 3" in said
    assert statuses(manifest.with_suffix("")) == {"c0": "ok", "c1": "ok", "gone": "failed"}
    check_whole(manifest.with_suffix(""))


def test_the_script_for_kubernetes_takes_pairs_that_failed_for_the_end_of_the_job(
    head: Head, manifest: Path
) -> None:
    page = Path(__file__).parents[1] / "docs" / "clusters" / "rayjob.yaml"
    (script,) = [d["data"]["paint.sh"] for d in yaml.safe_load_all(page.read_text()) if "data" in d]
    script = script.replace("s3://studio/jobs/may.csv", str(manifest)).replace("cuda", "cpu")
    script = script.replace("s3://studio/painted/may", str(manifest.with_suffix("")))
    paint = manifest.with_name("paint.sh")
    paint.write_text(script.replace("stylize-batch", f"{COMMAND} run {' '.join(TINY)}"))
    code, said = head.submit("sh", paint)
    assert code == 0, said
    assert '"status": "failed"' in said  # as a line of --log-json
    manifest.write_text("content,nonsense\n")
    code, said = head.submit("sh", paint)
    assert code == 1
    assert "exit code 2" in said


def test_pictures_that_would_end_in_rays_cache_are_refused(head: Head, manifest: Path) -> None:
    code, said = head.submit(COMMAND, "m.csv", *TINY, working_dir=manifest.parent)
    assert code == 1
    assert "exit code 2" in said
    assert "is in Ray's copy of --working-dir" in said
    assert "Traceback" not in said
    # With an OUT that stays, inputs may come along.
    out = manifest.parent / "out"
    code, said = head.submit(COMMAND, "m.csv", "-o", out, *TINY, working_dir=manifest.parent)
    assert "2 painted, 1 failed" in said
    assert statuses(out) == {"c0": "ok", "c1": "ok", "gone": "failed"}


def test_prometheus_reads_pairs_failures_seconds_and_the_queue_at_the_node(
    head: Head, tmp_path: Path
) -> None:
    pictures(tmp_path, 2)
    rows = [{"id": f"p{n}", "content": f"c{n % 2}.jpg", "steps": 60 * n + 3} for n in range(9)]
    path = write_csv(tmp_path / "m.csv", [*rows, {"id": "gone", "content": "gone.jpg"}])
    driver = start(path, *TINY, "--plateau", 0, "--address", head.address)
    try:
        want = ("pairs_total:ok", "pairs_total:failed", "failures_total:ImageReadError")
        others = ("pair_seconds_count", "queue", "in_hand", "workers")
        names = {f"ray_stylize_{name}" for name in (*want, *others)}
        figures = wait_for(lambda: (f := head.figures(tmp_path / "m")).keys() >= names and f)
        assert figures["ray_stylize_failures_total:ImageReadError"] == 1
        assert figures["ray_stylize_pairs_total:ok"] >= 1
        assert 0 <= figures["ray_stylize_queue"] <= 10
        assert 0 <= figures["ray_stylize_workers"] <= 3
    finally:
        driver.terminate()
        driver.communicate(timeout=60)
