"""The documents: what they link to is there, what they say of settings and tests is so."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import yaml

from pipeline.options import Options
from stylize.config import SETTINGS, StyleConfig, as_text, parse_setting

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METHOD = ROOT / "docs" / "method.md"


def targets(document: Path) -> set[str]:
    """Where a document's links and pictures point to on this disk."""
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
    return {t.split("#")[0] for t in found if "://" not in t and not t.startswith("#")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_and_picture_is_there(document: Path) -> None:
    assert {t for t in targets(document) if not (document.parent / t).exists()} == set()


def test_the_method_stands_around_the_papers_figures_and_one_run() -> None:
    assert {f"figure{n}.jpg" for n in (1, 2, 3)} < targets(METHOD)
    assert {p.name for p in (ROOT / "docs").glob("explain-*")} < targets(METHOD)


def test_the_pictures_of_documents_are_small() -> None:
    explained = sorted((ROOT / "docs").glob("explain-*"))
    assert len(explained) >= 4
    assert sum(path.stat().st_size for path in explained) <= 600_000


def test_tests_that_documents_name_with_their_file_exist() -> None:
    text = " ".join(" ".join(document.read_text("utf-8") for document in DOCUMENTS).split())
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) >= 40
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), name


def test_every_test_that_the_promises_name_exists() -> None:
    """With its file or without; one that is cut with … by its beginning."""
    sources = " ".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    text = " ".join((ROOT / "docs" / "reliability.md").read_text("utf-8").split())
    named = re.findall(r"(?:::|`)(test_\w+)(…?)(\.py)?", text)
    assert len(named) > 60
    for name, cut, ending in named:
        if ending:
            assert (ROOT / "tests" / f"{name}.py").exists(), name
        elif cut:
            assert any(test.startswith(name) for test in defined), name
        else:
            assert name in defined, name


def test_the_files_for_clusters_name_options_that_there_are_and_ray_takes_them() -> None:
    folder = ROOT / "docs" / "clusters"
    known = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Options)}
    script = yaml.safe_load_all((folder / "rayjob.yaml").read_text())
    commands = [document["data"]["paint.sh"] for document in script if "data" in document]
    commands += re.findall("^stylize-batch .*", (folder / "slurm-ray.sh").read_text(), re.M)
    named = re.findall(r"--[a-z-]+", " ".join(commands))
    assert len(named) >= 6
    assert set(named) <= known
    util = importlib.import_module("ray.autoscaler._private.util")
    cluster = util.prepare_config(yaml.safe_load((folder / "ray-up.yaml").read_text()))
    util.validate_config(cluster)
    cluster["available_node_types"]["gpu"]["max_worker"] = 1  # it does refuse what it does not know
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(cluster)


def test_the_metrics_that_are_listed_are_those_that_a_run_has() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text("utf-8")
    source = (ROOT / "pipeline" / "paint" / "ray_metrics.py").read_text("utf-8")
    listed = {name.removesuffix("_total") for name in re.findall(r"`ray_(stylize_\w+)`", page)}
    assert listed == set(re.findall(r'"(stylize_\w+)"', source))


def test_the_gradients_that_the_method_gives_are_held_against_autograd() -> None:
    named = re.findall(r"`(test_the_gradient_\w+)`", METHOD.read_text("utf-8"))
    assert len(named) == 2
    for name in named:
        assert f"def {name}(" in (ROOT / "tests" / "test_losses.py").read_text("utf-8")


def test_the_methods_table_of_settings_has_the_presets_values() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]*)` \| `([^`]*)` \|", METHOD.read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 10
    assert {name for name, *_ in rows} <= set(SETTINGS)
    for name, paper, default in rows:
        assert parse_setting(name, paper) == getattr(StyleConfig.of("paper"), name), name
        assert parse_setting(name, default) == getattr(StyleConfig(), name), name


def test_the_page_of_settings_lists_every_one_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8").split("## All settings")[1]
    rows = re.findall(r"^\| `(\w+)` \|\s*`?([^|`]*?)`?\s*\|", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(SETTINGS)
    for name, shown in rows:
        value = getattr(StyleConfig(), name)
        expected = f"{value:g}" if isinstance(value, float) else as_text(name, value)
        assert shown == expected, name


def test_the_numbers_that_the_method_gives_are_the_codes() -> None:
    from stylize.layers import reach
    from stylize.optimize import FIRST_STEP, LONGEST_STEP
    from stylize.stages import plan_stages

    text = " ".join(METHOD.read_text("utf-8").split())
    config = StyleConfig()
    assert FIRST_STEP == 2 / 255
    assert "by 2/255 in the root mean square" in text
    assert f"no step changes them by more than {LONGEST_STEP:g}" in text
    assert f"the last {config.history} steps" in text
    assert f"a longer side below {config.coarsest} pixels" in text
    # Its own 16x16 pixels, and what it sees beyond them on both sides.
    sees = {backbone: 16 + 2 * reach("relu5_1", backbone) for backbone in ("vgg16", "vgg19")}
    assert f"to {sees['vgg16']} pixels for `relu5_1` in VGG-16, {sees['vgg19']} in VGG-19" in text
    stages = plan_stages((512, 512), config)
    assert [stage.size[0] for stage in stages] == [128, 128, 256, 512]
    assert [stage.evaluations for stage in stages] == [15, 30, 45, 50]
    assert [stage.spread for stage in stages] == [0.4, 0, 0, 0]
    assert "In the first third of the coarsest evaluations 0.4 (`spread`)" in text
    assert f"to the power {config.focus:g} (`focus`)" in text
    assert f"$p = {config.content_norm:g}$ (`content_norm`)" in text
    assert "45, 45 and 50 of 140 evaluations" in text
    assert [stage.content_factor for stage in stages] == [4, 4, 4, 1]
    assert "weigh content four times as much" in text


def test_the_table_of_columns_is_the_schema() -> None:
    from pipeline.store.rows import SCHEMA

    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "index.md").read_text("utf-8"), re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(SCHEMA.names)
