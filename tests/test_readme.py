"""The commands and the code of the README and of pages that have some run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "docs/running.md", "docs/library.md", "docs/index.md")
}


def blocks(kind: str, *pages: str) -> list[str]:
    """The blocks of code of a kind, of all pages or of those that are named."""
    text = "\n".join(PAGES[name] for name in pages or PAGES)
    return [
        block for found, block in re.findall(r"```(\w+)\n(.*?)```", text, re.S) if found == kind
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the manifests, where outputs may land."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "manifests", folder / "manifests", ignore=shutil.ignore_patterns("strip")
    )
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


@pytest.mark.parametrize("page", ["README.md", "docs/running.md", "docs/library.md"])
def test_the_shell_commands_run_word_for_word(page: str, checkout: Path) -> None:
    lines = "\n".join(blocks("sh", page)).splitlines()
    commands = [line for line in lines if line.startswith("stylize-batch")]
    assert len(commands) >= 2
    for command in commands:
        # Small and few steps, so that the test is quick; the words are the page's otherwise.
        paints = "--preset draft" in command or command.endswith((" demo", "/strip.csv"))
        run(command + (" --size 64 --steps 4" if paints else ""), checkout)


def test_what_the_commands_leave_is_there(checkout: Path) -> None:
    """After those of the test above, in one folder."""
    assert (checkout / "coffee.png").exists()
    assert len(list((checkout / "mine" / "images").glob("*.png"))) == 1
    assert len(list((checkout / "manifests" / "strip" / "images").glob("*.png"))) == 4
    assert (checkout / "manifests" / "strip" / "report.html").exists()


def test_the_readme_has_the_manifest_of_its_strip_and_how_to_install() -> None:
    assert blocks("csv", "README.md") == [(ROOT / "manifests" / "strip.csv").read_text()]
    lines = "\n".join(blocks("sh")).splitlines()
    others = [line for line in lines if line and not line.startswith("stylize-batch")]
    assert others == ["pip install ."]  # as .ci/wheel does


def test_the_python_and_sql_run_on_a_demo_output(checkout: Path) -> None:
    run(
        "stylize-batch demo --size 64 --steps 4 --only coffee-night --in-process --force",
        checkout,
    )
    programs = blocks("python")
    assert len(programs) == 3
    for program in programs:
        run([sys.executable, "-c", program], checkout)
    queries = blocks("sql")
    assert len(queries) == 2
    for query in queries:
        code = f"import duckdb; print(duckdb.sql({query!r}).fetchall())"
        assert "coffee-night" in run([sys.executable, "-c", code], checkout)


def test_the_table_of_settings_has_their_defaults() -> None:
    from stylize.config import StyleConfig

    rows = re.findall(r"^\| `(\w+)` \|\s*`?([^|`]*?)`?\s*\|", PAGES["README.md"], re.M)
    settings = {name: value.strip() for name, value in rows}
    assert len(settings) >= 10
    for name, shown in settings.items():
        value = getattr(StyleConfig(), name)
        expected = "" if value == () else f"{value:g}" if isinstance(value, float) else str(value)
        assert shown == expected, name
