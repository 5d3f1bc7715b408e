"""Hostile lists: each is refused in one line, or every line is a row or a reject; no traceback, no hang."""

import csv
import io
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.data.sources import text_file
from unicl_cli.data.sources.lists import cells, record
from unicl_cli.errors import UniclError

IMAGES = [f"{number}.png" for number in range(45)]
ODD = [
    *(
        "",
        " ",
        "\0",
        '"',
        "'",
        "[",
        "]",
        "{}",
        "[]",
        "['a",
        '["a", "b"]',
        "{'raw': 'x'}",
        "[" * 70,
        "-" * 90,
        "\x1a",
        "#",
    ),
    *(
        "nan",
        "NA",
        "-1",
        "1",
        "01",
        "1.0",
        "9" * 1500,
        "9" * 5000,
        "٣",
        "²",
        "1e400",
        "true",
        "Cat",
        "cat ",
        "cafe\u0301",
    ),
    *(
        "a, b",
        "a\tb",
        "a|b;c",
        "line\nbreak",
        "a\rb",
        "x" * 700,
        "\u2028",
        "\ufeff",
        "\ud800",
        "0.png",
        "../0.png",
        "/",
        ".",
    ),
    *(
        "http://[",
        "data:x",
        "C:\\x",
        "\\\\n",
        "test",
        "..",
        "val/x",
        "#1",
        "0.png#1",
        "&lt;b&gt;",
        "['a' 'b']",
        "(1,)",
        "\\ud800",
    ),
]
VALUES = [
    *(None, True, 0, -1, 7, 10**30, 1.5, float("nan"), float("inf"), [], {}, [[]], ["a", "b"], [1, 0, 1], {"raw": "x"}),
    *(
        [{"raw": "x"}, 3],
        {"bytes": None, "path": "0.png"},
        {"path": 5},
        [{"from": "gpt", "value": "x"}],
        [None],
        {"": ""},
    ),
    *([{"role": "user", "content": [{"text": 5}]}], [{"from": 1, "value": []}], {"a": {"b": {"c": []}}}),
]
TYPES = [
    *(
        pa.int8(),
        pa.float16(),
        pa.decimal128(30, 2),
        pa.date32(),
        pa.timestamp("ns"),
        pa.timestamp("s", "Mars/Base"),
        pa.null(),
    ),
    *(pa.large_string(), pa.binary(), pa.binary(3), pa.list_(pa.int64()), pa.map_(pa.string(), pa.int64()), pa.bool_()),
    *(
        pa.dictionary(pa.int8(), pa.string()),
        pa.struct([("bytes", pa.int64()), ("path", pa.string())]),
        pa.duration("ns"),
    ),
    *(pa.list_(pa.struct([("raw", pa.string())])), pa.time64("ns"), pa.uint64(), pa.list_(pa.binary())),
]
METADATA = [
    *(
        b"not json",
        b"[]",
        b'{"info": 5}',
        b'{"info": {"features": 5}}',
        b"\xff",
        b"[" * 200,
        b'{"info": {"features": []}}',
    ),
    *(
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}).encode()
        for names in (None, 5, [1, 2], ["a", "a"], [""], ["a", "b"], [["a"]], {"a": 1})
    ),
]


def table_of(rng, odd):
    """Rows of a small list with some odd cells, columns that come twice, and lines of another length."""
    rows = [["image", "caption", "label", "split"]]
    rows += [[name, f"words about {name}", "cat" if at % 2 else "dog", "train"] for at, name in enumerate(IMAGES)]
    for _ in range(rng.choice([0, 1, 1, 2, 9])):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(odd)
    if rng.random() < 0.1:
        rows[0][rng.randrange(4)] = rng.choice(rows[0])
    if rng.random() < 0.1:
        rng.choice(rows).extend(["more"] * rng.choice([1, 30]))
    return rows


def text_list(rng):
    rows = table_of(rng, ODD)
    delimiter = rng.choice([",", "\t", ";", "|", " "])
    out = io.StringIO()
    if rng.random() < 0.7:
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        csv.writer(
            out, delimiter=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n", "\r"])
        ).writerows(rows)
    else:
        out.write("\n".join(delimiter.join(row) for row in rows))
    encoding = rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-7"])
    return rng.choice([".csv", ".tsv", ".txt", ".token"]), out.getvalue().encode(encoding, "replace")


def json_list(rng):
    rows = table_of(rng, [*ODD, *VALUES])
    objects = [dict(zip(map(str, rows[0]), row, strict=False)) for row in rows[1:]]
    form = rng.randrange(6)
    if form < 3:
        return ".jsonl", "\n".join(map(json.dumps, objects)).encode()
    documents = [
        objects,
        {"images": objects, "annotations": [{"image_id": rng.choice([0, None, []]), "caption": rng.choice(VALUES)}]},
        {"data": objects, "other": rng.choice(VALUES)},
        {name: rng.choice(VALUES) for name in [*IMAGES, *map(str, rows[0])]},
        {"columns": rows[0], "data": rows[1:]},
        {str(name): rng.choice([[1, 2], {"0": 1, "1": "x"}, "x"]) for name in rows[0]},
    ]
    return rng.choice([".json", ".json", ".txt"]), json.dumps(documents[rng.randrange(6)]).encode()


