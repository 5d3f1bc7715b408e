"""Rows with label sets come back from a corpus as they were, in both formats, and every broken rule is found."""

import hashlib
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.toy_corpora import corpus as toy_corpus
from unicl_cli.contracts import ALL_GROUPS, NO_LABEL, Row
from unicl_cli.data.corpus import RowTable, open_corpus
from unicl_cli.data.corpus_format import SCHEMA, schema_of
from unicl_cli.data.shard_checks import ShardRules
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.plan.plan import _describe_row
from unicl_cli.jobs.prepare.shards.shards import write_unit
from unicl_cli.jobs.prepare.shards.units import Unit, Work

GROUPS = ("colour", "", "texture")
GROUP_OF = (0, 0, 1, 1, 1, 2)
"""The groups of six classes."""
RULES = ShardRules("labels", len(GROUP_OF), GROUP_OF)


class Pictures:
    def __init__(self):
        out = io.BytesIO()
        Image.new("RGB", (4, 4), (200, 30, 30)).save(out, "PNG")
        self.png = out.getvalue()

    def read(self, row):
        return {"image": self.png}


@st.composite
def annotated(draw):
    """A set of groups, and labels of these groups, not in order; at least one of the two."""
    known = draw(st.sets(st.integers(0, 2), min_size=1))
    labels = draw(st.lists(st.sampled_from([n for n, of in enumerate(GROUP_OF) if of in known]), unique=True))
    return tuple(labels), tuple(GROUPS[n] for n in sorted(known))


def write(folder, rows, group_rows=3):
    """The marker and the table of rows that a unit wrote, as (labels, names of the groups known)."""
    adopted = [
        Row(f"s:{n}", "", (), labels[0] if len(labels) == 1 else NO_LABEL, tuple(sorted(labels)), known)
        for n, (labels, known) in enumerate(rows)
    ]
    unit = Unit("s-labels-00000-of-00001", "train", "s", "labels", 0, len(rows), group_rows)
    work = Work(unit, folder, "s", adopted, None, False, {}, groups=GROUPS)
    marker = write_unit(work, Pictures(), lambda *_: None, lambda: False)
    return marker, RowTable([folder / marker["file"]], [marker["row_groups"]], RULES)


@settings(max_examples=40, deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=8))
def test_any_sets_and_groups_come_back_as_they_were(tmp_path_factory, rows):
    marker, table = write(tmp_path_factory.mktemp("sets"), rows)
    wanted = [(tuple(sorted(labels)), sum(1 << GROUPS.index(name) for name in known)) for labels, known in rows]
    samples = [table.read(n) for n in range(len(table))]
    assert [(sample.labels, sample.known) for sample in samples] == wanted
    assert [sample.label for sample in samples] == [of[0] if len(of) == 1 else NO_LABEL for of, _ in wanted]
    sets = table.label_sets()
    assert sets.known.tolist() == [known for _, known in wanted]
    assert [tuple(of) for of in np.split(sets.values, sets.ends[1:-1])] == [labels for labels, _ in wanted]
    stored = pq.read_table(table.shards[0], columns=["labels", "known"]).to_pylist()
    assert [(tuple(row["labels"]), row["known"]) for row in stored] == wanted
    sizes = [len(labels) for labels, _ in wanted]
    assert marker["set_sizes"] == {str(n): sizes.count(n) for n in sorted(set(sizes))}
    assert sum(marker["labels"].values()) == sum(sizes)


