"""Manifests: every row understood, or every problem named with line, column and remedy."""

import hashlib
import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.manifest.files import find_problems
from pipeline.manifest.names import id_problem, output_problem
from pipeline.manifest.patterns import matches, why_nothing_matches
from pipeline.manifest.reader import COLUMNS, Manifest, read_manifest
from pipeline.manifest.table import ManifestError, Problem, read_table
from pipeline.manifest.writer import cross, write_manifest, zip_
from pipeline.records import InputRef, Pair
from stylize.config import SETTINGS, StyleConfig

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: str | bytes, name: str = "m.csv") -> str:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    return write


def problems(path: str, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    return [str(problem) for problem in caught.value.problems]


def one_problem(path: str, **options: Any) -> str:
    found = problems(path, **options)
    assert len(found) == 1, found
    return found[0]


# What a row becomes


def test_a_row_becomes_a_pair_with_paths_beside_the_manifest(write: Write, tmp_path: Path) -> None:
    pairs = read_manifest(write("content,style,size\nin/a.jpg,s.png,64\n"))
    digest = hashlib.sha256(b'["in/a.jpg", "s.png", [["size", "64"]]]').hexdigest()[:12]
    (pair,) = pairs
    assert pair == Pair(
        row=1,
        pair_id=digest,
        output=f"images/a.s.{digest}.png",
        inputs=(
            InputRef("content", "in/a.jpg", f"{tmp_path}/in/a.jpg"),
            InputRef("style", "s.png", f"{tmp_path}/s.png"),
        ),
        config=StyleConfig(size=64),
        generated_id=True,
        meta={},
    )
    assert (pair.content, pair.style, pair.styles) == ("in/a.jpg", "s.png", ("s.png",))
    assert pairs.lines == {1: 2}


def test_several_styles_init_and_mask_are_inputs_by_role(write: Write, tmp_path: Path) -> None:
    text = "content,style,style_blend,init,mask\ns3://b/c.jpg,a.jpg|b.jpg,0.7|0.3,i.png,m.png\n"
    (pair,) = read_manifest(write(text))
    assert {ref.role: ref.path for ref in pair.inputs} == {
        "content": "s3://b/c.jpg",
        "style": f"{tmp_path}/a.jpg",
        "style2": f"{tmp_path}/b.jpg",
        "init": f"{tmp_path}/i.png",
        "mask": f"{tmp_path}/m.png",
    }
    assert pair.config.style_blend == (0.7, 0.3)
    assert pair.output == f"images/c.a+b.{pair.pair_id}.png"


def test_precedence_is_defaults_then_options_then_the_rows_preset_then_its_cells(
    write: Write,
) -> None:
    text = "content,style,preset,steps,size\na,b,,,\na,b,draft,,\na,b,draft,7,\na,b,,,96\n"
    options = {"preset": "neural-style", "steps": "5", "size": "128", "seed": "3"}
    rows = read_manifest(write(text), defaults=options)
    # draft: size 256, steps 40. neural-style: history 100, max pooling. Default: 20, average.
    found = [
        tuple(
            getattr(pair.config, n)
            for n in ("preset", "size", "steps", "seed", "history", "pooling")
        )
        for pair in rows
    ]
    assert found == [
        ("neural-style", 128, 5, 3, 100, "max"),
        ("draft", 256, 40, 3, 20, "average"),
        ("draft", 256, 7, 3, 20, "average"),
        ("neural-style", 96, 5, 3, 100, "max"),
    ]


def test_options_never_change_an_id(write: Write) -> None:
    path = write("content,style\na,b\n")
    ids = {read_manifest(path, defaults=d)[0].pair_id for d in ({}, {"size": "64"})}
    assert len(ids) == 1


ROWS = [
    {"content": "a.jpg", "style": "x.jpg|y.jpg", "style_blend": "1|2", "meta.shot": "ü 1"},
    {"content": "b.jpg", "style": "x.jpg", "size": "64", "style_layers": "relu1_1:1,relu2_1:0.5"},
]


def test_csv_tsv_jsonl_and_parquet_give_the_same_pairs(write: Write, tmp_path: Path) -> None:
    names = ["content", "style", "style_blend", "size", "style_layers", "meta.shot"]
    read = {}
    for ending, delimiter in ((".csv", ","), (".TSV", "\t")):
        lines = [names] + [[f'"{row.get(name, "")}"' for name in names] for row in ROWS]
        text = "\r\n".join(delimiter.join(line) for line in lines)
        read[ending] = read_manifest(write(b"\xef\xbb\xbf" + text.encode(), f"m{ending}"))
    typed = [
        {**ROWS[0], "style": ["x.jpg", "y.jpg"], "style_blend": [1, 2.0], "size": None},
        {**ROWS[1], "size": 64.0, "style_layers": [["relu1_1", 1], ["relu2_1", 0.5]]},
    ]
    jsonl = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in typed)
    read["jsonl"] = read_manifest(write(jsonl, "m.jsonl"))
    columns = {n: [row.get(n) for row in ROWS] for n in names if n != "size"}
    table = pa.table({**columns, "size": pa.array([None, 64.0])})
    pq.write_table(table, tmp_path / "m.parquet")
    read["parquet"] = read_manifest(str(tmp_path / "m.parquet"))
    first = read.pop(".csv")
    assert first[0].meta == {"shot": "ü 1"}
    assert first[1].config.style_layers == (("relu1_1", 1.0), ("relu2_1", 0.5))
    for kind, pairs in read.items():
        assert pairs == first, kind


