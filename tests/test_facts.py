"""What the files say of a pair: real manifests, pictures and an index, without the painting."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from pipeline import storage
from pipeline.look_alikes import why_missing
from pipeline.manifest.reader import read_manifest
from pipeline.options import Options
from pipeline.paint.attempts import new_row
from pipeline.plan import pending
from pipeline.records import Input, Pair, Result, Task, pair_key
from pipeline.run import make_plan
from pipeline.store.facts import FileFacts
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock
from pipeline.store.metadata import carried, metadata
from pipeline.store.reading import read_results
from pipeline.text import utc_now
from stylize.config import ALGORITHM
from stylize.image import encode

WEIGHTS = "w" * 64


@dataclass
class House:
    """A manifest of one pair, and OUT."""

    folder: Path

    @property
    def out(self) -> OutFolder:
        return OutFolder(self.folder / "m")

    def pair(self, steps: int) -> Pair:
        defaults = {"steps": str(steps), "backbone": "vgg16"}
        (pair,) = read_manifest(str(self.folder / "m.csv"), defaults=defaults)
        return pair

    def facts(self) -> FileFacts:
        return FileFacts(self.out, lambda backbone: WEIGHTS)

    def paint(self, steps: int) -> Result:
        """Put a picture at the output, as a worker does; its row is not written."""
        pair = self.pair(steps)
        inputs = tuple(
            Input(ref.role, ref.written, storage.stat(ref.path), storage.sha256(ref.path))
            for ref in pair.inputs
        )
        hashes = {given.role: given.sha256 for given in inputs}
        result = replace(
            new_row(Task(pair)),
            status="ok",
            inputs=inputs,
            key=pair_key(hashes, pair.config.digest(), WEIGHTS, ALGORITHM),
            backbone="vgg16",
            weights_sha256=WEIGHTS,
            steps=steps,
        )
        picture = Image.effect_noise((64, 64), 1 + steps / 10).convert("RGB")
        data = encode(picture, ".png", metadata(result))
        storage.put(self.out.path(pair.output), data)
        return replace(
            result,
            output_sha256=hashlib.sha256(data).hexdigest(),
            output_bytes=len(data),
            finished_at=utc_now(),
        )

    def record(self, result: Result) -> None:
        with Lock(self.out, "r"), Index(self.out, "r") as index:
            index.append(result)

    def verdict(self, steps: int, **options: Any) -> str:
        found = pending([self.pair(steps)], read_results(self.out), facts=self.facts(), **options)
        if found.todo:
            return f"todo: {found.todo[0][1]}"
        if found.skipped:
            return f"skipped: {found.skipped[0][1]}"
        return "adopt" if found.adopt else "done"


@pytest.fixture
def house(tmp_path: Path) -> House:
    for seed, name in enumerate(("c", "s")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.effect_noise((32, 32), 30 + seed).convert("RGB").save(tmp_path / f"photos/{name}.png")
    rows = "id,content,style,output\na,photos/c.png,photos/s.png,images/a.png\n"
    (tmp_path / "m.csv").write_text(rows)
    return House(tmp_path)


def test_a_run_broken_off_between_picture_and_row_is_not_taken_for_an_edit(house: House) -> None:
    house.record(house.paint(100))
    assert house.verdict(100) == "done"
    house.paint(200)
    assert house.verdict(200) == "adopt"
    assert house.verdict(100) == "todo: picture has other settings, from a run that was interrupted"
    assert house.verdict(300).startswith("todo: settings changed: steps 100 -> 300")
    assert house.verdict(300, force=True) == "todo: forced"


def test_a_changed_option_is_planned_without_reading_a_picture_or_an_input(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def call(path: str) -> Any:
            reads.append(Path(path).name)
            return read(path)

        return call

    house.record(house.paint(100))
    for name in ("read_bytes", "sha256"):
        monkeypatch.setattr(storage, name, counted(getattr(storage, name)))
    assert house.verdict(200) == "todo: settings changed: steps 100 -> 200"
    assert reads == ["m.csv"]
    reads.clear()
    assert house.verdict(100) == "done"
    assert reads == ["m.csv"]
    # A picture that is newer than its row is looked at; it has other settings than are wanted.
    house.paint(300)
    reads.clear()
    assert house.verdict(200) == "todo: settings changed: steps 100 -> 200"
    assert sorted(reads) == ["a.png", "m.csv"]
    reads.clear()
    assert house.verdict(300) == "adopt"
    assert sorted(reads) == ["a.png", "c.png", "m.csv", "s.png"]


def test_a_picture_up_to_a_second_younger_than_its_row_is_not_hashed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture comes first and the row last, but some file systems keep whole seconds only."""
    pair, result = house.pair(100), replace(house.paint(100), finished_at="2026-03-02T12:00:00Z")
    finished = int(datetime.fromisoformat(result.finished_at).timestamp())
    hashed: list[str] = []
    real = storage.sha256

    def counted(path: str) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(storage, "sha256", counted)
    for later, times in ((0, 0), (1, 0), (2, 1)):
        os.utime(house.out.path(pair.output), (finished + later, finished + later))
        assert house.facts().picture(pair, result) == "ok"
        assert len(hashed) == times


