"""Names of files and classes that attack a terminal, a table or a page, through every command that shows them."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.errors import UNSAFE

STEERING = re.compile(f"[\x00-\x08\x0b-\x1f{UNSAFE}]")
NAMES = (
    b"ca\x1b]0;pwn\x07t\xc2\x9b31m\xe2\x80\xae\xe2\x80\x8f\xe2\x80\xa8x",  # ESC, BEL, C1, bidi, a line separator
    b"=cmd|'x'!A0",
    b"<\\script><img src=x onerror=alert(1)>",
    b"a\nb.png\tcat 99.9 %\rc",
    b"bad\xff\xfe",
    "katze\U0001f431".encode(),
)
RECIPE = """
data: {train: [{corpus: corpus}], image_size: 16, templates: ["{}"], augment: none}
model: {image: {name: cnn, width: 8, stages: 2}, text: {name: cbow, width: 16}, embed_dim: 16, context_length: 24}
batch: {size: 12}
schedule: {warmup: 0}
steps: 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of classes and files with hostile names, some of them not UTF-8, and two runs on it."""
    root = tmp_path_factory.mktemp("hostile")
    for split, height in (("train", 16), ("test", 17)):
        for number, name in enumerate(NAMES):
            folder = Path(os.fsdecode(os.fsencode(root / "pics" / split) + b"/" + name))
            folder.mkdir(parents=True)
            for colour in range(4):
                image = Image.new("RGB", (16, height), (40 * number, 60 * colour, 90))
                image.save(folder / f"-{colour}.png")
            (folder / "broken\x1b\udcff.png").write_bytes(b"no image")
    (root / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["prepare", "--labels", "pics", "-o", "corpus", "--workers", "1", "-q"]) == 0
        for run in ("a", "b"):
            assert main(["train", "tiny.yaml", "--run-dir", f"runs/{run}", "--quiet"]) == 0
    return root


Run = Callable[..., str]


@pytest.fixture
def said(place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in that folder; return its output in an encoding, after a look at both streams."""
    monkeypatch.chdir(place)

    def run(*words: str, status: int = 0, encoding: str = "utf-8") -> str:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert main(words) == status, err.buffer.getvalue()
            out.flush()
            err.flush()
        shown = [stream.buffer.getvalue().decode() for stream in (out, err)]
        for text in shown:
            assert not STEERING.search(text), ascii(STEERING.findall(text))
        return shown[0]

    return run


def names_in(value: object) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return {name for pair in value.items() for item in pair for name in names_in(item)}
    return {name for item in value for name in names_in(item)} if isinstance(value, list) else set()


@pytest.mark.parametrize(
    "line",
    [
        *(
            "prepare --labels pics -o new --dry-run",
            "prepare --verify -o corpus",
            "inspect corpus",
            "inspect corpus --batch",
        ),
        *("train tiny.yaml --run-dir runs/new --dry-run", "eval runs/a", "probe runs/a", "compare runs/a runs/b"),
        *("runs ls runs", "runs show runs/a", "inspect runs/a"),
    ],
)
def test_no_table_steers_a_terminal(said: Run, line: str):
    assert said(*line.split())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    "line",
    [
        "inspect corpus",
        "eval runs/a",
        "compare runs/a runs/b",
        "prepare --labels pics -o new --dry-run",
        "runs ls runs",
    ],
)
def test_every_document_is_one_json_with_the_true_names(said: Run, line: str, encoding: str):
    document = json.loads(said(*line.split(), "--json", encoding=encoding), parse_constant=pytest.fail)
    if line.startswith("eval"):
        assert {os.fsdecode(NAMES[1]), "katze\U0001f431"} <= names_in(document)


def test_zeroshot_writes_one_row_for_each_image_in_every_form(said: Run, place: Path):
    """Files that are not images give rows, too, and status 2."""
    words = ("zeroshot", "pics/test", "--model", "runs/a", "--top-k", "2")
    lines = said(*words, status=2).splitlines()
    assert len(lines) == 5 * len(NAMES)
    assert all(2 <= len(line.split("\t")) <= 3 for line in lines)
    rows = [json.loads(line) for line in said(*words, "--json", status=2).splitlines()]
    assert {Path(row["path"]) for row in rows} == {
        path.relative_to(place) for path in (place / "pics/test").glob("*/*")
    }
    cells = said(*words, "--csv", status=2)
    assert len(cells.splitlines()) == 1 + 5 * len(NAMES)
    answered = [row for row in csv.DictReader(io.StringIO(cells)) if not row["error"]]
    assert len(answered) == 4 * len(NAMES)
    assert all(0 <= float(row["prob_1"]) <= 1 and not row["label"].startswith("=") for row in answered)


def test_predictions_are_files_that_are_safe_to_open(said: Run, place: Path):
    for name in ("p.csv", "p.jsonl"):
        said("eval", "runs/a", "--predictions", name, "-q")
        text = (place / name).read_text(encoding="utf-8")
        assert not STEERING.search(text)
        assert len(text.splitlines()) == 4 * len(NAMES) + (name == "p.csv")
    cells = [cell for row in csv.reader((place / "p.csv").open()) for cell in row]
    assert "'=cmd|'x'!A0" in cells
    assert not any(cell.startswith(("=", "@")) for cell in cells)


@pytest.mark.parametrize("line", ["inspect corpus", "eval runs/a", "compare runs/a runs/b", "inspect runs/a"])
def test_no_page_has_markup_or_marks_of_a_name(said: Run, place: Path, line: str):
    said(*line.split(), "--html", "page.html")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert not STEERING.search(page)


def test_rejects_name_files_that_are_not_utf_8(said: Run, place: Path):
    for file in (place / "corpus" / "rejects").iterdir():
        text = file.read_text(encoding="utf-8")
        assert not STEERING.search(text)
        for line in text.splitlines():
            assert (place / "pics" / json.loads(line)["ref"]).is_file()
    assert "damaged" not in said("inspect", "corpus", "--json")
