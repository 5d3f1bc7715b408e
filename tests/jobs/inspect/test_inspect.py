"""`unicl inspect` on real corpora, batches, runs and checkpoints, whole and damaged; figures against plain loops."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.cli import run
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws
from unicl_cli.data.tokenizers import clip_tokenizer
from unicl_cli.errors import UniclError
from unicl_cli.formats import format_time
from unicl_cli.jobs.inspect.batch import default_recipe, inspect_batch
from unicl_cli.jobs.inspect.concepts import expected_others, same_concept_share
from unicl_cli.jobs.runs import command_of
from unicl_cli.recipe.load import load

EVIL = "<img src=x onerror=alert(1)>"
TINY = """
name: tiny
data: {{train: [{{corpus: {corpus}}}], image_size: 16, augment: none, templates: ["a {{}}."]}}
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: {{name: cbow, width: 16}}, embed_dim: 16, context_length: 24}}
batch: {{size: 16}}
optim: {{lr: 1e-2}}
schedule: {{warmup: 0}}
log: {{every: 1}}
steps: 4
eval: [{{corpus: {corpus}, split: train}}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus with classes named alike, in HTML, twice the same image, captions that repeat; a run of four steps."""
    root = tmp_path_factory.mktemp("inspect")
    rows = ["file\ttitle"]
    for number, (name, count) in enumerate({"dog": 9, "a/sea lion": 5, "b/sea-lion": 3, EVIL: 4}.items()):
        for n in range(count):
            path = root / "pictures" / name / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + n, 16), (40 * number, 20 * n, 100)).save(path)
    for n, title in enumerate(
        ["two dogs", "Two dogs.", "sea lions on a rock", "a dogged hot-dog", "nothing", "nothing"]
    ):
        Image.new("RGB", (16, 16), (n, n, 9)).save(root / f"{n}.png")
        rows.append(f"{n}.png\t{title}")
    shutil.copy(root / "pictures" / "dog" / "0.png", root / "pictures" / EVIL / "0.png")
    shutil.copy(root / "pictures" / "dog" / "1.png", root / "5.png")
    (root / "list.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sources = ["--labels", str(root / "pictures"), "--captions", str(root / "list.tsv")]
    assert run(["prepare", *sources, "-o", str(root / "corpus"), "--workers", "1", "-q"]) == 0
    (root / "tiny.yaml").write_text(TINY.format(corpus=root / "corpus"))
    assert run(["train", str(root / "tiny.yaml"), "--run-dir", str(root / "runs" / "one"), "-q"]) == 0
    return root


def answer(capsys, *args: str, status: int = 0) -> dict:
    """The document of `unicl inspect … --json`: all that stdout holds."""
    capsys.readouterr()
    assert run(["inspect", *args, "--json"]) == status
    return json.loads(capsys.readouterr().out)


# -- a corpus -------------------------------------------------------------------------------------------------------


def test_a_corpus_is_counted_row_by_row(place, capsys):
    facts = answer(capsys, str(place / "corpus"), "--tokenizer", "clip")
    corpus = open_corpus(place / "corpus")
    label, caption = corpus.table("train", "labels"), corpus.table("train", "captions")
    samples = [label.read(n) for n in range(len(label))]
    assert (facts["schema"], facts["kind"]) == ("unicl/inspect/1", "corpus")
    assert facts["rows"] == sum(line["rows"] for line in facts["sources"]) == 27
    keys = [item.key for item in corpus.classes]
    listed = {row["key"]: row["n"] for row in facts["per_class"]["largest"]}
    assert listed == {key: sum(keys[s.label] == key for s in samples) for key in keys}
    assert facts["per_class"]["quantiles"]["max"] == 9
    texts = [text for n in range(len(caption)) for text in caption.read(n).texts]
    assert facts["captions"]["texts"] == len(texts) == 6
    assert facts["captions"]["distinct"] == 4  # case and a final period make no other text
    assert facts["captions"]["tokens"]["max"] == max(int(clip_tokenizer(77)([text]).shape[1]) for text in texts)
    assert [entry["keys"] for entry in facts["colliding_names"]] == [["a/sea lion", "b/sea-lion"]]
    # one is a dog and also the image of a caption, which is not a second label
    assert (facts["duplicates"]["rows"], facts["duplicates"]["pictures_with_several_labels"]) == (2, 1)
    assert facts["concepts"]["labels"] == {"pictures": 21, "concepts": 4, "pictures_per_concept": 21 / 4}


def test_captions_name_classes_by_whole_words_and_plurals(place, capsys):
    named = answer(capsys, str(place / "corpus"))["named_classes"]
    # "two dogs" twice and "hot-dog" name the dog, "dogged" does not; "sea lions" are both classes of that name
    assert {row["class"]: row["n"] for row in named["most"]} == {"dog": 3, "sea lion": 1}
    assert (named["named"], named["never"], named["pictures"]) == (3, 1, 4)
    assert named["never_named"] == [EVIL]


def test_the_share_of_one_concept_is_that_of_all_pairs(place, capsys):
    facts = answer(capsys, str(place / "corpus"), "--batch-size", "12")["pairs"]
    labels = np.repeat(range(4), (9, 5, 3, 4))
    assert facts["labels"]["same_concept_share"] == pytest.approx((labels[:, None] == labels).mean())
    mean = np.mean([(np.delete(labels, n) == labels[n]).mean() for n in range(21)])
    assert facts["labels"]["others_per_anchor"] == pytest.approx(5 * mean)  # of the 5 other label rows in a batch of 12
    assert facts["captions_naming_a_label"]["share"] == pytest.approx((9 * 3 + 5 * 1 + 3 * 1) / (21 * 6))


def test_imagenet_at_4096_has_4_1_others():
    counts = np.full(1000, 1281)
    assert same_concept_share(counts) == pytest.approx(1 / 1000)
    assert expected_others(counts, 4096) == pytest.approx(4.1, abs=0.01)


def test_notes_say_what_to_do(place, capsys):
    said = "\n".join(answer(capsys, str(place / "corpus"))["notes"])
    for words in (
        "'sea lion' is a/sea lion and b/sea-lion",
        "1 image has several labels",
        "context_length: ",
        "text_hash",
    ):
        assert words in said


def test_a_few_texts_of_each_source_and_tiny_images_are_shown(place, capsys):
    facts = answer(capsys, str(place / "corpus"))
    samples = {line["kind"]: line["samples"] for line in facts["sources"]}
    assert 1 <= len(samples["captions"]) <= 3
    assert len(set(samples["captions"])) == len(samples["captions"])
    written = (place / "list.tsv").read_text()
    assert all(text in written for text in samples["captions"])
    assert samples["labels"] == []
    assert facts["pictures"]["tiny"] == {"below": 16, "n": 0}
    assert facts["per_class"]["few"] == {"at_most": 20, "n": len(facts["per_class"]["largest"])}
    assert any("20 images or fewer" in note for note in facts["notes"])


@pytest.mark.parametrize("terminal", [80, 100])
def test_no_cell_of_the_tables_is_broken(place, capsys, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", str(terminal))
    assert run(["inspect", str(place / "corpus"), "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= terminal
    sources = [line for line in lines if "│" in line and re.search(r"captions|labels", line) and "train" in line]
    assert all(re.search(r"\d+( \(\d+–\d+\))? │$", line) for line in sources)


def test_pictures_of_train_in_test_are_said(tmp_path, capsys):
    for split, shade in (("train", 0), ("train", 1), ("test", 1), ("test", 2)):
        for name in ("cat", "dog"):
            path = tmp_path / "p" / split / name / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (shade, 9, 9 if name == "cat" else 99)).save(path)
    assert run(["prepare", "--labels", str(tmp_path / "p"), "-o", str(tmp_path / "c"), "--workers", "1", "-q"]) == 0
    facts = answer(capsys, str(tmp_path / "c"))
    assert facts["duplicates"]["also_in_train"] == {"test": 2}
    assert any("repeat an image of train" in note for note in facts["notes"])


def test_pictures_alone_have_sizes_and_no_concepts(place, tmp_path, capsys):
    assert run(["prepare", "--images", str(place / "pictures"), "-o", str(tmp_path / "c"), "--workers", "1", "-q"]) == 0
    facts = answer(capsys, str(tmp_path / "c"), "--html", str(tmp_path / "page.html"))
    assert (facts["concepts"], facts["pictures"]["short_side"]["max"]) == ({}, 16)
    with pytest.raises(UniclError, match="no row of the batch has a text"):
        run(["inspect", str(tmp_path / "c"), "--batch"])


# -- a batch --------------------------------------------------------------------------------------------------------


def test_the_matrix_is_that_of_the_keys_training_has(place, capsys):
    facts = answer(capsys, str(place / "tiny.yaml"), "--batch", "--step", "2")
    recipe = load(str(place / "tiny.yaml"))
    data = build_data(recipe)
    hook = {
        "caption_targets": recipe.data.caption_targets,
        "extra": None,
        "workers": 0,
        "pin_memory": False,
        "distinct": True,
    }
    _, batch = next(iter(batches(data.mix, Draws(data.order, 2, 3, 0, 1), build_tokenizer(recipe, data), **hook)))
    keys = batch.keys.tolist()
    equal = torch.tensor(keys)[:, None] == torch.tensor(keys)
    assert facts["clip"]["false_negatives"] == int(equal.sum()) - 16
    assert facts["unicl"]["positives"] == int(equal.sum())
    order = [int(row["draw"]) - 2 * 16 for row in facts["shown"]]
    assert sorted(order) == list(range(16))
    positives = [[cell == "1" for cell in row] for row in facts["matrix"]["unicl"]]
    assert positives == equal[order][:, order].tolist()
    diagonal = [[cell == "1" for cell in row] for row in facts["matrix"]["clip"]]
    assert diagonal == torch.eye(16, dtype=torch.bool).tolist()


def test_a_run_a_checkpoint_and_its_recipe_draw_one_batch(place, capsys):
    one = place / "runs" / "one"
    found = [
        answer(capsys, str(p), "--batch") for p in (place / "tiny.yaml", one, one / "checkpoints" / "step-00000004")
    ]
    assert found[0]["shown"] == found[1]["shown"] == found[2]["shown"]


def test_expected_positives_are_those_of_many_batches(place):
    corpus = open_corpus(place / "corpus")
    recipe = default_recipe(corpus, "train", 12)
    seen = [inspect_batch(recipe, "c", step, with_images=False).document for step in range(60)]
    labels = np.repeat(range(4), (9, 5, 3, 4))
    mean = 5 * np.mean([(np.delete(labels, n) == labels[n]).mean() for n in range(21)])
    met = np.mean([d["clip"]["false_negatives"] / d["label_rows"] for d in seen])
    assert met == pytest.approx(mean, rel=0.15)


def test_without_colour_the_positives_alone_are_drawn(place, capsys):
    capsys.readouterr()
    assert run(["inspect", str(place / "corpus"), "--batch", "--batch-size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "CLIP's targets" in shown
    assert "\u2580\u2584      " in shown


# -- a checkpoint and a run -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_without_its_model(place, capsys):
    folder = place / "runs" / "one" / "checkpoints" / "step-00000004"
    facts = answer(capsys, str(folder))
    tensors = load_file(folder / "model.safetensors")
    assert facts["whole"]
    assert facts["step"] == 4
    assert facts["embed_dim"] == 16
    assert facts["parameters"] == sum(t.numel() for t in tensors.values())
    assert facts["logit_scale"] == pytest.approx(float(tensors["model.logit_scale"].exp()))
    image = [t.double() for name, t in tensors.items() if name.startswith("model.image.")]
    tower = next(t for t in facts["towers"] if t["tower"] == "image")
    assert tower["rms"] == pytest.approx(float(torch.cat([t.flatten() for t in image]).square().mean().sqrt()))
    assert facts["notes"] == []


@pytest.fixture
def copy(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "runs" / "one", tmp_path / "one"))


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])


DAMAGES = {
    "has changed since it was written (checksum)": flip,
    "has 999 bytes instead of": cut,
    "model.safetensors: missing": lambda f: (f / "model.safetensors").unlink(),
    "trainer.json is missing": lambda f: (f / "trainer.json").unlink(),
    "trainer.json: damaged: ": lambda f: (f / "trainer.json").write_text("{"),
    "trainer.json: damaged: files: Field required": lambda f: (f / "trainer.json").write_text('{"step": 4}'),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_ends_in_1(copy, capsys, said):
    folder = copy / "checkpoints" / "step-00000004"
    DAMAGES[said](folder)
    facts = answer(capsys, str(folder), status=1)
    assert not facts["whole"]
    assert any(said in note for note in facts["notes"])
    assert run(["inspect", str(folder), "--html", str(copy / "page.html")]) == 1
    assert any("step-00000004" in note for note in answer(capsys, str(copy))["notes"]) == (said != next(iter(DAMAGES)))


def test_weights_that_no_sound_model_has_are_named(copy, capsys):
    folder = copy / "checkpoints" / "step-00000004"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.image.proj.weight"][0, 0] = float("nan")
    tensors["model.text.proj.weight"].zero_()
    save_file(tensors, folder / "model.safetensors")
    facts = answer(capsys, str(folder), status=1)
    assert facts["not_finite"] == ["model.image.proj.weight"]
    assert facts["all_zero"] == ["model.text.proj.weight"]


def test_a_run_tells_its_state_and_its_last_figures(place, copy, capsys):
    facts = answer(capsys, str(place / "runs" / "one"))
    last = json.loads((place / "runs" / "one" / "metrics.jsonl").read_text().splitlines()[-1])
    assert facts["last"] == last
    assert [point["step"] for point in facts["curve"]] == [1, 2, 3, 4]
    assert facts["validations"][0]["step"] == 4
    assert all(item["whole"] for item in facts["checkpoints"])
    assert "continue" not in facts
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps({**status, "state": "stopped", "step": 2}))
    assert answer(capsys, str(copy))["continue"] == command_of(copy)
    (copy / "status.json").write_text("{")
    assert answer(capsys, str(copy))["state"] == "damaged"


def test_the_page_of_a_run_leads_with_its_validations_and_tells_the_time(place, copy, capsys):
    row = json.loads((copy / "eval.jsonl").read_text().splitlines()[0])
    (copy / "eval.jsonl").write_text("".join(json.dumps({**row, "step": n, "top1": n / 4}) + "\n" for n in (1, 2, 3)))
    facts = answer(capsys, str(copy), "--html", str(copy / "page.html"))
    page = (copy / "page.html").read_text(encoding="utf-8")
    tiles = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert tiles[0] == (f"top-1 · {row['corpus']} {row['split']}", "75.0 %")
    assert ("loss", f"{facts['last']['loss']:.4g}") in tiles
    assert page.count("<svg") >= 2  # a curve of top-1, and that of the loss
    assert page.index("top-1 ·") < page.index("<h2>Loss</h2>")
    assert format_time(facts["updated"]) in page
    assert " ago" not in page


# -- what else a path can be ----------------------------------------------------------------------------------------

OTHERS = {
    "pictures": ("is a folder of images", "unicl prepare --labels"),
    "pictures/dog/0.png": ("is an image", "unicl zeroshot"),
    "list.tsv": ("is a list of rows", "unicl prepare --captions"),
    "runs": ("holds runs", "unicl runs ls"),
    "runs/one/checkpoints": ("holds checkpoints", "step-00000004"),
    "runs/one/model.safetensors": ("is a single file of a larger directory", "unicl inspect"),
    "tiny.yaml": ("is a recipe", "--batch"),
    "corpsu": ("no such file or directory; did you mean 'corpus'?", "give a corpus"),
}


@pytest.mark.parametrize("path", OTHERS)
def test_another_path_is_one_line_that_says_what_it_is(place, path):
    with pytest.raises(UniclError) as caught:
        run(["inspect", str(place / path)])
    said, hint = OTHERS[path]
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_split_that_is_not_there_is_named(place):
    with pytest.raises(UniclError, match="no split 'trian'; did you mean 'train'"):
        run(["inspect", str(place / "corpus"), "--split", "trian"])


# -- pages ----------------------------------------------------------------------------------------------------------


class Checked(HTMLParser):
    """Every element is closed in its turn; no script, no handler, nothing from elsewhere."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith("data:image/")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("path", ["corpus", "tiny.yaml --batch", "runs/one", "runs/one/checkpoints/step-00000004"])
def test_a_page_stands_alone_and_runs_nothing(place, tmp_path, path):
    name, *options = path.split()
    page = tmp_path / "page.html"
    assert run(["inspect", str(place / name), *options, "--html", str(page), "-q"]) == 0
    text = page.read_text(encoding="utf-8")
    parser = Checked()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "//" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text).replace(str(place), "")
    assert len(text) < 500_000
    assert "onerror" not in text or EVIL in parser.words


def test_the_json_goes_to_a_file_too(place, tmp_path, capsys):
    facts = answer(capsys, str(place / "corpus"), "-o", str(tmp_path / "facts.json"))
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
