"""The report: what the page holds, its thumbnails, and how it behaves in a real browser."""

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from forks import cli
from helpers import picture, start, wait_for
from PIL import Image

from pipeline.manifest.names import output_problem
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.rows import to_table
from pipeline.views.report import (
    CURVE_POINTS,
    THUMB_SIDE,
    collect,
    encode_column,
    encode_curves,
    page,
    totals,
    write_report,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
META = {"client": "Bo", "Alpha/beta": "1E-4", "Paper size": "Din A4", "Place": "Graz"}
EVIL = '<img src=x onerror="window.evil=1"></script><b>&amp;'


def at(second: int) -> str:
    return f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}+00:00"


def result(number: int, **changes: Any) -> Result:
    curve = tuple((n, n * 0.1, 1000.0 / n, 10.0 * n, 500.0 / n, 0.0) for n in range(1, 141))
    values: dict[str, Any] = {
        "pair_id": f"pair-{number}",
        "row": number,
        "content": "photos/boat.jpg",
        "style": "styles/waves.png",
        "output": f"images/{number}.png",
        "status": "ok",
        "output_sha256": f"{number:064}",
        "settings": json.dumps({"size": 100 + number, "preset": "draft"}),
        "width": 96,
        "height": 64,
        "loss": 1000.0 / (number or 1),
        "loss_curve": curve,
        "seconds": 10.0,
        "device": "cpu",
        "run_id": "run",
        "started_at": at(10 * number),
        "finished_at": at(10 * number + 10),
        "meta": {"client": "Ada" if number % 2 else "Bo"},
    }
    return Result(**{**values, **changes})


def failed(number: int, **changes: Any) -> Result:
    row = result(number, output_sha256="", width=None, height=None, loss=None, loss_curve=())
    values = {"status": "failed", "error_type": "ImageReadError", "error_message": "no such file"}
    return dataclasses.replace(row, **{**values, **changes})


