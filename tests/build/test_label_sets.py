"""Corpora with label sets in one mix: the groups that a row knows, its labels, and the losses that take them."""

import io
from types import SimpleNamespace

import pytest
import torch
import yaml
from launching import TINY
from PIL import Image
from toys import put

from unicl_cli.build.data import build_data, merged_classes
from unicl_cli.cli import main
from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, SHOWN
from unicl_cli.core.label_sets import set_columns
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text

LISTS = {
    "a": ("image,colour,shape\n0.png,red,ring\n1.png,blue,\n2.png,,star\n", "?label=colour,shape"),
    "b": ("image,texture,colour\n3.png,plain,red\n4.png,dotted,\n5.png,,green\n", "?label=texture,colour"),
    "c": ("image,label\n6.png,red;wide\n7.png,wide\n8.png,tall\n", "?sets=;"),
    "d": ("image,label\n9.png,wide\n10.png,tall\n", ""),
}
EXPECTED = {
    "0.png": ({"red", "ring"}, {"colour", "shape"}), "1.png": ({"blue"}, {"colour"}), "2.png": ({"star"}, {"shape"}),
    "3.png": ({"plain", "red"}, {"texture", "colour"}), "4.png": ({"dotted"}, {"texture"}),
    "5.png": ({"green"}, {"colour"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora ``a`` and ``b`` with groups in another order, ``c`` with sets of one group, ``d`` with single labels."""
    root = tmp_path_factory.mktemp("mixes")
    for n in range(11):
        out = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * n, 60, 90)).save(out, "PNG")
        put(root, {f"{n}.png": out.getvalue()})
    (root / "words.csv").write_text("image,caption\n0.png,a red ring\n1.png,something blue\n")
    for name, (lines, options) in LISTS.items():
        (root / f"{name}.csv").write_text(lines)
        more = ["--captions", f"{root / 'words.csv'}"] if name == "a" else []
        argv = [
            "prepare",
            "--labels",
            f"{root / f'{name}.csv'}{options}",
            *more,
            "-o",
            str(root / f"corpus-{name}"),
            "-q",
        ]
        assert main([*argv, "--workers", "1"]) == 0
    return root


def built(root, names, **more):
    train = [{"corpus": str(root / f"corpus-{name}")} for name in names]
    return build_data(load_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "train": train}, **more})))


def drawn_rows(data):
    """Each row of a mix by its key."""
    return {
        strand.table.read(row).key.partition(":")[2] + f"/{strand.kind}": data.mix[number, row, 0, 0]
        for number, strand in enumerate(data.mix.strands)
        for row in range(strand.size)
    }


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_mix_gives_each_row_its_labels_and_the_bits_of_the_groups_it_knows(order, corpora):
    data = built(corpora, order)
    names, groups = [c.key for c in data.classes], data.label_sets.names
    assert set(groups) == {"colour", "shape", "texture"}
    rows = drawn_rows(data)
    for key, (labels, known) in EXPECTED.items():
        row = rows[f"{key}/labels"]
        assert {names[label] for label in row.labels} == labels
        assert row.known == sum(1 << groups.index(name) for name in known)
        assert row.label == (row.labels[0] if len(labels) == 1 else NO_LABEL)
        assert row.shown in row.labels
        assert names[row.shown] in row.text
        assert data.label_sets.groups[row.shown] in {groups.index(name) for name in known}
    captions = [rows["0.png/captions"], rows["1.png/captions"]]
    assert [(row.labels, row.known, row.shown) for row in captions] == [((), 0, NO_LABEL)] * 2
    assert data.label_sets.width == 2


def test_columns_of_a_batch_are_as_wide_as_the_longest_set_of_the_mix(corpora):
    data = built(corpora, "ab")
    rows = drawn_rows(data)
    batch = [rows["1.png/labels"], rows["0.png/labels"], rows["0.png/captions"]]
    made = set_columns(batch, torch.zeros(1, 1), torch.zeros(3), label_sets=data.label_sets)
    assert made[LABEL_SET].shape == (3, 2)
    assert (made[LABEL_SET] == NO_LABEL).tolist() == [[False, True], [False, False], [True, True]]
    assert made[SHOWN].tolist() == [row.shown for row in batch]
    assert made[KNOWN].tolist() == [row.known for row in batch]


def test_a_corpus_with_single_labels_beside_one_with_sets_knows_its_own_group(corpora):
    data = built(corpora, "cd")
    assert data.label_sets.names == ("",)
    rows = drawn_rows(data)
    assert [rows[f"{n}.png/labels"].known for n in (6, 7, 8, 9, 10)] == [1] * 5
    assert len(rows["6.png/labels"].labels) == 2
    assert built(corpora, "d").label_sets is None
    alone = drawn_rows(built(corpora, "d"))
    assert alone["9.png/labels"].label != NO_LABEL
    mixed = built(corpora, "ad")
    assert mixed.label_sets.names == ("colour", "shape", "")
    rows = drawn_rows(mixed)
    assert (rows["9.png/labels"].known, rows["0.png/labels"].known) == (0b100, 0b011)


def test_more_groups_than_bits_in_a_mix_are_refused():
    def corpus(name, count):
        return SimpleNamespace(path=name, classes=[ClassName(f"{name}{n}", ("x",), f"{name}{n}") for n in range(count)])

    assert len(merged_classes([corpus("a", 40), corpus("b", 23)])[0]) == 63
    with pytest.raises(UniclError, match=r"64 groups of classes together; the limit is 63"):
        merged_classes([corpus("a", 40), corpus("b", 24)])


def test_a_class_in_two_groups_of_a_mix_is_refused(corpora):
    with pytest.raises(UniclError, match=r"corpus-c: class 'red' is in no group, and in an earlier .* group 'colour'"):
        built(corpora, "ac")
