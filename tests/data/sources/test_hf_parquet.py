"""Parquet data sets in the hub's layout: read where they lie, row by row, with one row group in memory."""

import io
import json

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.pictures import ImageError
from unicl_cli.data.sources import hf_parquet
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError

FEATURES = {"img": Picture(), "label": ClassLabel(names=["cat", "dog"]), "caption": Value("string")}


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def split(first, rows, **more):
    columns = {
        "img": [{"bytes": png(first + n), "path": None} for n in range(rows)],
        "label": [n % 2 for n in range(rows)],
        "caption": [f"number {first + n}" for n in range(rows)],
    }
    return Dataset.from_dict(columns | more, features=Features(FEATURES))


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A data set of two files of train and one of test, with row groups of three rows; the cache is empty."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pets" / "data"
    folder.mkdir(parents=True)
    for name, first, rows in (
        ("train-00000-of-00002", 0, 10),
        ("train-00001-of-00002", 10, 7),
        ("test-00000-of-00001", 20, 4),
    ):
        split(first, rows).to_parquet(str(folder / f"{name}.parquet"), batch_size=3)
    return tmp_path / "pets"


def test_rows_of_all_files_are_read_in_any_order_and_nothing_is_copied(layout, tmp_path):
    assert pq.ParquetFile(layout / "data" / "test-00000-of-00001.parquet").metadata.num_row_groups == 2
    source = open_source(str(layout), "captions")
    rows = source.rows("train")
    assert [row.texts for row in rows] == [(f"number {n}",) for n in range(17)]
    assert rows[12].ref == "data/train-00001-of-00002.parquet?image=img#2"
    for at in (16, 0, 9, 10, 3):
        assert source.read(rows[at])["image"] == png(at)
    assert [row.label for row in open_source(str(layout), "labels").rows("test")] == [0, 1, 0, 1]
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_corpus_from_one_continues_where_it_stopped(layout, tmp_path):
    command = ["prepare", "--captions", str(layout), "--holdout", "0", "-o", str(tmp_path / "c"), "--shard-mb", "1"]
    assert main(command) == 0
    shards = sorted((tmp_path / "c" / "data").rglob("*.parquet"))
    before = [shard.read_bytes() for shard in shards]
    marker = next((tmp_path / "c" / "parts").glob("train.*.json"))
    marker.unlink()
    (tmp_path / "c" / "manifest.json").unlink()
    assert main(command) == 0
    assert [shard.read_bytes() for shard in shards] == before
    sizes = json.loads((tmp_path / "c" / "plan.json").read_text())["sources"][0]["rows"]
    assert sizes == {"train": 17, "test": 4}


def test_few_files_are_open_with_one_row_group_each(layout):
    source = open_source(str(layout), "captions")
    for row in source.rows("train"):
        source.read(row)
    opened = hf_parquet.open_images(str(layout / "data" / "train-00000-of-00002.parquet"), "img")
    assert opened._group.cache_info().maxsize == opened._group.cache_info().currsize == 1


def test_a_cell_without_an_image_and_a_damaged_file_are_told(layout):
    empty = split(0, 2, img=[None, {"bytes": png(1), "path": None}])
    empty.to_parquet(str(layout / "data" / "test-00000-of-00001.parquet"))
    source = open_source(str(layout), "captions")
    first, second = source.rows("test")
    with pytest.raises(ImageError):
        source.read(first)
    assert source.read(second)["image"] == png(1)
    (layout / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UniclError, match=r"not a readable Parquet file|cannot read it"):
        open_source(str(layout), "captions").rows("test")


def test_a_split_that_lacks_a_column_has_no_labels(layout):
    split(20, 4).remove_columns("label").to_parquet(str(layout / "data" / "test-00000-of-00001.parquet"))
    source = open_source(str(layout), "labels")
    assert [row.label for row in source.rows("test")] == [-1] * 4
    assert [row.label for row in source.rows("train")][:3] == [0, 1, 0]


def test_files_that_belong_to_no_split_are_told(layout):
    split(30, 2).to_parquet(str(layout / "data" / "other.parquet"))  # not named like a shard, as the others are
    source = open_source(str(layout), "captions")
    assert source.splits == ["train", "test"]
    assert source.notes == ["pets: Parquet files that belong to no split are left out (1): data/other.parquet"]
