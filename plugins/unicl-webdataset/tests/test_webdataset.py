"""The source against the webdataset library's own reader, through `prepare`, and on damaged and odd tars."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as library
from PIL import Image
from unicl_webdataset import webdataset
from unicl_webdataset.shards import expand

from unicl_cli.api import NO_LABEL, UniclError
from unicl_cli.cli import main

COUNT = 23


def encoded_image(n: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20 + n, 16), (10 * n % 256, 99, 7)).save(out, form)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, form) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Shards of the library's own writer: images, captions, class numbers."""
    with library.ShardWriter(str(tmp_path / "shard-%06d.tar"), maxcount=7, verbose=0) as writer:
        for n in range(COUNT):
            texts = {"txt": f"image number {n} – größer", "cls": n % 3, "json": {"kind": "odd" if n % 2 else "even"}}
            writer.write({"__key__": f"{n:05d}", "png": encoded_image(n), **texts})
    return tmp_path


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """Write a folder like img2dataset: numbered tars of jpg, json, txt, with tables and statistics beside them."""
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        for n in range(5):
            key, caption = f"{shard:05d}{n:04d}", f"caption {shard} {n}"
            about = {"caption": caption, "url": f"http://example.org/{n}.jpg", "key": key, "status": "success"}
            members += [(f"{key}.jpg", encoded_image(n, "JPEG")), (f"{key}.json", json.dumps(about).encode())]
            members += [(f"{key}.txt", caption.encode())]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"")
    return tmp_path


def read_by_the_library(pattern: str) -> list[dict[str, Any]]:
    return list(library.WebDataset(pattern, shardshuffle=False, empty_check=False))


def refused(**options: Any) -> str:
    given = {"kind": "labels", **options}
    with pytest.raises(UniclError) as caught:
        webdataset(**given).rows("train")
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


def test_every_sample_is_what_the_library_reads(written: Path):
    pattern = str(written / "shard-{000000..000003}.tar")
    theirs = read_by_the_library(pattern)
    names = written / "names.txt"
    names.write_text("ant\nbee\nclock face\n", encoding="utf-8")
    source = webdataset(path=pattern, kind="labels", classes=str(names))
    rows = source.rows("train")
    assert len(rows) == len(theirs) == COUNT
    for row, sample in zip(rows, theirs, strict=True):
        assert source.read(row) == {"image": sample["png"]}
        assert row.key.endswith(f"/{sample['__key__']}")
        assert row.texts == (sample["txt"].decode(),)
        assert row.label == int(sample["cls"])
    assert [item.names for item in source.classes] == [("ant",), ("bee",), ("clock face",)]
    assert rows == webdataset(path=pattern, kind="labels", classes=str(names)).rows("train"), "the same each time"
    assert len({row.key for row in rows}) == COUNT


def test_a_download_of_img2dataset_is_read_by_either_caption(downloaded: Path):
    theirs = read_by_the_library(str(downloaded / "{00000..00001}.tar"))
    for caption in ("txt", "json:caption"):
        source = webdataset(path=str(downloaded), kind="captions", caption=caption)
        rows = source.rows("train")
        assert [row.texts[0] for row in rows] == [sample["txt"].decode() for sample in theirs]
        assert [source.read(row)["image"] for row in rows] == [sample["jpg"] for sample in theirs]
        assert {row.label for row in rows} == {NO_LABEL}
    assert [row.texts for row in webdataset(path=str(downloaded), kind="images").rows("train")] == [()] * 10


def test_the_url_is_kept_and_a_sample_that_says_that_it_failed_is_counted(tmp_path: Path):
    members: list[tuple[str, bytes]] = []
    for n, status in enumerate(("success", "failed_to_resize", None)):
        about = {"url": f"http://example.org/{n} a.jpg"} | ({"status": status} if status else {})
        members += [(f"{n}.png", encoded_image(n)), (f"{n}.json", json.dumps(about).encode()), (f"{n}.txt", b"a text")]
    members += [("3.png", encoded_image(3)), ("3.txt", b"a text")]
    write_tar(tmp_path / "a b.tar", members)
    source = webdataset(path=str(tmp_path), kind="captions")
    rows = source.rows("train")
    assert [source.origin(row) for row in rows] == ["http://example.org/0 a.jpg", "http://example.org/2 a.jpg", None]
    assert [source.read(row)["image"] for row in rows] == [encoded_image(n) for n in (0, 2, 3)]
    assert all(source.stamp(row) == (tmp_path / "a b.tar").stat().st_size for row in rows)
    assert any("1 samples whose status is failed_to_resize" in note for note in source.notes)


def test_labels_may_be_names_in_json(written: Path):
    source = webdataset(path=str(written), kind="labels", label="json:kind", caption="none")
    assert [item.key for item in source.classes] == ["even", "odd"]
    rows = source.rows("train")
    assert [row.label for row in rows] == [n % 2 for n in range(COUNT)]
    assert {row.texts for row in rows} == {()}


