"""One row per image: the image of a line decides, not its id."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unicl_cli.data.sources import join_lines
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def rows(tmp_path):
    """``rows("image,caption", lines, kind)``: the rows of a list of six images, by split and key, and its notes."""
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))

    def read(header, lines, kind="captions", options=""):
        (tmp_path / "list.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        source = open_source(f"{tmp_path / 'list.csv'}{options}", kind)
        found = {row.key: row for split in source.splits for row in source.rows(split)}
        return source, found

    return read


def test_lines_of_one_image_join_whatever_their_ids(rows):
    source, found = rows("id,image,caption", ["1,0.png,one", "2,1.png,two", "3,0.png,three", "4,./0.png,four"])
    assert {key: row.texts for key, row in found.items()} == {"0.png": ("one", "three", "four"), "1.png": ("two",)}
    assert source.notes == ["list.csv: merged lines with further captions of the same image: 2"]


def test_different_images_never_join_under_one_id(rows):
    source, found = rows("id,image,caption", ["a,0.png,one", "a,1.png,two", "b,2.png,three"])
    assert {key: row.texts for key, row in found.items()} == {"0.png": ("one",), "1.png": ("two",), "2.png": ("three",)}
    assert source.notes == ["list.csv: column 'id' repeats for different images, so rows are named by their images"]
    asked, found = rows("n,image,caption", ["a,0.png,one", "a,1.png,two"], options="?key=n")
    assert list(found) == ["0.png", "1.png"]
    assert "column 'n' repeats" in asked.notes[0]


def test_an_id_of_one_image_each_is_the_key(rows):
    _, found = rows("id,image,caption", ["a,0.png,one", "b,1.png,two", "a,0.png,three"])
    assert {key: row.texts for key, row in found.items()} == {"a": ("one", "three"), "b": ("two",)}


def test_a_column_that_is_the_label_is_no_key(rows):
    source, found = rows("Image,Id", ["0.png,w1", "1.png,w1", "2.png,w2"], "labels", "?label=Id")
    assert {key: source.classes[row.label].key for key, row in found.items()} == {
        "0.png": "w1",
        "1.png": "w1",
        "2.png": "w2",
    }
    assert source.notes == []


@pytest.mark.parametrize("kind", ["captions", "labels", "images"])
def test_an_equal_line_is_dropped_and_counted(rows, kind):
    source, found = rows("image,caption,label", ["0.png,one,x", "1.png,two,y", "0.png,one,x", "0.png,one,x"], kind)
    assert sorted(found) == ["0.png", "1.png"]
    assert source.notes == ["list.csv: dropped lines that repeat an earlier one (same image, nothing new): 2"]


def test_a_caption_that_is_there_already_is_not_added_again(rows):
    _, found = rows("image,caption", ["0.png,Un yak.", "0.png,A yak.", "0.png,Un yak."])
    assert found["0.png"].texts == ("Un yak.", "A yak.")


def test_another_label_of_an_image_is_an_error_that_names_ten(rows):
    lines = [f"{n % 12}.png,{'xy'[n // 12]}" for n in range(24)]
    with pytest.raises(UniclError, match=r"list\.csv: 12 images have more than one label") as caught:
        rows("image,label", lines, "labels")
    assert caught.value.message.count(" and line ") == 10
    assert "line 2 and line 14 (0.png: x, y)" in caught.value.message
    with pytest.raises(UniclError, match="1 image has more than one label"):
        rows("id,image,label", ["1,0.png,x", "2,1.png,y", "3,0.png,y"], "labels")


def test_a_line_without_a_label_takes_that_of_its_image(rows):
    _, found = rows("image,label", ["0.png,", "1.png,x", "0.png,x"], "labels")
    assert {row.label for row in found.values()} == {0}


def test_an_image_in_two_splits_is_kept_out_of_train(rows):
    lines = ["0.png,one,train", "0.png,two,test", "1.png,three,train", "2.png,four,val", "2.png,five,train"]
    source, _ = rows("image,caption,split", lines)
    found = {split: [(row.key, row.texts) for row in source.rows(split)] for split in source.splits}
    assert found == {
        "train": [("1.png", ("three",))],
        "val": [("2.png", ("four", "five"))],
        "test": [("0.png", ("one", "two"))],
    }
    assert "list.csv: images with lines in several splits, kept in one (test, else val): 2" in source.notes


def test_captions_of_equal_images_inside_parquet_join(tmp_path):
    columns = {"id": ["a", "a", "b", "c"], "image": [png(1), png(2), png(1), b""], "caption": ["p", "q", "r", "s"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "p.parquet"), "captions")
    assert [(row.key, row.texts) for row in source.rows("train")] == [
        ("00000000", ("p", "r")),
        ("00000001", ("q",)),
        ("00000003", ("s",)),
    ]
    columns = {"image": [png(1), png(1)], "label": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    assert len(open_source(str(tmp_path / "l.parquet"), "labels").rows("train")) == 2


def test_images_whose_names_have_one_hash_stay_apart(rows, monkeypatch):
    lines = ["1,0.png,one", "2,1.png,two", "1,0.png,three", "3,2.png,four"]
    _, expected = rows("id,image,caption", lines)
    monkeypatch.setattr(join_lines, "hash_texts", lambda texts: np.zeros(len(list(texts)), np.uint64))
    _, found = rows("image,caption", [line[2:] for line in lines])
    assert {row.ref: row.texts for row in found.values()} == {row.ref: row.texts for row in expected.values()}


def test_a_conflict_of_labels_is_told_in_the_order_of_the_list(rows):
    lines = ["0.png,a", "1.png,a", "1.png,b", "0.png,b"]
    with pytest.raises(UniclError, match=r"2 images have more than one label: line 3 and line 4 .*; line 2 and line 5"):
        rows("image,label", lines, "labels")
