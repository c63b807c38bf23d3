"""Runs under surroundings that have nothing to do with pictures: each works, or says why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import COMMAND, TINY, cli, pictures, statuses, write_csv

from pipeline.paint import ray_folder
from pipeline.paint.ray_folder import NoFolderError, base_folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    pictures(tmp_path, 1)
    return write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])


def check(done: subprocess.CompletedProcess[str], manifest: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert statuses(manifest.with_suffix("")) == {"a": "ok"}


# Two hindrances at a time: each run starts Ray.
@pytest.mark.parametrize(
    ("before", "closed", "home"),
    [
        ("cd .", "<&- >&- 2>&-", "/proc/nowhere"),
        ("mkdir gone; cd gone; rmdir ../gone", ">&-", ""),
        ("mkdir home", "2>&-", "home"),
    ],
    ids=["no home, no streams", "no current folder, no output", "an empty home, no errors"],
)
def test_homes_current_folders_and_streams_that_are_not_there_are_no_hindrance(
    before: str, closed: str, home: str, manifest: Path, tmp_path: Path
) -> None:
    command = ["bash", "-c", f'{before}; exec "$@" {closed}', "_", COMMAND, str(manifest), *TINY]
    env = {**os.environ, "HOME": str(tmp_path / home) if home else os.environ["HOME"]}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    check(done, manifest)
    assert "Traceback" not in done.stderr
    if home == "home":
        assert list((tmp_path / home).iterdir()) == []


@pytest.mark.parametrize("how", ["", "--in-process"])
def test_too_few_addresses_are_told_in_a_line(manifest: Path, how: str) -> None:
    """Whether torch fits into 2 GB is a matter of its build."""
    script = 'ulimit -v 2000000; exec "$@"'
    command = ["bash", "-c", script, "_", COMMAND, str(manifest), *TINY, *filter(None, [how])]
    done = subprocess.run([*command, "--progress", "none"], capture_output=True, text=True)
    if how and not done.returncode:
        return
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1)
    assert "the address space is limited to 2.0 GB: raise that with ulimit -v" in done.stderr


def test_uv_run_changes_nothing(manifest: Path, tmp_path: Path) -> None:
    """Ray would otherwise have its workers begun by uv, and send them the folder it starts in."""
    (tmp_path / "run").write_text(
        "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    )
    as_uv = 'exec -a uv "$0" run "$@"'  # a process whose command line is `uv run …`
    command = ["bash", "-c", as_uv, os.path.realpath(sys.executable), COMMAND, str(manifest)]
    done = subprocess.run([*command, *TINY], capture_output=True, text=True, cwd=tmp_path)
    check(done, manifest)


def test_a_user_without_a_home_or_a_name_can_run(manifest: Path) -> None:
    code = (
        "import os, pwd, sys\n"
        "os.environ.pop('HOME'); os.environ.pop('STYLIZE_CACHE')\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from pipeline.cli import main; main()"
    )
    arguments = [str(manifest), *TINY[:6], "--backbone", "auto", "--in-process"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    check(done, manifest)


def test_the_folder_of_ray_is_short_writable_and_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    long, short = str(tmp_path), "/var/tmp"
    monkeypatch.setattr(ray_folder, "BASES", (short,))
    assert len(long) > 18
    assert base_folder() == short
    monkeypatch.setattr(ray_folder, "BASES", ("/proc/1/none",))
    with pytest.raises(NoFolderError, match=f"{long} is {len(long)} bytes long and Ray has room"):
        base_folder()
    monkeypatch.setenv("TMPDIR", short)
    monkeypatch.setattr(ray_folder, "LEAST_FREE", 10**18)
    with pytest.raises(NoFolderError, match=r"/var/tmp has \d+ MB free and Ray needs"):
        base_folder()


@pytest.mark.parametrize("asks", [True, False], ids=["asks for a token", "asks for none"])
def test_a_cluster_is_joined_with_a_token_in_home(
    asks: bool, manifest: Path, tmp_path: Path
) -> None:
    """Ray itself shows a token only to a cluster that it finds by itself."""
    home, other = tmp_path / "home", tmp_path / "other"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    other.mkdir()
    env = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--num-cpus", "1", "--include-dashboard=false"]
    folder = f"/tmp/ray-of-test-{os.getpid()}"
    place = ["--port", "0", "--temp-dir", folder]
    memory = ["--object-store-memory", "80000000"]
    try:
        subprocess.run(
            [*ray, *head, *place, *memory],
            env={**env, "HOME": str(home if asks else other)},
            check=True,
            capture_output=True,
        )
        address = Path(folder, "ray_current_cluster").read_text().strip()
        join = (manifest, *TINY, "--force", "--address", address)
        soon: dict[str, Any] = {
            "RAY_NUM_REDIS_GET_RETRIES": "4"
        }  # seconds that Ray tries without a token
        check(cli(*join, HOME=str(home), **soon), manifest)
        if asks:  # without a token one that asks for none is joined by all tests of clusters
            refused = cli(*join, HOME=str(other), **soon)
            assert refused.returncode == 5
            assert "if the cluster asks for a token, set RAY_AUTH_MODE=token" in refused.stderr
    finally:
        for process in psutil.process_iter(["cmdline"]):  # `ray stop` ends every Ray there is
            if folder in " ".join(process.info["cmdline"] or []):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def in_own_mounts(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A script of bash in which mounts are its own; skips the test where there are none such."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount namespace can be made here")
    command = [*unshare, "bash", "-ec", script, "_", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_folders_for_temporary_files_that_forbid_programs_are_no_hindrance(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])
    script = """
    mount -t tmpfs none /mnt; cp "$1"/* /mnt; shift
    for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o noexec,size=300m none $place; done
    cd /; "$@"; stylize-batch status /mnt/m
    """
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    done = in_own_mounts(script, tmp_path, COMMAND, "/mnt/m.csv", *TINY, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "1 ok" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shm", ["rw", "ro"])
def test_a_read_only_system_runs_in_what_can_be_written_or_says_what_cannot(
    shm: str, tmp_path: Path
) -> None:
    pictures(tmp_path, 1)
    write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])
    script = f"""
    mount -t tmpfs none /mnt; cp "$1"/* /mnt; command=$2; shift 2
    for place in $(findmnt -rno TARGET | grep -vE '^/(mnt|proc|sys|dev)'); do
      mount -o remount,bind,ro "$place" || true
    done
    mount -o remount,bind,{shm} /dev/shm; cd {"/mnt" if shm == "rw" else "/"}
    tell() {{ echo "$1 $? $(tail -n +2 /mnt/said | wc -l) $(tail -1 /mnt/said)"; }}
    set +e
    "$command" /mnt/m.csv "$@" --progress none 2>/mnt/said; tell ray
    "$command" /mnt/m.csv "$@" --in-process --force --progress none 2>/mnt/said; tell alone
    "$command" explain /mnt/c0.jpg /mnt/s.png -o /mnt/e "$@" 2>/mnt/said; tell explain
    "$command" pair /mnt/c0.jpg /mnt/s.png -o /usr/o.png "$@" 2>/mnt/said; tell pair
    """
    done = in_own_mounts(script, tmp_path, COMMAND, *TINY, HOME="/root", TMPDIR="/tmp")
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line[:3] != "1 p")
    assert told["alone"][0] == "0"
    assert told["pair"].startswith("5 0 stylize-batch: cannot write"), done.stdout
    if shm == "rw":
        assert told["ray"][0] == "0"
        assert told["explain"][0] == "0"
    else:
        assert told["ray"].startswith("5 0 stylize-batch: Ray could not start here: /tmp cannot be")
        assert told["explain"] == (
            "5 0 stylize-batch: no folder for temporary files can be written; set TMPDIR to one "
            "that can"
        )
    assert "matplotlib" not in done.stdout
