"""The walls between modules: who may import what, read from the source and tried in a process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "stylize").rglob("*.py"))
BATCH = sorted((ROOT / "pipeline").rglob("*.py"))
HEAVY = {"torch", "torchvision", "ray"}
LAYERS = [
    "crash guard memory pages records signals words",
    "bench carried live rows storage tables timing",
    "index lock manifest resume worker",
    "facts pictures progress repair scheduler",
    "layout one report run",
    "curves explain montage",
    "cli",
]
"""The modules of the batch, the lowest first: each imports only from layers before its own."""


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `top_only`: those that importing it imports."""
    return names(ast.parse(path.read_text(), str(path)), path, top_only)


def names(tree: ast.AST, path: Path, top_only: bool) -> set[str]:
    found: set[str] = set()
    package = path.relative_to(ROOT).parent.parts if path.is_relative_to(ROOT) else ()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*outer, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _is_import_call(node):
            found.add(str(node.args[0].value))  # type: ignore[attr-defined]
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_only and (inside or typing_only)):
            pending += ast.iter_child_nodes(node)
    return found


def _is_import_call(node: ast.Call) -> bool:
    called = ast.unparse(node.func)
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return literal and called in ("__import__", "importlib.import_module", "import_module")


def roots(found: set[str]) -> set[str]:
    return {name.split(".")[0] for name in found}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_reader_of_imports_sees_every_form_of_import(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text(
        "import a.b\nfrom c import d\n"
        "def f():\n    import e\n    import importlib\n    importlib.import_module('g')\n"
        "class K:\n    import h\n"
        "try:\n    import i\nexcept ImportError:\n    pass\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import j\n"
    )
    top = {"a.b", "c", "c.d", "h", "i", "typing", "typing.TYPE_CHECKING"}
    assert imports(source, top_only=True) == top
    assert imports(source) == top | {"e", "importlib", "g", "j"}


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_the_library_knows_nothing_of_the_batch(path: Path) -> None:
    assert not roots(imports(path)) & {"pipeline", "ray", "pyarrow", "typer", "rich"}


@pytest.mark.parametrize("name", ["errors", "config", "layers", "presets"])
def test_errors_config_layers_and_presets_need_the_standard_library_alone(name: str) -> None:
    found = imports(ROOT / "stylize" / f"{name}.py")
    ours = {".".join(n.split(".")[:2]) for n in found if n.split(".")[0] == "stylize"}
    assert ours <= {"stylize.errors", "stylize.config", "stylize.layers", "stylize.presets"}
    assert roots(found) - {"stylize"} <= sys.stdlib_module_names


def test_files_needs_the_standard_library_alone() -> None:
    assert roots(imports(ROOT / "stylize" / "files.py")) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_only_the_scheduler_knows_ray(path: Path) -> None:
    assert ("ray" in roots(imports(path))) <= (path.name == "scheduler.py")


def test_the_scheduler_does_know_ray() -> None:
    # Else the test above would pass for want of anything to see.
    assert "ray" in roots(imports(ROOT / "pipeline" / "scheduler.py"))


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_only_the_index_and_the_reader_of_tables_know_parquet(path: Path) -> None:
    reads = any(name.startswith("pyarrow.parquet") for name in imports(path))
    assert reads <= (path.name in ("index.py", "tables.py"))


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_no_module_of_the_batch_imports_torch_or_ray_when_imported(path: Path) -> None:
    found = imports(path, top_only=True)
    assert not roots(found) & HEAVY
    # Nor through the library: of its modules these import torch at once.
    slow = (
        "transfer",
        "losses",
        "encoder",
        "optimize",
        "calibration",
        "color",
        "explain",
        "device",
        "inputs",
        "objective",
        "tiles",
    )
    assert not found & {f"stylize.{name}" for name in slow}
    assert not found & {"stylize.transfer_style", "stylize.Stylizer", "stylize.StyleResult"}


@pytest.mark.parametrize("module", ["__init__", "config", "errors", "presets", "image", "files"])
def test_the_library_modules_that_the_command_line_loads_import_no_torch(module: str) -> None:
    assert not roots(imports(ROOT / "stylize" / f"{module}.py", top_only=True)) & HEAVY


def test_each_module_of_the_batch_is_in_one_layer() -> None:
    modules = [path.stem for path in BATCH if path.stem != "__init__"]  # which loads as it is asked
    assert sorted(" ".join(LAYERS).split()) == sorted(modules)


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=LAYERS.__getitem__)
def test_imports_in_the_batch_point_one_way(number: int) -> None:
    below = set(" ".join(LAYERS[:number]).split())
    for module in LAYERS[number].split():
        found = imports(ROOT / "pipeline" / f"{module}.py")
        ours = {name.split(".")[1] for name in found if name.startswith("pipeline.")}
        assert ours & {path.stem for path in BATCH} <= below, module


def test_records_need_the_standard_library_and_settings_alone() -> None:
    found = {
        name
        for name in imports(ROOT / "pipeline" / "records.py")
        if not name.startswith("stylize.config")
    }
    assert roots(found) <= sys.stdlib_module_names


def loaded_after(code: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has after some code."""
    heavy = HEAVY | {"numpy", "pandas", "pyarrow"}
    code += f"\nimport sys\nprint(*sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(out.stdout.split())


def test_naming_style_config_loads_no_torch() -> None:
    code = "import stylize\nstylize.StyleConfig.of('paper')\nstylize.StylizeError"
    assert loaded_after(code) == set()


def test_weights_and_headers_are_looked_at_without_torch() -> None:
    code = (
        "from stylize import image, weights\n"
        "assert weights.identity(weights.BUNDLED)[0] == 'vgg16'\n"
        "data = open('manifests/images/chelsea.jpg', 'rb').read()\n"
        "assert min(image.check_header(data)) > 16"
    )
    assert "torch" not in loaded_after(code)


def test_a_run_begins_without_torch_or_pandas_and_without_a_network(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "os.environ |= {'STYLIZE_OFFLINE': '', 'STYLIZE_VGG19_URL': 'http://127.0.0.1:1/v-0.pth'}\n"
        "from stylize import weights\n"
        "said = []\n"
        "assert weights.find('auto', said.append) == weights.BUNDLED\n"
        "assert 'cannot be downloaded' in said[-1]\n"
        "from pipeline.out.index import Index\n"
        f"Index({str(tmp_path)!r}, 'r1')"
    )
    assert not loaded_after(code) & {"torch", "pandas"}


def test_the_front_door_gives_every_name_and_no_other() -> None:
    import stylize

    assert "transfer_style" in stylize.__all__
    assert all(getattr(stylize, name).__name__ == name for name in stylize.__all__)
    with pytest.raises(AttributeError, match="no attribute 'stylise'"):
        stylize.stylise  # noqa: B018
