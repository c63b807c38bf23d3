"""Grids of settings, folders and lists made into manifests; presets; how a picture was made."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from forks import Done, cli
from helpers import COMMAND, TINY, index_rows, picture, tiny, write_csv
from PIL import Image

from pipeline.cost import work
from pipeline.manifest.reader import read_manifest
from pipeline.show import limits_for
from stylize.config import StyleConfig
from stylize.image import encode
from stylize.presets import DESCRIPTIONS, PRESETS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("a.jpg", "trip/b.jpg", "trip/day 2/b.PNG", "trip/.hidden.jpg")):
        picture(tmp_path / "photos" / name, seed)
    (tmp_path / "photos/trip/notes.txt").write_text("no picture")
    for seed, name in enumerate(("s.png", "t.png")):
        picture(tmp_path / name, 50 + seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*arguments: object) -> Done:
    return cli("make-manifest", *arguments, "-o", "m.csv")


def make_from(stdin: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "make-manifest", *map(str, arguments), "-o", "m.csv"]
    return subprocess.run(command, capture_output=True, text=True, input=stdin)


def rows() -> list[dict[str, str]]:
    with open("m.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# make-manifest


def test_settings_are_crossed(folder: Path) -> None:
    done = make(
        *("--content", "photos/a.jpg", "--style", "?.png"),
        *("--set", "style_weight=10,70,200", "--set", "preset=default,paper"),
    )
    assert done.stdout == "m.csv: 12 pairs\n"
    pairs = read_manifest("m.csv")
    assert len({pair.pair_id for pair in pairs}) == 12
    made = {(p.style, p.config.style_weight, p.config.preset) for p in pairs}
    weights, presets = (10.0, 70.0, 200.0), ("default", "paper")
    assert made == {(f"{s}.png", w, p) for s in "st" for w in weights for p in presets}


def test_values_with_commas_and_values_left_as_they_are(folder: Path) -> None:
    layers = "style_layers=relu1_1:1,relu2_1:2;relu3_1"
    done = make(
        "--content", "photos/a.jpg", "--style", "s.png", "--set", layers, "--set", "motifs=,1"
    )
    assert done.returncode == 0, done.stderr
    assert [(row["style_layers"], row["motifs"]) for row in rows()] == [
        ("relu1_1:1,relu2_1:2", ""),
        ("relu1_1:1,relu2_1:2", "1"),
        ("relu3_1", ""),
        ("relu3_1", "1"),
    ]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (["style_weigth=1"], '--set "style_weigth": there is no such setting; the nearest is sty'),
        (["size"], '--set "size": write it like style_weight=10,70,200'),
        (["steps=10,ten"], "steps is 'ten'; it must be a whole number from 0 to 1000000"),
        (["seed=1,2,1"], '--set seed has "1" twice; leave one out'),
        (["seed=1", "seed=2"], "--set seed is given twice; give all its values at once"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(folder: Path, setting: list[str], says: str) -> None:
    options = [part for text in setting for part in ("--set", text)]
    done = make("--content", "photos/a.jpg", "--style", "s.png", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr
    assert not Path("m.csv").exists()


def test_steps_from_one_style_to_another(folder: Path) -> None:
    assert make("--content", "photos/a.jpg", "--style", "?.png", "--blend-steps", 4).returncode == 0
    assert {row["style"] for row in rows()} == {"s.png|t.png"}
    shares = [pair.config.shares(2) for pair in read_manifest("m.csv")]
    wanted = [[1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1]]
    assert np.abs(np.array(shares, float) - np.array(wanted)).max() < 1e-4
    one = make("--content", "photos/a.jpg", "--style", "s.png", "--blend-steps", 4, "--force")
    assert "--blend-steps mixes two styles, and there are 1" in one.stderr


def test_folders_keep_their_structure_in_the_outputs(folder: Path) -> None:
    done = make("--recursive", "--content", "photos", "--style", "s.png", "--set", "seed=1,2")
    assert done.stdout == "m.csv: 6 pairs\n"
    outputs = [re.sub("[0-9a-f]{12}", "ID", pair.output) for pair in read_manifest("m.csv")]
    assert sorted(outputs) == sorted(
        2 * ["images/a.s.ID.png", "images/trip/b.s.ID.png", "images/trip/day 2/b.s.ID.png"]
    )
    for pair in read_manifest("m.csv"):  # the name has the id that the row gets
        assert pair.pair_id in pair.output
    make(
        "--recursive",
        "--content",
        "photos/t*/**/*.jpg",
        "--style",
        "s.png",
        "--force",
        "--set",
        "format=webp",
    )
    assert [os.path.dirname(row["output"]) for row in rows()] == ["images/trip"]
    assert rows()[0]["output"].endswith(".webp")
    assert "or add --recursive" in make("--content", "photos", "--style", "s.png", "--force").stderr


def test_a_list_on_standard_input_is_taken_as_it_stands(folder: Path) -> None:
    listed = "photos/trip/b.jpg\nphotos/a.jpg\r\n\n"
    assert make_from(listed, "--content", "-", "--style", "s.png").returncode == 0
    assert [row["content"] for row in rows()] == ["photos/trip/b.jpg", "photos/a.jpg"]
    nul = "photos/a.jpg\0photos/trip/day 2/b.PNG\0"
    made = make_from(nul, "--content", "-", "--style", "s.png", "--recursive", "--force")
    assert made.returncode == 0
    assert [os.path.dirname(row["output"]) for row in rows()] == ["images", "images/trip/day 2"]


@pytest.mark.parametrize(
    ("content", "style", "stdin", "says"),
    [
        ("-", "s.png", "photos/a.jpg\ngone.jpg\n", "there is no file 'gone.jpg', which the list"),
        ("-", "s.png", "\n", "--content -: standard input lists no file"),
        ("-", "-", "s.png\n", "only one list can be on standard input"),
    ],
)
def test_a_list_that_cannot_be_is_refused(
    folder: Path, content: str, style: str, stdin: str, says: str
) -> None:
    done = make_from(stdin, "--content", content, "--style", style)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr


# presets


def test_presets_are_listed_with_what_they_cost_here() -> None:
    assert set(DESCRIPTIONS) == set(PRESETS)
    listed = json.loads(cli("presets", "--threads", 1, "--json").stdout)
    assert [entry["preset"] for entry in listed] == list(PRESETS)
    for entry in listed:
        assert entry["seconds"] > 0
        # The time is that of a pixel times the pixels of all evaluations.
        wanted = work(StyleConfig.of(entry["preset"])) / work(StyleConfig())
        assert entry["seconds"] / listed[0]["seconds"] == pytest.approx(wanted)


# show


def again(command: str, folder: Path) -> str:
    """Run the command that `show` printed; return the name that it wrote."""
    name, *arguments = shlex.split(command)
    assert name == "stylize-batch"
    with contextlib.chdir(folder):
        done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    return arguments[arguments.index("-o") + 1]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_the_command_that_show_prints_makes_the_same_pixels(folder: Path, ending: str) -> None:
    """Of a picture of a run, whose inputs are found through its index."""
    with Image.new("L", (64, 48), 0) as mask:
        mask.paste(255, (0, 0, 40, 48))
        mask.save("photos/mask.png")
        mask.save("part.png")
    write_csv(
        folder / "m.csv",
        [
            {
                "id": "x",
                "content": "photos/a.jpg",
                "style": "s.png|t.png",
                "style_blend": "0.25|0.75",
                "mask": "photos/mask.png",
                "style_mask": "|part.png",
                "size": "native",
                "steps": 5,
                "preset": "paper",
                "noise": 0.01,
                "init": "style",
                "format": ending,
                "quality": 60,
            }
        ],
    )
    options = tiny(size=None, steps=None, scales=None)
    more = ("--tile", 48, "--max-side", 21_000) if ending == "jpg" else ()
    if more:  # longer than what is read unasked; of one value, so that its shape does not matter
        Image.new("L", (20_400, 16), 255).save("part.png")
    assert cli("m.csv", *options, *more, "--in-process").returncode == 0
    made = folder / "m" / index_rows(folder / "m")["x"]["output"]
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = cli("show", made)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^style_blend +0\.25\|0\.75$", done.stdout, re.MULTILINE)
    command = done.stdout.splitlines()[-1]
    assert command.endswith(" --tile 48 --max-side 20400") == bool(more)
    name = again(command, elsewhere)
    assert name == f"again.{ending}"
    assert pixels(elsewhere / name) == pixels(made)


def test_the_command_has_the_options_that_decide_the_pixels(folder: Path) -> None:
    made = {"tile": 64, "compile": True, "device": "cpu", "inputs": []}
    data = encode(Image.new("RGB", (16, 16)), ".png", json.dumps({"size": 64, "made": made}))
    Path("made.png").write_bytes(data)
    command = cli("show", "made.png").stdout.splitlines()[-1]
    assert command.endswith("--device cpu --dtype auto --tile 64 --compile")
    for size in ((20_000, 10_000), (20_000, 10_001)):
        Image.new("1", size).save(f"{size[1]}.png")
    assert limits_for(["10000.png", "gone.png"]) == {}
    assert limits_for(["10000.png", "10001.png"]) == {"max_megapixels": "201"}


def test_show_finds_moved_inputs_by_their_bytes_and_names_what_it_does_not_find(
    folder: Path,
) -> None:
    assert cli("pair", "photos/a.jpg", "s.png", "-o", "r.png", *TINY).returncode == 0
    (folder / "far/off").mkdir(parents=True)
    shutil.move("photos/a.jpg", "far/off/a.jpg")
    picture(folder / "a.jpg", 77)  # another picture of that name, where the command is run
    lost = cli("show", "r.png")
    assert "content a.jpg is not found as it was (SHA-256 " in lost.stderr
    assert "name the folder that it is in with --inputs" in lost.stderr
    found = cli("show", "r.png", "--inputs", "far", "-o", "new.png")
    assert found.stderr == ""
    assert again(found.stdout.splitlines()[-1], folder) == "new.png"
    assert pixels(folder / "new.png") == pixels(folder / "r.png")
    assert json.loads(cli("show", "r.png", "--json").stdout)["preset"] == "default"


@pytest.mark.parametrize("name", ["s.png", "gone.png", "photos/trip/notes.txt"])
def test_a_picture_that_does_not_tell_is_refused_in_one_line(folder: Path, name: str) -> None:
    done = cli("show", name)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "does not tell how it was made" in done.stderr or "cannot be read" in done.stderr
