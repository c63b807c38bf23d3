"""What results are like as files: format, size, depth, transparency, metadata and names."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import cli
from helpers import TINY, index_rows, picture, pictures, tiny, write_csv
from PIL import ExifTags, Image, ImageCms, IptcImagePlugin, TiffImagePlugin

from pipeline.manifest.reader import read_manifest
from pipeline.manifest.table import ManifestError
from stylize import StyleConfig, Stylizer
from stylize.deep import encode_png, encode_tiff
from stylize.image import Limits, decode, encode, opened, read_metadata
from stylize.inputs import Photograph
from stylize.kept import Kept
from stylize.weights import Weights

FORMATS = ("png", "jpg", "webp", "tif")
PLAN = tiny(threads=None)  # which `plan` does not know


def outputs(manifest: Path, **options: Any) -> list[str]:
    return [pair.output for pair in read_manifest(str(manifest), **options)]


def problems(manifest: Path, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(manifest), **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(scope="module")
def stylizer(bundled: Weights) -> Stylizer:
    return Stylizer(bundled, device="cpu", dtype="float32")


def painted(stylizer: Stylizer, photo: Image.Image | Path, **settings: Any) -> Any:
    config = StyleConfig(**{"size": 48, "steps": 3, "scales": 1, **settings})
    style = Image.effect_noise((48, 48), 90).convert("RGB")
    return stylizer.transfer(photo, style, config)


# Format, quality and depth


def test_a_run_writes_each_format_with_its_quality_and_the_profile_of_srgb(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    rows: list[dict[str, object]] = [{"id": f, "content": "c0.jpg", "format": f} for f in FORMATS]
    rows += [{"id": "low", "content": "c0.jpg", "format": "jpg", "quality": 30}]
    rows += [{"id": "own", "content": "c0.jpg", "output": "images/own.webp"}]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert cli(manifest, *TINY, "--in-process").returncode == 0
    found = index_rows(tmp_path / "m")
    endings = {name: row["output"].rpartition(".")[2] for name, row in found.items()}
    assert endings == {**{f: f for f in FORMATS}, "low": "jpg", "own": "webp"}
    assert found["low"]["output_bytes"] < found["jpg"]["output_bytes"] - 500  # both have a text
    for name, row in found.items():
        assert json.loads(row["settings"])["format"] == endings[name]
        with Image.open(tmp_path / "m" / row["output"]) as image:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            assert "sRGB" in ImageCms.getProfileName(profile)


def test_another_quality_is_painted_again_and_the_reason_told(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg", "format": "jpg"}])
    assert cli(manifest, *TINY, "--in-process").returncode == 0
    assert "1 done" in cli("plan", manifest, *PLAN).stdout
    assert (
        "(settings changed: quality 95 -> 40)"
        in cli("plan", manifest, *PLAN, "--quality", "40").stdout
    )


def test_a_format_that_the_row_cannot_have_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "a", "content": "c.jpg", "output": "a.jpg", "format": "png"},
        {"id": "b", "content": "c.jpg", "output": "b.jpg", "bits": 16},
        {"id": "c", "content": "c.jpg", "format": "gif"},
        {"id": "d", "content": "c.jpg", "output": "d.jpg"},
    ]
    told = problems(write_csv(tmp_path / "m.csv", rows), defaults={"format": "tif"})
    assert told == [
        'line 2, column format: "png" differs from the ending of "a.jpg"; leave one of them out',
        'line 3, column output: "b.jpg": 16 bits per channel do not fit a .jpg; name it .png or '
        ".tif",
        'line 4, column format: "gif" is not allowed; it must be png or jpg or webp or tif',
    ]


def test_a_format_that_a_single_picture_cannot_have_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", 1)
    for options, says in (
        (("--format", "jpg"), "--format jpg differs from the ending of -o, .webp"),
        (("--bits", "16"), "-o: 16 bits per channel do not fit a .webp; name it .png or .tif"),
    ):
        single = ("pair", tmp_path / "p.png", tmp_path / "p.png", "-o", tmp_path / "o.webp")
        done = cli(*single, *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert says in done.stderr


def read_16(data: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Pixels of 16 bits by the specifications; Pillow makes 8 of them."""
    if data.startswith(b"\x89PNG"):
        (at,) = (i for i in range(len(data)) if data[i : i + 4] == b"IHDR")
        width, height, bits, colour = struct.unpack(">IIBB", data[at + 4 : at + 14])
        chunks, at = b"", 8
        while at < len(data):
            length, name = struct.unpack(">I4s", data[at : at + 8])
            chunks += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
            at += 12 + length
        channels = {2: 3, 6: 4}[colour]
        rows = np.frombuffer(zlib.decompress(chunks), np.uint8).reshape(height, -1)
        assert (bits, set(rows[:, 0].tolist())) == (16, {2})  # each the difference from above
        raw = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).tobytes()
        return np.frombuffer(raw, ">u2").reshape(height, width, channels).astype(np.int64)
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        tags = image.tag_v2
    assert (set(tags[258]), tags[259], tags[317]) == ({16}, 8, 2)  # deflated differences
    strip = zlib.decompress(data[tags[273][0] : tags[273][0] + tags[279][0]])
    differences = np.frombuffer(strip, "<u2").reshape(tags[257], tags[256], tags[277])
    return np.cumsum(differences, axis=1, dtype=np.uint16).astype(np.int64)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_sixteen_bits_hold_what_eight_round_away(
    stylizer: Stylizer, tmp_path: Path, ending: str, transparent: bool
) -> None:
    photo = Image.open(picture(tmp_path / "p.png", 3)).convert("RGB")
    if transparent:
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    result = painted(stylizer, photo, bits=16, size=57)
    result.save(tmp_path / f"r.{ending}")
    deep = read_16((tmp_path / f"r.{ending}").read_bytes()).astype(float)
    eight = np.asarray(result.image, float)
    assert deep.shape == eight.shape
    assert np.abs(deep / 257 - eight).max() <= 0.5
    assert len(np.unique(deep[..., :3] % 257)) > 100  # between the values of 8 bits
    with Image.open(tmp_path / f"r.{ending}") as image:  # as others see it
        assert np.abs(np.asarray(image.convert("RGB"), float) - eight[..., :3]).max() <= 1
        assert "icc_profile" in image.info
    data = (tmp_path / f"r.{ending}").read_bytes()
    assert json.loads(read_metadata(data))["bits"] == 16
    assert np.abs(np.asarray(decode(data), float)).max() > 0


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("png", 16), ("tif", 16), ("ppm", 10), ("jp2", 16), ("heic", 10), ("jxl", 16), ("float", 32)],
)
def test_a_photograph_of_more_than_eight_bits_is_noted(kind: str, bits: int) -> None:
    grey = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    colours = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    buffer = io.BytesIO()
    if kind == "png":
        buffer.write(encode_png(colours, encode(Image.new("RGB", (1, 1)), ".png")))
    elif kind == "tif":
        buffer.write(encode_tiff(colours, Image.Exif(), b""))
    elif kind == "ppm":
        buffer.write(b"P6 32 32 1023\n" + (colours >> 6).astype(">u2").tobytes())
    elif kind == "heic":
        heif = pytest.importorskip("pillow_heif")
        heif.from_bytes("RGB;16", (32, 32), colours.tobytes()).save(buffer, quality=-1)
    elif kind == "float":
        Image.fromarray(np.asarray(grey, np.float32) / 65535).save(buffer, "TIFF")
    else:
        if kind == "jxl":
            pytest.importorskip("pillow_jxl")
        grey.save(buffer, {"jp2": "JPEG2000", "jxl": "JXL"}[kind])
    photograph = Photograph.of(opened(buffer.getvalue(), Limits()), StyleConfig(size=32))
    assert photograph.note == f"read with 8 of the photograph's {bits} bits per channel"
    assert np.asarray(photograph.picture).min() <= 5
    assert np.asarray(photograph.picture).max() >= 250
    buffer = io.BytesIO()
    photograph.picture.save(buffer, "PNG")
    assert Photograph.of(opened(buffer.getvalue(), Limits()), StyleConfig(size=32)).note == ""


