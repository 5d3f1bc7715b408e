"""Lists in Parquet: every kind of bytes is an image, and none gets into a message."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicl_cli.errors import UniclError


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_every_kind_of_bytes_in_parquet_is_an_image(kind, listing):
    listing.write("x", b"", "a.png")
    image = (listing.root / "a.png").read_bytes()
    text = pa.string_view() if kind == pa.binary_view() else pa.string()
    try:
        pq.write_table(pa.table({"image": pa.array([image], kind), "caption": pa.array(["one"], text)}), "v.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow cannot write the type: {error}")
    source = listing.open("v.parquet")
    assert [row.texts for row in source.rows("train")] == [("one",)]
    assert source.read(source.rows("train")[0]) == {"image": image}
    with pytest.raises(UniclError, match="row 0: image holds bytes, not text") as caught:
        listing.texts("v.parquet?image=caption&caption=image")
    assert "PNG" not in str(caught.value)


def test_parquet_with_paths_in_hugging_faces_struct_reads_the_files(listing):
    listing.write("x", b"", "a.png")
    image = pa.array([{"bytes": None, "path": "a.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "caption": ["one"]}), "p.parquet")
    source = listing.open("p.parquet")
    assert source.read(source.rows("train")[0]) == {"image": (listing.root / "a.png").read_bytes()}


def test_texts_inside_structs_are_read_by_their_path(listing):
    kind = pa.list_(pa.struct([("raw", pa.string()), ("id", pa.int64())]))
    sentences = pa.array([[{"raw": "one", "id": 0}, {"raw": "two", "id": 1}]], kind)
    listing.write("x", b"", "a.png")
    pq.write_table(pa.table({"image": ["a.png"], "sentences": sentences}), "s.parquet")
    assert listing.texts("s.parquet?caption=sentences.raw") == {"a.png": ("one", "two")}
    with pytest.raises(UniclError, match=r"sentences holds a list of objects \(keys: raw, id\)"):
        listing.texts("s.parquet")


def test_two_columns_of_one_name_in_parquet_are_refused(listing):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["image", "image"]), "t.parquet")
    with pytest.raises(UniclError, match="two columns named 'image'"):
        listing.texts("t.parquet")


def labelled(metadata, labels=(1, 0)):
    table = pa.table({"image": ["a.png", "b.png"], "label": list(labels)})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), "l.parquet")
    return "l.parquet"


def feature(names):
    return json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}).encode()


@pytest.mark.parametrize(
    "metadata",
    [b"not json", b"\xff", b"[]", b"[" * 200, b'{"info": 5}', b'{"info": {"features": 5}}', feature(5),
     b'{"info": {"features": []}}', feature([1, 2]), feature(["cat", ""]), feature([["cat"]]), feature({"cat": 0})],
)  # fmt: skip
def test_damaged_metadata_is_one_line_and_names_may_come_from_a_file(metadata, listing):
    listing.write("x", b"", "a.png", "b.png")
    with pytest.raises(UniclError, match=r"l\.parquet: damaged metadata of Hugging Face: .+") as caught:
        listing.labels(labelled(metadata))
    assert "?classes=FILE" in caught.value.hint
    listing.write("names.txt", "cat\ndog\n")
    assert listing.labels(f"{labelled(metadata)}?classes=names.txt") == {"a.png": "dog", "b.png": "cat"}


@pytest.mark.parametrize("metadata", [b"{}", b'{"info": {}}', b'{"info": {"features": {}}}', feature(None)])
def test_metadata_without_names_leaves_the_numbers(metadata, listing):
    listing.write("x", b"", "a.png", "b.png")
    assert listing.labels(labelled(metadata)) == {"a.png": "1", "b.png": "0"}


def test_a_cell_without_a_value_in_python_leaves_its_row_out(listing):
    listing.write("x", b"", "a.png")
    ends = pa.array(range(0, 82, 2), pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 40, [None, ends, pa.py_buffer(b"ab" * 39 + b"\xff\xfe")])
    years = pa.array([10**8] * 40, pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"image": ["a.png"] * 40, "caption": texts, "taken": years}), "odd.parquet")
    rows = listing.open("odd.parquet").rows("train")
    assert [row.texts for row in rows] == [("ab",), ()]
    assert rows[1].ref.startswith("bad line: row 39: caption cannot be read: 'utf-8' codec")
    with pytest.raises(UniclError, match="40 of 40 lines cannot be read; row 0: taken cannot be read: date value out"):
        listing.texts("odd.parquet?caption=taken")


def test_a_parquet_file_without_rows_or_its_end_is_one_line(listing):
    pq.write_table(pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), "none.parquet")
    with pytest.raises(UniclError, match=r"none\.parquet: no rows"):
        listing.texts("none.parquet")
    data = (listing.root / "none.parquet").read_bytes()
    for name, part in {"cut": data[:-9], "empty": b"", "locked": data[:-4] + b"PARE"}.items():
        listing.write(f"{name}.parquet", part)
        with pytest.raises(UniclError, match=rf"{name}\.parquet: not a readable Parquet file: .+"):
            listing.texts(f"{name}.parquet")