def test_a_csv_that_pandas_wrote_gives_the_settings_of_whole_numbers(write: Write) -> None:
    frame = pd.DataFrame({"content": ["a", "b"], "style": "s", "size": [64, None]})
    text = frame.to_csv(index=False)
    assert "a,s,64.0\n" in text
    first, second = read_manifest(write(text), defaults={"size": "32.0"})
    as_int = read_manifest(write("content,style,size\na,s,64\n"))[0]
    assert repr(first.config) == repr(as_int.config)
    assert second.config.size == 32


def test_blank_lines_are_no_rows_and_lines_count_from_one(write: Write) -> None:
    pairs = read_manifest(write('\n\ncontent,style,meta.note\n\na,b,"two\nlines"\n,,\nc,d,\n'))
    assert [pair.row for pair in pairs] == [1, 2]
    assert pairs.lines == {1: 5, 2: 8}


def test_names_with_spaces_emoji_newlines_and_formulas_pass_as_they_are(write: Write) -> None:
    names = [" a b.jpg", "🎨👩‍🎨.jpg", "a\nb.jpg", "=1+1.jpg", "x" * 255]
    rows = "\n".join(json.dumps({"content": name, "style": "s.jpg"}) for name in names)
    pairs = read_manifest(write(rows, "m.jsonl"))
    assert [pair.content for pair in pairs] == names
    assert pairs[2].output == f"images/a_b.s.{pairs[2].pair_id}.png"


def test_default_outputs_are_safe_and_their_names_fit(write: Write) -> None:
    long_id = "i" * 120
    rows = [
        {"content": "x/" + "ü" * 60 + ".jpg", "style": "..hid:den.jpg"},
        {"content": "c" * 300, "style": "d" * 300, "id": long_id},
        {"content": ".", "style": "/"},
        {"content": "x|y.jpg", "style": "s.jpg|t.jpg", "id": "a"},
    ]
    pairs = read_manifest(write("\n".join(map(json.dumps, rows)), "m.jsonl"))
    assert pairs[3].output == "images/x_y.s+t.a.png"
    assert pairs[0].output == f"images/{'ü' * 40}.__hid_den.{pairs[0].pair_id}.png"  # 80 bytes
    # 255 - 2 dots - 120 of the id - 4 of .png = 129, so 64 for each stem.
    assert pairs[1].output == f"images/{'c' * 64}.{'d' * 64}.{long_id}.png"
    assert all(output_problem(pair.output) is None for pair in pairs)


def test_40000_rows_are_read_in_seconds(write: Write) -> None:
    rows = "".join(f"frames/{i:05}.jpg,s.jpg,512,{i}\n" for i in range(40_000))
    path = write("content,style,size,meta.frame\n" + rows)
    begun = time.process_time()
    pairs = read_manifest(path)
    assert time.process_time() - begun < 15  # about 2 s on one core
    assert len(pairs) == 40_000
    assert len({id(pair.config) for pair in pairs}) == 1


# What is refused, and how it is said