# Size


@pytest.mark.parametrize(
    ("size", "shape", "note"),
    [
        ("native", (64, 48), ""),
        ("40x20", (27, 20), ""),
        ("0.001MP", (37, 28), ""),
        (128, (128, 96), "larger than the photograph, which is 64x48"),
    ],
)
def test_a_size_is_the_photographs_a_box_or_megapixels(
    stylizer: Stylizer, size: int | str, shape: tuple[int, int], note: str
) -> None:
    photo = Image.effect_noise((64, 48), 60).convert("RGB")
    result = painted(stylizer, photo, size=size)
    assert result.image.size == shape
    assert result.notes == note


def test_sizes_of_photographs_of_several_shapes_in_one_run(tmp_path: Path) -> None:
    for name, size in (("a", (60, 40)), ("b", (40, 60)), ("c", (48, 48))):
        picture(tmp_path / f"{name}.png", 1, size)
    picture(tmp_path / "s.png", 9)
    rows = [{"id": n, "content": f"{n}.png", "size": "native"} for n in "abc"]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert cli(manifest, *tiny(size=None), "--in-process").returncode == 0
    found = index_rows(tmp_path / "m")
    sizes = {name: (row["width"], row["height"]) for name, row in found.items()}
    assert sizes == {"a": (60, 40), "b": (40, 60), "c": (48, 48)}
    assert {json.loads(row["settings"])["size"] for row in found.values()} == {"native"}
    assert "3 done" in cli("plan", manifest, *tiny(size=None, threads=None)).stdout
    assert (
        "size native -> 32"
        in cli(
            "plan",
            write_csv(tmp_path / "m.csv", [{"id": "a", "content": "a.png", "size": 32}]),
            *tiny(size=None, threads=None),
        ).stdout
    )


