"""`--dedup exact`: one row of each image stays, whatever the workers, and what the others knew is not lost."""

import hashlib
import io
import json
import random
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli.contracts import Row
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.prepare.plan.duplicates import find_duplicates, read_duplicates
from unicl_cli.jobs.prepare.shards.units import Unit


def picture(seed, size=(24, 20)):
    out = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3)).save(out, "PNG")
    return out.getvalue()


def rejects(corpus):
    return [json.loads(line) for f in (corpus / "rejects").iterdir() for line in f.read_text().splitlines()]


def test_captions_of_equal_pictures_join_the_row_that_stays(tmp_path, capsys):
    put(tmp_path, {"a.png": picture(1), "b.png": picture(1), "c.png": picture(2), "d.png": picture(1)})
    (tmp_path / "x.tsv").write_text(
        "image\tcaption\na.png\ta red door\nb.png\tan old door\nc.png\ta cat\nd.png\tA red <i>door</i>\n"
    )
    (tmp_path / "y.csv").write_text("image,caption\nb.png,a door in Rome\na.png,IMG_0031.jpg\n")
    argv = ("--captions", tmp_path / "x.tsv", "--captions", tmp_path / "y.csv", "-o", tmp_path / "c")
    report, err = prepared(capsys, *argv, "--dedup", "exact")
    kept = rows_of(tmp_path / "c", kind="captions")
    assert len(kept) == 2
    (door,) = (row for key, row in kept.items() if key != "x:c.png")
    assert door.key.startswith("x:")
    assert {"a red door", "A red door"} & set(door.texts)
    assert {"an old door", "a door in Rome"} < set(door.texts)
    assert report["rejected"] == {"bad_text": 1, "duplicate": 3}
    assert "left out 3 duplicate rows of 1 image" in err
    assert report["dedup"]["exact"]["texts"] in (2, 3)
    manifest = open_corpus(tmp_path / "c").manifest
    assert manifest.dedup.model_dump() == report["dedup"]
    assert manifest.text_stats["texts"] == len(door.texts) + 1
    assert {r["detail"] for r in rejects(tmp_path / "c") if r["reason"] == "duplicate"} == {
        f"the same image as {door.key}"
    }


def test_a_row_without_a_usable_label_or_text_never_stays_for_another(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(5) for n in range(8)})
    (tmp_path / "l.csv").write_text("image,label\n" + "".join(f"{n}.png,{'cat' if n == 7 else ''}\n" for n in range(8)))
    report, _ = prepared(capsys, "--labels", tmp_path / "l.csv", "-o", tmp_path / "c", "--dedup", "exact")
    assert list(rows_of(tmp_path / "c")) == ["l:7.png"]
    assert report["rejected"] == {"no_label": 7}


def test_other_labels_of_one_picture_are_told_and_the_first_stays(tmp_path, capsys):
    put(tmp_path / "f", {"cat/1.png": picture(1), "dog/1.png": picture(1), "dog/2.png": picture(2)})
    report, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c", "--dedup", "exact")
    assert report["rows"] == 2
    assert "1 of these had another label than the row kept" in err


def test_a_label_row_and_a_caption_row_of_one_picture_both_stay_and_are_told(tmp_path, capsys):
    put(tmp_path, {"f/cat/1.png": picture(1), "f/cat/2.png": picture(2), "one.png": picture(1)})
    (tmp_path / "x.tsv").write_text("image\tcaption\none.png\ta sleepy animal\n")
    argv = ("--labels", tmp_path / "f", "--captions", tmp_path / "x.tsv", "-o", tmp_path / "c", "--dedup", "exact")
    report, err = prepared(capsys, *argv)
    assert report["rows"] == 3
    assert "1 image in training rows of more than one kind (all kept)" in err


def test_pictures_on_both_sides_of_a_split_are_counted_and_never_dropped(tmp_path, capsys):
    put(tmp_path / "f", {"train/a/1.png": picture(1), "train/a/2.png": picture(2), "train/a/3.png": picture(1)})
    put(tmp_path / "f", {"test/a/4.png": picture(1), "val/a/5.png": picture(9)})
    report, err = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c")
    assert report["duplicates_of_eval"] == {"val": 0, "test": 2}
    assert "2 training rows with an image of the test split" in err
    assert "1 duplicate row (same image, kind and split): --dedup exact leaves them out" in err
    again, _ = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "c")
    assert again == report
    report, _ = prepared(capsys, "--labels", tmp_path / "f", "-o", tmp_path / "d", "--dedup", "exact")
    assert (report["rows"], report["duplicates_of_eval"]) == (4, {"val": 0, "test": 1})