def test_a_picture_saved_by_an_editor_is_kept_with_and_without_its_metadata(house: House) -> None:
    house.record(house.paint(100))
    path = Path(house.out.path("images/a.png"))
    with Image.open(path) as image:
        assert isinstance(image, PngImageFile)
        text, edited = dict(image.text), image.transpose(Image.Transpose.ROTATE_180)
    assert text
    carried = PngInfo()
    for name, value in text.items():
        carried.add_itxt(name, value)
    for info in (carried, None):
        edited.save(path, pnginfo=info)
        os.utime(path, ns=(2**62, 2**62))
        assert house.verdict(100).startswith("skipped: picture was edited by hand")
        assert house.verdict(300).startswith("skipped: picture was edited by hand")


def test_an_adopted_row_knows_its_inputs_as_one_that_was_painted_does(house: House) -> None:
    painted = house.paint(100)
    adopted = house.facts().adoptable(house.pair(100))
    assert adopted is not None
    assert adopted.inputs == painted.inputs
    house.record(adopted)
    shutil.rmtree(house.folder / "photos")
    assert house.verdict(100) == "done"


def test_another_file_of_the_same_size_and_time_is_not_the_same(house: House) -> None:
    house.record(house.paint(100))
    photo, other = house.folder / "photos/c.png", house.folder / "photos/d.png"
    data = photo.read_bytes()
    other.write_bytes(data[:-20] + bytes(20))
    stat = photo.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert storage.stat(str(other)) == storage.stat(str(photo))
    manifest = house.folder / "m.csv"
    manifest.write_text(manifest.read_text().replace("photos/c.png", "photos/d.png"))
    assert house.verdict(100) == "todo: content file changed"


def test_a_plan_where_a_picture_has_no_row_yet_looks_for_the_backbone_once(house: House) -> None:
    house.paint(100)
    options = Options(out=house.out.written)
    plan, pairs, rows = make_plan(str(house.folder / "m.csv"), {}, options, print)
    assert rows == []
    assert [pair.config.backbone for pair in pairs] == ["vgg16"]
    assert [reason for _, reason in plan.todo] == ["new"]


def test_a_plan_sees_that_a_picture_without_a_row_will_be_adopted(house: House) -> None:
    rows = "id,content,style,output\na,photos/c.png,photos/s.png,mine/a.png\n"
    (house.folder / "m.csv").write_text(rows)
    house.paint(100)
    house.out.fix(backbone="vgg16", weights={"vgg16": WEIGHTS})
    options = Options(out=house.out.written)
    plan, _, _ = make_plan(str(house.folder / "m.csv"), {"steps": "100"}, options, print)
    assert [pair.pair_id for pair in plan.adopt] == ["a"]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
def test_a_picture_carries_names_beyond_ascii_in_every_format(house: House, ending: str) -> None:
    result = replace(house.paint(100), content="Zürich 東京.jpg", output=f"images/Zürich{ending}")
    picture = Image.effect_noise((32, 32), 40).convert("RGB")
    found = carried(encode(picture, ending, metadata(result)))
    assert found is not None
    assert (found.content, found.output) == (result.content, result.output)


def test_a_file_that_is_not_there_for_a_space_is_told_with_the_space(house: House) -> None:
    manifest = house.folder / "m.csv"
    manifest.write_text(manifest.read_text().replace("photos/s.png", '" photos/s.png"'))
    (written,) = house.pair(100).styles
    assert why_missing(written, written) == "; its name begins or ends with a space"
    assert why_missing(written.strip(), written.strip()) == ""


def test_a_link_that_leads_nowhere_is_told_with_what_it_leads_to(tmp_path: Path) -> None:
    for name in ("gone.jpg", "itself.jpg"):
        link = tmp_path / "itself.jpg" if name == "itself.jpg" else tmp_path / "link.jpg"
        link.symlink_to(name)
        told = why_missing(str(link), link.name)
        assert told == f"; it is a link to '{name}', which leads nowhere"