# Transparency


def cut_out() -> Image.Image:
    """A photograph whose left half is there, whose right half is not, with a soft edge."""
    image = Image.effect_noise((48, 48), 60).convert("RGBA")
    alpha = Image.new("L", (48, 48), 0)
    alpha.paste(255, (0, 0, 20, 48))
    alpha.paste(128, (20, 0, 28, 48))
    image.putalpha(alpha)
    return image


def test_a_transparent_photograph_stays_so_where_the_format_can_be(tmp_path: Path) -> None:
    cut_out().save(tmp_path / "p.png")
    picture(tmp_path / "s.png", 9)
    rows: list[dict[str, object]] = [
        {"id": f, "content": "p.png", "size": 48, "format": f} for f in FORMATS
    ]
    rows += [{"id": "red", "content": "p.png", "size": 48, "background": "#ff0000"}]
    manifest = write_csv(tmp_path / "m.csv", rows)
    as_it_is = (*tiny(size=None, steps=0), "--init", "content", "--in-process")
    assert cli(manifest, *as_it_is).returncode == 0
    images = {}
    for name, row in index_rows(tmp_path / "m").items():
        with Image.open(tmp_path / "m" / row["output"]) as image:
            images[name] = image.copy()
    alpha = cut_out().getchannel("A").tobytes()
    for name in ("png", "webp", "tif"):
        assert images[name].mode == "RGBA"
        assert images[name].getchannel("A").tobytes() == alpha
    assert (images["jpg"].mode, images["red"].mode) == ("RGB", "RGB")
    right = {n: np.asarray(images[n].convert("RGB"))[10, 40].tolist() for n in images}
    assert right == {**{name: [255, 255, 255] for name in FORMATS}, "red": [255, 0, 0]}


def test_what_is_half_transparent_keeps_its_own_colours(stylizer: Stylizer) -> None:
    """Laid on white first, and made transparent again, it would have a pale fringe."""
    photo = Image.new("RGBA", (48, 48), (0, 0, 0, 255))
    photo.paste((0, 0, 0, 128), (24, 0, 48, 48))
    result = painted(stylizer, photo, steps=0, init="content")
    assert np.asarray(result.image.convert("RGB")).max() == 0
    assert result.image.getchannel("A").getextrema() == (128, 255)
    on_white = painted(stylizer, photo, steps=0, init="content", background="white")
    assert on_white.image.mode == "RGB"
    assert np.asarray(on_white.image)[10, 40].tolist() == [127] * 3
    opaque = Image.new("RGBA", (48, 48), (9, 9, 9, 255))
    assert painted(stylizer, opaque, steps=0).image.mode == "RGB"


def test_a_transparent_result_is_laid_on_the_background_in_a_jpeg(
    stylizer: Stylizer, tmp_path: Path
) -> None:
    photo = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    painted(stylizer, photo, steps=0, init="content").save(tmp_path / "r.jpg")
    with Image.open(tmp_path / "r.jpg") as image:
        assert np.asarray(image).min() > 250


