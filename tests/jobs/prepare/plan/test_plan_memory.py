"""A plan of a long list: little memory for each line, the order of a table, and both places of a double key."""

import tracemalloc

import numpy as np
import pytest

from unicl_cli.contracts import NO_LABEL, Row
from unicl_cli.core.sampler import Permutation
from unicl_cli.data.pictures import Extent
from unicl_cli.data.sources.lists.lines import URL_FAULT
from unicl_cli.data.sources.lists.record import BAD_LINE
from unicl_cli.data.sources.resolve import SourceSpec
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.plan.image_groups import RowList, number_images
from unicl_cli.jobs.prepare.plan.plan import _describe_row, make_plan
from unicl_cli.jobs.prepare.plan.request import PrepareOptions
from unicl_cli.jobs.prepare.plan.row_checks import check_keys
from unicl_cli.jobs.prepare.plan.rows import RowMapping, Rows, SplitRows
from unicl_cli.storage import buckets, spool
from unicl_cli.storage.derived import Derived

LINE = "a caption of some length, as they are on the web, number {n}\thttp://host{n}.example/photos/{n:08d}.jpg\n"


def plan_of(path):
    return make_plan([SourceSpec("web", "captions", str(path))], PrepareOptions())


def peak_of(path, lines):
    path.write_text("caption\turl\n" + "".join(LINE.format(n=n) for n in range(lines)))
    tracemalloc.start()
    plan_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_line_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "MAX_MEMORY", 1)
    monkeypatch.setattr(buckets, "CHUNK", 256)
    peak_of(tmp_path / "warm.tsv", 300)
    few, many = peak_of(tmp_path / "few.tsv", 2000), peak_of(tmp_path / "many.tsv", 4000)
    assert (many - few) / 2000 < 25, "bytes for each line; a row as objects takes 700, its hashes and numbers 46"


class Images(Derived):
    """Rows, and their source: images at places of their own."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def derive(self, at):
        return Row(str(at), str(at), (), NO_LABEL)

    def extent(self, row):
        return Extent(f"/{row.ref}", 0, 1)


def peak_of_numbers(count):
    images = Images(count)
    tracemalloc.start()
    number_images([RowList(images, images)], compare=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_the_number_of_an_image_takes_few_bytes(monkeypatch):
    monkeypatch.setattr(buckets, "CHUNK", 2048)
    peak_of_numbers(300)
    few, many = peak_of_numbers(40_000), peak_of_numbers(120_000)
    assert (many - few) / 80_000 < 10, "bytes for each row; its 64-bit hash takes 8"


@pytest.mark.parametrize("limit", [None, 5, 1000])
@pytest.mark.parametrize("seed", [None, "0/web/captions/train"])
def test_rows_are_in_the_order_of_a_permuted_table(limit, seed):
    raw = [Row(str(n), str(n), (), -1) for n in range(100)]
    moved = np.array([0, 3, 4, 50, 99])
    table = np.delete(np.arange(100), moved)
    for split, members in ((SplitRows(moved, of=100), table), (SplitRows(moved), moved)):
        order = members if seed is None else members[Permutation(len(members), seed)(np.arange(len(members)))]
        expected = [f"web:{number}" for number in order[:limit].tolist()]
        rows = Rows(raw, split, RowMapping("web", "captions", ()), seed=seed, limit=limit)
        assert [row.key for row in rows] == [rows[at].key for at in range(len(rows))] == expected
        assert [row.key for row in rows[1:40:3]] == expected[1:40:3]
        assert rows[-1].key == expected[-1]
        assert [row.key for row in rows.by_source()] == [str(n) for n in sorted(order[:limit].tolist())]
        with pytest.raises(IndexError):
            rows[len(rows)]


def test_a_url_that_is_left_out_keeps_the_fingerprint_of_older_corpora():
    row = Row("row 2", f"{BAD_LINE}line 2: {URL_FAULT}", (), NO_LABEL)
    assert "line 2: the image is a URL, but only local files can be read" in _describe_row("train", row, None)


def test_a_double_key_is_told_with_both_places():
    rows = {"train": [Row("a", "1.png", (), 0), Row("b", "2.png", (), 0)], "val": [Row("a", "3.png", (), 0)]}
    with pytest.raises(UniclError, match=r"src: duplicate key 'a': train 1\.png and val 3\.png"):
        check_keys(SourceSpec("s", "labels", "src"), rows)
