"""The bar of `prepare`: count and time left are there at every width, whatever was left out."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.progress import Progress as Bar

from unicl_cli.jobs.prepare.shards import progress
from unicl_cli.jobs.prepare.shards.progress import Progress

MANY = {"duplicate": 31900, "no_text": 11, "bomb": 9, "unsupported_format": 2}


def bar_at(width: int, total: int, rejected: dict[str, int]) -> str:
    shown = Progress("prepare", done=0, total=total, shards_done=3, shards=400)
    shown.bar = Bar(*progress._build_bar().columns, console=Console(width=width, file=io.StringIO()))
    shown.started = time.monotonic() - 100
    shown.bar.add_task("prepare", total=total, left="")
    shown.tick(total // 2, 10**9, rejected)
    page = Console(width=width, file=io.StringIO())
    page.print(shown.bar.get_renderable())
    out = page.file
    assert isinstance(out, io.StringIO)
    return out.getvalue().rstrip("\n")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("rejected", [{}, MANY])
@pytest.mark.parametrize("total", [40, 1_234_567])
def test_count_and_time_are_never_cut(width: int, rejected: dict[str, int], total: int):
    line = bar_at(width, total, rejected)
    assert len(line.splitlines()) == 1
    assert len(line.rstrip()) <= width
    assert f"{total // 2:,}/{total:,}" in line
    assert re.search(r"\d:\d\d:\d\d$", line)


def test_eighty_columns_have_room_for_what_was_left_out_and_the_speed():
    line = bar_at(80, 8121, MANY)
    assert "31,922 left out" in line
    assert "img/s" in line
