"""The command as a user types it, where it paints nothing or one pair: no Ray is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import cli
from helpers import COMMAND, TINY, loaded_by, picture, pictures, seconds_of_children, write_csv
from PIL import Image

from stylize.weights import BUNDLED


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A manifest of two good rows."""
    pictures(tmp_path, 2)
    return write_csv(tmp_path / "m.csv", [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in (0, 1)])


def refused(*arguments: object) -> str:
    """Standard error of a command that must end with 2 and leave nothing behind."""
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# Lightness


def test_help_takes_less_than_half_a_second() -> None:
    def once() -> float:
        began = seconds_of_children()
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
        return seconds_of_children() - began

    best = min(once() for _ in range(3))
    assert best < 1.0  # 0.5 s is the promise, on a machine that does nothing else


@pytest.mark.parametrize(
    ("command", "never"),
    [
        (["--help"], {"torch", "ray", "pyarrow"}),
        (["run", "--help"], {"torch", "ray", "pyarrow"}),
        (["status", "m"], {"torch", "ray"}),
        (["validate", "m.csv"], {"torch", "ray"}),
        (["plan", "m.csv", "--backbone", "vgg16"], {"ray"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_light_commands_do_not_load_what_they_do_not_need(
    command: list[str], never: set[str], good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good.parent)
    (good.parent / "m" / "index").mkdir(parents=True)
    code, loaded = loaded_by(good.parent, *command)
    assert code == 0
    assert not loaded & never


# validate


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    """Five good rows, and three whose files are missing, cut short and no picture."""
    pictures(tmp_path, 5)
    whole = picture(tmp_path / "whole.jpg", 7).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("This is no picture.\n" * 9)
    rows: list[dict[str, object]] = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(5)]
    rows += [{"id": name, "content": f"{name}.jpg"} for name in ("missing", "cut", "text")]
    return write_csv(tmp_path / "m.csv", rows)


@pytest.mark.parametrize("options", [(), ("--images",)])
def test_validate_names_each_bad_file_with_line_and_column(
    options: tuple[str, ...], bad_files: Path
) -> None:
    lines = refused("validate", bad_files, *options).splitlines()
    assert lines[0] == 'line 7, column content: "missing.jpg" does not exist'
    assert lines[1].startswith("line 8, column content: cut.jpg: the picture is damaged or cut")
    assert lines[2].startswith("line 9, column content: text.jpg: not a picture that can be read")
    assert lines[3:] == [f"stylize-batch: 3 problems in {bad_files}"]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_validate_sees_a_file_cut_short_in_every_format_and_takes_the_whole_one(
    ending: str, tmp_path: Path
) -> None:
    picture(tmp_path / "s.png", 1)
    whole = picture(tmp_path / f"c.{ending}", 2)
    manifest = write_csv(tmp_path / "m.csv", [{"content": whole.name}])
    assert cli("validate", manifest).stdout == "1 pair, no problem found\n"
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    damaged = "damaged or cut short"  # Pillow cannot even open half a WebP
    says = f"this WebP is {damaged}" if ending == "webp" else f"the picture is {damaged}"
    assert f"line 2, column content: c.{ending}: {says}" in refused("validate", manifest)


def test_validate_takes_a_jpeg_with_bytes_after_its_end_and_a_thumbnail_with_an_end(
    tmp_path: Path,
) -> None:
    pictures(tmp_path, 1)
    whole = (tmp_path / "c0.jpg").read_bytes()
    thumbnail = b"\xff\xe1\x00\x08\xff\xd8\xff\xd9\x00\x00"  # an APP1 segment of 8 bytes
    (tmp_path / "c0.jpg").write_bytes(whole[:2] + thumbnail + whole[2:] + b"\0" * 5000)
    manifest = write_csv(tmp_path / "m.csv", [{"content": "c0.jpg"}])
    assert cli("validate", manifest).returncode == 0
    (tmp_path / "c0.jpg").write_bytes(whole[:2] + thumbnail + whole[2:-40])
    assert "cut short" in refused("validate", manifest)


def test_validate_names_bad_files_beside_bad_cells_in_the_order_of_lines(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    cells = [("none1.jpg", ""), ("c0.jpg", "big"), ("none2.jpg", "64"), ("c0.jpg", "")]
    rows = [{"content": content, "size": size} for content, size in cells]
    done = cli("validate", write_csv(tmp_path / "m.csv", rows), "--json")
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert facts["rows"] == 4
    places = [(problem["line"], problem["column"]) for problem in facts["problems"]]
    assert places == [(2, "content"), (3, "size"), (4, "content")]


def test_validate_json_has_all_problems_and_text_the_first_hundred(tmp_path: Path) -> None:
    picture(tmp_path / "s.png", 1)
    rows = [{"id": i, "content": f"none{i}.jpg"} for i in range(150)]
    manifest = write_csv(tmp_path / "m.csv", rows)
    lines = refused("validate", manifest).splitlines()
    assert lines[100:] == ["… and 50 more", f"stylize-batch: 150 problems in {manifest}"]
    done = cli("validate", manifest, "--json")
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert facts["rows"] == 150
    assert [problem["line"] for problem in facts["problems"]] == list(range(2, 152))
    assert {problem["column"] for problem in facts["problems"]} == {"content"}


# Bad manifests


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("content,style,contnt_weight\nc0.jpg,s.png,3\n", "content_weight"),
        ("id,content,style\na,c0.jpg,s.png\na,c1.jpg,s.png\n", "line 3, column id"),
        (
            "content,style,output\nc0.jpg,s.png,a.png\nc1.jpg,s.png,a.png\n",
            "line 3, column output",
        ),
        ("", "empty"),
        ("content,style\n", "no rows"),
        ("content,style,style_weight\nc0.jpg,s.png,NaN\n", "line 2, column style_weight"),
        ("content,style,size\nc0.jpg,s.png,big\n", '"big" is not a number'),
        ("content,style,output\nc0.jpg,s.png,../../etc/x.png\n", "line 2, column output"),
        ("content,style,id\nc0.jpg,s.png,../../etc/x\n", "line 2, column id"),
        ("content,style,output\nc0.jpg,s.png,index/x.png\n", "line 2, column output"),
    ],
    ids=["column", "id", "output", "empty", "rows", "nan", "number", "dots", "dots-id", "index"],
)
def test_a_manifest_that_cannot_be_understood_ends_with_2_and_runs_nothing(
    text: str, says: str, good: Path
) -> None:
    good.write_text(text)
    for command in (["run"], ["plan"], ["validate"]):
        assert says in refused(*command, good)
    assert not good.with_suffix("").exists()


def test_byte_order_mark_and_windows_line_ends_are_taken(good: Path) -> None:
    text = good.read_text()
    good.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    done = cli("validate", good)
    assert (done.returncode, done.stdout) == (0, "2 pairs, no problem found\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "3"], "option size"),
        (["--style-weight", "nan"], "option style_weight"),
        (["--device", "gpu"], "--device"),
        (["--dtype", "int8"], "--dtype"),
        (["--progress", "loud"], "--progress"),
        (["--retry-failed", "some"], "--retry-failed"),
        (["--only", "nobody"], "'nobody'"),
        (["--config", "none.toml"], "--config"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_option_ends_with_2_names_it_and_runs_nothing(
    options: list[str], says: str, good: Path
) -> None:
    assert says in refused("run", good, *options)
    assert not good.with_suffix("").exists()


def test_a_mistyped_command_is_not_taken_for_a_manifest(good: Path) -> None:
    assert "did you mean validate?" in refused("validte", good)
    assert "cannot be read" in refused("none.csv")


# Pipes


def test_a_closed_pipe_gives_no_traceback(tmp_path: Path) -> None:
    picture(tmp_path / "s.png", 1)
    rows = [{"id": f"{i:04}{'x' * 90}", "content": f"none{i}.jpg"} for i in range(1500)]
    manifest = write_csv(tmp_path / "m.csv", rows)
    for command in (f"plan {manifest}", f"validate --json {manifest}", "run --help"):
        done = subprocess.run(
            f"{COMMAND} {command} | head -1", shell=True, capture_output=True, text=True
        )
        assert done.stdout.count("\n") == 1
        assert "Traceback" not in done.stderr
        assert "Broken" not in done.stderr


# pair


def test_pair_writes_a_picture_of_the_size_asked_for(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    out = tmp_path / "o.png"
    mask = picture(tmp_path / "mask.png", 3)
    done = cli("pair", tmp_path / "c0.jpg", tmp_path / "s.png", "-o", out, "--mask", mask, *TINY)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{out}: loss ")
    assert done.stdout.count("\n") == 1
    with Image.open(out) as image:
        assert (image.format, image.size) == ("PNG", (32, 24))
        assert json.loads(image.info["stylize-batch"])["mask"] == "mask.png"  # and no folder


def test_pair_refuses_what_cannot_be_before_it_paints_or_downloads(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    pair: tuple[object, ...] = ("pair", tmp_path / "c0.jpg", tmp_path / "s.png")
    assert "o.bmp: the ending must be one of .png" in refused(*pair, "-o", tmp_path / "o.bmp")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: it is a folder" in refused(*pair, "-o", tmp_path / "folder.png")
    pair = (*pair, "-o", tmp_path / "o.png")
    assert "size is '5'" in refused(*pair, "--size", "5")
    # The missing file of weights is not looked for any more.
    nowhere = ("--weights", tmp_path / "none.safetensors")
    blend = refused(*pair, *nowhere, "--style-blend", "1|2|3")
    assert "style_blend has 3 weights for 1 styles" in blend
    absent = "cuda" if sys.platform == "darwin" else "mps"
    assert f"device is {absent!r}" in refused(*pair, *nowhere, "--device", absent)
    large = ("--size", "16384", "--backbone", "vgg16", "-o", tmp_path / "o.webp")
    assert "o.webp: 16384 pixels a side do not fit" in refused(*pair, *large)


def test_what_a_picture_is_made_from_is_never_written_over(tmp_path: Path) -> None:
    photo, style = picture(tmp_path / "content.png", 1), picture(tmp_path / "s.png", 2)
    mask = picture(tmp_path / "mask.png", 3)
    before = [path.read_bytes() for path in (photo, style, mask)]
    (tmp_path / "link.png").symlink_to(style)
    for command, target, role in (
        ("pair", photo, "photograph"),
        ("pair", tmp_path / "link.png", "style"),
        ("pair", mask, "mask"),
        ("explain", tmp_path, "photograph"),
    ):
        done = cli(command, photo, style, "-o", target, "--mask", mask, *TINY)
        assert done.returncode == 2, done.stderr
        assert f"is the {role}, and would be lost; choose another" in done.stderr
    maps = picture(tmp_path / "features" / "features-relu1_1.png", 4)
    done = cli("explain", maps, style, "-o", maps.parent, *TINY)
    assert "features-relu1_1.png is the photograph, and would be lost" in done.stderr
    assert os.listdir(maps.parent) == [maps.name]
    assert [path.read_bytes() for path in (photo, style, mask)] == before


def test_pair_says_in_one_line_which_picture_cannot_be_read(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "text.jpg").write_text("no picture")
    for name, reason in (("none.jpg", "No such file"), ("text.jpg", "not a picture")):
        path = tmp_path / name
        done = cli("pair", path, tmp_path / "s.png", "-o", tmp_path / "o.png", *TINY)
        assert done.returncode == 3
        assert done.stderr.startswith(f"stylize-batch: content {path}: {reason}")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


# make-manifest, compact, weights


def test_make_manifest_crosses_or_zips_and_the_result_validates(tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / "photos" / f"c{seed}.jpg", seed)
    for seed in range(2):
        picture(tmp_path / "styles" / f"s{seed}.png", 100 + seed)
    out = tmp_path / "new" / "m.csv"
    globs = ("--content", tmp_path / "photos" / "*.jpg", "--style", tmp_path / "styles" / "*.png")
    done = cli("make-manifest", *globs, "-o", out)
    assert (done.returncode, done.stdout) == (0, f"{out}: 6 pairs\n")
    assert cli("validate", out).stdout == "6 pairs, no problem found\n"
    assert out.read_text().splitlines()[1] == "../photos/c0.jpg,../styles/s0.png"
    assert f"{out} exists; overwrite it with --force" in refused("make-manifest", *globs, "-o", out)
    assert "zip needs as many of each" in refused(
        "make-manifest", *globs, "--zip", "--force", "-o", out
    )
    nothing = ("--content", tmp_path / "*.none", "--style", tmp_path / "styles" / "*.png")
    assert "no file matches" in refused("make-manifest", *nothing, "-o", tmp_path / "n.csv")


def test_make_manifest_takes_a_file_by_its_name_whatever_that_means_as_a_pattern(
    tmp_path: Path,
) -> None:
    for seed, name in enumerate(("photo[1].jpg", "photo1.jpg", "s.png")):
        picture(tmp_path / name, seed)
    style, out = tmp_path / "s.png", tmp_path / "m.csv"
    photo = tmp_path / "photo[1].jpg"
    done = cli("make-manifest", "--content", photo, "--style", style, "-o", out)
    assert done.returncode == 0, done.stderr
    assert out.read_text().splitlines()[1:] == ["photo[1].jpg,s.png"]


def test_make_manifest_refuses_a_style_that_would_be_read_as_two(tmp_path: Path) -> None:
    photo, style = picture(tmp_path / "c.jpg", 1), picture(tmp_path / "a|b.png", 2)
    said = refused("make-manifest", "--content", photo, "--style", style, "-o", tmp_path / "m.csv")
    assert "contains a |, which separates styles; rename the file" in said


def test_a_pair_that_the_manifest_has_not_is_refused(good: Path) -> None:
    assert "--only 'nobody': the manifest has no such id" in refused(good, "--only", "nobody")


def test_a_plan_says_what_would_be_painted_and_that_nothing_is_known_of_the_time(
    good: Path,
) -> None:
    told = cli("plan", good, "--backbone", "vgg16").stdout.splitlines()
    assert told[0].startswith("paint  row 1  images/")
    assert told[0].endswith("  (new)")
    assert told[-1] == "time: unknown, nothing has been painted here yet"


def test_weights_are_listed_and_their_hash_is_verified() -> None:
    listed = cli("weights", "list")
    assert listed.returncode == 0
    assert listed.stdout.startswith("vgg16  bundled  ")
    assert listed.stdout.endswith("vgg19  not here; get it with: stylize-batch weights fetch\n")
    verified = cli("weights", "verify")
    assert verified.returncode == 0
    assert verified.stdout.count("is right") == 1


def test_damaged_weights_are_listed_as_such_and_the_rest_too(tmp_path: Path) -> None:
    (tmp_path / "vgg16-a.safetensors").write_bytes(BUNDLED.read_bytes()[:1000])
    (tmp_path / "vgg16-b.safetensors").symlink_to(BUNDLED)
    listed = cli("weights", "list", STYLIZE_CACHE=str(tmp_path))
    assert (listed.returncode, listed.stderr) == (0, "")
    first, damaged, whole, _ = listed.stdout.splitlines()
    assert damaged.startswith(f"damaged  {tmp_path / 'vgg16-a.safetensors'}  remove it")
    assert whole == first.replace("bundled", str(tmp_path / "vgg16-b.safetensors"))


@pytest.mark.parametrize("command", ["status", "compact"])
def test_a_folder_that_is_no_output_folder_is_refused(command: str, tmp_path: Path) -> None:
    assert "is no output folder" in refused(command, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--version"], capture_output=True, text=True
    )
    assert done.stdout == cli("--version").stdout


def test_a_config_file_with_a_table_is_refused_by_name(good: Path) -> None:
    config = good.parent / "c.toml"
    config.write_text("[settings]\nsize = 64\n")
    assert f"--config {config}: settings: there is no such setting; write each as" in refused(
        "plan", good, "--config", config
    )
    config.write_text('style_layers = ["relu1_1", {weight = 1}]')
    assert "style_layers: the list holds something that is neither text nor number" in refused(
        "plan", good, "--config", config
    )


def test_make_manifest_where_nothing_can_be_written_ends_with_5(good: Path) -> None:
    photos = good.parent / "c*.jpg"
    done = cli("make-manifest", "--content", photos, "--style", photos, "-o", good / "x.csv")
    assert done.returncode == 5
    assert "a file stands where a folder is needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_paths_in_a_folder_that_is_a_link_lead_to_the_same_files(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", 1)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    manifest = tmp_path / "near" / "m.csv"
    photos, mask = tmp_path / "photos", tmp_path / "photos" / "s.png"
    done = cli("make-manifest", "--content", photos / "c0.jpg", "--style", mask, "--out", manifest)
    assert done.returncode == 0, done.stderr
    found = cli("validate", manifest, "--mask", mask)
    assert found.returncode == 0, found.stderr


def test_a_manifest_named_by_a_file_uri_takes_absolute_paths(good: Path) -> None:
    photo = good.parent / "c0.jpg"
    (good.parent / "n.csv").write_text(f"content,style\n{photo},s.png\n")
    found = cli("validate", f"file://{good.parent}/n.csv", "--mask", photo)
    assert found.returncode == 0, found.stderr


def test_make_manifest_names_a_photo_whose_name_is_no_utf8(good: Path) -> None:
    photo = good.parent / os.fsdecode(b"caf\xe9.jpg")
    (good.parent / "c0.jpg").rename(photo)
    said = refused(
        "make-manifest", "--content", photo, "--style", photo, "-o", good.parent / "x.csv"
    )
    assert r'caf\udce9.jpg" is not UTF-8' in said


def test_out_of_a_manifest_that_is_a_uri() -> None:
    from pipeline.cli_options import default_out, from_manifest

    assert default_out("file:///home/me/m.csv") == "/home/me/m"
    assert default_out("jobs.v2/m.csv") == "jobs.v2/m"
    assert default_out("s3://bucket/jobs/m.csv") == "s3://bucket/jobs/m"  # which run() refuses
    from_options = from_manifest({"mask": "a.png"}, "s3://bucket/m.csv")
    assert from_options == {"mask": os.path.abspath("a.png")}


def test_help_says_of_each_setting_what_it_may_be_and_is() -> None:
    text = " ".join(cli("run", "--help", COLUMNS="200").stdout.split())
    assert "number of past steps that L-BFGS remembers (a whole number from 1 to 200)" in text
    assert "[default: (512)]" in text
    assert "(gram or moments or wasserstein) [default: (gram)]" in text


def test_a_pattern_that_names_a_folder_says_what_to_write(good: Path) -> None:
    folder = good.parent
    said = refused("make-manifest", "--content", folder, "--style", folder / "s.png", "-o", "x.csv")
    assert f"--content {folder}: no file matches; {folder} is a folder: write '{folder}/*'" in said


def test_a_montage_with_an_ending_that_cannot_be_written_is_refused(good: Path) -> None:
    out = good.parent / "m"
    (out / "index").mkdir(parents=True)
    assert "-o x.gif: the ending must be one of .png" in refused("montage", out, "-o", "x.gif")


@pytest.mark.parametrize("command", ["run", "pair"])
def test_more_threads_than_any_machine_has_are_refused(command: str, good: Path) -> None:
    given = [good] if command == "run" else [good, good, "-o", "x.png"]
    assert "1024" in refused(command, *given, "--threads", 100000)
