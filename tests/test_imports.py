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
PACKAGES = ("manifest", "paint", "display", "views", "store")
COMMANDS = (
    *("cli", "cli_manifest", "cli_pair", "cli_out", "cli_machine", "cli_options", "console"),
    *("run", "demo", "doctor", "ledger", "single", "explain", "show", "settled"),
)


def imports(path: Path, *, top_only: bool = False, for_types: bool = True) -> set[str]:
    """Dotted names that a file imports; `top_only`: those that importing it imports."""
    return names(ast.parse(path.read_text(), str(path)), path, top_only, for_types)


def names(tree: ast.AST, path: Path, top_only: bool, for_types: bool) -> set[str]:
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
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            found.add(name)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_only and (inside or typing_only)) and (for_types or not typing_only):
            pending += ast.iter_child_nodes(node)
    return found


def _imported_by_call(node: ast.Call) -> str:
    if ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module"):
        match node.args:
            case [ast.Constant(value), *_]:
                return str(value)
    return ""


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


@pytest.mark.parametrize("name", ["errors", "config", "fields", "layers", "presets"])
def test_errors_settings_layers_and_presets_need_the_standard_library_alone(name: str) -> None:
    found = imports(ROOT / "stylize" / f"{name}.py")
    ours = {".".join(n.split(".")[:2]) for n in found if n.split(".")[0] == "stylize"}
    names = ("errors", "config", "fields", "layers", "presets")
    assert ours <= {f"stylize.{name}" for name in names}
    assert roots(found) - {"stylize"} <= sys.stdlib_module_names


def test_files_needs_the_standard_library_alone() -> None:
    assert roots(imports(ROOT / "stylize" / "files.py")) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_only_the_session_knows_ray(path: Path) -> None:
    assert ("ray" in roots(imports(path))) <= (path.name == "ray_session.py")


def test_the_session_does_know_ray_and_alone_what_is_private_to_it() -> None:
    # Else the test above would pass for want of anything to see.
    session = imports(ROOT / "pipeline" / "paint" / "ray_session.py")
    assert {"ray", "ray._private.node", "ray._private.worker"} <= session
    private = [path.name for path in BATCH if any("ray._" in name for name in imports(path))]
    assert private == ["ray_session.py"]


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_only_the_index_and_the_reader_of_tables_know_parquet(path: Path) -> None:
    reads = any(name.startswith("pyarrow.parquet") for name in imports(path))
    assert reads <= (path.name in ("index.py", "pieces.py", "table.py"))


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


def module_of(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in [*LIBRARY, *BATCH]}


def modules_of_ours(path: Path, *, for_types: bool = True) -> set[str]:
    """The modules of the project that a file imports, without itself."""
    found = imports(path, for_types=for_types)
    return {name for name in found if name in MODULES} - {module_of(path)}


def room(module: str) -> str:
    """The room of docs/architecture.md that a module belongs to."""
    package, *names = module.split(".")
    if package == "stylize":
        return package
    if not names or names[0] in PACKAGES:
        return names[0] if names else "leaves"
    return "commands" if names[0] in COMMANDS else "leaves"


def drawn_arrows() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = (line.split(" --> ") for line in text.splitlines() if " --> " in line)
    return {(start.strip(), end.strip()) for start, end in lines}


def test_the_picture_of_the_house_is_what_the_imports_say() -> None:
    arrows = {
        (room(module), room(other))
        for module, path in MODULES.items()
        for other in modules_of_ours(path)
        if other not in ("pipeline", "stylize")  # names that load as they are asked for
        and module not in ("pipeline", "stylize")
    }
    assert {(start, end) for start, end in arrows if start != end} == drawn_arrows()


def test_no_packages_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for start, end in drawn_arrows():
        below.setdefault(start, set()).add(end)
    while below:
        ground = {start for start, ends in below.items() if not ends & below.keys()}
        assert ground, below
        below = {start: ends for start, ends in below.items() if start not in ground}


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {m: modules_of_ours(path, for_types=False) for m, path in MODULES.items()}
    arrows |= {"pipeline": set(), "stylize": set()}
    while arrows:
        ground = {module for module, others in arrows.items() if not others & arrows.keys()}
        assert ground, arrows
        arrows = {module: others for module, others in arrows.items() if module not in ground}


@pytest.mark.parametrize("path", BATCH, ids=label)
def test_painting_and_display_know_neither_the_index_nor_the_views(path: Path) -> None:
    if room(module_of(path)) in ("paint", "display"):
        found = modules_of_ours(path)
        assert not {f"pipeline.store.{name}" for name in ("index", "reading", "repair")} & found
        assert "views" not in {room(module) for module in found}


def public_names(path: Path) -> list[str]:
    """What a module's ``__all__`` lists."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def uses(path: Path) -> set[tuple[str, str]]:
    """(module, name) of each name of another module of ours that a file uses."""
    tree = ast.parse(path.read_text())
    modules: dict[str, str] = {}  # what a module is called here -> module
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    modules[alias.asname or alias.name] = whole
                elif node.module in MODULES:
                    found.add((node.module, alias.name))
        elif isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if a.name in MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = modules.get(ast.unparse(node.value))
            if module and f"{module}.{node.attr}" not in MODULES:
                found.add((module, node.attr))
    return {(module, name) for module, name in found if MODULES[module] != path}


def test_all_lists_what_others_use_and_nothing_private_is_used() -> None:
    """Tests may replace what a module took from elsewhere; they use nothing private either."""
    tests = [*(ROOT / "tests").glob("*.py"), ROOT / "docs" / "roofline.py"]
    by_code = {use for path in MODULES.values() for use in uses(path)}
    by_tests = {use for path in tests for use in uses(path)}
    private = {use for use in by_code | by_tests if use[1].startswith("_") and use[1][1] != "_"}
    assert private == set()
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "stylize.weights":
            continue
        listed = set(public_names(path))
        assert {name for m, name in by_code if m == module} - {"__version__"} <= listed, module
        text = path.read_text()
        for name in listed - {name for m, name in by_code | by_tests if m == module}:
            # The type of something public: what others get without naming it.
            assert text.count(name) > 2, f"{module}.{name} is used by nobody"


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
        "from pipeline.store.index import Index\n"
        "from pipeline.store.folder import OutFolder\n"
        f"Index(OutFolder({str(tmp_path)!r}), 'r1')"
    )
    assert not loaded_after(code) & {"torch", "pandas"}


def test_the_front_door_gives_every_name_and_no_other() -> None:
    import stylize

    assert "transfer_style" in stylize.__all__
    assert all(getattr(stylize, name).__name__ == name for name in stylize.__all__)
    with pytest.raises(AttributeError, match="no attribute 'stylise'"):
        stylize.stylise  # noqa: B018
