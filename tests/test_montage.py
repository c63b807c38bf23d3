"""The montage: what goes where, what stands for what is missing, and that no picture is cut."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import cli
from PIL import Image, ImageChops

from pipeline.records import Result
from pipeline.run import folder_of_inputs
from pipeline.store.folder import Fixed, OutFolder
from pipeline.store.index import Index
from pipeline.views.grid import Cell, Grid, lay_out, natural
from pipeline.views.montage import draw, montage
from pipeline.views.originals import Inputs
from stylize.errors import ConfigError

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 60), (40, 60, 200)


def plain(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def result(number: int, **changes: Any) -> Result:
    settings = changes.pop("settings", {})
    values: dict[str, Any] = {
        "pair_id": f"p{number}",
        "row": number,
        "content": "photos/red.png",
        "style": "styles/green.png",
        "output": f"images/{number}.png",
        "status": "ok",
        "settings": json.dumps(settings),
    }
    return Result(**{**values, **changes})


def failed(number: int, **changes: Any) -> Result:
    return dataclasses.replace(
        result(number, **changes), status="failed", error_type="ImageReadError"
    )


def write(out: Path, *results: Result) -> OutFolder:
    """OUT with these rows; its manifest's folder is the one above."""
    with Index(OutFolder(out), "test") as index:
        for row in results:
            index.append(row)
    OutFolder(out).fix(inputs="..")
    return OutFolder(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    plain(tmp_path / "photos" / "red.png", RED)
    plain(tmp_path / "styles" / "green.png", GREEN)
    for number in range(1, 5):
        plain(tmp_path / "out" / "images" / f"{number}.png", BLUE)
    return tmp_path / "out"


def colours(image: Image.Image) -> dict[Any, int]:
    found = image.convert("RGB").getcolors(1 << 24) or []
    return {colour: number for number, colour in found}


def test_a_strip_shows_photograph_style_and_result_of_each_pair(out: Path) -> None:
    target = out / "strip.png"
    assert montage(write(out, result(1), result(2)), str(target), cell=60) == []
    with Image.open(target) as image:
        found = colours(image)
    # Two of each, 60 x 40 pixels, whole.
    assert [found[c] for c in (RED, GREEN, BLUE)] == [2 * 60 * 40] * 3
    assert found[(255, 255, 255)] > sum(found.values()) / 3


def test_no_picture_of_the_run_is_written_over(out: Path) -> None:
    write(out, result(1), result(2, style="a.png|styles/green.png"))
    for path in (out / "images" / "2.png", *out.parent.glob("*/red.png")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="the montage shows it, and it would be lost"):
            montage(OutFolder(out), str(path))
        assert path.read_bytes() == before
    target = out / "strip.png"
    montage(OutFolder(out), str(target))
    montage(OutFolder(out), str(target))  # one of its own may be


def test_a_photograph_that_is_gone_is_an_empty_frame(out: Path) -> None:
    (out.parent / "photos" / "red.png").unlink()
    montage(write(out, result(1)), str(out / "strip.png"), cell=60)
    with Image.open(out / "strip.png") as image:
        found = colours(image)
    assert RED not in found
    assert found[BLUE] == 60 * 40


def test_inputs_are_found_by_what_run_json_says(out: Path) -> None:
    write(out, result(1))
    OutFolder(out).fix(inputs="../elsewhere")
    grid = lay_out([result(1)], OutFolder(out))
    assert grid.cells[0, 0].path == str(out.parent / "elsewhere" / "photos" / "red.png")


def test_a_run_notes_where_its_manifest_is_and_tells_no_folder_of_this_machine(out: Path) -> None:
    OutFolder(out).fix(backbone="vgg16")
    link = out.parent / "link"
    link.symlink_to(out)
    for folder in (out, link):
        inputs = folder_of_inputs(str(out.parent / "lists" / "pairs.csv"), OutFolder(folder))
        OutFolder(folder).fix(inputs=inputs)
        assert OutFolder(out).read_fixed() == Fixed(backbone="vgg16", inputs="../lists")
        assert Inputs(OutFolder(folder)).path("a.jpg") == str(out.parent / "lists" / "a.jpg")
    inputs = folder_of_inputs("s3://bucket/lists/pairs.csv", OutFolder(out))
    OutFolder(out).fix(inputs=inputs)
    assert Inputs(OutFolder(out)).path("a.jpg") == "s3://bucket/lists/a.jpg"
    assert Inputs(OutFolder(out)).from_out("a.jpg") == ""


def test_without_a_note_inputs_are_looked_for_beside_out(out: Path) -> None:
    assert Inputs(OutFolder(out)).path("a.jpg") == str(out.parent / "a.jpg")


def test_values_are_sorted_as_people_sort_them() -> None:
    assert sorted(["10", "9", "1e-5", "0.5"], key=natural) == ["1e-5", "0.5", "9", "10"]
    assert sorted(["a10", "a9", "5", "A1"], key=natural) == ["5", "A1", "a9", "a10"]
    layers = ["conv1_1,conv2_1", "conv1_1", "conv1_1,conv2_1,conv3_1"]
    assert sorted(layers, key=natural) == [layers[1], layers[0], layers[2]]


def test_settings_columns_and_meta_are_rows_and_columns(out: Path) -> None:
    rows = [
        result(1, settings={"strength": 0.9}, meta={"client": "Ada"}, loss=10.0),
        result(2, settings={"strength": 0.25}, meta={"client": "Bo"}, loss=9.0),
    ]
    by_setting = lay_out(rows, OutFolder(out), "strength", "meta.client")
    assert (by_setting.rows, by_setting.cols) == (["0.25", "0.9"], ["Ada", "Bo"])
    assert set(by_setting.cells) == {(1, 0), (0, 1)}
    assert by_setting.cells[1, 0].path.endswith("1.png")
    assert lay_out(rows, OutFolder(out), "", "loss").cols == ["9", "10"]


def test_paths_are_labelled_by_stem_unless_that_confuses_two(out: Path) -> None:
    rows = [result(1, style="a/x.png"), result(2, style="b/y.png")]
    assert lay_out(rows, OutFolder(out), "style").rows == ["x", "y"]
    rows = [result(1, style="a/x.png"), result(2, style="b/x.png")]
    assert lay_out(rows, OutFolder(out), "style").rows == ["a/x.png", "b/x.png"]


def test_layers_of_equal_weight_are_labelled_without_it(out: Path) -> None:
    equal = result(1, settings={"style_layers": [["conv1_1", 0.5], ["conv2_1", 0.5]]})
    other = result(2, settings={"style_layers": [["conv1_1", 0.5], ["conv2_1", 2]]})
    grid = lay_out([equal, other], OutFolder(out), "style_layers")
    assert grid.rows == ["conv1_1, conv2_1", "conv1_1:0.5, conv2_1:2"]


def test_a_cell_of_several_pairs_shows_the_first_that_is_painted_and_says_so(out: Path) -> None:
    grid = lay_out([failed(1), result(2), result(3)], OutFolder(out), "style")
    assert grid.cells[0, 0].path.endswith("2.png")
    assert grid.cells[0, 0].note == "1 of 3"
    assert "1 of 1 cells stand for several pairs" in grid.notes[0]


def test_a_failure_is_said_and_a_missing_cell_is_blank(out: Path) -> None:
    rows = [failed(1, meta={"x": "1"}), result(2, meta={"x": "2"}, content="photos/b.png")]
    grid = lay_out(rows, OutFolder(out), "content", "meta.x")
    assert len(grid.cells) == 2
    bad = next(cell for cell in grid.cells.values() if cell.alarm)
    assert bad.words == "failed\nImageReadError"
    image = draw(grid, 60)
    # Below the failure's column there is nothing: the blank cell is as white as the margin.
    assert set(colours(image.crop((0, 0, 20, image.height)))) == {(255, 255, 255)}


def test_originals_stand_beside_what_they_went_into(out: Path) -> None:
    """One photograph in two styles: each style above its column, the photograph left of the row."""
    rows = [result(1, style="styles/a.png"), result(2, style="styles/b.png")]
    grid = lay_out(rows, OutFolder(out), "", "style", inputs="beside")
    assert grid.aside == (1, 1)
    assert grid.cols == ["", "a", "b"]
    shown = {place: (Path(cell.path).name, cell.note) for place, cell in grid.cells.items()}
    assert shown == {
        (0, 1): ("a.png", "style"),
        (0, 2): ("b.png", "style"),
        (1, 0): ("red.png", "photograph"),
        (1, 1): ("1.png", ""),
        (1, 2): ("2.png", ""),
    }


def beside(rows: list[Result], out: Path, *axes: str) -> dict[tuple[int, int], str]:
    cells = lay_out(rows, OutFolder(out), *axes, inputs="beside").cells
    return {at: Path(cell.path).stem for at, cell in cells.items() if cell.note and cell.path}


def test_each_of_several_styles_stands_beside(out: Path) -> None:
    rows = [result(1, style="a.png|b.png"), result(2, style="c.png")]
    assert beside(rows, out, "", "pair_id") == {
        **{(0, 1): "a", (0, 2): "c", (1, 1): "b"},
        (2, 0): "red",
    }
    rows = [result(n, style="a.png | b.png") for n in (1, 2)]
    assert beside(rows, out, "", "pair_id") == {(0, 0): "red", (0, 1): "a", (0, 2): "b"}


def test_originals_stand_beside_one_axis_and_in_a_line_of_their_own(out: Path) -> None:
    """The first row and the last lack a style, so that all their pairs share the other."""
    pairs = [("1", "a"), ("2", "a"), ("2", "b"), ("3", "b")]
    rows = [
        result(number, style=f"{style}.png", meta={"set": value})
        for number, (value, style) in enumerate(pairs, 1)
    ]
    assert beside(rows, out, "meta.set", "style") == {(0, 1): "a", (0, 2): "b", (1, 0): "red"}
    assert beside(rows, out, "style", "meta.set") == {(0, 0): "red", (0, 1): "a", (1, 1): "b"}
    rows[0] = dataclasses.replace(rows[0], content="blue.png")  # of columns each its style, and
    assert beside(rows, out, "meta.set", "style") == {  # of rows each its photograph
        **{(0, 1): "a", (0, 2): "b"},
        **{(1, 0): "blue", (2, 0): "red", (3, 0): "red"},
    }


def test_an_original_without_weight_is_not_shown(out: Path) -> None:
    """The paper's figure 1: the photograph before its reconstructions, the style before its own."""
    content = {"content_weight": 1, "style_weight": 0, "init": "noise"}
    style = {"content_weight": 0, "style_weight": 1, "init": "noise"}
    rows = [
        result(1, settings=content, meta={"kind": "content"}),
        result(2, settings=style, meta={"kind": "style"}),
    ]
    grid = lay_out(rows, OutFolder(out), "meta.kind", inputs="beside")
    assert (grid.rows, grid.row_heading, grid.aside) == (["content", "style"], "kind", (0, 1))
    notes = {place: cell.note for place, cell in grid.cells.items() if cell.note}
    assert notes == {(0, 0): "photograph", (1, 0): "style"}


def test_the_inset_is_the_style_in_the_lower_left_corner(out: Path) -> None:
    target = out / "inset.png"
    montage(write(out, result(1)), str(target), cols="style", inputs="inset", cell=60)
    with Image.open(target) as image:
        at = {
            colour: [
                (x, y)
                for x in range(image.width)
                for y in range(image.height)
                if image.getpixel((x, y)) == colour
            ]
            for colour in (GREEN, BLUE)
        }
    assert len(at[GREEN]) == 19 * 13  # a third of 60 x 40
    assert len(at[BLUE]) == 60 * 40 - (19 + 2) * (13 + 2)  # and its white edge
    assert min(x for x, _ in at[GREEN]) == min(x for x, _ in at[BLUE])
    assert max(y for _, y in at[GREEN]) == max(y for _, y in at[BLUE])


def test_a_style_that_is_gone_leaves_out_the_inset_and_not_the_picture(out: Path) -> None:
    rows = write(out, result(1))
    montage(rows, str(out / "whole.png"), cols="style", inputs="none", cell=60)
    (out.parent / "styles" / "green.png").unlink()
    montage(rows, str(out / "inset.png"), cols="style", inputs="inset", cell=60)
    with Image.open(out / "whole.png") as one, Image.open(out / "inset.png") as other:
        assert colours(other)[BLUE] == colours(one)[BLUE] == 60 * 40


def test_pictures_are_wrapped_in_the_manifests_order_and_captioned(out: Path) -> None:
    rows = [result(n, meta={"panel": p}) for n, p in enumerate("CAB", 1)]
    grid = lay_out(rows, OutFolder(out), wrap=2, caption="meta.panel")
    notes = {place: cell.note for place, cell in grid.cells.items()}
    assert notes == {(0, 0): "C", (0, 1): "A", (1, 0): "B"}
    assert [cell.note for cell in lay_out(rows, OutFolder(out), wrap=9).cells.values()] == [
        "p1",
        "p2",
        "p3",
    ]


def test_options_that_go_without_each_other_are_refused(out: Path) -> None:
    with pytest.raises(ValueError, match="--wrap 2: it cannot be combined with --rows or --cols"):
        lay_out([result(1)], OutFolder(out), "style", wrap=2)
    with pytest.raises(ValueError, match="--caption and --inputs need --rows, --cols or --wrap"):
        lay_out([result(1)], OutFolder(out), inputs="beside")
    with pytest.raises(ValueError, match="--inputs 'aside': it must be none or beside or inset"):
        lay_out([result(1)], OutFolder(out), "style", inputs="aside")


def test_a_run_without_a_pair_is_refused_and_no_option_is_blamed() -> None:
    with pytest.raises(ConfigError, match=r"^OUT has no pair yet"):
        lay_out([], OutFolder("OUT"))


def test_what_is_passed_through_is_labelled_as_it_is_written(out: Path) -> None:
    rows = [result(1, meta={"a/b": "1e-4"}), result(2, meta={"a/b": "1e-5"})]
    grid = lay_out(rows, OutFolder(out), "", "meta.a/b")
    assert (grid.cols, grid.col_heading) == (["1e-5", "1e-4"], "a/b")


def test_a_text_that_reads_like_a_number_is_labelled_as_it_is_written(out: Path) -> None:
    rows = [
        result(n, pair_id=name, run_id="1_0", loss=1234.56)
        for n, name in enumerate(["2024_10", "2024_11", "12e7"], 1)
    ]
    notes = [cell.note for cell in lay_out(rows, OutFolder(out), wrap=3).cells.values()]
    assert notes == ["2024_10", "2024_11", "12e7"]
    assert lay_out(rows[:1], OutFolder(out), "pair_id", "run_id").rows == ["2024_10"]
    assert lay_out(rows[:1], OutFolder(out), "pair_id", "run_id").cols == ["1_0"]
    captioned = lay_out(rows, OutFolder(out), wrap=3, caption="loss")
    assert captioned.cells[0, 0].note == "1235"  # a number is still rounded


def test_an_unknown_column_is_refused_with_the_nearest(out: Path) -> None:
    with pytest.raises(ValueError, match=r"--rows 'stlye'.*did you mean style\?"):
        lay_out([result(1)], OutFolder(out), "stlye")


def test_a_meta_column_that_no_pair_has_is_refused_with_the_nearest(out: Path) -> None:
    rows = [result(1), result(2, meta={"client": "Ada"})]
    assert lay_out(rows, OutFolder(out), "meta.client").rows == ["none", "Ada"]  # one has it
    for axis in ("rows", "cols"):
        axes: dict[str, Any] = {axis: "meta.clinet"}
        with pytest.raises(ValueError, match=rf"--{axis} 'meta\.clinet'.*mean meta\.client\?"):
            lay_out(rows, OutFolder(out), **axes)
    with pytest.raises(ValueError, match=r"--caption 'meta\.x'.*see the columns"):
        lay_out(rows, OutFolder(out), wrap=2, caption="meta.x")


def test_pictures_are_fitted_and_never_cut(tmp_path: Path) -> None:
    tall = plain(tmp_path / "tall.png", RED, (50, 200))
    wide = plain(tmp_path / "wide.png", BLUE, (200, 50))
    cells = {(0, 0): Cell(str(tall)), (0, 1): Cell(str(wide))}
    found = colours(draw(Grid([""], ["", ""], cells), 100))
    assert (found[RED], found[BLUE]) == (25 * 100, 100 * 25)


def test_a_result_thinner_than_any_input_is_shown(out: Path) -> None:
    plain(out / "images" / "1.png", BLUE, (128, 13))
    montage(write(out, result(1)), str(out / "thin.png"), cols="style", cell=128)
    with Image.open(out / "thin.png") as image:
        assert colours(image)[BLUE] == 128 * 13


def test_a_photograph_is_turned_by_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), RED).save(tmp_path / "turned.jpg", exif=exif)
    image = draw(Grid([""], [""], {(0, 0): Cell(str(tmp_path / "turned.jpg"))}), 80)
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    assert box is not None
    assert (box[2] - box[0], box[3] - box[1]) == (40, 80)


