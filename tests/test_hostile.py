"""Input as an attacker or an accident would make it: damaged files, bombs, links, odd names."""

import io
import json
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from helpers import TINY, check_whole, index_rows, picture, pictures, statuses, write_csv
from PIL import Image

from pipeline.views.originals import size_of
from stylize.colorspace import SRGB_PROFILE
from stylize.errors import ImageReadError, ImageSizeError
from stylize.image import Limits, decode, opened
from stylize.jpeg import plain_size

FORMATS = ("jpg", "png", "webp", "tif", "gif", "bmp", "jp2", "avif", "tga", "ppm")

# Decodes (or reads) files under a limit of memory, and prints what each ended with and its seconds.
_TRY = """
import json, resource, sys, time  # of the processor: others may run beside this
from pathlib import Path
from pipeline.manifest.reader import read_manifest
from pipeline.manifest.table import ManifestError
from stylize.errors import ImageError
from stylize.image import Limits, check_header, decode, read_metadata
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in sorted(Path(sys.argv[2]).iterdir()):
    began, end = time.process_time(), "ok"
    try:
        if sys.argv[1] == "manifest":
            read_manifest(str(path))
        else:
            read_metadata(path.read_bytes())
            for look in (check_header, decode):
                look(path.read_bytes(), Limits(4000, 16))
    except (ImageError, ManifestError) as error:
        end = type(error).__name__
        assert all(c.isprintable() or c == "\\n" for c in str(error)), ascii(str(error))
    print(json.dumps([path.name, end, time.process_time() - began]), flush=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def check_all(kind: str, folder: Path, allowed: set[str]) -> None:
    """Each file of a folder ends in one of the allowed ways, within 10 s, all within 1 GB."""
    done = subprocess.run(
        [sys.executable, "-c", _TRY, kind, str(folder)], capture_output=True, text=True
    )
    *lines, peak = done.stdout.splitlines() or [""]
    assert done.returncode == 0, (len(lines), done.returncode, done.stderr[-2000:])
    ends = [json.loads(line) for line in lines]
    assert len(ends) == len(list(folder.iterdir()))
    assert {end for _, end, _ in ends} <= allowed
    assert len({end for _, end, _ in ends}) > 1  # some are read, some refused
    assert max(seconds for _, _, seconds in ends) < 10
    assert int(peak) * 1024 < 1e9


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, put in from elsewhere, or the end cut off."""
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 40])):
        at = chance.randrange(len(damaged) + 1)
        end = at + chance.choice([1, 2, 4, 8, 100, 1000])
        kind = chance.randrange(7)
        if kind == 0:
            damaged[at:end] = chance.randbytes(len(damaged[at:end]))
        elif kind == 1:
            del damaged[at:end]
        elif kind == 2:
            damaged[at:at] = damaged[at:end]
        elif kind == 3:
            other = chance.randrange(len(damaged) + 1)
            damaged[at:at] = damaged[other : other + 50]
        elif kind == 4:
            damaged[at : at + 4] = chance.choice(
                [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"]
            )
        elif kind == 5 and at < len(damaged):
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 6 and chance.random() < 0.2:
            del damaged[at:]
    return bytes(damaged)


def scatter(folder: Path, seeds: list[Path], number: int, seed: int) -> None:
    """`number` damaged copies of files."""
    chance = random.Random(seed)
    folder.mkdir()
    originals = [(path.suffix, path.read_bytes()) for path in seeds]
    for i in range(number):
        suffix, data = originals[i % len(originals)]
        (folder / f"{i:04}{suffix}").write_bytes(mutate(data, chance))


NUMBERS = [100, pytest.param(500, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", NUMBERS)
def test_damaged_pictures_are_read_or_refused_in_bounded_time_and_memory(
    number: int, tmp_path: Path
) -> None:
    seeds = [picture(tmp_path / f"seed.{ending}", 1) for ending in FORMATS]
    with Image.open(seeds[0]) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "exif.jpg", exif=exif, icc_profile=b"no profile" * 20)
        image.quantize(16).save(tmp_path / "palette.png", transparency=3)
        image.convert("CMYK").save(tmp_path / "cmyk.tif", compression="tiff_lzw")
    seeds += [tmp_path / name for name in ("exif.jpg", "palette.png", "cmyk.tif")]
    scatter(tmp_path / "damaged", seeds, number, seed=number)
    check_all("picture", tmp_path / "damaged", {"ok", "ImageReadError", "ImageSizeError"})


def test_a_header_that_passes_without_pillow_passes_with_it() -> None:
    chance, plain = random.Random(1), 0
    noise = Image.effect_noise((40, 24), 50)
    kinds: list[tuple[str, dict[str, Any]]]
    kinds = [("RGB", {}), ("RGB", {"progressive": True, "comment": "x"}), ("L", {"dpi": (72, 72)})]
    kinds += [("CMYK", {}), ("RGB", {"icc_profile": SRGB_PROFILE, "restart_marker_rows": 1})]
    for mode, options in kinds:
        file = io.BytesIO()
        noise.convert(mode).save(file, "JPEG", **options)
        data = file.getvalue()
        assert plain_size(data) == (40, 24)
        pixels = data.index(b"\xff\xda") + 14
        for _ in range(600):
            damaged = mutate(data[:pixels], chance) + data[pixels:]
            if size := plain_size(damaged):
                assert opened(damaged, Limits(1 << 20, 1 << 20, least=1)).size == size
                plain += 1
    assert plain > 300


@pytest.mark.parametrize("number", NUMBERS)
def test_damaged_manifests_are_read_or_refused_in_bounded_time_and_memory(
    number: int, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": f"r{i}", "content": f"photo {i}.jpg", "style": "a.png|b.png", "size": str(64 + i)}
        | {"style_blend": "0.5|0.5", "style_layers": "relu1_1:1,relu2_1:0.5", "meta.x": "=1+1 ü"}
        for i in range(6)
    ]
    seeds = [write_csv(tmp_path / "seed.csv", rows), tmp_path / "seed.tsv", tmp_path / "seed.jsonl"]
    seeds[1].write_text(seeds[0].read_text().replace(",", "\t"))
    seeds[2].write_text("".join(json.dumps(row) + "\n" for row in rows))
    for codec in ("none", "snappy"):
        seeds.append(tmp_path / f"{codec}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), seeds[-1], compression=codec)
    scatter(tmp_path / "damaged", seeds, number, seed=number)
    check_all("manifest", tmp_path / "damaged", {"ok", "ManifestError"})


# Bombs


def chunk(kind: bytes, data: bytes) -> bytes:
    size, crc = len(data).to_bytes(4, "big"), zlib.crc32(kind + data).to_bytes(4, "big")
    return size + kind + data + crc


def bomb(*, side: int = 64, extra: bytes = b"") -> bytes:
    """A PNG whose header says side x side, with chunks between header and pixels."""
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes((side * 3 + 1) * min(side, 64)))
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ZEROS = zlib.compress(bytes(300_000_000), 9)  # 300 KB that would be 300 MB


@pytest.mark.parametrize(
    "data",
    [
        bomb(side=60_000),
        bomb(extra=chunk(b"iTXt", b"stylize-batch\0\1\0\0\0" + ZEROS)),
        bomb(extra=chunk(b"zTXt", b"stylize-batch\0\0" + ZEROS)),
        bomb(extra=chunk(b"iCCP", b"icc\0\0" + ZEROS)),
    ],
    ids=["header", "iTXt", "zTXt", "iCCP"],
)
def test_a_decompression_bomb_is_refused_or_passed_over_and_never_unpacked(
    data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "bomb.png").write_bytes(data)
    picture(tmp_path / "all" / "good.png", 1)
    done = subprocess.run(
        [sys.executable, "-c", _TRY, "picture", str(tmp_path / "all")],
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(done.stdout.splitlines()[-1]) * 1024
    assert peak < 250e6
    assert json.loads(done.stdout.splitlines()[1])[1] == "ok"


def test_the_size_of_a_picture_is_had_without_its_pixels(tmp_path: Path) -> None:
    # 400 million pixels are promised, and not there: whoever looks at them fails.
    (tmp_path / "bomb.png").write_bytes(bomb(side=20_000))
    assert size_of(str(tmp_path / "bomb.png")) == (20_000, 20_000)
    (tmp_path / "bomb.png").write_bytes(bomb(side=60_000))
    assert size_of(str(tmp_path / "bomb.png")) is None  # 3600 megapixels


def test_a_picture_that_is_a_program_is_not_run() -> None:
    # Pillow hands PostScript to an interpreter; a photograph never is any.
    with pytest.raises(ImageReadError, match="it is a PostScript file, which is not read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n")


def test_sixty_thousand_pixels_a_side_are_refused_by_name() -> None:
    with pytest.raises(ImageSizeError, match="60000x60000; the limit is 20000 pixels a side"):
        decode(bomb(side=60_000))


# Names


FORMULAS = ["=1+1.jpg", "=cmd|'calc'!A0.jpg", "+1.jpg", "-rf.jpg", "@SUM(1).jpg"]


def test_names_with_spaces_emoji_line_ends_quotes_and_255_bytes_go_all_the_way(
    forks: Forks, tmp_path: Path
) -> None:
    names = [
        "two words.jpg",
        "🎨 Gemälde.jpg",
        "line\nend.jpg",
        "'quotes\".jpg",
        *FORMULAS,
        "<b>&amp;.jpg",
        "%s{0}.jpg",
        f"{'x' * 251}.jpg",
        "Case.jpg",
        "case.jpg",
        "\x1b[31mred\x07.jpg",
    ]
    for seed, name in enumerate(names):
        picture(tmp_path / name, seed)
    picture(tmp_path / "s.png", 99)
    manifest = write_csv(tmp_path / "m.csv", [{"content": name} for name in names])
    done = forks(manifest, "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"{len(names)} pairs: {len(names)} painted" in done.stdout
    assert all(c.isprintable() or c in "\n\r" for c in done.stdout + done.stderr)
    out = tmp_path / "m"
    assert {row["content"] for row in index_rows(out).values()} == set(names)
    outputs = [row["output"] for row in index_rows(out).values()]
    assert len({output.lower() for output in outputs}) == len(names)
    assert all(c.isprintable() for output in outputs for c in output)
    check_whole(out)
    assert "nothing to remove" in forks("prune", out, "--manifest", manifest).stderr
    # A formula is plain text wherever it goes: a string of the index, a string of the page's data.
    assert forks("report", out).returncode == 0
    page = (out / "report.html").read_text()
    data = page[page.index('id="data">') : page.index("</script>", page.index('id="data">'))]
    assert "<" not in data
    for name in FORMULAS:
        assert json.dumps(name) in data
        assert name not in page.replace(data, "")


def test_control_characters_of_files_and_manifests_are_visible_in_every_message(
    forks: Forks, tmp_path: Path
) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "\x1b[2Jcleared.jpg").write_bytes(b"\x1b]0;title\x07 no picture")
    rows = [{"id": "bad", "content": "\x1b[2Jcleared.jpg"}, {"id": "none", "content": "\x07.jpg"}]
    manifest = write_csv(tmp_path / "m.csv", rows)
    runs = [
        forks(manifest, "--in-process", *TINY),
        forks("validate", manifest),
        forks("plan", manifest, "--no-retry-failed"),
        forks("status", tmp_path / "m"),
    ]
    assert [done.returncode for done in runs] == [3, 2, 0, 0]
    for done in runs:
        text = done.stdout + done.stderr
        assert "\\x1b[2Jcleared.jpg" in text
        assert all(c.isprintable() or c in "\n\r" for c in text)


def test_a_manifest_that_is_a_pipe_a_device_or_a_picture_is_refused(
    forks: Forks, tmp_path: Path
) -> None:
    image = picture(tmp_path / "picture.csv.png", 1).rename(tmp_path / "picture.csv")
    done = forks("validate", image)
    assert done.returncode == 2
    assert "save the manifest as UTF-8" in done.stderr


def test_a_pair_whose_input_is_a_folder_or_cannot_be_read_fails_by_itself(
    forks: Forks, tmp_path: Path
) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    names = ["folder", "loop", "c0"]
    rows = [{"id": name, "content": f"{name}.jpg"} for name in names]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert forks(manifest, "--in-process", *TINY).returncode == 3
    assert statuses(tmp_path / "m") == {"folder": "failed", "loop": "failed", "c0": "ok"}
    check_whole(tmp_path / "m")
