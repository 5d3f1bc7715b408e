"""A manifest says what its shards are; names inside are never paths, and what contradicts itself is one line."""

import copy
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicl_cli.cli import main
from unicl_cli.core.class_groups import find_hierarchy_fault
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.corpus_format import SCHEMA
from unicl_cli.data.manifest import MAX_NAME, is_plain_name
from unicl_cli.data.shard_checks import ShardRules, find_fault, open_shard, read_columns
from unicl_cli.errors import UniclError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("m") / "c"
    assert main(["prepare", "--labels", "digits?classes=0-2&limit=30", "-o", str(out), "-q"]) == 0
    return out


@pytest.mark.parametrize("name", ["train", ".hidden", "a.b-c_d", "x²", "été", "n" * MAX_NAME, "console", "com10"])
def test_plain_names_are_taken(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "a/b", "/a", "a\\b", "c:", "a b", "a\0", "a\n", "-a", "nul", "CON.txt", "Com1", "é" * 110],
)
def test_names_that_lead_elsewhere_or_that_no_file_can_have_are_refused(name):
    assert not is_plain_name(name)


def shards(manifest):
    return manifest["shards"][0]


CHANGES = [
    (lambda m: m.pop("name"), "name: Field required"),
    (lambda m: m["classes"].reverse(), "classes.0.id: is 9: the classes are not in their order"),
    (lambda m: m["classes"][1].update(names=[]), "classes.1.names: "),
    (lambda m: m["classes"][1].update(key="0"), "two classes have the same key"),
    (lambda m: m["classes"][1].update(prompt_name="eight"), "classes.1.prompt_name: "),
    (lambda m: m["classes"].pop(), "class_counts.train: has 10 classes instead of 9"),
    (lambda m: m.update(rows=m["rows"] + 1), "but its shards have"),
    (lambda m: m.update(templates="/etc/passwd"), "is not one of clip80"),
    (lambda m: m.update(templates=["no place"]), "needs at least one template"),
    (lambda m: shards(m).update(split="val"), "its split or its number of rows contradicts"),
    (lambda m: shards(m).update(file="../c/data/train/x.parquet"), "is not data/SPLIT/NAME.parquet"),
    (lambda m: shards(m).update(file="data/../x.parquet"), "is not data/SPLIT/NAME.parquet"),
    (lambda m: shards(m).update(bytes=10**30), "shards.0.bytes: should be less than"),
    (lambda m: shards(m).update(rows="4"), "shards.0.rows: should be a valid integer"),
    (lambda m: shards(m)["row_groups"].append(1), "its split or its number of rows contradicts"),
    (lambda m: m["shards"].append(copy.deepcopy(shards(m))), "two shards have the same file"),
    (lambda m: m.update(shards={}), "shards: should be a valid list"),
]