@pytest.mark.parametrize("where", ["rows", "cols", "row_heading", "col_heading", "note", "words"])
def test_letters_outside_ascii_are_drawn(where: str) -> None:
    def drawn(text: str) -> bytes:
        words: dict[str, Any] = {where: text}
        cell = Cell(**words) if where in ("note", "words") else Cell()
        grid = Grid(["row"], ["col"], {(0, 0): cell})
        if hasattr(grid, where):
            changes: dict[str, Any] = {where: [text] if where.endswith("s") else text}
            grid = dataclasses.replace(grid, **changes)
        return draw(grid).tobytes()

    # Of letters that a font lacks each is the same empty box.
    assert len({drawn(letter) for letter in "üëαЖ"}) == 4


def test_ascii_labels_need_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw(Grid(["a label that is far too long " * 20], ["b"], {}), 60)


def test_a_montage_too_large_to_draw_is_refused_before_it_is_drawn() -> None:
    grid = Grid([str(n) for n in range(3000)], ["a"], {})
    with pytest.raises(ValueError, match=r"--cell 256: the montage would be .* smaller --cell"):
        draw(grid, 256)


def test_a_webp_larger_than_the_format_allows_is_refused(out: Path) -> None:
    folder = write(out, *(result(number) for number in range(1, 5)))
    with pytest.raises(ValueError, match=r"--cell 4096: .*16383 a side .* smaller --cell"):
        montage(folder, str(out / "a.webp"), cols="pair_id", cell=4096)
    assert not (out / "a.webp").exists()


