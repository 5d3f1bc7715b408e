"""Data sets by name: miniature copies in the official layouts, and what is said of files that lack or are odd."""

import bz2
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from image_server import draw_png

from unicl_cli.cli import main
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.resolve import name_sources, open_source
from unicl_cli.data.sources.zip_images import ZipImages
from unicl_cli.data.wordnet import synsets
from unicl_cli.errors import UniclError

URL = "http://a.org/{}.jpg"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNICL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def write_tar(file: Path, members: dict[str, bytes], mode: str = "w") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_lines(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def texts_of(source, split: str = "train") -> list[tuple[str, tuple[str, ...]]]:
    return [(source.url(row), row.texts) for row in source.rows(split)]


def read_all(src: str, kind: str) -> None:
    source = open_source(src, kind)
    for split in source.splits:
        source.rows(split)


def told_of(src: str, kind: str = "captions") -> str:
    with pytest.raises(UniclError) as caught:
        read_all(src, kind)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


# -- lists of URLs ----------------------------------------------------------------------------------------------------


def test_gcc3m_has_captions_first_and_gcc12m_the_reverse(data_dir):
    write_lines(data_dir / "Train_GCC-training.tsv", f'a "quoted dog\t{URL.format(1)}', f"image\t{URL.format(2)}")
    write_lines(data_dir / "gcc12m" / "cc12m.tsv", f"{URL.format(4)}\turl", f"{URL.format(5)}\tcaption")
    small = open_source("cc3m", "captions")
    assert small.splits == ["train"]
    assert texts_of(small) == [(URL.format(1), ('a "quoted dog',)), (URL.format(2), ("image",))]
    assert "gcc3m: has no val rows: Validation_GCC-1.1.0-Validation.tsv is not there" in small.notes
    write_lines(data_dir / "gcc3m" / "Validation_GCC-1.1.0-Validation.tsv", f"val\t{URL.format(3)}")
    small = open_source("gcc3m", "captions")
    assert small.splits == ["train", "val"]
    assert texts_of(small, "val") == [(URL.format(3), ("val",))]
    assert {row.key.partition("/")[0] for row in small.rows("val")} == {"val"}
    assert open_source("gcc3m?part=val", "captions").splits == ["val"]
    assert "has no part 'test'" in told_of("gcc3m?part=test")
    assert texts_of(open_source("GCC12M", "captions")) == [(URL.format(4), ("url",)), (URL.format(5), ("caption",))]
    assert [spec[0::2] for spec in name_sources((), ("cc15m?limit=3",), ())] == [
        ("gcc3m", "gcc3m?limit=3"),
        ("gcc12m", "gcc12m?limit=3"),
    ]


def test_swapped_columns_are_told(data_dir):
    write_lines(data_dir / "cc12m.tsv", *(f"caption {n}\t{URL.format(n)}" for n in range(3)))
    assert "holds texts and column" in told_of("gcc12m")


def write_sbu(data_dir: Path, urls: bytes, captions: bytes) -> None:
    members = {"dataset/SBU_captioned_photo_dataset_urls.txt": urls, "dataset/readme": b"x"}
    members |= {"dataset/SBU_captioned_photo_dataset_captions.txt": captions}
    write_tar(data_dir / "SBUCaptionedPhotoDataset.tar.gz", members, "w:gz")


def test_sbu_has_two_line_aligned_files(data_dir):
    urls = "".join(f"{URL.format(n)}\n" for n in range(3)).encode()
    write_sbu(data_dir, urls, "one\tdog\r\nzwei größer\nthree".encode())
    source = open_source("sbu?verify=false", "captions")
    assert texts_of(source) == [(URL.format(n), (text,)) for n, text in enumerate(("one\tdog", "zwei größer", "three"))]
    assert source.notes == ["sbu train: has 3 rows; the published data set has about 1,000,000"]
    assert "md5 is" in told_of("sbu")
    assert "expected 9aec147b3488753cf758b4d493422285" in told_of("sbu")
    write_sbu(data_dir, urls, b"one\ntwo\n")
    assert "*_captions.txt ends before line 3, which the other file has" in told_of("sbu?verify=false")
    write_sbu(data_dir, urls, b"one\n\xff\xfe\nthree\n")
    assert "1 of 3 lines cannot be read; line 2: byte 1 is not UTF-8" in told_of("sbu?verify=false")
    write_tar(data_dir / "SBUCaptionedPhotoDataset.tar.gz", {"a_urls.txt": urls}, "w:gz")
    assert "has no file *_captions.txt" in told_of("sbu?verify=false")
    (data_dir / "SBUCaptionedPhotoDataset.tar.gz").write_bytes(b"<html>")
    assert "incomplete or not a .tar.gz" in told_of("sbu?verify=false")


def metadata(photo: int, title: str, description: str, *, marker: int = 0, columns: int = 25) -> str:
    head = [str(photo)] if columns == 23 else [str(photo % 7), str(photo), f"hash{photo}"]
    middle = ["1@N00", "nick", "2012", "1331", "Canon+X"] if columns == 25 else ["1@N00", "nick", "2012", "1331", "X"]
    places = ["a,b", "", "", "", "", "http://page"]
    return "\t".join([*head, *middle, title, description, *places, URL.format(photo), *["x"] * 7, str(marker)])


@pytest.mark.parametrize("columns", [25, 23])
def test_yfcc14m_joins_the_subset_with_the_metadata_and_undoes_its_quoting(data_dir, columns):
    made = [
        metadata(70, "Two+dogs%21", "A%0Alake+%26+hills", columns=columns),
        metadata(71, "Not+chosen", "", columns=columns),
        metadata(5, "", "Only+a+description%3A+100%25", columns=columns),
        metadata(9_999_999_999, "IMG+1", "Gr%C3%B6%C3%9Fer", columns=columns),
    ]
    assert {line.count("\t") + 1 for line in made} == {columns}
    write_lines(data_dir / "yfcc100m_subset_data.tsv", "3\t5\tx", "1\t9999999999\ty", "0\t70\tz")
    write_lines(data_dir / "yfcc100m_dataset", *made)
    expected = [
        (URL.format(70), ("Two dogs!", "A\nlake & hills")),
        (URL.format(5), ("Only a description: 100%",)),
        (URL.format(9_999_999_999), ("IMG 1", "Größer")),
    ]
    source = open_source("yfcc14m", "captions")
    found = source.rows("train")
    assert [(source.url(row), tuple(t for t in row.texts if t)) for row in found] == expected
    assert [row.key for row in found] == ["70", "5", "9999999999"]
    assert any("OpenAI's subset" in note for note in source.notes)
    plain = (data_dir / "yfcc100m_dataset").read_bytes()
    (data_dir / "yfcc100m_dataset").unlink()
    assert "yfcc100m_subset_data.tsv is there, but not yfcc100m_dataset or yfcc100m_dataset.bz2" in told_of("yfcc14m")
    (data_dir / "yfcc100m_dataset.bz2").write_bytes(bz2.compress(plain))
    assert [row.texts for row in open_source("yfcc14m", "captions").rows("train")] == [row.texts for row in found]


def test_metadata_that_does_not_belong_to_the_list_is_refused(data_dir):
    write_lines(data_dir / "yfcc100m_subset_data.tsv", "0\t70\tz", "1\t71\tz")
    write_lines(data_dir / "yfcc100m_dataset", metadata(70, "a", "b"), metadata(71, "c", "d", marker=1))
    assert "1 of 2 lines cannot be read; line 2: a video" in told_of("yfcc14m")
    write_lines(data_dir / "yfcc100m_dataset", metadata(70, "a", "b"))
    assert "photo 71 is not in yfcc100m_dataset" in told_of("yfcc14m")
    write_lines(data_dir / "yfcc100m_dataset", "70,a,b")
    assert "line 1 has 1 columns; YFCC100M's metadata has 25 or 23" in told_of("yfcc14m")
    write_lines(data_dir / "yfcc100m_dataset", metadata(70, "a", "b"))
    write_lines(data_dir / "yfcc100m_subset_data.tsv", "0\t70\tz", "0\t70\tz")
    assert "photo 70 is listed twice" in told_of("yfcc14m")
    write_lines(data_dir / "yfcc100m_subset_data.tsv", "line\tphoto\thash")
    assert "line 1 has no photo identifier" in told_of("yfcc14m")


# -- images in archives -----------------------------------------------------------------------------------------------


def write_coco(place: Path, split: str, names: list[str], method: int = zipfile.ZIP_STORED) -> None:
    images = [{"id": n, "file_name": f"{name}.jpg", "height": 24, "width": 24} for n, name in enumerate(names)]
    notes = [
        {"id": 10 * n + k, "image_id": n, "caption": f"a dog {name} {k}"}
        for n, name in enumerate(names)
        for k in range(5)
    ]
    document = {"info": {}, "licenses": [], "images": images, "annotations": notes}
    write_lines(place / "annotations" / f"captions_{split}2017.json", json.dumps(document))
    members = {f"{split}2017/{name}.jpg": draw_png(int(name)) for name in names}
    write_zip(place / f"{split}2017.zip", members, method)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_coco_has_five_captions_an_image_and_its_images_stay_in_the_zip(data_dir, method):
    write_coco(data_dir / "coco", "train", ["0001", "0002"], method)
    write_coco(data_dir / "coco", "val", ["0003"], method)
    source = open_source("coco", "captions")
    assert source.splits == ["train", "val"]
    rows = [*source.rows("train"), *source.rows("val")]
    assert [len(row.texts) for row in rows] == [5, 5, 5]
    assert [source.read(row)["image"] for row in rows] == [draw_png(n) for n in (1, 2, 3)]
    assert [source.stamp(row) for row in rows] == [len(draw_png(n)) for n in (1, 2, 3)]
    extent = source.extent(rows[0])
    assert (extent is None) == (method == zipfile.ZIP_DEFLATED)
    if extent:
        content = Path(extent.path).read_bytes()
        assert content[extent.offset :][: extent.size] == draw_png(1)
    assert source.notes == [
        "coco train: has 2 rows; the published data set has 118,287",
        "coco val: has 1 row; the published data set has 5,000",
    ]
    assert main(["prepare", "--captions", "coco", "-o", "c", "--workers", "1"]) == 0
    assert main(["prepare", "--verify", "-o", "c"]) == 0


def test_unpacked_images_and_a_folder_of_its_name_here_count_too(data_dir, monkeypatch):
    write_coco(data_dir / "coco", "train", ["0001"])
    with zipfile.ZipFile(data_dir / "coco" / "train2017.zip") as archive:
        archive.extractall(data_dir / "coco")
    (data_dir / "coco" / "train2017.zip").unlink()
    monkeypatch.setenv("UNICL_DATA", "")
    monkeypatch.chdir(data_dir)
    source = open_source("coco", "captions")
    assert source.read(source.rows("train")[0])["image"] == draw_png(1)


def test_a_folder_of_the_users_own_is_not_the_data_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNICL_DATA", "")
    for name in ("flowers", "flickr30k", "gcc15m"):
        (tmp_path / name / "rose").mkdir(parents=True)
        (tmp_path / name / "rose" / "1.png").write_bytes(draw_png(1))
        (spec,) = name_sources((name,), (), ())
        source = open_source(spec.src, spec.kind)
        assert [c.key for c in source.classes] == ["rose"]
        assert len(source.rows("train")) == 1
        assert source.notes == []


def test_a_zip_is_read_with_its_faults_told_one_by_one(tmp_path):
    file = tmp_path / "a.zip"
    write_zip(file, {"top/1.png": draw_png(1), "top/2.png": draw_png(2), "__MACOSX/top/._1.png": b"x"})
    images = ZipImages(file)
    assert images.read("1.png") == images.read("top/1.png") == images.read("top\\1.png") == draw_png(1)
    with pytest.raises(FileNotFoundError):
        images.read("other/1.png")
    data = bytearray(file.read_bytes())
    data[data.index(draw_png(2)) + 20] ^= 1
    file.write_bytes(data)
    assert ZipImages(file).read("1.png") == draw_png(1)
    with pytest.raises(Exception, match="checksum"):
        ZipImages(file).read("2.png")
    file.write_bytes(data[:-40])
    with pytest.raises(UniclError, match="not a whole zip"):
        ZipImages(file).read("1.png")
    write_zip(tmp_path / "b.zip", {"a/1.png": draw_png(1), "b/2.png": draw_png(2)})
    assert ZipImages(tmp_path / "b.zip").find("1.png") is None, "two folders: a name alone may mean either"


def test_flickr30k_is_read_by_karpathys_splits_or_by_its_token_file(data_dir):
    folder = data_dir / "flickr30k" / "flickr30k-images"
    folder.mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(draw_png(n))
    write_lines(
        data_dir / "flickr30k" / "results_20130124.token",
        *(f"{n}.jpg#{k}\tA dog {n} {k} ." for n in range(3) for k in range(5)),
    )
    source = open_source("flickr30k", "captions")
    assert (source.splits, [len(row.texts) for row in source.rows("train")]) == (["train"], [5, 5, 5])
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": f"text {k}"} for k in range(5)]}
        for n, split in enumerate(("train", "val", "test"))
    ]
    write_lines(data_dir / "flickr30k" / "dataset_flickr30k.json", json.dumps({"images": images, "dataset": "x"}))
    source = open_source("flickr30k", "captions")
    assert source.splits == ["train", "val", "test"]
    rows = [row for split in source.splits for row in source.rows(split)]
    assert [source.read(row)["image"] for row in rows] == [draw_png(n) for n in range(3)]
    assert rows[1].texts == tuple(f"text {k}" for k in range(5))
    assert source.notes == ["flickr30k: has 3 rows; the published data set has about 31,783"]