def test_names_and_templates_beside_the_shards_are_taken(written: Path):
    (written / "classnames.txt").write_text("ant\nbee\ncat\n")
    (written / "zeroshot_classification_templates.txt").write_text("a {c}\na photo of a {c}\n")
    source = webdataset(path=str(written), kind="labels")
    assert [item.key for item in source.classes] == ["ant", "bee", "cat"]
    assert source.templates == ("a {c}", "a photo of a {c}")


def test_rows_and_a_source_made_anew_are_all_that_a_worker_needs(written: Path):
    first = webdataset(path=str(written), kind="captions")
    row = pickle.loads(pickle.dumps(first.rows("train")[9]))
    assert webdataset(path="/gone", kind="captions").read(row) == {"image": encoded_image(9)}
    assert first.stamp(row) == (written / "shard-000001.tar").stat().st_size
    path, offset, size = first.extent(row)
    assert Path(path).read_bytes()[offset : offset + size] == encoded_image(9)
    (written / "shard-000001.tar").unlink()
    assert first.stamp(row) == -1


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ],
)
def test_braces_are_those_of_the_library(pattern, names):
    import braceexpand

    assert expand(pattern) == names == list(braceexpand.braceexpand(pattern))


def test_what_is_no_plain_file_is_left_out_and_counted(tmp_path: Path):
    path = write_tar(
        tmp_path / "a.tar", [("one.png", encoded_image(1)), ("one.txt", b"one"), ("lone.txt", b"no image")]
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("two.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("/etc/three.png", "../four.png", "__meta__/five.png", "no-ending"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"1234"))
    source = webdataset(path=str(path), kind="captions")
    assert [row.texts for row in source.rows("train")] == [("one",)]
    assert source.notes == [
        "webdataset: 1 links and devices in the tars are skipped",
        "webdataset: 2 names outside the tar in the tars are skipped",
        "webdataset: 1 samples without an image in the tars are skipped",
    ]


def test_bad_tars_are_one_line_each(written: Path, tmp_path: Path):
    shard = written / "shard-000000.tar"
    names = {"label": "json:kind"}
    assert "no such file or folder" in refused(path=str(written / "shard-{000000..000009}.tar"))
    assert "no tars found" in refused(path=str(tmp_path / "x*.tar"))
    packed = write_tar(tmp_path / "packed" / "a.tar.gz", [("one.png", encoded_image(1))], "w:gz")
    assert (
        "compressed tar cannot be read at random positions | decompress it first, for example with gunzip a.tar.gz"
        in (refused(path=str(packed.parent)))
    )
    disguised = packed.rename(packed.with_name("b.tar"))
    assert "is not a complete tar" in refused(path=str(disguised))
    cut = tmp_path / "packed" / "cut.tar"
    cut.write_bytes(shard.read_bytes()[:5000])
    assert "cut.tar: is not a complete tar" in refused(path=str(cut), **names)
    (written / "sizes.json").write_text(json.dumps({"shard-000000.tar": 8, "shard-000001.tar": 7}))
    assert "holds 7 samples, sizes.json says 8" in refused(path=str(written), **names)
    (written / "sizes.json").write_text("[")
    assert "sizes.json: is not a table of sizes" in refused(path=str(written), **names)
    twice = write_tar(tmp_path / "twice.tar", [("one.png", encoded_image(1)), ("one.png", encoded_image(2))])
    assert "duplicate member one.png" in refused(path=str(twice))


def test_numbers_take_the_names_of_their_ids(written: Path, tmp_path: Path):
    names = tmp_path / "names.json"
    names.write_text('{"2": "cat", "0": "ant", "1": "bee"}')
    source = webdataset(path=str(written), kind="labels", classes=str(names))
    lines = webdataset(path=str(written), kind="labels", classes=str(written / "names.txt"))
    (written / "names.txt").write_text("ant\nbee\ncat\n")
    assert source.classes == lines.classes
    assert source.rows("train") == lines.rows("train")
    assert "labels are not positions" in refused(path=str(written), classes=str(names), first=1)


def test_bad_labels_and_captions_are_one_line_each(written: Path, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    assert "labels are numbers (0 … 2), but no file names the classes" in refused(path=str(written))
    assert f"label 2 is not in {names} (2 names)" in refused(path=str(written), classes=str(names))
    assert "no such file of class names" in refused(path=str(written), classes=str(tmp_path / "none.txt"))
    names.write_text("ant\nant\n")
    assert "duplicate class 'ant'" in refused(path=str(written), classes=str(names))
    assert "no sample has a label at 'json:knd' | set label=ENDING or label=json:FIELD; the first sample of" in refused(
        path=str(written), label="json:knd"
    )
    assert "no sample has a caption at 'text'" in refused(path=str(written), kind="captions", caption="text")
    broken = write_tar(tmp_path / "broken" / "a.tar", [("one.png", encoded_image(1)), ("one.json", b"[1")])
    long = write_tar(tmp_path / "long" / "a.tar", [("one.png", encoded_image(1)), ("one.cls", b"7" * 5000)])
    assert "label of one has 5,000 letters (limit 1,000)" in refused(path=str(long))
    assert "one.json is not a JSON object" in refused(path=str(broken), label="json:kind")


def test_prepare_reads_shards(written: Path, tmp_path: Path):
    out = tmp_path / "corpus"
    source = f"webdataset?path={written}/shard-{{000000..000002}}.tar&test={written}/shard-000003.tar&label=json:kind"
    assert main(["prepare", "--labels", source, "-o", str(out), "--workers", "1"]) == 0
    table = pq.read_table(sorted((out / "data" / "test").glob("*.parquet"))[0]).to_pylist()
    theirs = {s["__key__"]: s for s in read_by_the_library(str(written / "shard-000003.tar"))}
    assert len(table) == len(theirs) == 2
    manifest = json.loads((out / "manifest.json").read_text())
    for row in table:
        sample = theirs[row["key"].rpartition("/")[2]]
        assert sample["txt"].decode() in json.dumps(row["texts"], ensure_ascii=False)
        assert bytes(row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]) == sample["png"]
    assert "odd" in json.dumps(manifest["classes"])


@pytest.mark.parametrize("where", ["cls", "json:label"])
def test_whole_numbers_written_as_floats_are_those_numbers(tmp_path: Path, where: str):
    labels = ["1.0", "0.0", "-1.0", "1.0"]
    members: list[tuple[str, bytes]] = []
    for n, label in enumerate(labels):
        members += [(f"{n}.png", encoded_image(n)), (f"{n}.cls", label.encode())]
        members += [(f"{n}.json", f'{{"label": {label}}}'.encode())]
    members += [("4.png", encoded_image(4)), ("4.json", b'{"label": NaN}')]
    write_tar(tmp_path / "a.tar", members)
    assert "labels are numbers" in refused(path=str(tmp_path / "a.tar"), label=where)
    (tmp_path / "classnames.txt").write_text("ant\nbee\n")
    source = webdataset(path=str(tmp_path / "a.tar"), kind="labels", label=where)
    assert [row.label for row in source.rows("train")] == [1, 0, NO_LABEL, 1, NO_LABEL]
    told = [note for note in source.notes if "written as floats" in note]
    floats = 4 if where == "cls" else 3  # a number -1.0 is none at once
    assert told == [f"webdataset: labels written as floats are taken as whole numbers: {floats}"]


def test_a_text_of_minus_one_is_no_label_and_a_fraction_is_none_either(tmp_path: Path):
    members: list[tuple[str, bytes]] = []
    for n, label in enumerate(("ant", "-1", "bee")):
        members += [(f"{n}.png", encoded_image(n)), (f"{n}.cls", label.encode())]
    source = webdataset(path=str(write_tar(tmp_path / "a.tar", members)), kind="labels")
    assert [row.label for row in source.rows("train")] == [0, NO_LABEL, 1]
    write_tar(tmp_path / "b.tar", [("0.png", encoded_image(0)), ("0.json", b'{"label": 0.5}')])
    assert "label of 0 is 0.5" in refused(path=str(tmp_path / "b.tar"), label="json:label")


def test_a_list_of_labels_is_a_set_when_it_is_asked_for(tmp_path: Path) -> None:
    values: list[Any] = [["cat", "sea_dog"], ["cat"], [], None, "owl", ["owl", "owl", "cat"], [-1]]
    members: list[tuple[str, bytes]] = []
    for n, value in enumerate(values):
        members += [(f"{n}.png", encoded_image(n)), (f"{n}.json", json.dumps({"tags": value}).encode())]
    write_tar(tmp_path / "a.tar", members)
    options: dict[str, Any] = {"path": str(tmp_path), "kind": "labels", "label": "json:tags"}
    assert "label of 0 is a list" in refused(path=str(tmp_path), label="json:tags")
    source = webdataset(**options, sets=True)
    rows = source.rows("train")
    assert [c.key for c in source.classes] == ["cat", "owl", "sea_dog"]
    assert [row.label_set() for row in rows] == [(0, 2), (0,), (), (), (1,), (0, 1), ()]
    assert [row.known for row in rows] == [None, None, ("",), None, None, None, None]
    assert source.notes == ["webdataset: 1 labels that a sample has twice in the tars are skipped"]
    write_tar(tmp_path / "a.tar", [("0.png", encoded_image(0)), ("0.json", b'{"tags": [0, 1, 0]}')])
    with pytest.raises(UniclError, match="has a mark for each of 3 classes"):
        webdataset(**options, sets=True).rows("train")
