"""The commands and the code of the README and of the index's page run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the manifests, where outputs may land."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "manifests", folder / "manifests", ignore=shutil.ignore_patterns("demo"))
    return folder


def run(command: list[str] | str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The backbone is chosen here so that the outcome does not hang on this machine's caches.
    environment = {**os.environ, "PATH": path, "STYLIZE_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_shell_commands_run_word_for_word(checkout: Path) -> None:
    shell = "\n".join(text for kind, text in BLOCKS if kind == "sh")
    commands = [line for line in shell.splitlines() if line.startswith("stylize-batch")]
    assert len(commands) >= 6
    for command in commands:
        # Small and few steps, so that the test is quick; the words are the README's otherwise.
        small = " --size 64 --steps 4" if "--preset draft" in command else ""
        run(command + small, checkout)
    assert (checkout / "coffee.png").exists()
    assert len(list((checkout / "mine" / "images").glob("*.png"))) == 1


def test_the_other_shell_lines_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    shell = "\n".join(text for kind, text in BLOCKS if kind == "sh")
    targets = re.findall(r"^make (\w+)", shell, re.M)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_python_and_sql_run_on_a_demo_output(checkout: Path) -> None:
    run(
        "stylize-batch demo --size 64 --steps 4 --only coffee-night --in-process",
        checkout,
    )
    document = (ROOT / "docs" / "index.md").read_text("utf-8")
    blocks = BLOCKS + re.findall(r"```(\w+)\n(.*?)```", document, re.S)
    programs = [text for kind, text in blocks if kind == "python"]
    assert len(programs) == 2
    for program in programs:
        run([sys.executable, "-c", program], checkout)
    queries = [text for kind, text in blocks if kind == "sql"]
    assert len(queries) == 2
    for query in queries:
        code = f"import duckdb; print(duckdb.sql({query!r}).fetchall())"
        assert "coffee-night" in run([sys.executable, "-c", code], checkout)


def test_the_table_of_settings_has_their_defaults() -> None:
    from stylize.config import StyleConfig

    rows = re.findall(
        r"^\| `(\w+)` \|\s*`?([^|`]*?)`?\s*\|", (ROOT / "README.md").read_text(), re.M
    )
    settings = {name: value.strip() for name, value in rows}
    assert len(settings) >= 10
    for name, shown in settings.items():
        value = getattr(StyleConfig(), name)
        expected = "" if value == () else f"{value:g}" if isinstance(value, float) else str(value)
        assert shown == expected, name
