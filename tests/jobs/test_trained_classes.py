"""Evaluated classes that were trained with labels are counted by key, and never called zero-shot."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.trained_classes import find_trained_classes
from unicl_cli.recipe.load import load

TENCH, CRANE, MACHINE, GOLDFISH = "n01440764", "n02012849", "n03126707", "n01443537"
"""`crane` is a name of the second and of the third."""
SMALL = (
    "model: {image: {name: cnn, width: 8, stages: 2}, text: {name: cbow, width: 16}, embed_dim: 16}\n"
    "batch: {size: 4}\nsteps: 1\nschedule: {warmup: 0}\n"
)


def image(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 9, 99)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def corpora(tmp_path, capsys, monkeypatch):
    """``winter`` has two classes of ``ilsvrc`` and one more; ``rest`` has none of them; ``names`` has no ids."""
    monkeypatch.chdir(tmp_path)
    numbers = iter(range(99))
    of = {"winter": (TENCH, CRANE, MACHINE), "rest": (MACHINE,), "ilsvrc": (TENCH, CRANE, GOLDFISH)}
    for name, classes in (of | {"names": ("Tench", "dog")}).items():
        put(tmp_path / "f" / name, {f"{each}/{n}.png": image(next(numbers)) for each in classes for n in range(2)})
        prepared(capsys, "--labels", f"f/{name}", "-o", name, "--holdout", 0)
    return tmp_path


def recipe(data: str):
    Path("r.yaml").write_text(f"name: r\ndata: {{image_size: 8, {data}}}\n{SMALL}", encoding="utf-8")
    return load("r.yaml")


def test_classes_are_counted_by_key_and_a_name_counts_where_there_is_no_id(corpora):
    ilsvrc, names = open_corpus("ilsvrc"), open_corpus("names")

    def counted(data: str, corpus=ilsvrc):
        return find_trained_classes([recipe(data)], corpus, "train")

    assert counted("train: [{corpus: winter}]") == (2, 3, ())
    assert counted("train: [{corpus: rest}]") == (0, 3, ()), "another crane"
    assert counted("train: [{corpus: names}]") == (1, 3, ())
    assert counted("train: [{corpus: winter}]", names) == (1, 2, ())
    assert counted("train: [{corpus: winter, limit: 1}]")[0] < 2
    assert counted("train: [{corpus: winter}, {corpus: gone}]") == (2, 3, ("gone",))
    assert find_trained_classes([], ilsvrc, "train") is None


def test_eval_says_so_in_table_json_and_page(corpora, capsys):
    recipe("train: [{corpus: winter}]")
    assert main(["train", "r.yaml", "--run-dir", "runs/a", "--devices", "cpu"]) == 0
    capsys.readouterr()
    argv = ["eval", "runs/a", "--data", "ilsvrc", "--split", "train"]
    assert main([*argv, "--html", "p.html"]) == 0
    said = "ilsvrc train: 2 of 3 classes were trained with labels: not zero-shot"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (corpora / "p.html").read_text()
    assert main([*argv, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["data"]
    assert entry["trained_classes"] == {"trained": 2, "classes": 3, "unchecked": []}
