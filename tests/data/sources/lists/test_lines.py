"""Lines that cannot be read, through the real command: rejected with what is wrong, before their text or label."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError

GOOD = "".join(f"{number}.png,cat one,{number % 2}\n" for number in range(60))
BAD = "s3://x.org/1.png,x,0\nlonely\n,no image,1\n"


@pytest.mark.parametrize("kind", ["labels", "captions", "images"])
def test_a_bad_line_is_rejected_with_what_is_wrong(kind, listing, capsys):
    images = [f"{number}.png" for number in range(60)]
    path = listing.write("b.csv", f"image,caption,label\n{GOOD}{BAD}", *images)
    assert main(["prepare", f"--{kind}", path, "-o", "corpus", "--holdout", "0", "--json", "--workers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["rejected"]) == (60, {"bad_line": 3})
    lines = [line for file in (listing.root / "corpus" / "rejects").iterdir() for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["detail"] for line in lines) == [
        "line 62: the image is a URL of scheme 's3'",
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


BLANK = {
    "end.csv": "image,label\na.png,cat\n,\nb.png,dog\n,\n , \n,\n,\n",
    "begin.csv": ",,\n,,\nimage,label,\na.png,cat,\n,,\n,,\n,,\nb.png,dog,\n,,,,\n,\n",
    "semicolons.csv": ";\nimage;label\na.png;cat\n;\n;\n;\n;\n;\nb.png;dog\n",
    "bare.csv": "a.png,cat\n,\n,\n,\n,\n,\nb.png,dog\n",
    "tabs.tsv": "a.png\tcat\n\t\n\t\n\t\n\t\n\t\nb.png\tdog\n",
    "blanks.txt": "a.png cat\n   \n  \n  \n  \n  \nb.png dog\n",
    "lines.jsonl": '{"image": "a.png", "label": "cat"}\n{}\n{"image": null, "label": " "}\n'
    '{"image": NaN, "label": []}\n{"image": {"path": null}}\n{"label": ""}\n{"image": "b.png", "label": "dog"}\n',
}


@pytest.mark.parametrize("name", BLANK)
def test_rows_of_blank_cells_are_left_out_and_counted(name, listing):
    source = listing.open(listing.write(name, BLANK[name], "a.png", "b.png"), "labels")
    names = [c.key for c in source.classes]
    assert {row.key: names[row.label] for row in source.rows("train")} == {"a.png": "cat", "b.png": "dog"}
    assert source.notes == [f"{name}: lines without a filled cell, left out: 5"]


def test_rows_of_blank_cells_in_parquet_are_left_out_and_counted(listing):
    rows = [("a.png", "cat"), (None, None), (None, ""), (" ", None), ("b.png", "dog")]
    table = pa.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
    listing.write("images", "", "a.png", "b.png")
    pq.write_table(table, listing.root / "l.parquet")
    assert listing.labels("l.parquet") == {"a.png": "cat", "b.png": "dog"}
    source = listing.open("l.parquet", "labels")
    source.rows("train")
    assert source.notes == ["l.parquet: lines without a filled cell, left out: 3"]


def test_a_row_that_says_anything_is_not_blank_and_a_list_of_blank_rows_is_refused(listing):
    path = listing.write("l.csv", "image,label\na.png,cat\n,dog\n,0\n", "a.png")
    with pytest.raises(UniclError, match=r"2 of 3 lines cannot be read; line 3: no image"):
        listing.labels(path)
    with pytest.raises(UniclError, match="no rows, only 3 lines without a filled cell"):
        listing.labels(listing.write("b.csv", "image,label\n,\n,\n,\n"))
