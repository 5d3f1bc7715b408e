"""One hold-out over all sources: by image, evenly over the classes, the same when a command continues."""

import io
import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import prepared, put

from unicl_cli.contracts import Row
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.pictures import Extent
from unicl_cli.jobs.prepare.plan.even_choice import apportion, choose_evenly
from unicl_cli.jobs.prepare.plan.holdout import FILE
from unicl_cli.jobs.prepare.plan.image_groups import UNREADABLE, RowList, number_images
from unicl_cli.jobs.prepare.plan.plan import make_plan
from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest


def picture(seed, size=(8, 8)):
    out = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3)).save(out, "PNG")
    return out.getvalue()


def sides(corpus):
    """Split -> sha256 of its images, over all sources."""
    found = {}
    for shard in open_corpus(corpus).manifest.shards:
        column = pq.read_table(corpus / shard.file, columns=["sha256"]).column("sha256").to_pylist()
        found.setdefault(shard.split, []).extend(column)
    return found


def counts_of(corpus, split, kind):
    table = open_corpus(corpus).table(split, kind)
    return Counter(table.column("label").to_pylist())


@pytest.fixture
def photos(tmp_path):
    """60 images of class a, 30 of b and 21 of c in a folder; a list of their captions; copies of them elsewhere."""
    sizes = {"a": 60, "b": 30, "c": 21}
    names = [f"{name}/{n}.png" for name, count in sizes.items() for n in range(count)]
    put(tmp_path / "photos", {name: picture(k) for k, name in enumerate(names)})
    put(tmp_path / "copies", {f"x{k}.png": picture(k) for k in range(len(names))})
    lines = [f"photos/{name}\tcaption number {k}\n" for k, name in enumerate(names)]
    (tmp_path / "captions.tsv").write_text("image\tcaption\n" + "".join(lines))
    lines = [f"copies/x{k}.png\tanother caption {k}\n" for k in range(0, len(names), 2)]
    (tmp_path / "copies.tsv").write_text("image\tcaption\n" + "".join(lines))
    return tmp_path


def test_an_image_is_on_one_side_in_every_source_and_each_class_gives_its_share(photos, tmp_path, capsys):
    columns = {"image": [picture(k) for k in range(100)], "caption": [f"inside {k}" for k in range(100)]}
    pq.write_table(pa.table(columns), tmp_path / "inside.parquet")
    lists = ("captions.tsv", "copies.tsv", "inside.parquet")
    sources = ["--labels", photos / "photos", *(word for name in lists for word in ("--captions", photos / name))]
    report, err = prepared(capsys, *sources, "-o", tmp_path / "c", "--holdout", 0.1)
    found = sides(tmp_path / "c")
    assert not set(found["train"]) & set(found["val"])
    assert len(set(found["val"])) == 11
    assert counts_of(tmp_path / "c", "val", "labels") == {0: 6, 1: 3, 2: 2}
    held = {(line["source"], line["split"]): line["rows"] for line in report["sources"]}
    assert held["captions", "val"] == 11
    assert 0 < held["copies", "val"] < 11
    assert report["duplicates_of_eval"] == {"val": 0}
    assert "photos: no validation split: moved 11 of 111 rows to 'val', by image and evenly over the classes" in err


def test_a_class_that_only_one_source_knows_keeps_an_image_in_train(photos, tmp_path, capsys):
    lines = [f"photos/a/{k}.png,{'rare' if k < 3 else 'common'}\n" for k in range(60)]
    (tmp_path / "more.csv").write_text("image,label\n" + "".join(lines))
    argv = ("--labels", photos / "photos", "--labels", tmp_path / "more.csv", "-o", tmp_path / "c", "--holdout", 0.9)
    prepared(capsys, *argv)
    assert min(open_corpus(tmp_path / "c").manifest.class_counts["train"]) >= 1


def test_small_sources_give_nothing_but_follow_the_others(photos, tmp_path, capsys):
    put(tmp_path / "big", {f"z/{k}.png": picture(k) for k in range(240)})
    report, _ = prepared(
        capsys, "--captions", photos / "copies.tsv", "--labels", tmp_path / "big", "-o", tmp_path / "c"
    )
    found = sides(tmp_path / "c")
    held = {(line["source"], line["split"]): line["rows"] for line in report["sources"]}
    assert held["big", "val"] == 12
    assert not set(found["train"]) & set(found["val"])
    report, _ = prepared(capsys, "--captions", photos / "copies.tsv", "-o", tmp_path / "d")
    assert [line["split"] for line in report["sources"]] == ["train"]


