"""Lines that cannot be read, through the real command: rejected with what is wrong, before their text or label."""

import json

import pytest

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus

GOOD = "".join(f"{number}.png,cat one,{number % 2}\n" for number in range(60))
BAD = "https://x.org/1.png,x,0\nlonely\n,no image,1\n"


@pytest.mark.parametrize("kind", ["labels", "captions", "images"])
def test_a_bad_line_is_rejected_with_what_is_wrong(kind, listing, capsys):
    images = [f"{number}.png" for number in range(60)]
    path = listing.write("b.csv", f"image,caption,label\n{GOOD}{BAD}", *images)
    assert main(["prepare", f"--{kind}", path, "-o", "corpus", "--holdout", "0", "--json", "--workers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["rejected"]) == (60, {"bad_line": 3})
    lines = [line for file in (listing.root / "corpus" / "rejects").iterdir() for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["detail"] for line in lines) == [
        "line 62: the image is a URL, but only local files can be read",
        "line 63: 1 of 3 columns",
        "line 64: no image",
    ]


def test_texts_that_lose_markup_are_counted_and_the_first_is_shown(listing, capsys):
    images = [f"{number}.png" for number in range(4)]
    texts = ["I <3 cats -> happy", "a <b>bold</b> dog", "<person> on a <bike>", "&lt;i&gt;an owl"]
    lines = "".join(f"{image}\t{text}\n" for image, text in zip(images, texts, strict=True))
    argv = ["prepare", "--captions", listing.write("c.tsv", lines, *images), "-o", "corpus", "--holdout", "0", "--json"]
    assert main([*argv, "--workers", "1"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "c: texts that lose HTML tags (2): 'a <b>bold</b> dog' becomes 'a bold dog' (--text raw keeps them)" in notes
    corpus = open_corpus(listing.root / "corpus").table("train", "captions")
    stored = {corpus.read(at).texts[0] for at in range(len(corpus))}
    assert stored == {"I <3 cats -> happy", "a bold dog", "<person> on a <bike>", "an owl"}
    assert main([*argv[:4], "raw", *argv[5:], "--text", "raw"]) == 0
    assert not [note for note in json.loads(capsys.readouterr().out)["notes"] if "HTML" in note]