def parquet_list(rng):
    rows = table_of(rng, ["", "9" * 5000, "x" * 700, "NA"])
    columns = {str(name): pa.array([row[at] for row in rows[1:]]) for at, name in enumerate(rows[0][:4])}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        kind, name = rng.choice(TYPES), rng.choice(list(columns))
        columns[name] = pa.array([{}] * len(IMAGES), kind) if pa.types.is_struct(kind) else pa.nulls(len(IMAGES), kind)
        if pa.types.is_temporal(kind) or pa.types.is_integer(kind):
            width = kind.bit_width // 8
            columns[name] = pa.Array.from_buffers(kind, 45, [None, pa.py_buffer(rng.randbytes(45 * width))])
    if rng.random() < 0.1:
        bad = pa.py_buffer(b"ab" * 44 + b"\xff\xfe")
        ends = pa.array(range(0, 92, 2), pa.int32()).buffers()[1]
        columns[rng.choice(list(columns))] = pa.Array.from_buffers(pa.string(), 45, [None, ends, bad])
    metadata = {b"huggingface": rng.choice(METADATA)} if rng.random() < 0.5 else None
    table = pa.table(columns).replace_schema_metadata(metadata).slice(0, rng.choice([0, 45, 45, 45, 45]))
    out = io.BytesIO()
    try:
        pq.write_table(table, out)
    except (pa.ArrowException, ValueError):
        pq.write_table(pa.table({"image": IMAGES}), out)  # Parquet has no such type, or no year so far away
    return ".parquet", out.getvalue()


def damage(rng, data):
    """Return the bytes with a few changes: replaced, repeated, cut."""
    data = bytearray(data)
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.choice([0, 10, 13, 34, 44, 123, 255, rng.randrange(256)])])
            case 1:
                data[at:at] = data[max(0, at - 40) : at]
            case 2:
                del data[at : at + rng.choice([1, 30])]
            case _:
                data[at:at] = rng.choice(
                    [b"\xef\xbb\xbf", b'"', b"\0" * 9, b"x" * 900, b"\n\n", b"\xff\xfe", b'{"a":', b"["]
                )
    return bytes(data)


def hostile_list(seed):
    """Return the suffix, the bytes and the options of one list."""
    rng = random.Random(seed)
    suffix, data = rng.choice([text_list, text_list, json_list, json_list, parquet_list])(rng)
    options = [
        "",
        "",
        "",
        "?header=false&image=0&caption=1&label=2",
        "?missing=NA,nan&keep=",
        "?encoding=utf-16",
        "?sep=tab",
    ]
    options += [
        "?split=test",
        "?image=image.path",
        "?caption=caption.raw",
        "?label=folder",
        "?root=.&suffix=png",
        "?skip_urls=true",
    ]
    return suffix, damage(rng, data), rng.choice(options)


def count_lines(source):
    """Return the records of a list, and those of its rows and of the lines that were joined into them."""
    found = sum(len(source.rows(split)) for split in source.splits)
    for note in source.notes:
        if match := re.search(r"(?:merged lines|dropped lines).*: ([\d,]+)$", note):
            found += int(match[1].replace(",", ""))
    return sum(1 for _ in source.reader.records(source.reader.columns)), found


def read_hostile(listing, seed, kind):
    """Open a hostile list, and count and look at its rows; return the error if it is refused."""
    suffix, data, options = hostile_list(seed)
    path = listing.write(f"hostile{suffix}", data)
    try:
        source = listing.open(f"{path}{options}", kind)
        records, found = count_lines(source)
        assert records == found
        for split in source.splits:
            for row in source.rows(split):
                assert source.stamp(row) is not None
                repr(row).encode()
                assert not source.classes or -1 <= row.label < len(source.classes)
    except UniclError as error:
        return error
    return None


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    from tests.data.sources.lists.conftest import Listing

    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("hostile")
    patch.chdir(root)
    patch.setattr(text_file, "MAX_LINE", 800)
    patch.setattr(cells, "MAX_CELL", 400)
    patch.setattr(record, "MAX_COLUMNS", 20)
    listing = Listing(root)
    listing.write("x", b"", *IMAGES[:6])
    yield listing
    patch.undo()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32), st.sampled_from(["captions", "labels", "images"]))
def test_a_hostile_list_is_refused_in_a_line_or_no_line_is_lost(crowded, seed, kind):
    refusal = read_hostile(crowded, seed, kind)
    assert refusal is None or (len(refusal.message) < 5000 and "Error:" not in refusal.message)
