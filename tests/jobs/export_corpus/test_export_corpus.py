"""`export-corpus` read back by open_clip's loader, by `datasets`, and by what WebDataset means; and interruptions."""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from collections import Counter, defaultdict
from functools import partial
from inspect import signature

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toy_corpora import CLASSES, TEMPLATES, corpus
from toys import prepared

from unicl_cli.cli import main
from unicl_cli.contracts import ClassName
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import Stopped
from unicl_cli.jobs.export_corpus import export
from unicl_cli.jobs.export_corpus.export import ExportRequest, export_corpus
from unicl_cli.jobs.export_corpus.plan import cut_shards
from unicl_cli.jobs.export_corpus.samples import image_members

DISTANT = [ClassName("n1", ("crane", "bird")), ClassName("n2", ("crane",)), ClassName("n3", ("cup & saucer",))]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A corpus of label, caption and image rows in several row groups."""
    folder = tmp_path_factory.mktemp("mixed") / "c"
    corpus(folder, ("labels", "captions", "images"))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A corpus of images in all kinds of formats, one lying on its side, with one or several captions or a class."""
    root = tmp_path_factory.mktemp("photos")
    lines = []
    for n, ending in enumerate(("jpg", "png", "webp", "gif", "bmp", "tif", "jpg")):
        image = Image.effect_noise((40 + n, 32), 50).convert("RGB")
        exif = Image.Exif()
        exif[0x112] = 6 if n == 6 else 1
        image.save(root / f"{n}.{ending}", **({"exif": exif} if ending == "jpg" else {}))
        captions = [f"größe {n}", f"second text of {n}"] if n % 2 else f"only text of {n}"
        lines.append(json.dumps({"image": f"{n}.{ending}", "caption": captions}))
        (root / "folders" / f"kind {n % 2}").mkdir(parents=True, exist_ok=True)
        image.save(root / "folders" / f"kind {n % 2}" / f"{n}.png")
    (root / "list.jsonl").write_text("\n".join(lines))
    sources = ("--captions", str(root / "list.jsonl"), "--labels", str(root / "folders"))
    assert main(["prepare", "-q", *sources, "--holdout", "0.3", "-o", str(root / "c")]) == 0
    return root / "c"


def run(capsys, *argv, status=0):
    capsys.readouterr()
    assert main(["export-corpus", *map(str, argv)]) == status
    done = capsys.readouterr()
    return json.loads(done.out) if "--json" in argv else done.out, done.err


def samples(folder):
    """The members of each sample of the tars in a folder, by key."""
    found = defaultdict(dict)
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                assert ending not in found[key], "a key is unique in an export"
                found[key][ending] = tar.extractfile(member).read()
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
    return found


def all_rows(folder, splits=None):
    """The rows of a corpus by key, with their media."""
    opened = open_corpus(folder)
    tables = [opened.table(split, kind) for split in splits or opened.splits for kind in opened.kinds(split)]
    return {(row := table.read(n, media=True)).key: row for table in tables for n in range(len(table))}


