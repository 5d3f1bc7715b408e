"""The evaluator `retrieval` on corpora with equal images and equal captions."""

import io

import torch
from PIL import Image
from toys import PLAIN, prepared, put, toy

from unicl_cli.evaluate.retrieval import recalls, search
from unicl_cli.jobs.evaluate import evaluate
from unicl_cli.jobs.evaluators.retrieval import Captions


def picture(number):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 255 - 40 * number, 99)).save(out, "PNG")
    return out.getvalue()


WORDS = ("cat", "snow cat", "dog", "bird", "photo of a cat", "dog")
"""Of images 0, 0, 1, 1, 2, 2."""


def test_equal_images_and_captions_are_hits_and_counted(tmp_path, capsys):
    put(tmp_path, {f"{n}-{copy}.png": picture(n) for n in range(3) for copy in range(2)})
    lines = [f"{at // 2}-{at % 2}.png,a {words}\n" for at, words in enumerate(WORDS)]
    (tmp_path / "l.csv").write_text("image,caption\n" + "".join(lines))
    prepared(capsys, "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    document = evaluate(toy(), data=[str(tmp_path / "c")], split="train", batch=8, accelerator=PLAIN)
    (entry,) = document["data"]
    assert entry["retrieval"]["repeated"] == {"images": 3, "texts": 1}
    assert entry["warnings"] == [
        "3 of 6 images and 1 of 6 captions repeat another: an equal image or caption counts as a hit"
    ]
    model = toy()
    texts = list(dict.fromkeys(f"a {words}" for words in WORDS))
    with torch.no_grad():
        images = model.step.model.encode_image(torch.stack([model.transform(picture(n)) for n in range(3)])).embed
        read = model.step.model.encode_text(model.tokenizer(texts)).embed
    rows, ids = torch.tensor([texts.index(f"a {words}") for words in WORDS]), torch.arange(3).repeat_interleave(2)
    expected = recalls(search(images[ids], read, rows, torch.arange(6), ids))
    blind = recalls(search(images[ids], read, rows, torch.arange(6)))
    assert expected != blind
    for way in ("text_to_image", "image_to_text"):
        assert entry["retrieval"][way] == expected[way]


def test_a_corpus_without_repetition_says_nothing_of_it(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(n) for n in range(3)})
    (tmp_path / "l.csv").write_text("image,caption\n0.png,a cat\n1.png,a dog\n2.png,a bird\n")
    prepared(capsys, "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    (entry,) = evaluate(toy(), data=[str(tmp_path / "c")], split="train", batch=8, accelerator=PLAIN)["data"]
    assert "repeated" not in entry["retrieval"]
    assert "warnings" not in entry


def test_only_what_repeats_is_told():
    captions = Captions()
    for number in range(3):
        captions.add(["a cat"], bytes([number]))
    found = captions.search(torch.eye(3), torch.ones(1, 3))
    assert "2 of 3 captions repeat another: an equal caption counts as a hit" in captions.figures(found)["warnings"]
