"""How texts, numbers and times read in messages."""

from pipeline.text import count, duration, quoted, visible


def test_text_is_cut_and_its_control_characters_are_made_visible() -> None:
    assert visible("a\x1b[2J\nbé") == r"a\x1b[2J\nbé"
    assert visible("x" * 50 + "the end", 30) == "x" * 18 + "…xthe end"
    assert len(visible("\n" * 2000)) < 2 * 1001
    assert quoted("a\tb") == r'"a\tb"'
    assert quoted("x" * 80) == '"' + "x" * 48 + "…" + "x" * 8 + '" (80 characters)'


def test_numbers_and_times_read_well() -> None:
    assert [count(n, "pair") for n in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]
    assert [duration(s) for s in (-1, 42.4, 725, 10800)] == ["0:00", "0:42", "12:05", "3:00:00"]