def test_every_problem_is_named_at_once_with_line_and_column(write: Write) -> None:
    text = (
        "content,style,size,seed\n"
        "a.jpg,s.jpg,12x,\n"
        "a.jpg,,64,-1\n"
        'a.jpg,"s\n.jpg",20000,\n'
        "a.jpg,s.jpg\n"
        "ok.jpg,s.jpg,64,1\n"
    )
    assert problems(write(text)) == [
        f'line 2, column size: "12x" is not a number; it must be {SETTINGS["size"].limit}',
        'line 3, column seed: "-1" is not allowed; '
        f"it must be a whole number from 0 to {2**63 - 1}",
        "line 3, column style: empty; name the picture whose style it gets",
        f'line 4, column size: "20000" is not allowed; it must be {SETTINGS["size"].limit}',
        "line 6: this row has 2 cells, the header 4; "
        "put a cell that holds a delimiter in quotation marks",
    ]


def test_the_error_carries_the_good_pairs_and_the_number_of_rows(write: Write) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(write("content,style,size\na,s,64\nb,s,big\nc,s,\n"))
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert [pair.content for pair in error.pairs] == ["a", "c"]
        assert error.rows == 3


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999", "1_000_000e30"])
def test_nan_and_infinity_are_no_weights(write: Write, value: str) -> None:
    message = one_problem(write(f"content,style,content_weight\na,b,{value}\n"))
    assert message.startswith(f'line 2, column content_weight: "{value}" is')
    assert message.endswith("it must be a number from 0 to 1e+30")


def test_nan_in_json_is_refused_too(write: Write) -> None:
    path = write('{"content": "a", "style": "b", "style_weight": NaN}', "m.jsonl")
    assert one_problem(path).startswith('line 1, column style_weight: "nan" is not a number')


def test_an_unknown_column_names_the_nearest_real_one(write: Write) -> None:
    found = problems(write("content,style,style_wieght,Sizes,meta.\na,b,1,2,3\n"))
    nearest = [message.partition("nearest is ")[2].split(" ")[0] for message in found]
    assert nearest[:2] == ["style_weight", "size"]
    assert [message.partition(": ")[0] for message in found] == [
        "line 1, column style_wieght",
        "line 1, column Sizes",
        "line 1, column meta.",
    ]


def test_a_picture_larger_than_a_webp_can_be_is_refused(write: Write) -> None:
    path = write("content,style,output,size\na,b,1.webp,16383\na,b,2.png,16384\nc,b,3.webp,16384\n")
    assert one_problem(path) == (
        'line 4, column output: "3.webp": 16384 pixels a side do not fit a .webp (16383 do); '
        "name it .png or .tif"
    )


def test_a_bad_option_is_said_once_and_not_for_each_row(write: Write) -> None:
    path = write("content,style\na,b\nc,d\n")
    options = {"size": "big", "sise": "64"}
    assert problems(path, defaults=options) == [
        f'option size: "big" is not a number; it must be {SETTINGS["size"].limit}',
        "option sise: there is no such setting; the nearest is size",
    ]


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"", "m.csv", "the manifest is empty"),
        (b"\xef\xbb\xbf\r\n  \n", "m.csv", "has no rows"),
        (b"content,style\n", "m.csv", "has no rows"),
        (b"content,style\n,\n", "m.csv", "has no rows"),
        (b"\n\n", "m.jsonl", "is empty"),
        (b"content;style\na;b\n", "m.csv", 'separated by ";"; use ","'),
        (
            b"a.jpg,b.jpg\nc.jpg,d.jpg\n",
            "m.csv",
            'and this one begins with "a.jpg,b.jpg"',
        ),
        (b"content,style,content\na,b,c\n", "m.csv", "column content: the column occurs twice"),
        (b"content,style,\na,b,c\n", "m.csv", "line 1: column 3 has no name"),
        (b'content,style\n"a,b\nc,d\n', "m.csv", "line 2: cannot be read: a quotation mark is not"),
        (b'content,style\n"a"x,b\n', "m.csv", "line 2: cannot be read"),
        (
            b"content,style\na,b\nc,\xff\n",
            "m.csv",
            "line 3: byte 21 of the file is 0xff (not UTF-8)",
        ),
        ("content,style\n".encode("utf-16"), "m.csv", "it looks like UTF-16"),
        (b"[1, 2]", "m.jsonl", "line 1: not a JSON object"),
        (b'{"content": "a"', "m.jsonl", "line 1: not JSON: "),
        (
            b'{"content": "a", "content": "b", "style": "c"}',
            "m.jsonl",
            "column content: the name occurs twice",
        ),
        (b'{"content": {}, "style": "c"}', "m.jsonl", "column content: a list or object"),
        (b'{"content": "\\ud800", "style": "c"}', "m.jsonl", "half a surrogate pair"),
        (b'{"content": 1' + b"0" * 5000 + b"}", "m.jsonl", "too long or too deep"),
        (b'{"meta.a":' * 50_000, "m.jsonl", "too long or too deep"),
        (b"PAR1 rubbish PAR1", "m.parquet", "the Parquet file cannot be read"),
        (b"content,style", "m.xlsx", "must end in .csv, .tsv, .jsonl or .parquet"),
    ],
)
def test_each_broken_manifest_has_a_clear_message(
    write: Write, data: bytes, name: str, words: str
) -> None:
    assert words in problems(write(data, name))[0]


