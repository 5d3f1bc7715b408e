"""`prepare` on rows with label sets: hold-out, duplicates, limits, reports, and corpora continued or damaged."""

import csv
import hashlib
import io
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli import registry
from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus

COLOURS, THINGS = ("red", "green", "blue"), ("cup", "hat", "key", "pen")


def picture(seed):
    out = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def keywords(tmp_path):
    """260 images with one to five keywords each, of which ``rare`` is on four; image 1 is the same as image 0."""
    rng = random.Random(7)
    put(tmp_path, {f"{n}.png": picture(max(n, 1)) for n in range(260)})
    rows = [[f"{n}.png", ";".join(rng.sample(COLOURS + THINGS, rng.randrange(1, 5)))] for n in range(260)]
    for n in (50, 90, 130, 170):
        rows[n][1] += ";rare"
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    return tmp_path, {f"tags:{name}": set(labels.split(";")) for name, labels in rows}


def sets_of(corpus):
    opened = open_corpus(corpus)
    names = [c.key for c in opened.classes]
    return {
        split: {key: {names[label] for label in s.labels} for key, s in rows_of(corpus, split).items()}
        for split in opened.splits
    }


def sums(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.suffix in (".parquet", ".json"))
    return {file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_keyword_list_becomes_rows_with_all_labels_and_the_rarest_keeps_its_share(keywords, capsys):
    root, truth = keywords
    out = root / "c"
    argv = ("--labels", f"{root / 'tags.csv'}?sets=;", "-o", out)
    planned, _ = prepared(capsys, *argv, "--dry-run")
    report, _ = prepared(capsys, *argv, "--holdout", "0.25")
    found = sets_of(out)
    assert {key: labels for rows in found.values() for key, labels in rows.items()} == truth
    sizes = [len(labels) for labels in truth.values()]
    told = {"min": min(sizes), "mean": round(sum(sizes) / len(sizes), 4), "max": max(sizes)}
    assert report["labels_per_row"] == planned["labels_per_row"] == told
    assert report["groups"] == [""]
    val = next(of for of in report["sources"] if of["split"] == "val")
    assert val["labels_per_row"]["max"] == max(map(len, found["val"].values()))
    with_rare = {split: sum("rare" in labels for labels in rows.values()) for split, rows in found.items()}
    assert with_rare == {"train": 3, "val": 1}
    assert set().union(*found["train"].values()) == {*COLOURS, *THINGS, "rare"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["set_sizes"] == {str(n): sizes.count(n) for n in sorted(set(sizes))}


def test_duplicates_and_limits_count_as_with_single_labels(keywords, capsys):
    root, truth = keywords
    argv = ("--labels", f"{root / 'tags.csv'}?sets=;", "--holdout", "0", "-o")
    report, err = prepared(capsys, *argv, root / "c", "--dedup", "exact")
    assert (report["rows"], report["rejected"]) == (259, {"duplicate": 1})
    assert ("another label than the row kept" in err) == (truth["tags:0.png"] != truth["tags:1.png"])
    report, _ = prepared(capsys, *argv, root / "d", "--limit", "20")
    assert report["rows"] == 20
    assert all(truth[key] == labels for key, labels in sets_of(root / "d")["train"].items())


def test_a_corpus_with_sets_is_continued_verified_and_repaired_to_the_same_bytes(keywords, capsys):
    root, _ = keywords
    out = root / "c"
    argv = ["prepare", "--labels", f"{root / 'tags.csv'}?sets=;", "--workers", "1", "-q", "-o"]
    assert main([*argv, str(out)]) == 0
    whole = sums(out)
    assert main(["prepare", "--verify", "-o", str(out)]) == 0
    shards = sorted((out / "data").rglob("*.parquet"))
    assert len(shards) == 2
    for lost in (("manifest.json",), ("manifest.json", shards[0].relative_to(out))):
        for name in lost:
            (out / name).unlink()
        assert main([*argv, str(out)]) == 0
        assert sums(out) == whole
    marker = next((out / "parts").iterdir())
    marker.unlink()
    (out / "manifest.json").unlink()
    assert main([*argv, str(out)]) == 0
    assert sums(out) == whole
    table = pq.read_table(shards[1])
    at = table.schema.get_field_index("labels")
    wrong = pa.array([[0]] * len(table), table.schema.field("labels").type)
    pq.write_table(table.set_column(at, table.schema.field("labels"), wrong), shards[1])
    assert main(["prepare", "--verify", "-o", str(out)]) == 1
    assert main(["prepare", "--repair", "-o", str(out)]) == 0
    assert sums(out) == whole
    changed = main([*argv[:2], f"{root / 'tags.csv'}?sets=true", *argv[3:], str(out)])
    assert changed == 2


def test_two_sources_hide_the_groups_of_each_other(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(n) for n in range(6)})
    (tmp_path / "a.csv").write_text("image,colour,shape\n0.png,red,ring\n1.png,blue,\n2.png,,star\n")
    (tmp_path / "b.csv").write_text("image,colour,texture\n3.png,red,plain\n4.png,,dotted\n5.png,red,\n")
    argv = [f"--labels={tmp_path / name}.csv?label=colour,{of}" for name, of in (("a", "shape"), ("b", "texture"))]
    report, _ = prepared(capsys, *argv, "-o", tmp_path / "c")
    assert report["groups"] == ["colour", "shape", "texture"]
    assert report["labels_per_row"] == {"min": 1, "mean": 1.3333, "max": 2}
    opened = open_corpus(tmp_path / "c")
    found = {
        s.key: (sorted(opened.classes[n].key for n in s.labels), s.known) for s in rows_of(tmp_path / "c").values()
    }
    assert found == {
        "a:0.png": (["red", "ring"], 0b011), "a:1.png": (["blue"], 0b001), "a:2.png": (["star"], 0b010),
        "b:3.png": (["plain", "red"], 0b101), "b:4.png": (["dotted"], 0b100), "b:5.png": (["red"], 0b001),
    }  # fmt: skip


def test_a_row_with_more_than_a_thousand_labels_is_refused(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(n) for n in range(2)})
    for count, code in ((1000, 0), (1001, 2)):
        lines = [{"image": "0.png", "label": [f"w{n}" for n in range(count)]}, {"image": "1.png", "label": ["w1"]}]
        (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        out = tmp_path / f"c{count}"
        _, err = prepared(capsys, "--labels", f"{tmp_path / 'l.jsonl'}?sets=true", "-o", out, code=code)
    assert "row '0.png' has 1,001 labels; the limit is 1,000" in err
    assert not out.exists()


SOURCE = """
from unicl_cli.api import ClassName, Row

class Odd:
    splits, templates = ("train",), ("a {}",)
    classes = (ClassName("a", ("a",), "x"), ClassName("b", ("b",), "y"), ClassName("c", ("c",), "y"))
    def __init__(self, case):
        self.row = {
            "twice": Row("k", "", (), -1, (1, 1)), "mixed": Row("k", "", (), 0, (1, 2)),
            "other": Row("k", "", (), -1, (0, 1), ("x",)), "lost": Row("k", "", (), 0, (), ("x",)),
            "no group": Row("k", "", (), 0, (), ("x", "z")), "range": Row("k", "", (), -1, (1, 3)),
        }[case]
        if case == "empty": self.classes = ()
    def rows(self, split): return [self.row]
    def read(self, row): return {"image": b""}

def odd(*, kind: str, case: str): return Odd(case)

PARTS = {"datasets": {"odd": odd}}
"""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("twice", "row 'k' has a label twice, or no label among several"),
        ("mixed", "row 'k' has the label 0 besides its labels"),
        ("other", "row 'k' has a label of group 'y', for which it is not annotated"),
        ("lost", "no row is annotated for group 'y'"),
        ("no group", "row 'k' is annotated for group 'z', and no class has it"),
        ("range", "row 'k' has label 3; the classes are 0 … 2"),
    ],
)
def test_the_sets_of_a_source_follow_the_rules(case, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "odd.py").write_text(SOURCE)
    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "odd.py"))
    registry.forget()
    try:
        _, err = prepared(capsys, "--labels", f"odd?case={case}", "-o", tmp_path / "c", code=2)
    finally:
        monkeypatch.undo()
        registry.forget()
    assert f"odd?case={case}: {message}" in err


def test_a_list_whose_images_have_one_label_each_stays_in_the_first_format(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(n) for n in range(4)})
    (tmp_path / "l.csv").write_text("image,label\n0.png,red\n1.png,blue\n2.png,red\n3.png,blue\n")
    reports = [
        prepared(capsys, "--labels", f"{tmp_path / 'l.csv'}{options}", "-o", tmp_path / f"c{n}")[0]
        for n, options in enumerate(("", "?sets=true"))
    ]
    assert ["labels_per_row" in report for report in reports] == [False, False]
    shards = [next((tmp_path / f"c{n}/data/train").iterdir()).read_bytes() for n in range(2)]
    assert shards[0] == shards[1]
    shutil.rmtree(tmp_path / "c1")
