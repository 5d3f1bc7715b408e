"""Lists in Parquet: every kind of bytes is an image, and none gets into a message."""

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