def test_a_file_uri_with_a_host_is_refused(write: Write) -> None:
    assert (
        "names a host; write file:///path"
        in problems(write("content,style\nfile://server/a.jpg,file:///b.jpg\n"))[0]
    )


def test_a_missing_manifest_and_a_folder_are_problems_too(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no\x1bsuch.csv"), str(tmp_path), "a\0b.csv"):
        assert "cannot be read" in one_problem(path)
    assert "\x1b" not in one_problem(str(tmp_path / "no\x1bsuch.csv"))


def test_duplicate_ids_and_duplicate_rows_name_both_lines(write: Write) -> None:
    path = write("content,style,id,output\na,b,x,1.png\nc,d,x,2.png\na,b,,3.png\na,b,,4.png\n")
    assert problems(path) == [
        'line 3, column id: "x" is also the id of line 2; give each row its own',
        "line 5: the row has the content, style and settings of line 4; "
        "remove one of them or give each an id",
    ]


def test_two_rows_with_one_output_are_refused_even_if_only_case_or_accents_differ(
    write: Write,
) -> None:
    outputs = ["o/a.png", "o/a.png", "O/A.PNG", "o/\u00e9.png", "o/e\u0301.png", "o/a.png/b.png"]
    rows = [{"content": str(i), "style": "s", "output": out} for i, out in enumerate(outputs)]
    found = problems(write("\n".join(map(json.dumps, rows)), "m.jsonl"))
    assert [message.partition(",")[0] for message in found] == [f"line {n}" for n in (2, 3, 5, 6)]
    assert '"o/a.png" is the output of line 1' in found[0]
    assert "differs only in case" in found[1]
    assert "lies in a folder that is the output of line 1" in found[3]


@pytest.mark.parametrize(
    "output",
    [
        "/etc/x.png",
        "../../etc/x.png",
        "a/../../x.png",
        "a/ .. /x.png",
        "./x.png",
        "a//x.png",
        "x/",
        "",
        "C:/x.png",
        "c:x.png",
        "s3://b/x.png",
        "a\\x.png",
        "a\0.png",
        "a\n.png",
        "a\u2028.png",
        "index/x.png",
        "Index/x.png",
        "_STATE/x.png",
        "report.html",
        "x.exe",
        ".png",
        "x" * 252 + ".png",
        "ü" * 126 + ".png",
    ],
)
def test_outputs_that_leave_the_folder_or_break_it_are_refused(output: str) -> None:
    message = output_problem(output)
    assert message
    assert message.isprintable()
    assert len(message) < 250


def test_ordinary_outputs_are_taken() -> None:
    longest = "ü" * 125 + "a.png"  # 255 bytes
    for output in (
        "a.png",
        "x/y/z.JPG",
        "a..b.webp",
        "index.png",
        "a index/b.tif",
        "🎨.tiff",
        longest,
    ):
        assert output_problem(output) is None


@pytest.mark.parametrize(
    "pair_id", ["a/b", "../../etc/x", "a\\b", "..", ".", "a\tb", "a\x7f", "ü" * 61, ""]
)
def test_ids_that_could_not_be_names_are_refused(pair_id: str) -> None:
    message = id_problem(pair_id)
    assert message
    assert message.isprintable()


def test_ordinary_ids_are_taken() -> None:
    assert all(id_problem(i) is None for i in ("a", "...", "shot 12", "👩‍🎨", "ü" * 60, "=1+1"))


def test_weights_must_be_as_many_as_styles(write: Write) -> None:
    path = write("content,style,style_blend\na,b|c,1|2|3\nd,e|,\n")
    assert problems(path) == [
        "line 2, column style_blend: 3 weights for 2 styles; give each style one",
        'line 3, column style: "e|" has an empty name before or after a |',
    ]


def test_unknown_schemes_are_refused(write: Write) -> None:
    message = one_problem(write("content,style\nftp://a/b.jpg,s3://x/y.jpg\n"))
    assert "only file://, s3://, gs://, az://, https://, http:// can be read" in message


def test_control_characters_in_messages_are_visible_and_long_values_cut(write: Write) -> None:
    rows = [
        {"content": "a", "style": "b", "size": "\x1b[31m\u202e9"},
        {"content": "a", "style": "b", "size": "7" * 10_000},
        {"content": "a", "style": "b", "x\x07": "1"},
    ]
    found = problems(write("\n".join(map(json.dumps, rows)), "m.jsonl"))
    assert all(message.isprintable() and len(message) < 250 for message in found)
    assert '"\\x1b[31m\\u202e9"' in found[0]
    assert "(10000 characters)" in found[1]
    assert "column x\\x07" in found[2]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
@pytest.mark.parametrize(
    "line",
    [
        b"x" * 10_000_000,
        b"a," * 5_000_000,
        b'"' * 10_000_000,
        b"\t" * 9_999_999 + b"a",
        b"[" * 10**7,
    ],
    ids=["one-cell", "commas", "quotes", "tabs", "brackets"],
)
def test_ten_megabytes_in_one_line_end_quickly(write: Write, name: str, line: bytes) -> None:
    begun = time.process_time()
    found = problems(write(line, name))
    assert time.process_time() - begun < 10
    assert sum(map(len, found)) < 10_000


def test_rubbish_in_many_lines_or_columns_stops_at_a_limit(write: Write) -> None:
    many = problems(write(b"content,style\n" + b"a\n" * 100_000))
    assert len(many) == 10_001
    assert any("reading stopped there" in message for message in many)
    wide = "\n".join(json.dumps({f"c{i}_{j}": 1 for j in range(100)}) for i in range(1000))
    assert any("more than 1000 columns" in m for m in problems(write(wide, "m.jsonl")))


# Files that the pairs name


def test_each_distinct_file_is_checked_once_and_named_at_its_first_row(
    write: Write, tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg", "bad.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    text = "content,style,mask\na.jpg,bad.jpg|b.jpg,\nb.jpg,bad.jpg,no.png\na.jpg,bad.jpg,folder\n"
    pairs = read_manifest(write(text + 'a.jpg," b.jpg",\n'))
    asked: list[str] = []

    def check(path: str) -> str | None:
        Path(path).read_bytes()
        asked.append(path)
        return "is no picture" if path.endswith("bad.jpg") else None

    assert [str(problem) for problem in find_problems(pairs, check)] == [
        "line 2, column style: is no picture (and in 2 more rows)",
        'line 3, column mask: "no.png" does not exist',
        'line 4, column mask: "folder" is a folder; name a picture',
        'line 5, column style: " b.jpg" does not exist; its name begins or ends with a space',
    ]
    assert sorted(asked) == [f"{tmp_path}/{name}" for name in ("a.jpg", "b.jpg", "bad.jpg")]
    assert find_problems(list(pairs), check)[0].line is None


# Making manifests


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_written_manifest_reads_back_with_paths_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"sub/m.{ending}"
    rows = cross(["c/ü, 1.jpg", "c/2|3.jpg"], ["s/x\n.jpg", "s3://b/y.jpg"])
    write_manifest(path, rows)
    pairs = read_manifest(path)
    assert [(p.content, p.style) for p in pairs] == [
        ("../c/ü, 1.jpg", "../s/x\n.jpg"),
        ("../c/ü, 1.jpg", "s3://b/y.jpg"),
        ("../c/2|3.jpg", "../s/x\n.jpg"),
        ("../c/2|3.jpg", "s3://b/y.jpg"),
    ]
    assert pairs[0].inputs[0].path == "sub/../c/ü, 1.jpg"


def test_a_name_that_is_a_formula_to_a_spreadsheet_is_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|'calc'!A0", "+1", "-rf", "@SUM(1)", "plain"]
    write_manifest("m.csv", cross(names, ["s"]))
    lines = Path("m.csv").read_text().splitlines()[1:]
    assert lines == [f"./{name},s" for name in names[:4]] + ["plain,s"]
    assert [str(Path(pair.inputs[0].path)) for pair in read_manifest("m.csv")] == names


def test_zip_pairs_one_to_one_and_refuses_other_lengths() -> None:
    assert zip_(["a"], ["b"]) == [{"content": "a", "style": "b"}]
    with pytest.raises(ValueError, match="2 contents and 1 styles"):
        zip_(["a", "b"], ["c"])


def test_a_style_whose_name_has_a_bar_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a|b.jpg").touch()
    with pytest.raises(ValueError, match="separates styles"):
        write_manifest(str(tmp_path / "m.csv"), cross(["c.jpg"], [str(tmp_path / "a|b.jpg")]))
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        write_manifest(str(tmp_path / "m.xls"), [])


def test_reading_a_csv_loads_no_torch_no_ray_and_no_pillow(write: Write) -> None:
    path = write("content,style\na,b\n")
    code = (
        f"import sys, pipeline.manifest.reader as m; m.read_manifest({path!r})\n"
        "print({'torch', 'ray', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# Rubbish: read_manifest returns pairs or raises ManifestError, and nothing else

CELLS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "a.jpg", "64", "nan", "../x.png", "a|b", '"', "\r\n", "relu1_1:1", "\x00"]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*COLUMNS, "content", "style", "meta.x"]) | CELLS