# Metadata

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/"
 photoshop:City="Zweibruecken" exif:GPSLatitude="49,15.0N" xmp:CreateDate="2024-05-06">
 <dc:creator><rdf:Seq><rdf:li>Zo\xc3\xab Example</rdf:li></rdf:Seq></dc:creator>
 <xmp:Thumbnails>secret-thumbnail</xmp:Thumbnails>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def iptc_segment(*records: tuple[int, bytes]) -> bytes:
    block = b"".join(
        bytes([0x1C, 2, number]) + len(text).to_bytes(2) + text for number, text in records
    )
    resource = b"8BIM\x04\x04\0\0" + len(block).to_bytes(4) + block + b"\0" * (len(block) % 2)
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + (len(content) + 2).to_bytes(2) + content


def tagged_photograph() -> bytes:
    """A JPEG as it leaves an archive, lying on its side, with all that there is."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Fujica", "ST605"
    exif[ExifTags.Base.Artist] = "Zoë Example".encode()  # as most programs write it
    exif[ExifTags.Base.Copyright] = "(c) 2024 Z. Example"
    exif[ExifTags.Base.ImageDescription] = "The harbour at six"
    inside = exif.get_ifd(ExifTags.IFD.Exif)
    inside[ExifTags.Base.DateTimeOriginal] = "2024:05:06 06:00:00"
    inside[ExifTags.Base.FNumber] = TiffImagePlugin.IFDRational(28, 10)
    inside[0xA431] = "SERIAL-123"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "N", 2: (49.0, 15.0, 0.0), 3: "E", 4: (7.0, 22.0, 0.0)}
    )
    buffer = io.BytesIO()
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    records = ((105, b"Dawn"), (120, b"The harbour at six"), (90, b"Zweibruecken"))
    image.save(buffer, "JPEG", exif=exif, xmp=XMP, extra=iptc_segment(*records))
    return buffer.getvalue()


def result_of(tmp_path: Path, ending: str, *options: str) -> bytes:
    (tmp_path / "p.jpg").write_bytes(tagged_photograph())
    picture(tmp_path / "s.png", 9)
    out = tmp_path / f"r.{ending}"
    done = cli("pair", tmp_path / "p.jpg", tmp_path / "s.png", "-o", out, *TINY, *options)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


@pytest.mark.parametrize("ending", [*FORMATS, "16.png", "16.tif"])
def test_date_author_rights_camera_and_caption_are_kept_but_neither_place_nor_thumbnail(
    tmp_path: Path, ending: str
) -> None:
    deep = ("--bits", "16") if ending.startswith("16") else ()
    data = result_of(tmp_path, ending, "--keep-metadata", "true", *deep)
    image = Image.open(io.BytesIO(data))
    image.load()
    exif = image.getexif()
    inside = exif.get_ifd(ExifTags.IFD.Exif)
    assert str(exif[ExifTags.Base.Artist]).encode("latin-1").decode() == "Zoë Example"
    assert (exif[ExifTags.Base.Make], exif[ExifTags.Base.Model]) == ("Fujica", "ST605")
    assert exif[ExifTags.Base.Copyright] == "(c) 2024 Z. Example"
    assert exif[ExifTags.Base.ImageDescription] == "The harbour at six"
    assert inside[ExifTags.Base.DateTimeOriginal] == "2024:05:06 06:00:00"
    assert float(inside[ExifTags.Base.FNumber]) == 2.8
    assert exif.get(ExifTags.Base.Orientation, 1) == 1
    assert image.size == (24, 32)  # and it is upright
    packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    packet = packet.encode() if isinstance(packet, str) else packet
    for words in (b"Zo", b"Dawn", b"The harbour at six", b"2024-05-06"):
        assert words in packet
    if ending.endswith(("jpg", "tif")):
        records = IptcImagePlugin.getiptcinfo(image)
        assert records is not None
        assert records[2, 105] == b"Dawn"
        assert (2, 90) not in records
    for secret in (b"Zweibruecken", b"49,15", b"secret-thumbnail", b"SERIAL"):
        assert secret not in data
    assert not exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert json.loads(read_metadata(data))["keep_metadata"] == "true"


def test_places_are_kept_where_they_are_asked_for_and_nothing_where_nothing_is(
    tmp_path: Path,
) -> None:
    image = Image.open(io.BytesIO(result_of(tmp_path, "jpg", "--keep-metadata", "places")))
    gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    assert [float(part) for part in gps[2]] == [49, 15, 0]
    assert b"Zweibruecken" in image.info["xmp"]
    plain = result_of(tmp_path, "jpg")
    for words in (b"Zo\xc3\xab", b"Fujica", b"harbour", b"Dawn", b"Zweibruecken"):
        assert words not in plain


def test_a_run_keeps_metadata_and_its_pictures_are_known_again(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(tagged_photograph())
    picture(tmp_path / "s.png", 9)
    rows: list[dict[str, object]] = [
        {"id": f, "content": "p.jpg", "format": f, "keep_metadata": "true"} for f in FORMATS
    ]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert cli(manifest, *TINY, "--in-process").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "m/images").iterdir()}
    for part in (tmp_path / "m/index").iterdir():
        part.unlink()
    assert "4 to adopt" in cli("plan", manifest, *PLAN).stdout
    assert cli(manifest, *TINY, "--in-process", "--force").returncode == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m/images").iterdir()}


def test_broken_metadata_counts_as_none() -> None:
    image = Image.new("RGB", (16, 16))
    for bad in (b"<x", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x/>", b"\xff\xfe", b""):
        image.info["xmp"] = bad
        assert Kept.of(image, places=True) == Kept()
    assert read_metadata(encode(image, ".jpg", "{}", kept=Kept())) == "{}"


# Names


def test_names_are_made_of_columns(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"content": "photos/a.jpg", "style": "x/s.jpg|t.png", "meta.client": "Ada/Co", "size": 64},
        {"content": "photos/b.jpg", "style": "x/s.jpg", "meta.client": "Bo", "size": ""},
    ]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert outputs(manifest, name="{content}-{style}") == ["images/a-s+t.png", "images/b-s.png"]
    assert outputs(manifest, name="{meta.client}/{row}_{size}.jpg") == [
        "images/Ada_Co/1_64.jpg",
        "images/Bo/2_512.jpg",
    ]
    named = outputs(manifest, name="{content}", defaults={"format": "webp"})
    assert named == ["images/a.webp", "images/b.webp"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{contents}", 'option name: "{contents}": there is no column "contents"; the nearest is'),
        ("all", 'option name: "all" names no column, so that all names would be one'),
        ("{content", "option name: \"{content\": expected '}' before end of string"),
        ("{content:3}", "has a : or ! in braces"),
        ("../{content}", '"images/../a.png" contains an empty name, . or ..'),
        ("{meta.x}", 'line 3, column meta.x: empty, and the name "{meta.x}" needs it; fill it in'),
        (
            "{style}",
            '"images/s.png" is the output of line 2; choose another, or add {id} to --name',
        ),
    ],
)
def test_a_name_that_cannot_be_or_is_twice_is_refused_before_the_start(
    tmp_path: Path, name: str, says: str
) -> None:
    rows = [
        {"content": "a.jpg", "style": "s.jpg", "meta.x": "1"},
        {"content": "b.jpg", "style": "s.jpg", "meta.x": ""},
    ]
    manifest = write_csv(tmp_path / "m.csv", rows)
    assert says in " ".join(problems(manifest, name=name))
    done = cli(manifest, "--name", name)
    assert done.returncode == 2
    assert not (tmp_path / "m").exists()


def test_a_run_with_names_stays_done_and_prune_knows_its_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    manifest = write_csv(tmp_path / "m.csv", [{"content": "c0.jpg"}, {"content": "c1.jpg"}])
    named = ("--name", "{content}-{style}")
    assert cli(manifest, *TINY, *named, "--in-process").returncode == 0
    assert sorted(p.name for p in (tmp_path / "m/images").iterdir()) == ["c0-s.png", "c1-s.png"]
    assert "2 done" in cli("plan", manifest, *PLAN, *named).stdout
    assert "nothing to remove" in cli("prune", tmp_path / "m", "--manifest", manifest).stderr
    assert cli("validate", manifest, *named).returncode == 0


def test_each_new_setting_has_its_line_of_bad_input(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"content": "c0.jpg"}])
    for option, value in {
        "--format": "bmp",
        "--quality": "101",
        "--bits": "12",
        "--background": "reddish",
        "--keep-metadata": "all",
        "--size": "12x",
    }.items():
        done = cli("validate", manifest, option, value)
        assert done.returncode == 2
        assert f'"{value}" is not' in done.stderr
        assert "; it must be" in done.stderr
