"""The steps of the Dockerfile, run as plain commands in a fresh folder: no engine is needed."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "wheels", "work", "cache")  # of the container


@dataclass
class Container:
    """A folder in place of a container's root, and an environment in place of its Python.

    The environment sees the packages of this one, so that torch is not installed once more.
    """

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "0"

    def __post_init__(self) -> None:
        for name in FOLDERS:
            (self.root / name).mkdir(mode=0o777)
        python = self.root / "python"
        subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
        self.variables |= os.environ | {"PATH": f"{python / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        self.variables.pop("PYTHONPATH", None)  # of whoever runs the tests
        (packages,) = python.glob("lib/python*/site-packages")
        theirs = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "shared.pth").write_text("\n".join(theirs))

    def here(self, text: str) -> str:
        """A text with the container's folders below the root."""
        return re.sub(rf"(?<![\w./])/({'|'.join(FOLDERS)})\b", rf"{self.root}/\1", text)

    def as_user(self) -> list[str]:
        """What comes before a command so that the container's user runs it.

        This Python may lie in a folder of root's, so everything can be read; not written.
        """
        if self.user == "0" or os.getuid() != 0:
            return []
        reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *reads]

    def run(self, command: str) -> str:
        done = subprocess.run(
            [*self.as_user(), "bash", "-c", self.here(command)],
            env={name: self.here(text) for name, text in self.variables.items()},
            cwd=self.root / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def copy(self, source: str, target: str) -> None:
        """Copy what .dockerignore lets through; what another stage made is there already."""
        if source != ".":
            return
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        leave = shutil.ignore_patterns("__pycache__", "demo", "figure?", "gallery", "motifs")
        for name in (line[1:] for line in lines if re.fullmatch(r"![\w.]+", line)):
            place = Path(self.here(target), name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=leave)
            else:
                shutil.copy(ROOT / name, place)


def steps() -> list[tuple[str, str]]:
    """(instruction, what follows) of each line of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_command_that_paints(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    container, entry = Container(root), ""
    for instruction, rest in steps():
        match instruction:
            case "ARG":
                name, _, value = rest.partition("=")
                container.variables.setdefault(name, value)
            case "ENV":
                pairs = (pair.partition("=") for pair in rest.split())
                container.variables |= {name: value for name, _, value in pairs}
            case "COPY":
                container.copy(*rest.split()[-2:])
            case "RUN":
                # The environment's own folders are there already.
                container.run(rest.replace("mkdir -m 1777", "chmod 1777"))
            case "USER":
                container.user = rest
            case "ENTRYPOINT":
                (entry,) = json.loads(rest)
            case _:
                assert instruction in ("FROM", "WORKDIR", "CMD"), instruction
    (root / "work").chmod(0o777)
    assert container.run(f"which {entry}").startswith(str(root))
    container.run(f"{entry} demo --limit 1 --size 64 --steps 4 --threads 1")
    assert len(list((root / "work/stylize-demo/demo/images").glob("*.png"))) == 1
    container.run(f"{entry} report stylize-demo/demo")
    assert "vgg16" in container.run(f"{entry} weights list")
    assert not Path("/nonexistent").exists()