def check_contract(path: str) -> None:
    problems: list[Problem] = []
    try:
        pairs = read_manifest(path)
    except ManifestError as error:
        pairs, problems = Manifest(), error.problems
    assert bool(pairs) != bool(problems)
    assert all(str(problem).isprintable() for problem in problems)
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert output_problem(pair.output) is None
        assert all(math.isfinite(v) for v in vars(pair.config).values() if isinstance(v, float))


FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(
    header=st.lists(NAMES, max_size=6),
    rows=st.lists(st.lists(CELLS, max_size=6), max_size=4),
    ending=st.sampled_from(["csv", "tsv"]),
)
def test_any_table_of_text_is_read_or_refused(
    write: Write, header: list[str], rows: list[list[str]], ending: str
) -> None:
    delimiter = "," if ending == "csv" else "\t"
    text = "\n".join(delimiter.join(row) for row in [["content", "style", *header], *rows])
    check_contract(write(text.encode(errors="surrogatepass"), f"m.{ending}"))


@FUZZ
@given(
    rows=st.lists(
        st.lists(st.text("ab.é \x1c\x85\u2028\u3000\0;", max_size=3), max_size=3), max_size=5
    ),
    wide=st.integers(0, 3),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_rows_without_quotation_marks_are_what_the_csv_reader_makes_of_them(
    rows: list[list[str]], wide: int, end: str
) -> None:
    full = [row if len(row) == wide else [*row, "a", "b", "c"][:3] for row in rows]
    text = end.join(map(",".join, [["content", "style", "id"], *full]))
    quick = read_table("m.csv", text.encode())
    careful = read_table("m.csv", f'"content"{text.removeprefix("content")}'.encode())
    for table in (quick, careful):
        assert len(table.lines) == table.rows
    assert (quick.columns, quick.problems) == (careful.columns, careful.problems)
    assert [*quick.each_row()] == [*careful.each_row()]


@FUZZ
@given(rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=6), max_size=4))
def test_any_json_is_read_or_refused(write: Write, rows: list[dict[str, Any]]) -> None:
    full = [{"content": "a", "style": "b", **row} for row in rows]
    check_contract(write("\n".join(map(json.dumps, full)), "m.jsonl"))