def append(out: Path, *results: Result) -> None:
    with Index(OutFolder(out), "test") as index:
        for row in results:
            index.append(row)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Six pairs, two of them failed; one name is markup, one photograph is gone, two styles."""
    folder = tmp_path / "a run"
    picture(tmp_path / "photos" / "boat.jpg", 1, (640, 427))
    picture(tmp_path / "styles" / "waves.png", 2, (300, 300))
    picture(tmp_path / "styles" / "night.png", 3, (200, 300))
    for number in range(1, 5):
        picture(folder / "images" / f"{number}.png", 10 + number, (96, 64))
    append(
        folder,
        result(1),
        result(2, style="styles/waves.png|styles/night.png"),
        result(3, pair_id=EVIL, meta={"client": "=1+1"}),
        result(4, style="styles/night.png", seconds=99.0, meta=META),
        failed(5, content="photos/gone.jpg"),
        failed(6, status="timeout", error_type="TimeLimitError", error_message=EVIL),
    )
    OutFolder(folder).fix(inputs="..")
    return folder


def embedded(text: str) -> Any:
    """The data of a page, as its script reads it."""
    begin = text.index('<script type="application/json" id="data">')
    begin = text.index(">", begin) + 1
    return json.loads(text[begin : text.index("</script>", begin)])


def decoded(column: dict[str, Any], rows: int) -> list[Any]:
    if "one" in column:
        return [column["one"]] * rows
    if "codes" in column:
        return [column["words"][code] for code in column["codes"]]
    return list(column["all"])


# --- the data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["a", "a", "a"], {"one": "a"}),
        (["a", "b", "a", "b"], {"words": ["a", "b"], "codes": [0, 1, 0, 1]}),
        ([1, 2, 3], {"all": [1, 2, 3]}),
        ([0.123456789, float("nan"), 5.0], {"all": [0.123457, None, 5]}),
    ],
)
def test_a_column_is_kept_in_the_form_that_takes_least(values: Any, kept: Any) -> None:
    assert encode_column(values) == kept


def curves(table: pa.Table) -> dict[str, Any]:
    return encode_curves([table], table["pair_id"].combine_chunks())


def test_curves_keep_their_ends_and_lie_within_a_thousandth() -> None:
    packed = curves(to_table([result(1), failed(2)]))
    assert packed["axis"] == [0, -1]
    steps = packed["axes"][0]
    assert len(steps) == CURVE_POINTS
    assert (steps[0], steps[-1]) == (1, 140)
    low, high, text = packed["values"][0][0]
    codes = [
        64 * LETTERS.index(a) + LETTERS.index(b) for a, b in zip(text[::2], text[1::2], strict=True)
    ]
    losses = [10 ** (low + code / 4094 * (high - low)) for code in codes]
    assert losses == pytest.approx([1000.0 / step for step in steps], rel=1e-3)


def test_a_loss_of_zero_or_none_is_a_gap_in_the_curve() -> None:
    curve = ((1, 0.1, 5.0, 0.0, 5.0, 0.0), (2, 0.2, float("nan"), 0.0, 5.0, 0.0))
    loss, content, style = curves(to_table([result(1, loss_curve=curve)]))["values"][0]
    assert loss[2].endswith("__")
    assert content == 0
    assert "__" not in style[2]


def test_totals_can_be_counted_by_hand() -> None:
    minute = {"started_at": at(0), "finished_at": at(60)}
    rows = [
        result(0, seconds=60.0, started_at=at(0), finished_at=at(60), device="cuda:0"),
        result(1, seconds=90.0, started_at=at(0), finished_at=at(90)),
        result(2, seconds=30.0, started_at=at(60), finished_at=at(90), device="cuda:0"),
        # Another run, an hour later: the time between the two is no work.
        result(3, seconds=30.0, started_at=at(3600), finished_at=at(3630), run_id="later"),
        failed(4, seconds=1.0, started_at=at(20), finished_at=at(21)),
        result(5, seconds=None, started_at=""),  # taken over from its picture
        *(result(n, seconds=60.0, batch=3, **minute) for n in (6, 7, 8)),  # painted together
    ]
    assert totals(to_table(rows)) == {
        "rows": 9,
        "wall": 120.0,
        "per_hour": 210.0,  # seven pairs in two minutes
        "devices": [["cpu", 5, 180.0], ["cuda:0", 2, 90.0]],
        "slowest": [1, 0, 2, 3, 6],
        "causes": [["failed", "ImageReadError", 1]],
    }


def test_the_page_has_every_row_its_settings_and_meta(out: Path) -> None:
    text = Path(write_report(OutFolder(out))).read_text()
    data = embedded(text)
    columns = data["columns"]
    assert decoded(columns["pair_id"], 6)[2] == EVIL
    assert decoded(columns["size"], 6) == [101, 102, 103, 104, 105, 106]
    assert decoded(columns["meta.client"], 6)[2] == "=1+1"
    assert decoded(data["content_paths"], 6)[0] == "../photos/boat.jpg"
    assert decoded(data["thumbs"]["content"], 6)[4] == ""  # gone


def test_of_a_very_large_run_a_part_is_shown_with_what_failed_and_said_to_be_one(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.views.report.MOST_ROWS", 10)
    append(out, *(result(n, seconds=float(n)) for n in range(7, 47)))
    data = embedded(Path(write_report(OutFolder(out))).read_text())
    rows = decoded(data["columns"]["row"], data["rows"])
    assert rows == sorted(rows)
    assert {5, 6} <= set(rows)  # which failed
    assert [rows[at] for at in data["totals"]["slowest"]] == [4, 46, 45, 44, 43]
    assert (data["totals"]["rows"], data["rows"]) == (46, len(rows))
    assert 8 <= len(rows) <= 12
    assert data["part"] == f"{len(rows)} of 46 pairs are shown: one in 16 and all that failed"
    assert len(data["curves"]["values"]) == len(rows)


def test_markup_in_names_cannot_end_the_script(out: Path) -> None:
    text = Path(write_report(OutFolder(out))).read_text()
    assert EVIL not in text
    begin = text.index('id="data">')
    assert "<" not in text[begin : text.index("</script>", begin)]


def test_a_placeholder_in_a_name_is_not_filled_in(out: Path) -> None:
    data = {"name": "$script, ${script} and $$", "rows": 0}
    text = page(data)
    assert embedded(text) == data
    assert f"<title>{data['name']}: stylize-batch</title>" in text


def test_the_page_asks_the_network_for_nothing(out: Path) -> None:
    text = Path(write_report(OutFolder(out))).read_text()
    before_data = text[: text.index('id="data">')]
    assert "http" not in before_data.replace("http-equiv", "")
    assert "default-src 'none'" in before_data


def test_thumbnails_are_made_once_and_again_when_the_picture_changes(out: Path) -> None:
    write_report(OutFolder(out))
    folder = out / "report" / "thumbs"
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 3 + 4  # each input once, each result
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= THUMB_SIDE
    write_report(OutFolder(out))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    picture(out / "images" / "1.png", 99, (64, 96))
    write_report(OutFolder(out))
    second = {path.name for path in folder.iterdir()}
    assert (len(second - set(first)), len(set(first) - second)) == (1, 1)


def test_a_result_thinner_than_any_input_has_a_thumbnail(out: Path) -> None:
    picture(out / "images" / "1.png", 1, (128, 13))
    write_report(OutFolder(out))
    assert len(list((out / "report" / "thumbs").iterdir())) == 3 + 4


def test_no_absolute_folder_is_in_the_page(out: Path, tmp_path: Path) -> None:
    assert str(tmp_path) not in Path(write_report(OutFolder(out))).read_text()


@pytest.mark.parametrize("output", ["report/a.png", "report.html/a.png", "Report/thumbs/a.jpg"])
def test_no_pair_may_write_where_the_report_is(output: str) -> None:
    assert "stylize-batch report" in (output_problem(output) or "")
    assert output_problem(f"images/{output}") is None


def test_the_command_writes_the_page(out: Path) -> None:
    done = cli("report", out)
    assert (done.returncode, done.stdout) == (0, f"{out / 'report.html'}\n")
    assert cli("report", out.parent).returncode == 2


def test_watch_follows_the_run_until_interrupted(out: Path) -> None:
    watching = start("report", out, "--watch", "--every", "0.5")
    try:
        path = out / "report.html"
        wait_for(lambda: path.exists() and 'stylize-watch" content=""' not in path.read_text())
        append(out, result(7))
        wait_for(lambda: embedded(path.read_text())["rows"] == 7)
    finally:
        watching.send_signal(signal.SIGINT)
    stdout, _ = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert stdout == f"{path}: kept current until Ctrl-C\n"
    assert 'stylize-watch" content=""' in path.read_text()  # the last one stays as it is


# --- in a browser ------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no Chromium with chromedriver here: install them, or run `make browser`")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """A report, open in the browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get(path.as_uri())

    def js(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.js(
            f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)"
        )
        return found

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def names(self) -> list[str]:
        return self.texts(".pair h3")

    def errors(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def until(self, claim: str) -> None:
        wait_for(lambda: self.js(claim))


@pytest.fixture
def shown(browser: Any, out: Path) -> Iterator[Page]:
    opened = Page(browser, Path(write_report(OutFolder(out))))
    yield opened
    assert opened.errors() == []
    opened.js("sessionStorage.clear()")


def test_rows_show_three_pictures_each_with_words_for_them(shown: Page) -> None:
    assert shown.texts("#count") == ["6 pairs"]
    shown.until("[...document.images].filter(i => i.src).every(i => i.complete)")
    assert shown.js(
        "[...document.querySelectorAll('.pair img')].every(i => i.naturalWidth && i.alt)"
    )
    first = shown.js(
        "[...document.querySelectorAll('.pair')[0].querySelectorAll('img')].map(i => i.alt)"
    )
    assert first == ["Photograph boat", "Style waves", "Result of pair-1"]
    assert "4 painted" in shown.texts("#summary")[0]
    assert "2 failed" in shown.texts("#summary")[0]


def test_curves_of_a_large_run_are_loaded_with_the_rows_in_view(
    browser: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.views.report.CURVES_INSIDE", 2)
    monkeypatch.setattr("pipeline.views.report.CURVES_A_FILE", 2)
    for times in (1, 2):
        if times == 2:
            append(out, result(7))
        shown = Page(browser, Path(write_report(OutFolder(out))))
        files = sorted(path.name for path in (out / "report" / "curves").iterdir())
        assert [name.partition("-")[2] for name in files] == [f"{n}.js" for n in range(2 + times)]
        shown.until("document.querySelectorAll('.pair .spark').length >= 2")
        shown.press("\ue015", "\ue007")  # down, Enter
        shown.until("document.querySelectorAll('#plots .plot').length === 3")
        shown.press("\ue00c")  # Escape
        assert shown.errors() == []
    shown.js("sessionStorage.clear()")


def test_an_input_that_is_no_picture_is_not_said_to_be_gone(browser: Any, out: Path) -> None:
    for name in ("photos/boat.jpg", "styles/waves.png"):
        (out.parent / name).write_text("no picture")
    shown = Page(browser, Path(write_report(OutFolder(out))))
    assert shown.texts(".pair:first-child .frame") == ["cannot be shown"] * 2
    shown.js("document.querySelector('.pair').click()")
    assert shown.texts("#d-styles figcaption") == ["Style: waves (cannot be shown)"]


def test_markup_is_shown_as_text(shown: Page) -> None:
    assert EVIL in shown.names()
    assert shown.js("window.evil === undefined")
    shown.js("[...document.querySelectorAll('.pair')][2].click()")
    assert shown.texts("#d-name") == [EVIL]
    assert "=1+1" in shown.texts("#facts dd")
    assert shown.texts(".plot h3 span") == ["333.3", "1400", "3.571"]
    assert shown.js("document.querySelectorAll('#detail b b, .pair b b, img[src=x]').length") == 0


def test_filters_narrow_the_list_and_failures_give_their_reason(shown: Page) -> None:
    shown.press("/")
    shown.press("night")
    assert shown.names() == ["pair-2", "pair-4"]
    shown.press("\ue00c")  # Escape
    assert shown.texts("#count") == ["6 pairs"]
    shown.js("document.querySelector('[data-status=failed]').click()")
    assert shown.names() == ["pair-5"]
    assert shown.texts(".pair .why") == ["no such file"]
    assert "ImageReadError" in shown.texts(".pair .frame.bad")[0]
    shown.js("document.querySelector('[data-status=\"\"]').click()")
    shown.element("#style option[value='styles/night.png']").click()
    assert shown.names() == ["pair-4"]
    shown.press("/")
    shown.press("nothing like this")
    assert shown.js("!document.getElementById('empty').hidden")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("size>103", ["pair-4", "pair-5", "pair-6"]),
        ("size<=102", ["pair-1", "pair-2"]),
        ("size=104", ["pair-4"]),
        ("size!=104 status=ok", ["pair-1", "pair-2", EVIL]),
        ("loss<400 style=waves", [EVIL]),
        ("style=night status=ok", ["pair-2", "pair-4"]),
        ("meta.client=ada size<102", ["pair-1"]),
        ('error_message="no such"', ["pair-5"]),
        ("finished_at<2026-01-02 seconds>=99", ["pair-4"]),
        ("finished_at>2026-01-02", []),
        ("loss>0", ["pair-1", "pair-2", EVIL, "pair-4"]),  # nothing is no number
        ("nocolumn=4", []),  # is a word like another
        ("Meta.Client=ADA SIZE<102", ["pair-1"]),
        ("meta.alpha/beta=1e-4", ["pair-4"]),
        ('"meta.paper size"="din a4"', ["pair-4"]),
        ('meta."Paper size"!=din size>104', ["pair-5", "pair-6"]),
        ("meta.place=Graz", ["pair-4"]),
        ("meta.Place=graz", ["pair-4"]),
        ('"boat.jpg" size<103', ["pair-1", "pair-2"]),
        ('"din A4"', ["pair-4"]),  # as a whole
        ('"A4 din"', []),
        ('"size>103"', []),  # in quotes it is no condition
    ],
)
def test_conditions_filter_by_any_column(shown: Page, query: str, found: list[str]) -> None:
    shown.press("/")
    shown.press(query)
    assert shown.names() == found


