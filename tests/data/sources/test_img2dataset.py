"""Outputs of img2dataset: the layout of its version 1.47.0 in its three formats, written here as it writes them."""

import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys import prepared

from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError

STATUSES = ("success", "failed_to_download", "success", "failed_to_resize", "success", "success")
NULL_CAPTION = 4


def photo(number):
    out = io.BytesIO()
    Image.frombytes("RGB", (32, 32), random.Random(number).randbytes(3072)).save(out, "JPEG")
    return out.getvalue()


def records(shard):
    rows = []
    for n, status in enumerate(STATUSES):
        about = {
            "label": n, "caption": None if n == NULL_CAPTION else f"caption {shard} {n}",
            "url": f"http://example.org/{shard}/{n} b.jpg", "key": f"{shard:05d}{n:04d}", "status": status,
        }  # fmt: skip
        rows.append(about | {"error_message": None if status == "success" else "HTTP Error 404: Not Found"})
    return rows


def write_output(folder, form, shards=2):
    """Write the shards of one run; the tar has its members in the order in which they came in."""
    folder.mkdir()
    for shard in range(shards):
        rows = records(shard)
        kept = [(row, photo(100 * shard + n)) for n, row in enumerate(rows) if row["status"] == "success"]
        files = {}
        for row, data in reversed(kept):
            texts = {"jpg": data, "txt": (row["caption"] or "").encode(), "json": json.dumps(row).encode()}
            files |= {f"{row['key']}.{ending}": value for ending, value in texts.items()}
        if form == "webdataset":
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        if form == "files":
            (folder / f"{shard:05d}").mkdir()
            for name, data in files.items():
                (folder / f"{shard:05d}" / name).write_bytes(data)
        if form == "parquet":
            images = {row["key"]: data for row, data in kept}
            rows = [row | {"jpg": images.get(row["key"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": len(rows), "status_dict": {}}))
    return folder


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_a_corpus_has_what_was_downloaded_and_the_rest_is_counted(form, tmp_path, capsys):
    folder = write_output(tmp_path / "cc3m", form)
    (folder / "00002.parquet").write_bytes(b"a shard that was killed")
    report, notes = prepared(capsys, "--captions", folder, "--holdout", "0", "-o", tmp_path / "c", "--workers", "1")
    assert "cc3m: 4 of 12 URLs have no image (failed_to_download 2, failed_to_resize 2)" in notes
    assert "cc3m: shards without statistics are left out, as unfinished: 00002" in notes
    assert "missing from their shards" not in notes
    assert report["rejected"] == {"no_text": 2}
    table = open_corpus(tmp_path / "c").table("train", "captions")
    found = {(sample := table.read(n)).key: sample for n in range(len(table))}
    urls = dict(zip(table.column("key").to_pylist(), table.column("url").to_pylist(), strict=True))
    assert set(found) == {f"cc3m:{shard:05d}/{shard:05d}{n:04d}" for shard in range(2) for n in (0, 2, 5)}
    for key, sample in found.items():
        shard, n = int(key[-9:-4]), int(key[-4:])
        assert sample.image == photo(100 * shard + n)
        assert sample.texts == (f"caption {shard} {n}",)
        assert urls[key] == f"http://example.org/{shard}/{n} b.jpg"


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_a_worker_needs_the_row_alone_and_sees_an_edit(form, tmp_path):
    folder = write_output(tmp_path / "out", form)
    first = open_source(str(folder), "images")
    row = pickle.loads(pickle.dumps(first.rows("train")[5]))
    assert row.texts == ()
    worker = open_source(str(folder), "images")
    assert worker.read(row) == {"image": photo(102)}
    assert worker.stamp(row) > 0
    extent = worker.extent(row)
    if extent:
        assert Path(extent.path).read_bytes()[extent.offset :][: extent.size] == photo(102)
    for file in folder.rglob("00001*"):
        if file.is_file():
            file.unlink()
    assert worker.stamp(row) == -1


def test_an_image_that_is_gone_is_counted(tmp_path):
    folder = write_output(tmp_path / "out", "files")
    (folder / "00000" / "000000000.jpg").unlink()
    source = open_source(str(folder), "captions")
    assert len(source.rows("train")) == 7
    assert "out: 1 images are missing from their shards" in source.notes


def test_what_has_no_images_or_no_captions_is_named(tmp_path):
    folder = write_output(tmp_path / "out", "dummy")
    with pytest.raises(UniclError, match="its images are neither in a tar, nor in a folder, nor in the table"):
        open_source(str(folder), "captions").rows("train")
    with pytest.raises(UniclError, match="has captions and no classes") as caught:
        open_source(str(folder), "labels")
    assert "label=json:FIELD" in caught.value.hint
    tars = write_output(tmp_path / "tars", "webdataset")
    with pytest.raises(UniclError, match="has no column 'alt'") as caught:
        open_source(f"{tars}?caption=alt", "captions").rows("train")
    assert "caption=COLUMN" in caught.value.hint
    with (tars / "00001.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(UniclError, match=r"00001\.tar: is not a complete tar"):
        open_source(str(tars), "captions").rows("train")


def test_a_parquet_list_of_laion_is_a_list_of_urls(tmp_path):
    path = tmp_path / "part-00000.parquet"
    rows = [{"SAMPLE_ID": n, "URL": f"https://x.org/{n}.jpg", "TEXT": f"text {n}", "NSFW": "UNLIKELY"} for n in (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_source(str(path), "captions")
    assert [(source.url(row), row.texts) for row in source.rows("train")] == [
        (row["URL"], (row["TEXT"],)) for row in rows
    ]
