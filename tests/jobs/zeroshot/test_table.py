"""Answers of `zeroshot` on a terminal: aligned, and never wider than the terminal."""

import pytest
from rich.cells import cell_len

from unicl_cli.jobs.zeroshot.output import Layout
from unicl_cli.jobs.zeroshot.table import TerminalTable

NAMES = ("orange cat", "brown dog", "teal fish", "green weed", "golden pear")


def row(path: str, *names: str, label: str | None = "x", error: str | None = None) -> dict:
    top = [{"label": name, "prob": 0.5 / (n + 1), "cosine": 0.2} for n, name in enumerate(names)]
    return {"path": path, "label": label, "prob": 0.5, "top": top, "error": error}


def table_of(rows: list[dict], width: int = 80, names: tuple[str, ...] = NAMES, *, by_cosine: bool = False):
    table = TerminalTable(Layout(names, 5, by_cosine=by_cosine), width=width)
    return table, table(rows).splitlines()


@pytest.mark.parametrize("width", [40, 80, 132, 300])
@pytest.mark.parametrize("by_cosine", [False, True])
def test_lines_fit_and_columns_begin_at_one_place(width: int, by_cosine: bool):
    rows = [
        row(f"photos/land/animals/{'cats' * (1 + n % 3)}/{n}.png", *NAMES[n % 5 :], *NAMES[: n % 5]) for n in range(9)
    ]
    table, lines = table_of(rows, width, by_cosine=by_cosine)
    assert max(map(cell_len, lines)) <= width
    assert len({line.index(each["top"][0]["label"]) for line, each in zip(lines, rows, strict=True)}) == 1
    assert all("…" in line or rows[n]["path"] in line for n, line in enumerate(lines))
    assert table.shown >= 1


def test_the_end_of_a_long_path_is_kept_and_wide_letters_are_counted():
    _, lines = table_of([row(f"{'folder/' * 20}猫の写真.png", "猫", "dog")], 60, ("猫", "dog"))
    assert cell_len(lines[0]) <= 60
    assert "猫の写真.png" in lines[0]


def test_classes_that_do_not_fit_are_told():
    table, _ = table_of([row("a.png", *NAMES)], 80)
    assert table.note() == "3 of 5 classes fit on a line; --csv and --json print all"
    table, _ = table_of([row("a.png", *NAMES)], 200)
    assert table.note() is None


def test_no_label_and_an_error_have_their_words():
    _, lines = table_of([row("a.png", *NAMES, label=None), row("longer.png", error="not an image")])
    assert lines[1] == "longer.png  error: not an image"
    assert lines[0].index("none of these") == lines[1].index("error")


def test_later_batches_keep_the_columns():
    table, first = table_of([row("a.png", *NAMES)])
    later = table([row("a/very/long/path/that/is/longer.png", *NAMES)]).splitlines()
    assert later[0].index("orange cat") == first[0].index("orange cat")