def test_a_failure_shows_its_reason_and_no_empty_frame(shown: Page) -> None:
    shown.press("/")
    shown.press("status!=ok")
    shown.js("document.querySelector('.pair').click()")
    assert shown.texts("#failure") == ["failed: ImageReadErrorno such file"]
    assert shown.js("document.querySelector('.stage').getBoundingClientRect().height") == 0
    shown.press("\ue015")  # the next one's photograph is there
    assert shown.js("document.querySelector('.stage').getBoundingClientRect().height") > 100


def test_a_pair_without_an_id_is_named_by_its_pictures(browser: Any, tmp_path: Path) -> None:
    made, own = result(1, pair_id="6ecff96c7732", generated_id=True), result(2, pair_id="harbour")
    append(tmp_path, made, own, result(3, pair_id="0123456789ab", generated_id=False))
    shown = Page(browser, Path(write_report(OutFolder(tmp_path))))
    assert shown.names() == ["boat \N{MULTIPLICATION SIGN} waves", "harbour", "0123456789ab"]
    below = ["6ecff96c7732", *["boat in the style of waves"] * 2]
    assert shown.texts(".pair .facts h3 + p") == below
    assert shown.errors() == []


def test_sorting_by_any_column_puts_what_has_no_value_last(shown: Page) -> None:
    shown.element("#sort option[value='loss']").click()
    assert shown.names()[:4] == ["pair-4", EVIL, "pair-2", "pair-1"]
    shown.element("#direction").click()
    assert shown.names()[:5] == ["pair-1", "pair-2", EVIL, "pair-4", "pair-5"]
    shown.element("#sort option[value='size']").click()
    assert shown.names()[0] == "pair-6"
    shown.element("#sort option[value='meta.client']").click()
    shown.element("#direction").click()
    assert shown.names()[0] == EVIL  # "=1+1"