def test_the_datasets_library_shows_the_columns_of_sets(tmp_path):
    from datasets import load_dataset

    rows = [((0, 2), ("colour", "")), ((5,), ("texture",)), ((), ("colour",))]
    _, table = write(tmp_path, rows)
    loaded = load_dataset("parquet", data_files=str(table.shards[0]), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["labels"][:] == [[0, 2], [5], []]
    assert loaded["known"][:] == [0b011, 0b100, 0b001]
    assert loaded["label"][:] == [-1, 5, -1]
    assert loaded[0]["image"].size == (4, 4)


def test_a_corpus_of_the_first_format_has_sets_of_one_or_none(tmp_path):
    opened = toy_corpus(tmp_path / "c")
    labels, captions = (opened.table("train", kind) for kind in ("labels", "captions"))
    assert not labels.has_sets
    assert pq.read_schema(labels.shards[0]).equals(SCHEMA)
    sets = labels.label_sets()
    assert sets.values.tolist() == [n % 3 for n in range(len(labels))]
    assert sets.ends.tolist() == list(range(len(labels) + 1))
    assert set(sets.known.tolist()) == {ALL_GROUPS}
    assert [labels.read(4).labels, labels.read(4).known] == [(1,), ALL_GROUPS]
    assert captions.label_sets().values.tolist() == []
    assert captions.label_sets().ends.tolist() == [0] * (len(captions) + 1)
    assert captions.read(0).labels == ()


DAMAGE = {
    "labels": {
        "out of range": ([[0, 6], [2]], "a label set has a label out of range"),
        "below zero": ([[-1, 0], [2]], "a label set has a label out of range"),
        "in another order": ([[2, 0], [2]], "a label set is not ascending"),
        "twice": ([[0, 0], [2]], "a label set is not ascending"),
        "one instead of two": ([[0], [2]], "label is not the only label of its set"),
        "two instead of one": ([[0, 2], [2, 3]], "label is not the only label of its set"),
        "another one": ([[0, 2], [3]], "label is not the only label of its set"),
        "of an unknown group": ([[0, 5], [2]], "known does not have the groups of the row's labels"),
        "a null": ([[0, None], [2]], "labels is missing in a row"),
        "no list": ([None, [2]], "labels is missing in a row"),
    },
    "known": {
        "too few": ([0b01, 0b10], "known does not have the groups of the row's labels"),
        "another bit": ([0b011, 0b1010], "known does not have the groups of the row's labels, or has another bit"),
        "all bits": ([-1, 0b10], "known does not have the groups of the row's labels, or has another bit"),
        "a null": ([None, 0b10], "known is missing in a row"),
    },
    "label": {"not alone": ([0, 2], "label is not the only label of its set")},
}
CASES = [(column, name) for column, cases in DAMAGE.items() for name in cases]


def replace_column(shard, column, values):
    table = pq.read_table(shard)
    field = table.schema.field(column)
    changed = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
    pq.write_table(changed, shard, write_page_checksum=True)


@pytest.mark.parametrize(("column", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_every_broken_rule_of_a_set_is_found(column, name, tmp_path):
    values, problem = DAMAGE[column][name]
    _, table = write(tmp_path, [((0, 2), ("colour", "")), ((2,), ("",))])
    assert table.read(1).labels == (2,)
    replace_column(table.shards[0], column, values)
    for use in (lambda t: t.read(0), lambda t: t.label_sets()):
        fresh = RowTable(table.shards, [[2]], RULES)
        with pytest.raises(UniclError, match=re.escape(problem)) as caught:
            use(fresh)
        assert str(table.shards[0]) in caught.value.message


def test_a_row_without_labels_and_without_annotations_is_found(tmp_path):
    _, table = write(tmp_path, [((0,), ("colour",)), ((), ("colour",))])
    replace_column(table.shards[0], "known", [1, 0])
    with pytest.raises(UniclError, match="a row of labels has neither a label nor annotations"):
        RowTable(table.shards, [[2]], RULES).label_sets()


def test_labels_in_a_row_of_captions_and_missing_columns_are_found(tmp_path):
    _, table = write(tmp_path, [((0, 2), ("colour", ""))])
    with pytest.raises(UniclError, match="a row of captions has labels"):
        RowTable(table.shards, [[1]], RULES._replace(kind="captions")).label_sets()
    plain = pq.read_table(table.shards[0]).drop_columns(["labels", "known"])
    pq.write_table(plain, table.shards[0])
    with pytest.raises(UniclError, match="has no column labels"):
        RowTable(table.shards, [[1]], RULES).read(0)
    with_sets = schema_of(sets=True, media=False)
    wrong = [field if field.name != "known" else pa.field("known", pa.int32()) for field in with_sets]
    rows = [{**plain.to_pylist()[0], "labels": [0, 2], "known": 3}]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(wrong)), table.shards[0])
    with pytest.raises(UniclError, match="its column known has the type int32 instead of int64"):
        RowTable(table.shards, [[1]], RULES).read(0)


def test_a_row_without_sets_has_the_fingerprint_that_it_always_had():
    row = Row("a/b.png", "x'y\n", ("one", "two"), 3)
    before = "('train', Row(key='a/b.png', ref=\"x'y\\n\", texts=('one', 'two'), label=3), 17)"
    assert _describe_row("train", row, 17) == before
    told = {
        _describe_row("train", row._replace(**more), 17)
        for more in ({}, {"labels": (3,)}, {"known": ()}, {"known": ("",)})
    }
    assert len(told) == 4


def change_manifest(folder, change):
    """Write the manifest of a small corpus with a change."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["classes"][0].update(parent="n9"), "class 'n9' is a parent, but not a class"),
        (
            lambda m: [c.update(parent=p) for c, p in zip(m["classes"], ("n2", "n1", ""), strict=True)],
            "is above itself",
        ),
        (lambda m: m["classes"][0].update(parent="n1"), "class 'n1' is above itself"),
        (lambda m: m.update(schema_version=1) or m["classes"][0].update(group="g"), "but schema_version is 1"),
        (lambda m: m.update(set_sizes={"-1": 3}), "set_sizes"),
        (lambda m: m.update(set_sizes={"10000": 3}), "set_sizes"),
        (lambda m: m.update(schema_version=3), "corpus format 3, but this unicl reads 1 and 2"),
        (
            lambda m: m.update(classes=[{"id": n, "key": str(n), "names": ["x"], "group": str(n)} for n in range(64)]),
            "has 64 groups of classes; the limit is 63",
        ),
    ],
)
def test_a_manifest_with_wrong_groups_or_parents_is_one_line(change, problem, tmp_path):
    folder = tmp_path / "c"
    toy_corpus(folder)
    change_manifest(folder, lambda manifest: manifest.update(schema_version=2))
    change_manifest(folder, change)
    with pytest.raises(UniclError, match=re.escape(problem)) as caught:
        open_corpus(folder)
    assert "\n" not in caught.value.message


def test_the_bytes_of_a_corpus_without_sets_do_not_depend_on_groups(tmp_path):
    """A unit without ``groups`` writes the columns of the first format alone, as before there were sets."""
    rows = [Row("s:0", "", ("a red door",), 1, (1,), ("",)), Row("s:1", "", (), 0, (0,), ("",))]
    unit = Unit("s-labels-00000-of-00001", "train", "s", "labels", 0, 2, 2)
    marker = write_unit(Work(unit, tmp_path, "s", rows, None, False, {}), Pictures(), lambda *_: None, lambda: False)
    table = pq.read_table(tmp_path / marker["file"])
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata == SCHEMA.metadata
    assert table.column("label").to_pylist() == [1, 0]
    assert "set_sizes" not in marker
    assert hashlib.sha256((tmp_path / marker["file"]).read_bytes()).hexdigest() == marker["sha256"]