def test_rows_follow_the_splits_that_another_source_has(photos, tmp_path, capsys):
    put(tmp_path / "own", {f"{'test' if k % 3 else 'train'}/a/{k}.png": picture(k) for k in range(0, 111, 5)})
    argv = ("--labels", tmp_path / "own", "--captions", photos / "captions.tsv", "-o", tmp_path / "c")
    for holdout in ("0", "0.2"):
        report, err = prepared(capsys, *argv[:-1], tmp_path / f"c{holdout}", "--holdout", holdout)
        found = sides(tmp_path / f"c{holdout}")
        assert not set(found["train"]) & set(found["test"])
        assert not set(found.get("val", ())) & {*found["test"], *found["train"]}
        held = {(line["source"], line["split"]): line["rows"] for line in report["sources"]}
        assert (held["own", "test"], held["own", "train"]) == (15, 8)
        assert held["captions", "test"] == 15
        assert held.get(("captions", "val"), 0) == round((111 - 23) * float(holdout))
        assert "captions: moved 15 of 111 rows to 'test', where another source has the same images" in err


def test_own_splits_are_kept_and_what_they_share_is_told(photos, tmp_path, capsys):
    put(tmp_path / "x", {f"{'test' if k % 2 else 'train'}/a/{k}.png": picture(k) for k in range(9)})
    put(tmp_path / "y", {f"{'train' if k % 2 else 'test'}/a/{k}.png": picture(k) for k in range(9)})
    report, err = prepared(capsys, "--labels", tmp_path / "x", "--labels", tmp_path / "y", "-o", tmp_path / "c")
    assert report["duplicates_of_eval"] == {"test": 9}
    assert "9 training rows with an image of the test split" in err


def test_a_whole_list_or_folder_can_be_a_test_set(photos, tmp_path, capsys):
    argv = ("--captions", f"{photos / 'copies.tsv'}?split=test", "--labels", f"{photos / 'photos'}?split=Validation")
    report, _ = prepared(capsys, *argv, "-o", tmp_path / "c")
    held = {(line["source"], line["split"]): line["rows"] for line in report["sources"]}
    assert held == {("photos", "val"): 111, ("copies", "test"): 56}
    put(tmp_path / "own", {"train/a/1.png": picture(1), "test/a/2.png": picture(2)})
    for src, said in (
        (f"{tmp_path / 'own'}?split=test", "has the splits train, test: they cannot all become 'test'"),
        (f"{photos / 'photos'}?split=tset", "unknown split 'tset'"),
        (f"{photos / 'captions.tsv'}?split=tset", "no column 'tset'"),
    ):
        kind = "--captions" if "tsv" in src else "--labels"
        _, err = prepared(capsys, kind, src, "-o", tmp_path / "d", code=2)
        assert said in err


def test_the_same_command_continues_without_reading_the_images_again(photos, tmp_path, capsys):
    argv = ("--labels", photos / "photos", "--captions", photos / "copies.tsv", "-o", tmp_path / "c", "--holdout", 0.1)
    first, _ = prepared(capsys, *argv)
    whole = {f: f.read_bytes() for f in (tmp_path / "c").rglob("*") if f.is_file()}
    next((tmp_path / "c/data/val").iterdir()).unlink()
    (tmp_path / "c/manifest.json").unlink()
    again, _ = prepared(capsys, *argv)
    assert again == first
    assert {f: f.read_bytes() for f in (tmp_path / "c").rglob("*") if f.is_file()} == whole
    (tmp_path / "c" / FILE).write_text("{")  # it can be found again
    assert prepared(capsys, *argv)[0] == first
    # images that changed at their size unseen: what the plan was made with holds, and can no longer be found again
    held = {row for shard in (tmp_path / "c/data/val").iterdir() for row in pq.read_table(shard)["key"].to_pylist()}
    inside, outside = ([n for n in range(60) if (f"photos:a/{n}.png" in held) == side] for side in (True, False))
    files = [(photos / f"photos/a/{one}.png", photos / f"photos/a/{other}.png") for one in inside for other in outside]
    val, train = next(pair for pair in files if pair[0].stat().st_size == pair[1].stat().st_size)
    train.write_bytes(val.read_bytes())
    assert prepared(capsys, *argv)[0] == first
    (tmp_path / "c" / FILE).unlink()
    _, err = prepared(capsys, *argv, code=2)
    assert "was started with another plan" in err
    _, err = prepared(capsys, *argv[:-1], 0.2, code=2)
    assert "holdout: 0.1 -> 0.2" in err


