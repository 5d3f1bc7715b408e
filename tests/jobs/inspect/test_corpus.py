"""Parts of the facts of a corpus: bins of the classes' sizes, names of classes in captions, and notes."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.cli import run
from unicl_cli.contracts import ClassName
from unicl_cli.data.class_mentions import ClassNameFinder, distinct_pairs, split_words
from unicl_cli.jobs.inspect.corpus import count_bins


@pytest.mark.parametrize(
    ("counts", "bins"),
    [
        ([3, 3, 4, 5], [(3, 3, 2), (4, 4, 1), (5, 5, 1)]),
        ([1] * 50 + [2, 3, 8, 846], [(1, 1, 50), (2, 3, 2), (4, 7, 0), (8, 15, 1)]),
        ([0, 0, 0, 1, 100], [(0, 0, 3), (1, 1, 1), (2, 3, 0)]),
    ],
)
def test_bins_double_where_half_of_the_classes_would_share_one(counts, bins):
    found = [(each["low"], each["high"], each["n"]) for each in count_bins(np.array(counts))]
    assert found[: len(bins)] == bins
    assert sum(n for *_, n in found) == len(counts)
    assert found[-1][0] <= max(counts) <= found[-1][1]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=60))
def test_every_class_is_in_one_bin(counts):
    found = count_bins(np.array(counts))
    assert sum(each["n"] for each in found) == len(counts)
    for each in found:
        assert each["n"] == sum(each["low"] <= n <= each["high"] for n in counts)


WORD = st.sampled_from(["sea", "lion", "fly", "box", "é", "日本", "a1"])


@settings(deadline=None, max_examples=50)
@given(
    names=st.lists(st.lists(WORD, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5, unique=True),
    texts=st.lists(st.lists(WORD | st.sampled_from(["lions", "flies", "boxes", "-", ".", "SEA"])).map(" ".join)),
)
def test_names_are_found_where_a_regular_expression_finds_them(names, texts):
    found = ClassNameFinder([ClassName(name, (name,)) for name in names]).find(
        split_words(pa.array(texts, pa.string()))
    )
    pairs = set(zip(*(column.tolist() for column in distinct_pairs(*found, len(names))), strict=True))

    def named(name: str, text: str) -> bool:
        stem = r"[\W_]+".join(map(re.escape, name.split()))
        forms = f"{stem}|{stem}e?s" + (f"|{stem[:-1]}ies" if name.endswith("y") else "")
        return re.search(rf"(?<!\w)({forms})(?!\w)", text, re.IGNORECASE) is not None

    assert pairs == {(t, n) for t, text in enumerate(texts) for n, name in enumerate(names) if named(name, text)}


def test_rows_with_a_label_and_a_caption_are_told_with_the_key_for_them(tmp_path, capsys):
    for place, captions in (("both", "true"), ("apart", "false")):
        Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
        (tmp_path / "list.csv").write_text("image,caption\none.png,a dark square\n")
        shapes = f"shapes?captions={captions}&count=24&test=4&size=16"
        sources = ["--labels", shapes, "--captions", str(tmp_path / "list.csv"), "--holdout", "0"]
        assert run(["prepare", *sources, "-o", str(tmp_path / place), "--workers", "1", "-q"]) == 0
        capsys.readouterr()
        assert run(["inspect", str(tmp_path / place), "--json"]) == 0
        notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
        assert ("24 rows have a label and a caption" in notes) is (place == "both")
        assert ("set loss.own_text=0.5" in notes) is (place == "both")