def sums(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_each_row_is_one_sample_with_its_bytes_texts_and_labels(mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "MEGA", 1000)  # several tars
    document, _ = run(capsys, mixed, "-o", tmp_path / "out", "--shard-mb", 3, "--json")
    assert document["schema"] == "unicl/export-corpus/1"
    assert len(document["files"]) > 3
    rows = all_rows(mixed)
    found = samples(tmp_path / "out" / "train") | samples(tmp_path / "out" / "train-images")
    assert len(found) == len(rows) == document["rows"]
    for members in found.values():
        about = json.loads(members["json"])
        row = rows.pop(about["key"])
        assert members["png"] == row.image
        assert about["texts"] == list(row.texts)
        assert members.get("cls", b"-1") == str(row.label).encode()
        if row.texts:
            assert members["txt"].decode() == row.texts[0]
        elif row.labels:
            name = CLASSES[row.label].names[0]
            assert members["txt"].decode() == about["prompt"]
            assert about["prompt"] in [fill_template(template, name) for template in TEMPLATES]
            assert about["class_keys"] == [CLASSES[row.label].key]
        else:
            assert "txt" not in members
    for folder in ("train", "train-images"):
        sizes = json.loads((tmp_path / "out" / folder / "sizes.json").read_text())
        assert sum(sizes.values()) == len(samples(tmp_path / "out" / folder))
    assert (tmp_path / "out/train/classnames.txt").read_text().splitlines() == [c.names[0] for c in CLASSES]


def test_open_clip_trains_from_every_image_and_text(photos, tmp_path, capsys, monkeypatch):
    data = pytest.importorskip("open_clip_train.data")
    if "eof_value" in signature(data.tar_file_expander).parameters:  # not in webdataset 0.2.86, which open_clip wants
        monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    document, _ = run(capsys, photos, "-o", tmp_path / "out", "--json")
    words = document["train_command"].split()
    pattern = words[words.index("--train-data") + 1].strip("'")
    number = int(words[words.index("--train-num-samples") + 1])
    assert number == len(all_rows(photos, ["train"]))
    args = Namespace(
        train_data=pattern, val_data=words[words.index("--val-data") + 1].strip("'"), train_num_samples=number,
        val_num_samples=None, dataset_resampled=False, train_data_upsampling_factors=None, seed=0, batch_size=1,
        workers=0, world_size=1,
    )  # fmt: skip
    for split, is_train in (("train", True), ("val", False)):
        info = data.get_wds_dataset(args, np.asarray, is_train, tokenizer=lambda text: [text])
        seen = {texts[0]: np.asarray(images[0]) for images, texts in info.dataloader}
        own = {json.loads(m["json"])["key"]: m for m in samples(tmp_path / "out" / split).values()}
        expected = all_rows(photos, [split])
        assert len(seen) == len(expected) == len(own)
        for key, row in expected.items():
            text = own[key]["txt"].decode()
            assert row.texts[:1] in ((text,), ())
            assert np.array_equal(seen[text], pixels(row.image)), "as open_clip decodes the bytes of the corpus"
    assert document["notes"]


def test_notes_count_what_other_tools_see_otherwise(photos, tmp_path, capsys):
    document, _ = run(capsys, photos, "-o", tmp_path / "out", "--json")
    found = [members for split in ("train", "val") for members in samples(tmp_path / "out" / split).values()]
    images = [set(members) & {"jpg", "png", "webp", "gif", "bmp", "tif"} for members in found]
    assert sorted(map(sorted, images)) == sorted(
        [["jpg"]] * 2 + [["png"]] * 8 + [["webp"]] + [["gif", "png"], ["bmp", "png"], ["png", "tif"]]
    )
    notes = "\n".join(document["notes"])
    assert "3 images in formats that open_clip does not read" in notes
    assert "1 image with an EXIF orientation" in notes
    assert "3 images with several captions" in notes
    assert "7 images with a label and no caption" in notes


def test_an_image_that_pillow_alone_refuses_lies_beside_a_png_of_it():
    image = Image.effect_noise((20, 20), 50).convert("RGB")
    notes, out = PngInfo(), io.BytesIO()
    notes.add_text("Comment", "x" * 3_000_000, zip=True)
    image.save(out, "PNG", pnginfo=notes)
    with pytest.raises(ValueError, match="too large"):
        Image.open(out).load()
    counts = Counter()
    members = dict(image_members(out.getvalue(), "key", counts))
    assert members["original.png"] == out.getvalue()
    assert np.array_equal(pixels(members["png"]), np.asarray(image))
    assert counts["converted"] == 1


def test_datasets_reads_the_repository(mixed, tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(export, "MEGA", 1000)
    document, _ = run(capsys, mixed, "-o", tmp_path / "out", "--format", "hf", "--shard-mb", 3, "--json")
    assert len(document["files"]) > 2
    assert "the licence is unknown" in "\n".join(document["notes"])
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].features["label"].names == [c.names[0] for c in CLASSES]
    rows = all_rows(mixed)
    assert len(loaded["train"]) == len(rows)
    for item in loaded["train"]:
        row = rows[item["key"]]
        assert (item["texts"], item["label"], item["source"]) == (list(row.texts), row.label, row.source)
        assert np.array_equal(np.asarray(item["image"].convert("RGB")), pixels(row.image))


def test_names_of_two_classes_are_told_apart(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    corpus(tmp_path / "c", ("labels",), classes=DISTANT)
    run(capsys, tmp_path / "c", "-o", tmp_path / "out", "--format", "hf", "--license", "cc-by-4.0")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded.features["label"].names == ["crane (n1)", "crane (n2)", "cup & saucer"]
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def tar_rows(folder, splits=("train", "val")):
    """The members of each sample of an export, by the key of its row."""
    found = [members for split in splits for members in samples(folder / split).values()]
    return {json.loads(members["json"])["key"]: members for members in found}


def hub_rows(folder, cache):
    loaded = pytest.importorskip("datasets").load_dataset(str(folder), cache_dir=str(cache))
    return {item["key"]: item for split in loaded for item in loaded[split]}


def test_label_sets_are_carried(tmp_path, capsys):
    for n in range(6):
        Image.effect_noise((32, 32), 20 + n).save(tmp_path / f"{n}.png")
    lines = [f"{n}.png,{of}" for n, of in enumerate(["a;b", "a", "", "b;c", "c", "a;b;c"])]
    (tmp_path / "tags.csv").write_text("\n".join(["file,tags", *lines]))
    prepared(capsys, "--labels", f"{tmp_path / 'tags.csv'}?image=file&label=tags&sets=;", "-o", tmp_path / "c")
    rows = all_rows(tmp_path / "c")
    run(capsys, tmp_path / "c", "-o", tmp_path / "hf", "--format", "hf")
    run(capsys, tmp_path / "c", "-o", tmp_path / "tars")
    tars, items = tar_rows(tmp_path / "tars"), hub_rows(tmp_path / "hf", tmp_path / "cache")
    assert set(tars) == set(items) == set(rows)
    for key, row in rows.items():
        about = json.loads(tars[key]["json"])
        assert tuple(about["labels"]) == row.labels == tuple(items[key]["labels"])
        assert about["annotated"] == items[key]["annotated"]
        assert ("cls" in tars[key]) == (len(row.labels) == 1)
        assert ("txt" in tars[key]) == bool(row.labels)


def test_media_are_carried(tmp_path, capsys):
    prepared(capsys, "--labels", "shapes?media=audio,depth,thermal,imu&count=8&test=4", "-o", tmp_path / "c")
    rows = all_rows(tmp_path / "c")
    run(capsys, tmp_path / "c", "-o", tmp_path / "hf", "--format", "hf")
    document, _ = run(capsys, tmp_path / "c", "-o", tmp_path / "tars", "--json")
    splits = [item["split"] for item in document["splits"]]
    tars, items = tar_rows(tmp_path / "tars", splits), hub_rows(tmp_path / "hf", tmp_path / "cache")
    assert set(tars) == set(items) == set(rows)
    assert document["media"]["audio"] == sum("audio" in row.media for row in rows.values()) > 0
    for key, row in rows.items():
        for kind, data in row.media.items():
            assert [stored for ending, stored in tars[key].items() if ending.startswith(f"{kind}.")] == [data]
            got = items[key][kind]
            if kind in ("depth", "thermal"):
                assert np.array_equal(np.asarray(got), np.asarray(Image.open(io.BytesIO(data))))
            else:
                assert got == data


@pytest.mark.parametrize("form", ["webdataset", "hf"])
def test_a_stopped_export_continues_to_the_same_bytes(mixed, tmp_path, form, monkeypatch, capsys):
    monkeypatch.setattr(export, "MEGA", 1000)

    def request(name):
        return ExportRequest(str(mixed), tmp_path / name, form, shard_mb=3)

    whole = export_corpus(request("whole"), lambda: False)
    looks = iter(range(100))
    with pytest.raises(Stopped, match=r"stopped after [1-9]\d* of"):
        export_corpus(request("cut"), lambda: next(looks) > 6)
    assert not (tmp_path / "cut" / "export.json").exists()
    names = {item["file"] for item in whole["files"]}
    there = {path for path in sums(tmp_path / "cut") if not path.startswith(".unicl-export/")}
    assert there < names, "nothing half made, and nothing else"
    first = tmp_path / "cut" / min(there)
    written = first.stat().st_mtime_ns
    (tmp_path / "cut" / ".unicl-export" / f".unicl-{'0' * 32}.tmp").write_bytes(b"half")
    export_corpus(request("cut"), lambda: False)
    assert first.stat().st_mtime_ns == written, "what was finished is kept"
    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")
    capsys.readouterr()
    export_corpus(request("cut"), lambda: False)
    assert "is complete: nothing to do" in capsys.readouterr().err
    first.unlink()
    export_corpus(request("cut"), lambda: False)
    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_export_continues_to_the_same_bytes(tmp_path):
    corpus(tmp_path / "c", sizes=[256] * 30)
    line = [sys.executable, "-m", "unicl_cli", "export-corpus", str(tmp_path / "c"), "--shard-mb", "1", "-q", "-o"]
    subprocess.run([*line, str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for _ in range(40):
        child = subprocess.Popen([*line, str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        before = len(list((tmp_path / "cut/train").glob("*.tar")))
        while child.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "cut/train").glob("*.tar"))) > before:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        if child.wait() == 0:
            break
        kills += 1
    assert kills > 1
    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")


def test_a_full_disk_is_one_line(mixed, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))  # as a disk that is full after 9 kB
    try:
        _, error = run(capsys, mixed, "-o", tmp_path / "out", status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out/train/00000.tar: File too large" in error
    assert "free some space, then run the same command again to continue" in error
    assert not list((tmp_path / "out").rglob("*.tar"))
    run(capsys, mixed, "-o", tmp_path / "out")


def test_mistakes_are_told_before_anything_is_written(mixed, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    run(capsys, mixed, "-o", tmp_path / "out", "--shard-mb", 7)
    cases = {
        ("-o", tmp_path / "mine"): "contains other files (thesis.txt)",
        ("-o", mixed / "out"): "is inside the corpus",
        ("-o", mixed): "is inside the corpus",
        ("-o", tmp_path / "out"): "an export with another shard_mb: 7, not 256",
        ("-o", tmp_path / "out", "--shard-mb", 7, "--format", "hf"): "an export with another format",
        ("-o", tmp_path / "a{0..1}"): "have a meaning in the patterns of WebDataset",
        ("-o", tmp_path / "x", "--split", "trian"): "did you mean 'train'?",
        ("-o", tmp_path / "x", "--format", "wds"): "--format wds: unknown",
        ("-o", tmp_path / "x", "--license", "CC BY!"): "is not an identifier of the hub",
    }
    for argv, message in cases.items():
        _, error = run(capsys, mixed, *argv, status=2)
        assert message in error, argv
        assert error.count("\n") == 2
        assert not os.path.lexists(tmp_path / "x")
    assert main(["export-corpus", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 2


def test_a_damaged_shard_is_named_and_no_file_made_of_it(tmp_path, capsys):
    corpus(tmp_path / "c", ("labels",))
    shard = tmp_path / "c" / "data" / "train" / "labels.parquet"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT")] ^= 0xFF  # inside a page, wherever this version of Arrow has put it
    shard.write_bytes(data)
    for form in ("webdataset", "hf"):
        _, error = run(capsys, tmp_path / "c", "-o", tmp_path / form, "--format", form, status=2)
        assert "labels.parquet: damaged" in error
        assert not list((tmp_path / form).rglob("*.tar")) + list((tmp_path / form).rglob("*.parquet"))


def test_cuts_hold_every_row_group_once(tmp_path):
    shards = corpus(tmp_path / "c", ("labels", "captions")).manifest.shards
    for most in (1, 3000, 10**9):
        cuts = list(cut_shards(shards, most))
        groups = [(span.shard.file, n) for cut in cuts for span in cut for n in range(span.first, span.end)]
        assert groups == [(shard.file, n) for shard in shards for n in range(len(shard.row_groups))]
        assert all(span.first < span.end for cut in cuts for span in cut)
    assert len(list(cut_shards(shards, 1))) == 8