def test_the_keyboard_reaches_everything(shown: Page) -> None:
    down, up, enter, escape, right = "\ue015", "\ue013", "\ue007", "\ue00c", "\ue014"
    shown.press(down)
    shown.press(down)
    shown.press(enter)
    assert shown.texts("#d-name") == ["pair-2"]
    assert shown.texts(".d-styles figcaption") == ["Style: waves", "Style: night"]
    before = shown.js("Number(document.getElementById('slider').value)")
    shown.press(right)
    assert shown.js("Number(document.getElementById('slider').value)") == before + 2
    shown.press(up)
    assert shown.texts("#d-name") == ["pair-1"]
    assert shown.js("document.querySelectorAll('#plots canvas').length") == 3
    shown.press(escape)
    assert not shown.js("document.getElementById('detail').open")
    shown.until("document.activeElement.querySelector('h3')?.textContent === 'pair-1'")


def test_the_slider_follows_the_mouse(shown: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    shown.js("document.querySelector('.pair').click()")
    shown.until("document.getElementById('d-photo').naturalWidth === 640")  # the photograph itself
    assert shown.js("document.getElementById('d-result').naturalWidth") == 96
    compare = shown.element("#compare")
    width = compare.size["width"]
    drag = ActionChains(shown.driver).move_to_element(compare).click_and_hold()
    drag.move_by_offset(width // 4, 0).release().perform()
    assert shown.js("Number(document.getElementById('slider').value)") == pytest.approx(75, abs=2)
    clip = shown.js("getComputedStyle(document.getElementById('d-photo')).clipPath")
    assert "25%" in clip or "24%" in clip or "26%" in clip


def test_a_phone_shows_it_without_scrolling_sideways(shown: Page) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        shown.driver.refresh()
        assert shown.js("document.documentElement.scrollWidth") <= 360
        shown.js("document.querySelector('.pair').click()")
        assert shown.js("document.getElementById('detail').scrollWidth") <= 360
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_run_without_a_pair_has_a_page_too(browser: Any, tmp_path: Path) -> None:
    append(tmp_path)
    shown = Page(browser, Path(write_report(OutFolder(tmp_path))))
    assert shown.texts("#count") == ["0 pairs"]
    assert shown.errors() == []


def test_a_watched_page_loads_itself_again_and_keeps_the_filter(browser: Any, out: Path) -> None:
    shown = Page(browser, Path(write_report(OutFolder(out), watched=True)))
    shown.press("/")
    shown.press("pair-")
    append(out, result(7))
    write_report(OutFolder(out), watched=True)
    shown.until("document.getElementById('count').textContent === '6 of 7'")
    assert shown.js("document.getElementById('query').value") == "pair-"
    assert shown.js("document.activeElement.id") == "query"
    assert shown.errors() == []
    shown.js("sessionStorage.clear()")


def many(number: int) -> pa.Table:
    """So many pairs, made of a hundred."""
    hundred = [result(n, style=f"styles/{n % 7}.png") for n in range(1, 97)]
    hundred += [failed(n) for n in range(97, 101)]
    table = to_table(hundred).take(np.arange(number) % 100)
    names = [f"frame-{n:05}" for n in range(number)]
    seconds = [float(n * 7919 % number) for n in range(number)]
    table = table.set_column(0, table.schema.field("pair_id"), pa.array(names))
    place = table.schema.get_field_index("seconds")
    return table.set_column(place, table.schema.field("seconds"), pa.array(seconds))


def test_ten_thousand_pairs_stay_fluid(browser: Any, tmp_path: Path) -> None:
    number = 10_000
    table = many(number)
    picture(tmp_path / "report" / "thumbs" / "a.jpg", 1, (300, 200))
    data = collect(table, OutFolder(tmp_path))
    data |= {"curves": curves(table), "totals": totals(table)}
    data["thumbs"] = {name: {"one": "a.jpg"} for name in ("content", "style", "result")}
    (tmp_path / "report.html").write_text(page(data))
    assert (tmp_path / "report.html").stat().st_size < 6e6

    def opened() -> tuple[Page, float]:
        began = time.monotonic()
        shown = Page(browser, tmp_path / "report.html")
        assert shown.names()[0] == "frame-00000"
        return shown, time.monotonic() - began

    code = """(() => {
      const begin = performance.now();
      const query = document.getElementById("query");
      query.value = "frame-0999";
      query.dispatchEvent(new Event("input"));
      const filtered = performance.now() - begin;
      const left = document.getElementById("count").textContent;
      query.value = "";
      query.dispatchEvent(new Event("input"));
      const sorting = performance.now(), sort = document.getElementById("sort");
      sort.value = "seconds";
      sort.dispatchEvent(new Event("change"));
      return [filtered, left, performance.now() - sorting];
    })()"""
    scroll = """(async () => {
      const frame = () => new Promise(requestAnimationFrame);
      let most = 0, slowest = 0;
      for (let step = 0; step < 40; step++) {
        const begin = performance.now();
        scrollTo(0, step * document.documentElement.scrollHeight / 40);
        await frame(); await frame();
        slowest = Math.max(slowest, performance.now() - begin);
        most = Math.max(most, document.querySelectorAll(".pair").length);
      }
      return [most, slowest, document.querySelectorAll("*").length];
    })()"""
    for _ in range(4):  # the page is as quick as at its best: other programs run meanwhile
        shown, first_paint = opened()
        filtered, left, sorted_in = shown.js(code)
        assert left == "10 of 10,000"
        rows, slowest, elements = shown.js(scroll)
        print(
            f"10,000 pairs: first paint {first_paint:.2f} s, filter {filtered:.0f} ms, sort "
            f"{sorted_in:.0f} ms, slowest of 40 jumps {slowest:.0f} ms, {rows} rows drawn"
        )
        assert rows <= 16
        assert elements < 1000
        if first_paint < 3 and filtered < 500 and sorted_in < 1000 and slowest < 500:
            break
    else:
        pytest.fail("not once fluid in four times")
    shown.press("\ue010")  # End
    assert shown.names()[-1].startswith("frame-")
    assert shown.errors() == []