# -- evaluation sets --------------------------------------------------------------------------------------------------


def write_benchmark(folder: Path, shards: list[dict[str, bytes]], **files: str) -> None:
    for number, members in enumerate(shards):
        write_tar(folder / "test" / f"{number}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)


def sample(number: int, label: int, ending: str = "webp") -> dict[str, bytes]:
    return {f"s{number:03d}.{ending}": draw_png(number), f"s{number:03d}.cls": str(label).encode()}


def test_an_exported_set_has_its_labels_names_and_templates(data_dir):
    names, templates = "cat\nsea dog\ncat\n", "a {c}\na photo of a {c}.\n"
    shards = [sample(0, 1) | sample(1, 2, "png"), sample(2, 0, "jpg")]
    write_benchmark(data_dir / "wds_vtab-pets", shards, classnames=names, zeroshot_classification_templates=templates)
    source = open_source("oxford-iiit-pet", "labels")
    assert source.splits == ["test"]
    rows = source.rows("test")
    assert [row.label for row in rows] == [1, 2, 0]
    assert [source.read(row)["image"] for row in rows] == [draw_png(n) for n in range(3)]
    assert [c.key for c in source.classes] == ["cat #0", "sea dog", "cat #2"]
    assert [c.names for c in source.classes] == [("cat",), ("sea dog",), ("cat",)]
    assert source.templates == ("a {c}", "a photo of a {c}.")
    assert source.notes == [
        "pets test: has 3 rows; the published data set has 3,669",
        "pets: has 3 classes; the published data set has 37",
    ]
    assert open_source(str(data_dir / "wds_vtab-pets"), "labels").rows("test") == rows
    assert main(["prepare", "--labels", "pets", "-o", "c", "--workers", "1"]) == 0
    assert main(["prepare", "--verify", "-o", "c"]) == 0


def test_a_retrieval_set_has_a_caption_a_line(data_dir):
    members = {"a.jpg": draw_png(1), "a.txt": b"one\n\ntwo\n", "b.c.jpg": draw_png(2), "b.txt": b"three"}
    members = {name.replace("b.c.", "b."): content for name, content in members.items()}
    write_benchmark(data_dir / "wds_flickr8k", [members], dataset_type="retrieval\n")
    source = open_source("flickr8k", "captions")
    assert [row.texts for row in source.rows("test")] == [("one", "two"), ("three",)]
    assert "flickr8k: no labels" in told_of("flickr8k", "labels")
    assert "dataset_type.txt says retrieval" in told_of(str(data_dir / "wds_flickr8k"), "labels")
    (data_dir / "wds_flickr8k" / "dataset_type.txt").write_text("multilabel")
    assert "dataset_type.txt says multilabel, which --captions cannot read" in told_of("flickr8k")


def test_the_thousand_classes_of_imagenet_have_its_synsets_as_keys(data_dir):
    from unicl_cli.data.wordnet import names_of_synset

    names = "".join(f"{names_of_synset(key)[0]}\n" for key in synsets())
    write_benchmark(data_dir / "wds_imagenetv2", [sample(0, 134)], classnames=names)
    source = open_source("imagenetv2", "labels")
    assert [c.key for c in source.classes] == list(synsets())
    assert source.classes[134].names[0] != source.classes[517].names[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "test" / "1.tar").unlink(), "1.tar: missing: "),
        (lambda d: (d / "classnames.txt").write_text("cat\n"), "label '1' of s000 has no name: classnames.txt has 1"),
        (lambda d: (d / "classnames.txt").write_text("cat\n\ndog\n"), "line 2 is empty"),
        (lambda d: (d / "classnames.txt").unlink(), "classnames.txt: no such file"),
        (lambda d: write_tar(d / "test" / "0.tar", {"a.cls": b"0"}), "a has no image"),
        (lambda d: write_tar(d / "test" / "0.tar", {"a.png": b"0"}), "a has no cls"),
        (lambda d: write_tar(d / "test" / "0.tar", {"a.png": b"0", "a.cls": b"-1"}), "label '-1' of a has no name"),
        (lambda d: (d / "test" / "0.tar").write_bytes(b"<html>"), "0.tar: incomplete or not a tar"),
        (lambda d: (d / "test" / "nshards.txt").write_text("many"), "not a number of shards"),
    ],
    ids=["shard", "short names", "gap", "no names", "no image", "no label", "negative", "html", "count"],
)
def test_a_damaged_export_is_named(change, message, data_dir):
    write_benchmark(data_dir / "mnist", [sample(0, 1), sample(1, 0)], classnames="zero\none\n")
    change(data_dir / "mnist")
    assert message in told_of("mnist", "labels")


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_every_entry_is_sound(data_dir):
    names = [name for of in catalogue.known_datasets().values() for name in (of.name, *of.aliases)]
    assert len(names) == len(set(names))
    for dataset in catalogue.known_datasets().values():
        assert all(len(file.md5) in (0, 32) for file in dataset.files)
        assert all(name in catalogue.known_datasets() for name in dataset.includes)
        if dataset.is_built_in or dataset.includes:
            continue
        kind = "captions" if dataset.kind == "captions" else "labels"
        told = told_of(dataset.name, kind)
        assert f"{dataset.name}: " in told
        assert "not found (looked in " in told
        assert told.endswith(f"then run: unicl prepare --{kind} {dataset.name} --data-dir {data_dir}")
        assert all(file.md5 in told and file.name in told for file in dataset.files)