def test_a_corpus_with_the_older_hold_out_is_refused_in_one_line(photos, tmp_path, capsys):
    argv = ("--labels", photos / "photos", "-o", tmp_path / "c", "--holdout", 0.1)
    prepared(capsys, *argv)
    plan = json.loads((tmp_path / "c/plan.json").read_text())
    del plan["validation"]
    plan["sources"][0]["rows"] = rows = {"train": 98, "val": 13}
    for unit in plan["units"]:
        unit["rows"] = rows[unit["split"]]
    (tmp_path / "c/plan.json").write_text(json.dumps(plan))
    _, err = prepared(capsys, *argv, code=2)
    assert "an older unicl chose its validation rows by their keys; now they are chosen by image" in err
    assert len(err.strip().splitlines()) == 3  # note, error, hint
    assert "number of rows" not in err


def test_a_dry_run_reads_no_image_for_it_and_agrees_without_copies(photos, tmp_path, capsys):
    argv = (
        "--labels",
        photos / "photos",
        "--captions",
        photos / "captions.tsv",
        "-o",
        tmp_path / "c",
        "--holdout",
        0.1,
    )
    dry, _ = prepared(capsys, *argv, "--dry-run")
    real, _ = prepared(capsys, *argv)
    rows = [[(line["source"], line["split"], line["rows"]) for line in report["sources"]] for report in (dry, real)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert prepared(capsys, *argv, "--dry-run")[0]["rows"] == dry["rows"]


def test_rows_that_cannot_be_read_are_not_chosen(tmp_path, capsys):
    put(tmp_path / "f", {f"a/{k}.png": picture(k) for k in range(100)})
    lines = [f"f/a/{k}.png,{'' if k % 2 else 'a word'}\n" for k in range(100)] + [
        f"gone{k}.png,words\n" for k in range(50)
    ]
    (tmp_path / "l.csv").write_text("image,caption\n" + "".join(lines))
    report, _ = prepared(capsys, "--captions", tmp_path / "l.csv", "-o", tmp_path / "c", "--holdout", 0.2)
    held = {line["split"]: (line["rows"], line["rejected"]) for line in report["sources"]}
    assert held == {"train": (40, {"missing_file": 50, "no_text": 50}), "val": (10, {})}


def test_a_dry_run_holds_out_no_missing_files(photos, tmp_path, capsys):
    with (photos / "captions.tsv").open("a") as lines:
        lines.writelines(f"photos/gone/{k}.png\ta caption of a missing file\n" for k in range(60))
    argv = ("--captions", photos / "captions.tsv", "-o", tmp_path / "c", "--holdout", 0.1)
    held = []
    for report in (prepared(capsys, *argv, "--dry-run")[0], prepared(capsys, *argv)[0]):
        held += [line["rows"] for line in report["sources"] if line["split"] == "val"]
    assert held == [11, 11]


def test_rows_stay_on_the_sides_that_earlier_versions_chose(photos):
    put(photos / "own", {f"test/a/{k}.png": picture(k) for k in range(0, 60, 7)})
    lines = [f"photos/{'abc'[k % 3]}/{k % 20}.png,class {k % 7};class {k % 4}\n" for k in range(60)]
    lines += [f"gone/{k}.png,class {k % 11}\n" for k in range(30)]
    (photos / "sets.csv").write_text("image,label\n" + "".join(lines))
    lines = [f"words {k}\thttp://host{k % 9}.example/{k % 150}.jpg\n" for k in range(200)]
    lines += [f"copy {k}\tcopies/x{k}.png\n" for k in range(1, 111, 2)]
    (photos / "web.tsv").write_text("caption\timage\n" + "".join(lines))
    labels = (str(photos / "photos"), str(photos / "own"), f"{photos / 'sets.csv'}?sets=;")
    captions = tuple(str(photos / name) for name in ("captions.tsv", "copies.tsv", "web.tsv"))
    request = PrepareRequest(labels, captions, images=(), out=photos / "c", options=PrepareOptions(holdout=0.2))
    plan = make_plan(request.sources(), request.options)
    chosen = plan.document()["validation"]["sha256"]
    assert chosen == "f64348152935d8d5698e7c5edd9a86b21bca0c8708ee67362b0faa94db6bafd1"


class Source:
    """Images by reference; those of an even number have a place, in a file that holds them all."""

    def __init__(self, folder, images, *, placed):
        self.images, self.placed, self.reads = images, placed, 0
        self.file = folder / f"{id(self)}.bin"
        self.file.write_bytes(b"".join(images))

    def rows(self):
        return [Row(str(n), str(n), (), 0) for n in range(len(self.images))]

    def extent(self, row):
        n = int(row.ref)
        return Extent(str(self.file), sum(map(len, self.images[:n])), len(self.images[n])) if self.placed else None

    def read(self, row):
        self.reads += 1
        return {"image": self.images[int(row.ref)]}


@given(data=st.data())
def test_equal_numbers_are_equal_bytes_wherever_they_lie(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    big = [bytes(100_000), bytes(60_000) + b"x" + bytes(39_999), bytes(99_999) + b"y", b"z" + bytes(99_999)]
    pool = [b"", b"a", b"b", b"ab", bytes(13_000), *big]
    lists = []
    for _ in range(data.draw(st.integers(1, 3))):
        images = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8))
        source = Source(folder, images, placed=data.draw(st.booleans()))
        lists.append(RowList(source, source.rows()))
    numbers = np.concatenate(number_images(lists)).tolist()
    contents = [image for item in lists for image in item.source.images]
    assert [number == UNREADABLE for number in numbers] == [not content for content in contents]
    for number, content in zip(numbers, contents, strict=True):
        for other, with_it in zip(numbers, contents, strict=True):
            if content and with_it:
                assert (number == other) == (content == with_it)


