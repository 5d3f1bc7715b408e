"""Tars whose headers lie: each is one error, within bounds of time and memory."""

import io
import struct
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.data.sources.tar_members import HEADER_BYTES, iter_members

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


def header(name=b"a.jpg", size=b"00000000004\0", kind=b"0"):
    """One header block with a right checksum, whatever its fields say."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[136:148] = b"0000644\0", b"00000000000\0"
    block[124:136], block[156:157] = size.ljust(12, b"\0"), kind
    block[257:265] = b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(value):
    return (b"\xff" if value < 0 else b"\x80") + (value % (1 << 88)).to_bytes(11, "big")


def extended(records, *, kind=b"x"):
    """An extended header (PAX) with these lines."""
    body = b"".join(records)
    return header(b"pax", b"%011o\0" % len(body), kind) + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0")


def record(key, value):
    line = b" " + key + b"=" + value + b"\n"
    length = len(line) + 1
    while len(str(length)) + len(line) != length:
        length += 1
    return str(length).encode() + line


FILE = header() + b"four".ljust(BLOCK, b"\0")


def members(data, size=None):
    return list(iter_members(io.BytesIO(data), 0, len(data) if size is None else size))


def test_an_ordinary_tar_is_listed_with_the_places_of_its_files():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "d/" + "é" * 200 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"four"))
    found = members(out.getvalue())
    assert [member.name for member in found] == ["a.jpg", "d/" + "é" * 200 + ".jpg"]
    assert [out.getvalue()[m.offset_data : m.offset_data + m.size] for m in found] == [b"four", b"four"]
    assert len(members(FILE + FILE)) == 2  # without closing blocks


@pytest.mark.parametrize(
    "data",
    [
        header(size=base256(2**63 - 1)) + END,
        header(size=base256(2**87)) + END,
        header(size=base256(-512)) + END,
        header(size=base256(-(2**80))) + END,
        header(size=b"-0000000777\0") + END,
        header(size=b"00000002000\0") + b"four",
        FILE + header(size=base256(10**15)),
        FILE + b"x" * BLOCK + FILE + END,
        FILE + FILE[:100] + END[:300],
        extended([record(b"size", b"-1024")]) + FILE + END,
        extended([record(b"size", b"9" * 30)]) + FILE + END,
        extended([record(b"size", b"9" * 5000)]) + FILE + END,
        extended([record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")]) + FILE + END,
        extended([record(b"GNU.sparse.map", b"1,x,2")]) + FILE + END,
        extended([record(b"GNU.sparse.numblocks", b"1"), record(b"GNU.sparse.size", b"x")]) + FILE + END,
        header(b"long", b"%011o\0" % 2**30, b"L") + b"n" * BLOCK,
        header(b"long", base256(2**60), b"L") + b"n" * BLOCK,
        header(b"long", base256(-BLOCK), b"L") + FILE,
        (header(b"long", b"%011o\0" % 4, b"L") + b"name".ljust(BLOCK, b"\0")) * 3000 + FILE,
        b"<html>", b"", b"x" * 2000,
    ],
)  # fmt: skip
def test_a_header_that_lies_is_one_error(data):
    with pytest.raises(tarfile.TarError) as caught:
        members(data)
    assert "\n" not in str(caught.value)


def test_a_name_in_another_encoding_can_be_written_as_text():
    (found,) = members(header(b"caf\xe9.jpg") + b"four".ljust(BLOCK, b"\0") + END)
    assert found.name == "caf?.jpg"


def test_a_name_of_a_gigabyte_takes_no_memory(tmp_path):
    path = tmp_path / "sparse.tar"
    with path.open("wb") as file:
        file.write(header(b"long", b"%011o\0" % 2**30, b"L"))
        file.truncate(2**31)
    tracemalloc.start()
    with path.open("rb") as file, pytest.raises(tarfile.ReadError, match="a header claims 1,073,741,824 bytes"):
        list(iter_members(file, 0, 2**31))
    assert tracemalloc.get_traced_memory()[1] < 20 * HEADER_BYTES
    tracemalloc.stop()


def test_links_devices_and_sparse_files_are_named_as_such():
    kinds = b"".join(header(b"x", b"0", kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"Z"))
    found = members(kinds + FILE + END)
    assert [member.isreg() for member in found] == [False] * 7 + [True]
    sparse = bytearray(header(b"holes", b"%011o\0" % 4, b"S"))
    sparse[386:482] = struct.pack("<96x")
    sparse[483:495] = b"%011o\0" % 10**9
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (hole,) = members(bytes(sparse) + b"four".ljust(BLOCK, b"\0") + END)
    assert hole.issparse()


@settings(max_examples=200, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 3 * BLOCK), st.integers(0, 255)), min_size=1, max_size=5),
    fixed=st.booleans(),
)
def test_a_changed_header_is_listed_inside_the_tar_or_refused(places, fixed):
    data = bytearray(extended([record(b"path", b"b.jpg")]) + FILE + END)
    for place, byte in places:
        data[place] = byte
    if fixed:
        for start in (0, 2 * BLOCK):
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    try:
        found = members(bytes(data))
    except tarfile.TarError:
        return
    for member in found:
        assert member.issparse() or 0 <= member.offset_data <= member.offset_data + member.size * member.isreg() <= len(
            data
        )


def test_members_that_were_met_are_forgotten():
    data = (header(size=b"00000000000\0") * 1500) + END
    tracemalloc.start()
    assert sum(1 for _ in iter_members(io.BytesIO(data), 0, len(data))) == 1500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000, "1,500 members take about 1,000,000 bytes"