def test_pdf_and_png_are_written_and_other_endings_refused(out: Path) -> None:
    folder = write(out, result(1))
    montage(folder, str(out / "a.pdf"), cols="style")
    assert (out / "a.pdf").read_bytes().startswith(b"%PDF-")
    with pytest.raises(ValueError, match=r"-o a\.txt: the ending must be one of \.png"):
        montage(folder, "a.txt")


def test_the_command_draws_and_refuses(out: Path, tmp_path: Path) -> None:
    folder = write(out, result(1), result(2))
    done = cli("montage", folder, "--rows", "style", "-o", tmp_path / "g.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'g.png'}\n")
    assert "several pairs" in done.stderr
    wrong = cli("montage", folder, "--rows", "nothing", "-o", tmp_path / "h.png")
    assert wrong.returncode == 2
    assert not (tmp_path / "h.png").exists()
    assert cli("montage", tmp_path, "-o", tmp_path / "h.png").returncode == 2


def test_a_caption_with_a_line_break_is_one_line() -> None:
    """As a spreadsheet's cell may have it; with letters outside ASCII Pillow refuses to measure."""
    grid = Grid([""], [""], {(0, 0): Cell(note="Zürich\nSee", words="gone")})
    alike = Grid([""], [""], {(0, 0): Cell(note="Zürich See", words="gone")})
    assert draw(grid).tobytes() == draw(alike).tobytes()
