"""The evaluator `retrieval` on corpora with equal images and equal captions."""

import io

import torch
from PIL import Image
from toys import PLAIN, prepared, put, toy

from unicl_cli.evaluate.retrieval import recalls
from unicl_cli.jobs.evaluate import evaluate


def picture(number):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 255 - 40 * number, 99)).save(out, "PNG")
    return out.getvalue()


def test_equal_images_and_captions_are_hits_and_counted(tmp_path, capsys):
    put(tmp_path, {f"{n}-{copy}.png": picture(n) for n in range(3) for copy in range(2)})
    lines = [f"{n}-{copy}.png,a {word}\n" for n, word in enumerate(("cat", "dog", "cat")) for copy in range(2)]
    (tmp_path / "l.csv").write_text("image,caption\n" + "".join(lines))
    prepared(capsys, "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    document = evaluate(toy(), data=[str(tmp_path / "c")], split="train", batch=8, accelerator=PLAIN)
    (entry,) = document["data"]
    assert entry["retrieval"]["repeated"] == {"images": 3, "texts": 4}
    assert entry["warnings"] == [
        "3 of 6 images and 4 of 6 captions repeat another: an equal image or caption counts as a hit"
    ]
    # with two texts and three images that differ, a query can be wrong in few ways: the figures of the plain formula
    model = toy()
    with torch.no_grad():
        images = model.step.model.encode_image(torch.stack([model.transform(picture(n)) for n in range(3)])).embed
        texts = model.step.model.encode_text(model.tokenizer(["a cat", "a dog"])).embed
    rows, ids = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = recalls(images[ids], texts, rows, torch.arange(6), ids)
    for way in ("text_to_image", "image_to_text"):
        assert entry["retrieval"][way] == expected[way]


def test_a_corpus_without_repetition_says_nothing_of_it(tmp_path, capsys):
    put(tmp_path, {f"{n}.png": picture(n) for n in range(3)})
    (tmp_path / "l.csv").write_text("image,caption\n0.png,a cat\n1.png,a dog\n2.png,a bird\n")
    prepared(capsys, "--captions", tmp_path / "l.csv", "-o", tmp_path / "c")
    (entry,) = evaluate(toy(), data=[str(tmp_path / "c")], split="train", batch=8, accelerator=PLAIN)["data"]
    assert "repeated" not in entry["retrieval"]
    assert "warnings" not in entry