def test_a_validation_split_that_prepare_cuts_shares_no_picture_with_training(tmp_path, capsys):
    put(tmp_path / "f", {f"{n % 2}/{n}.png": picture(n % 20) for n in range(80)})
    argv = ("--labels", tmp_path / "f", "-o", tmp_path / "c", "--holdout", 0.3)
    report, _ = prepared(capsys, *argv, "--dedup", "exact")
    assert report["duplicates_of_eval"]["val"] == 0
    assert report["rows"] == 20
    report, _ = prepared(capsys, *argv[:3], tmp_path / "d", *argv[4:])
    assert report["duplicates_of_eval"]["val"] == 0
    assert report["rows"] == 80


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, capsys):
    put(tmp_path / "f", {f"{n % 3}/{n}.png": picture(n % 150, (90, 80)) for n in range(300)})
    put(tmp_path, {"x.tsv": b"".join(b"f/%d/%d.png\tcaption number %d\n" % (n % 3, n, n) for n in range(300))})
    argv = ("--labels", tmp_path / "f", "--captions", tmp_path / "x.tsv", "--dedup", "exact", "--shard-mb", "1")
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers) / "c"
        prepared(capsys, *argv, "-o", out, "--workers", workers)
        files = sorted(f for f in out.rglob("*") if f.is_file())
        found.append({f.relative_to(out): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert found[0] == found[1]
    for kind in ("labels", "captions"):
        shards = (tmp_path / "1/c/data/train").glob(f"*-{kind}-*")
        digests = [digest for shard in shards for digest in pq.read_table(shard)["sha256"].to_pylist()]
        assert len(digests) == len(set(digests)) > 100


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_is_found_equals_a_dictionary_over_the_rows_in_plan_order(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    (out / "parts").mkdir()
    units, pictures, rows = [], {}, {}
    for number in range(data.draw(st.integers(1, 5))):
        kind, split = data.draw(st.sampled_from(["labels", "captions"])), data.draw(st.sampled_from(["train", "val"]))
        source = data.draw(st.sampled_from(["cut", "given"]))
        seen = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=9))
        unit = Unit(f"{source}-{kind}-{number}", split, source, kind, 0, len(seen), 8)
        units.append(unit)
        pictures[unit] = seen
        rows[unit] = [Row(f"{number}.{n}", "", (f"text {p} {n % 2}",), p % 2 - 1) for n, p in enumerate(seen)]
        digests = [bytes(32) if p == 0 else hashlib.sha256(bytes([p])).digest() for p in seen]
        (out / unit.hashes).write_bytes(b"".join(digests))
    found = find_duplicates(units, lambda unit, n: rows[unit][n], out)
    first, gone, texts = {}, {}, defaultdict(list)
    for unit in units:
        for n, p in enumerate(pictures[unit]):
            row = rows[unit][n]
            stays = first.setdefault((unit.kind, unit.split, p), row) if p else row
            if stays is not row:
                gone[row.key] = stays.key
                if row.texts[0] not in (*stays.texts, *texts[stays.key]):
                    texts[stays.key] += row.texts
    assert found.gone == gone
    assert {key: sorted(of) for key, of in found.texts.items()} == {k: sorted(of) for k, of in texts.items() if of}
    assert read_duplicates(out) == found
    assert found.facts.rows == len(gone)


def test_damaged_findings_are_found_anew(tmp_path, capsys):
    put(tmp_path / "f", {f"a/{n}.png": picture(n % 3) for n in range(9)})
    argv = ("--labels", tmp_path / "f", "-o", tmp_path / "c", "--dedup", "exact")
    prepared(capsys, *argv)
    whole = {f: f.read_bytes() for f in (tmp_path / "c").rglob("*") if f.is_file()}
    (tmp_path / "c/duplicates.json").write_text("{")
    next((tmp_path / "c/parts").glob("*.json")).unlink()
    prepared(capsys, *argv)
    assert {f: f.read_bytes() for f in Path(tmp_path / "c").rglob("*") if f.is_file()} == whole