@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_a_manifest_that_contradicts_itself_is_one_line(corpus, tmp_path, change, problem):
    manifest = json.loads((corpus / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UniclError) as caught:
        open_corpus(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / 'manifest.json'}: damaged: ")
    assert problem in caught.value.message
    assert "unicl prepare --repair" in str(caught.value.hint)


def test_a_shard_that_is_not_a_file_is_one_line(corpus, tmp_path):
    (tmp_path / "manifest.json").write_bytes((corpus / "manifest.json").read_bytes())
    shard = tmp_path / shards(json.loads((corpus / "manifest.json").read_text()))["file"]
    (shard / "x").mkdir(parents=True)
    with pytest.raises(UniclError, match="shard is not a regular file"):
        open_corpus(tmp_path)


ROW = {
    "key": "s:k", "image": {"bytes": b"x", "path": None}, "texts": ["t"], "text_hash": [1], "label": 0, "source": "s",
    "width": 1, "height": 1, "sha256": bytes(32), "phash": 0, "url": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("labels", {}, None),
        ("labels", {"texts": [], "text_hash": []}, None),
        ("captions", {"label": -1}, None),
        ("images", {"label": -1, "texts": [], "text_hash": []}, None),
        ("labels", {"label": 2}, "label 2 is out of range: rows of labels have 0 … 1"),
        ("labels", {"label": -1}, "label -1 is out of range"),
        ("labels", {"label": -2}, "label -2 is out of range"),
        ("captions", {}, "label 0 is out of range: rows of captions have -1"),
        ("captions", {"label": -1, "texts": [], "text_hash": []}, "a row of captions has no text"),
        ("images", {"label": -1}, "a row of images has a text"),
        ("labels", {"text_hash": []}, "the numbers of texts and of their hashes differ"),
        ("labels", {"texts": [None]}, "texts is missing in a row"),
        ("labels", {"text_hash": [None]}, "text_hash is missing in a row"),
        ("labels", {"image": {"bytes": None, "path": "x.png"}}, "image is missing in a row"),
        ("labels", {"width": 0}, "width is less than 1"),
        *(("labels", {name: None}, f"{name} is missing in a row") for name in ("key", "image", "label", "sha256")),
    ],
)
def test_each_row_follows_the_rules_of_its_kind(tmp_path, kind, change, problem):
    """The fault is in the second row group, which the error names."""
    table = pa.Table.from_pylist([ROW | {"label": 0 if kind == "labels" else -1}, ROW | change], SCHEMA)
    if kind == "images":
        table = pa.Table.from_pylist([ROW | {"label": -1, "texts": [], "text_hash": []}, ROW | change], SCHEMA)
    shard = tmp_path / "c/data/train/s.parquet"
    shard.parent.mkdir(parents=True)
    pq.write_table(table, shard, row_group_size=1)
    assert find_fault(table, ShardRules(kind, 2)) == problem or problem in find_fault(table, ShardRules(kind, 2))
    if problem:
        with pytest.raises(UniclError, match=r"s\.parquet: damaged: row group 1: ") as caught:
            read_columns(shard, [1, 1], table.column_names, ShardRules(kind, 2))
        assert problem in caught.value.message
        assert str(tmp_path / "c") in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "groups", "problem"),
    [
        (lambda t: t.drop_columns(["texts"]), [2], "has no column texts"),
        (lambda t: t.append_column("label", t["label"]), [2], "has no column label, or has it twice"),
        (lambda t: t.set_column(4, "label", t["label"].cast(pa.string())), [2], "label has the type string instead of"),
        (lambda t: t.set_column(8, "sha256", pa.array([b"1", b"2"])), [2], "sha256 has the type binary instead of"),
        (lambda t: t, [1, 1], "its row groups are not those of the manifest"),
        (lambda t: t, [3], "has 2 rows instead of 3"),
    ],
)
def test_a_shard_has_the_columns_and_row_groups_that_were_written(tmp_path, change, groups, problem):
    shard = tmp_path / "s.parquet"
    pq.write_table(change(pa.Table.from_pylist([ROW, ROW], SCHEMA)), shard)
    with pytest.raises(UniclError, match=r"s\.parquet: damaged: ") as caught:
        open_shard(shard, groups)
    assert problem in caught.value.message


def test_columns_of_later_versions_are_read_past(tmp_path):
    table = pa.Table.from_pylist([ROW], SCHEMA)
    pq.write_table(table.append_column("later", pa.array([1])), tmp_path / "s.parquet")
    with open_shard(tmp_path / "s.parquet", [1]) as file:
        assert "later" in file.schema_arrow.names


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([("a", "x", ""), ("b", "y", "a"), ("c", "", "")], None),
        ([("a", "x", "b")], "class 'b' is a parent, but not a class"),
        ([("a", "x", "b"), ("b", "y", "a")], "class 'a' is above itself"),
        ([("a", "x", ""), ("b", "y", "a"), ("c", "x", "b")], "class 'a' and a class below it have the same group, 'x'"),
        ([(str(n), str(n), "") for n in range(64)], "has 64 groups of classes; the limit is 63"),
        (
            [
                ("0", "", ""),
                *((str(n), "", str(n - 1)) for n in range(1, 50_000)),
            ],  # a chain is not walked from each end
            "class '0' and a class below it have the same group, ''",
        ),
    ],
)
def test_a_hierarchy_has_parents_that_are_classes_and_another_group_on_each_level(classes, said):
    assert find_hierarchy_fault(classes) == said