def test_the_list_has_eighty_columns_and_its_json_the_facts(capsys):
    assert main(["prepare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = (line for line in lines if line.startswith("gcc12m"))
    assert line.split()[1:6] == ["captions", "12.4", "M", "2.71", "GB"]
    assert main(["prepare", "--list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "unicl/prepare-list/1"
    found = {entry["name"]: entry for entry in document["datasets"]}
    assert found.keys() == catalogue.known_datasets().keys()
    assert found["cifar10"]["files"][0]["md5"] == "c58f30108f718f92721af3b95e74349a"
    assert found["pets"]["hub"] == "clip-benchmark/wds_vtab-pets"
    assert found["gcc15m"]["includes"] == ["gcc3m", "gcc12m"]


def test_a_file_with_the_published_md5_is_taken(data_dir, monkeypatch):
    write_sbu(data_dir, URL.format(1).encode(), b"one")
    known = catalogue.known_datasets()["sbu"]
    md5 = hashlib.md5((data_dir / known.files[0].name).read_bytes()).hexdigest()
    changed = known.model_copy(update={"files": (known.files[0].model_copy(update={"md5": md5}),)})
    monkeypatch.setitem(catalogue.known_datasets(), "sbu", changed)
    assert texts_of(open_source("sbu", "captions")) == [(URL.format(1), ("one",))]
