"""Records sorted on disk: all of them, in order, as often as wanted, in little memory."""

import tracemalloc

import numpy as np
import pytest

from unicl_cli.errors import UniclError
from unicl_cli.storage.buckets import CHUNK, Buckets, mark_first


@pytest.mark.parametrize(("count", "most"), [(0, 1), (1, 1), (5, 3), (CHUNK, 1 << 64), (2 * CHUNK + 77, 1000)])
def test_records_come_back_in_order(count, most):
    random = np.random.default_rng(0)
    first = random.integers(0, most, count, np.uint64, endpoint=False) if most < 1 << 64 else None
    first = random.integers(0, 2**64 - 1, count, np.uint64, endpoint=True) if first is None else first
    records, number = Buckets(2, most), np.arange(count)[::-1]
    for start in range(0, count, 5000):
        part = slice(start, start + 5000)
        if start % 2000:
            for record in zip(first[part].tolist(), number[part].tolist(), strict=True):
                records.append(*record)
        else:
            records.add(first[part], number[part])
    assert len(records) == count
    expected = sorted(zip(first.tolist(), number.tolist(), strict=True))
    for _ in range(2):
        assert [tuple(record) for bucket in records for record in bucket.tolist()] == expected


def test_records_take_no_memory():
    hashes = np.random.default_rng(0).integers(0, 2**64 - 1, 400_000, np.uint64)
    tracemalloc.start()
    records = Buckets(1)
    for start in range(0, len(hashes), 1000):
        records.add(hashes[start : start + 1000])
    assert sum(len(bucket) for bucket in records) == len(hashes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000  # the hashes have 3,200,000 bytes


def test_the_first_of_equal_values_are_marked():
    assert mark_first(np.array([], np.uint64)).tolist() == []
    assert mark_first(np.array([3, 3, 5, 3], np.uint64)).tolist() == [True, False, True, True]


def test_a_full_disk_is_one_line(monkeypatch):
    class Full:
        def seek(self, *_at):
            return 0

        def write(self, data):
            return len(data) // 2

    records = Buckets(1)
    monkeypatch.setattr(records, "_file", Full())
    with pytest.raises(UniclError, match="cannot be written: No space left on device") as caught:
        records.add(np.arange(CHUNK))
    assert "TMPDIR" in caught.value.hint
