"""Byte counts as text."""

from unicl_cli.core.byte_size import binary_size, decimal_size


def test_memory_is_told_in_binary_units_and_files_in_decimal_ones():
    counts = (5, 1023, 1024, 3 * 2**30, 2**50)
    assert [binary_size(n) for n in counts] == ["5 B", "1023 B", "1.0 KiB", "3.0 GiB", "1024.0 TiB"]
    assert [decimal_size(n) for n in (0, 999, 1000, 3.2e9, 5e15)] == ["0 B", "999 B", "1.0 kB", "3.2 GB", "5000.0 TB"]
