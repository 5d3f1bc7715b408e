"""Lists on disk: the same values in the same order by number, slice and pass, in little memory."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from unicl_cli.contracts import Row
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.errors import UniclError
from unicl_cli.storage.spool import BLOCK, Spool

ROWS = [
    Row(
        f"k{n}",
        f"é\ud800 {n}",
        ("", "two\0" * (n % 3)),
        n % 5 - 1,
        (1, 2),
        None if n % 2 else ("a",),
        (("audio", "x"),),
    )
    for n in range(3 * BLOCK + 7)
]


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_rows_come_back_as_they_were(count):
    rows = spool_rows(ROWS[:count])
    assert len(rows) == count
    assert rows == ROWS[:count] == list(rows)
    assert rows != [*ROWS[:count], ROWS[0]]
    for at in (0, 1, BLOCK - 1, BLOCK, -1, -count, count - 1):
        if -count <= at < count:
            assert rows[at] == ROWS[:count][at]
            assert type(rows[at]) is Row
    assert rows[3:200:7] == ROWS[:count][3:200:7]
    assert rows[::-1] == ROWS[:count][::-1]
    with pytest.raises(IndexError):
        rows[count]


def test_threads_read_the_values_that_they_ask_for():
    rows = spool_rows(ROWS)
    numbers = [7 * n % len(ROWS) for n in range(2000)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda at: rows[at], numbers)) == [ROWS[at] for at in numbers]


def test_values_take_no_memory():
    tracemalloc.start()
    numbers = Spool[int](lambda n: (n, "x" * 100), lambda packed: packed[0]).extend(range(100_000))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers[99_999] == 99_999
    assert used < 300_000


def test_a_full_disk_is_one_line(monkeypatch):
    rows = spool_rows()

    def refuse(_data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows._file, "write", refuse)
    with pytest.raises(UniclError, match="cannot be written: No space left on device") as caught:
        rows.extend(ROWS)
    assert "TMPDIR" in caught.value.hint