def test_images_of_sizes_of_their_own_are_not_read(tmp_path, monkeypatch):
    from unicl_cli.jobs.prepare.plan import image_groups

    read = []
    whole = image_groups._hash_file
    monkeypatch.setattr(
        image_groups, "_hash_file", lambda extent, parts: read.append(extent.size) or whole(extent, parts)
    )
    source = Source(tmp_path, [bytes(n) for n in (5, 6, 7, 7, 20_000)], placed=True)
    (numbers,) = number_images([RowList(source, source.rows())])
    assert sorted(read) == [7, 7, 7, 7]
    assert (len(set(numbers.tolist())), source.reads) == (4, 0)


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), share=st.floats(0.01, 0.9), kinds=st.integers(1, 3))
def test_each_class_and_each_kind_of_it_is_within_one_of_its_share(sizes, share, kinds):
    label = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(0).permutation(len(label))
    kind = np.arange(len(label)) % kinds
    parts = np.array_split(order, 3)
    chosen = np.array([image for part in choose_evenly(parts, label, kind, share) for image in part], np.int64)
    assert len(set(chosen.tolist())) == len(chosen)
    total = round(share * len(label))
    counts = np.bincount(label[chosen], minlength=len(sizes))
    exact = total * np.array(sizes) / sum(sizes)
    assert (counts < sizes).all()
    assert (counts > np.minimum(exact, np.array(sizes) - 1) - 1).all()
    assert (counts < exact + 1).all()
    if all(size > 10 for size in sizes):
        assert len(chosen) == total
    for number, size in enumerate(sizes):
        own = np.bincount(kind[chosen[label[chosen] == number]], minlength=kinds)
        there = np.bincount(kind[label == number], minlength=kinds)
        assert (abs(own - counts[number] * there / size) < 1).all()


def test_shares_go_to_the_largest_remainders():
    assert apportion(np.array([19, 15, 5, 1]), 2, np.array([18, 14, 4, 0])).tolist() == [1, 1, 0, 0]
    assert apportion(np.array([1] * 100 + [100]), 10, np.array([0] * 100 + [99])).tolist() == [0] * 100 + [5]
