"""`unicl inspect --near` and `--against`: near duplicates as counts, pairs and images; mentions of each class."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from scenes import change, draw_scene, encode
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.inspect.near import ImageSet


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """``own``: photos 0 to 5, copies of 0 and 1, two of one colour; in test 0 and a copy of 2. ``other``: 3 and 4."""
    folder = tmp_path_factory.mktemp("near")
    train = {f"{'ab'[n % 2]}/{n}.png": encode(draw_scene(n)) for n in range(6)}
    train |= {"a/0.jpg": change(draw_scene(0), "jpeg"), "b/1.img": change(draw_scene(1), "darker")}
    train |= {f"a/{name}.png": encode(Image.new("RGB", (9, 9), name)) for name in ("black", "white")}
    put(folder / "f/train", train)
    put(folder / "f/test", {"a/0.png": encode(draw_scene(0)), "a/2.png": change(draw_scene(2), "smaller")})
    put(folder / "o", {"x/3.png": encode(draw_scene(3)), "x/4.jpg": change(draw_scene(4), "jpeg")})
    put(folder, {"c.png": encode(draw_scene(5)), "l.csv": b"image,caption\nc.png,the letter b & <c>\n"})
    own = ["--labels", str(folder / "f"), "--captions", str(folder / "l.csv")]
    assert main(["prepare", *own, "-o", str(folder / "own"), "-q"]) == 0
    assert main(["prepare", "--labels", str(folder / "o"), "-o", str(folder / "other"), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def inspected(corpora):
    argv = ["--near", "--against", str(corpora / "other"), "--html", str(corpora / "p.html"), "--samples", "0"]
    assert main(["inspect", str(corpora / "own"), *argv, "-o", str(corpora / "d.json"), "-q"]) == 0
    return json.loads((corpora / "d.json").read_text()), (corpora / "p.html").read_text()


def test_each_comparison_counts_rows_that_are_nearly_equal_and_not_equal(inspected):
    found = inspected[0]["near_duplicates"]
    assert found["splits"] == [
        {"split": "train", "kind": "labels", "rows": 10, "near": 2, "groups": 2},
        {"split": "train", "kind": "captions", "rows": 1, "near": 0, "groups": 0},
        {"split": "test", "kind": "labels", "rows": 2, "near": 0, "groups": 0},
    ]
    assert found["also_in_train"] == {"test": 1}
    (against,) = found["against"]
    assert {name: against[name] for name in ("name", "split", "rows", "same", "near")} == {
        "name": "other", "split": None, "rows": 11, "same": 1, "near": 1
    }  # fmt: skip
    assert (found["flat"], found["unreadable"], found["unhashed"], found["crowded"]) == (2, 0, 0, 0)
    pairs = {(pair["row"]["key"], pair["like"]["key"]) for pair in found["examples"]}
    assert ("f:train/a/4.png", "o:x/4.jpg") in pairs
    assert {row.rpartition("/")[2][0] == like.rpartition("/")[2][0] for row, like in pairs} == {True}
    assert all(pair["bits"] <= 4 and pair["similarity"] >= 0.99 for pair in found["examples"])


def test_notes_say_what_to_do(inspected):
    notes = "\n".join(inspected[0]["notes"])
    assert "1 row of split test nearly repeats an image of train" in notes
    assert re.search(r"2 rows have an image of other: leave them out with prepare --not-in \S+/other\b", notes)
    assert "leave them out with prepare --dedup near" in notes


def test_the_page_shows_the_images_of_each_pair(inspected):
    document, page = inspected
    figures = re.findall(r"<figure>.*?</figure>", page[page.index("Near duplicates") :], re.DOTALL)
    pairs = [figure for figure in figures if 'class="two"' in figure]
    assert len(pairs) == len(document["near_duplicates"]["examples"])
    assert all(figure.count("data:image/") == 2 for figure in pairs)
    assert "<c>" not in page


def test_the_table_names_the_pairs_and_nothing_is_decoded_without_the_option(corpora, capsys, monkeypatch):
    assert main(["inspect", str(corpora / "own"), "--near"]) == 0
    out = capsys.readouterr().out
    assert "Near duplicates" in out
    assert "within labels of train" in out
    monkeypatch.setattr("unicl_cli.jobs.inspect.near.decode", None)
    assert main(["inspect", str(corpora / "own"), "--json"]) == 0
    assert "near_duplicates" not in json.loads(capsys.readouterr().out)


def test_rows_without_a_hash_are_counted_and_not_compared(corpora, monkeypatch):
    corpus = open_corpus(corpora / "own")
    of = ImageSet(corpus, "train", "labels")
    of.hashed = np.zeros(len(of), np.bool_)
    assert not of.usable().any()


@pytest.mark.parametrize("more", [["--batch"], ["--against", "{}/own"], ["--against", "{}/other?split=tset"]])
def test_what_cannot_be_compared_is_refused(corpora, capsys, more):
    assert main(["inspect", str(corpora / "own"), "--near", *(word.format(corpora) for word in more)]) == 2
    assert capsys.readouterr().err.startswith("error: --")


def test_mentions_are_counted_for_every_class(tmp_path, capsys):
    names = [f"animal{n}" for n in range(25)]
    put(tmp_path, {f"f/{name}/1.png": encode(draw_scene(n, 24)) for n, name in enumerate(names[:-1])})
    put(tmp_path, {f"{k}.png": encode(draw_scene(99 + k, 24)) for k in range(21)})
    lines = [f"{k}.png,a {name} here\n" for n, name in enumerate(names[:22]) for k in range(n)]
    (tmp_path / "l.csv").write_text("image,caption\n" + "".join(lines))
    prepared(capsys, "--labels", tmp_path / "f", "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    assert main(["inspect", str(tmp_path / "c"), "--json", "--html", str(tmp_path / "p.html")]) == 0
    found = json.loads(capsys.readouterr().out)["named_classes"]
    assert [row["n"] for row in found["most"]] == list(range(21, 11, -1))
    assert [row["n"] for row in found["least"]] == list(range(10, 0, -1))
    assert (found["named"], found["never"], found["only_in_labels"]) == (21, 3, 3)
    assert found["never_named"] == ["animal0", "animal22", "animal23"]
    assert {row["class"]: row["n"] for row in found["per_class"]} == {
        name: n if n < 22 else 0 for n, name in enumerate(names[:-1])
    }
    assert {row["labelled"] for row in found["per_class"]} == {1}
    page = (tmp_path / "p.html").read_text()
    assert "… 1 more" in page
    assert "Labels add 3 classes." in page