@FUZZ
@given(data=st.binary(max_size=200), ending=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_bytes_are_read_or_refused(write: Write, data: bytes, ending: str) -> None:
    check_contract(write(data, f"m.{ending}"))


@FUZZ
@given(data=st.data())
def test_a_damaged_manifest_is_read_or_refused(
    write: Write, tmp_path: Path, data: st.DataObject
) -> None:
    ending = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
        whole = bytearray((tmp_path / "whole.parquet").read_bytes())
    elif ending == "csv":
        whole = bytearray(b'content,style,size\na.jpg,"s,t.jpg",64\nb.jpg,s.jpg,\n')
    else:
        whole = bytearray("\n".join(map(json.dumps, ROWS)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    check_contract(write(bytes(whole[: cut if data.draw(st.booleans()) else None]), f"m.{ending}"))


def test_a_manifest_in_a_folder_that_is_a_link_names_what_lies_beside_it_shortly(
    tmp_path: Path,
) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    rows = [{"content": str(tmp_path / "near" / "a.jpg"), "style": str(tmp_path / "s.jpg")}]
    write_manifest(str(tmp_path / "near" / "m.csv"), rows)
    written = (tmp_path / "far" / "away" / "m.csv").read_text()
    assert written == "content,style\na.jpg,../../s.jpg\n"


# Tables and names as other programs leave them


def table_of(tmp_path: Path, text: str, name: str = "m.csv") -> Manifest:
    (tmp_path / name).write_text(text)
    return read_manifest(str(tmp_path / name))


def test_the_index_of_a_pandas_table_is_ignored_with_a_note(tmp_path: Path) -> None:
    frame = pa.table({"content": ["a.jpg"], "style": ["s.jpg"], "__index_level_0__": [7]})
    pq.write_table(frame, tmp_path / "m.parquet")
    pairs = read_manifest(str(tmp_path / "m.parquet"))
    assert [pair.content for pair in pairs] == ["a.jpg"]
    assert pairs.notes == ["the column __index_level_0__ is ignored: it is pandas' index"]
    for header in ("", "Unnamed: 0"):
        pairs = table_of(tmp_path, f"{header},content,style\n0,a.jpg,s.jpg\n1,b.jpg,s.jpg\n")
        assert [pair.content for pair in pairs] == ["a.jpg", "b.jpg"]
        assert pairs.notes == ["column 1 has no name and is ignored: it is pandas' index"]


def test_empty_columns_of_a_spreadsheet_are_ignored_with_a_note(tmp_path: Path) -> None:
    pairs = table_of(tmp_path, "content,style,,\r\na.jpg,s.jpg,, \r\n")
    assert len(pairs) == 1
    assert pairs.notes == ["2 empty columns without a name ignored"]


def test_a_column_without_a_name_that_says_something_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        table_of(tmp_path, "content,style,\na.jpg,s.jpg,\nb.jpg,s.jpg,64\n")
    (problem,) = caught.value.problems
    assert str(problem) == (
        "line 1: column 3 has no name; give it one, like meta.NAME, or remove it"
    )


def test_the_line_that_names_the_separator_is_followed(tmp_path: Path) -> None:
    pairs = table_of(tmp_path, "sep=;\r\ncontent;style\r\na,b.jpg;s.jpg\r\n")
    assert [(pair.content, pairs.lines[pair.row]) for pair in pairs] == [("a,b.jpg", 3)]
    assert len(table_of(tmp_path, "SEP=,\ncontent,style\na.jpg,s.jpg\n")) == 1


def test_a_name_whose_accents_are_stored_otherwise_is_found_and_one_in_another_case_shown(
    tmp_path: Path,
) -> None:
    composed, apart = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    (tmp_path / apart).mkdir()
    (tmp_path / apart / f"{composed}.jpg").write_bytes(b"picture")
    (tmp_path / "s.jpg").write_bytes(b"")

    def check(path: str) -> None:
        storage.read_bytes(path)

    pairs = table_of(tmp_path, f"content,style\n{composed}/{apart}.jpg,s.jpg\n")
    assert find_problems(pairs, check) == []
    path = pairs[0].inputs[0].path
    assert storage.read_bytes(path) == b"picture"
    assert storage.stat(path).startswith("7:")
    assert storage.sha256(path) == hashlib.sha256(b"picture").hexdigest()
    pairs = table_of(tmp_path, f"content,style\n{composed}/{apart}.JPG,s.jpg\n")
    (problem,) = find_problems(pairs, check)
    assert f"does not exist; {composed + '.jpg'!r} is there, which differs in case" in (
        problem.message
    )


def test_patterns_know_a_home_alternatives_and_folders_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/b.JPG", "[2024] Trip/c.jpg", "photos/d.png", "e[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert matches("~/photos/*.jpg") == [str(tmp_path / "photos" / "a.jpg")]
    assert sorted(matches("photos/*.{jpg,JPG}")) == ["photos/a.jpg", "photos/b.JPG"]
    assert matches("[2024] Trip/*.jpg") == ["[2024] Trip/c.jpg"]
    assert matches("e[1].jpg") == ["e[1].jpg"]
    assert len(matches("**/*.jpg")) == 3
    assert (
        why_nothing_matches(["photos"])
        == "; photos is a folder: write 'photos/*', or add --recursive"
    )
    assert why_nothing_matches(["gone/x/*.jpg"]) == "; there is no folder gone/x"
    assert why_nothing_matches(["photos/*.gif"]) == ""
