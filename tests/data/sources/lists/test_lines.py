"""Lines that cannot be read, through the real command: rejected with what is wrong, before their text or label."""

import json

import pytest

from unicl_cli.cli import main

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
