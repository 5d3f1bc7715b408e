"""`unicl caption` on a run: its forms, images that cannot be read, models of another loss, and prompts of eval."""

import csv
import io
import json
from pathlib import Path

import pytest
from forked_ranks import on_ranks
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.testing import max_difference, recipe_of

LOSS = "{name: captioner, width: 16, layers: 1, heads: 2}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run ``run`` of the captioner, a run ``other`` of CLIP, and a folder ``images`` with one damaged file."""
    root = tmp_path_factory.mktemp("captions")
    for name, loss, text in (("run", LOSS, "null"), ("other", "clip", "cbow")):
        file = root / f"{name}.yaml"
        file.write_text(recipe_of(digits, text=text, loss=loss, steps=2), encoding="utf-8")
        assert main(["train", str(file), "--run-dir", str(root / name), "-q", "--devices", "cpu:1"]) == 0
    (root / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 10, 10)).save(root / "images" / f"{number}.png")
    (root / "images" / "broken.png").write_bytes(b"no image")
    return root


Capture = pytest.CaptureFixture[str]


def test_captions_as_json_csv_and_lines(place: Path, capfd: Capture) -> None:
    words = ("caption", str(place / "images"), "--model", str(place / "run"), "-q")
    assert main([*words, "--json", "--batch", "2"]) == 2
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png", "broken.png"]
    assert [row["error"] for row in rows] == [None, None, None, "not an image"]
    assert all(row["log_prob"] < 0 and isinstance(row["complete"], bool) for row in rows[:3])
    assert rows[3]["caption"] is None
    assert err.splitlines()[0].startswith("error: 1 of 4 images could not be read, first ")
    assert main([*words, "--csv", "--batch", "3"]) == 2
    table = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["caption"] for row in table[:3]] == [row["caption"] for row in rows[:3]]
    assert (
        main(["caption", str(place / "images" / "[01].png"), "--model", str(place / "run"), "--beam", "3", "-q"]) == 0
    )
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(place / "images" / name) for name in ("0.png", "1.png")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["IMAGES", "--model", "other"], "writes no captions: its loss is not captioner"),
        (["IMAGES", "--model", "nowhere"], "nowhere"),
        ([], "no images given"),
        (["missing.png", "--model", "run"], "missing.png: no such file"),
        (["IMAGES", "--json", "--csv", "--model", "run"], "--json: cannot be combined with --csv"),
        (["IMAGES", "--beam", "0"], "beam"),
        (["-", "-"], "-: standard input can be read only once"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, place: Path, capfd: Capture) -> None:
    names = {"IMAGES": str(place / "images"), "other": str(place / "other"), "run": str(place / "run")}
    assert main(["caption", *(names.get(word, word) for word in words), "-q"]) == 2
    out, err = capfd.readouterr()
    assert told in err
    assert "Traceback" not in err
    assert not out or "no such file" in out


def test_a_dry_run_counts_the_image_tower_alone(place: Path, capfd: Capture) -> None:
    """The loss reads tokens without a text tower."""
    assert main(["train", str(place / "run.yaml"), "--dry-run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found["flops_of_one"]) == {"picture"}
    assert found["memory"]["activations"] > 0
    assert found["vocabulary"] > 0


def test_zeroshot_and_eval_score_by_prompts(place: Path, capfd: Capture) -> None:
    model = ("--model", str(place / "run"), "-q", "--devices", "cpu:1")
    assert main(["zeroshot", str(place / "images" / "0.png"), *model, "--classes", "one,two,three", "--json"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert sum(item["prob"] for item in row["top"]) == pytest.approx(1, abs=1e-5)
    assert [item["cosine"] for item in row["top"]] == [None] * 3
    many = ",".join(f"class {number}" for number in range(101))
    words = ("zeroshot", str(place / "images" / "0.png"), *model, "--classes", many, "--json")
    assert main([*words]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: 101 classes in several templates are 505 prompts")
    assert "--template" in err
    assert main([*words, "--template", "the digit {}.", "--top-k", "1"]) == 0


def test_a_corpus_of_images_alone_and_tokenizers_without_ends_are_refused(
    place: Path, digits: Path, tmp_path: Path, capfd: Capture
) -> None:
    assert (
        main(["prepare", "--images", str(place / "images"), "-o", str(tmp_path / "bare"), "-q", "--workers", "1"]) == 0
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_of(tmp_path / "bare", text="null", loss=LOSS, steps=1), encoding="utf-8")
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    assert "but the loss captioner reads texts" in capfd.readouterr().err
    source = ("prepare", "--images", "shapes?media=depth&count=4&test=1", "-o", str(tmp_path / "depth"))
    assert main([*source, "-q", "--workers", "1"]) == 0
    words = ("train", str(file), f"data.train=[{{corpus: {tmp_path / 'depth'}}}]", "batch.size=4", "-q")
    for more in ((), ("--dry-run",)):
        assert main([*words, "--run-dir", str(tmp_path / "run"), *more]) == 2
        assert "but the loss captioner reads texts" in capfd.readouterr().err, "media are not texts"
    file.write_text(recipe_of(digits, text="null", loss=LOSS, steps=1), encoding="utf-8")
    words = ("train", str(file), "model.tokenizer=classes", "data.mix.labels=1.0", "data.templates=none", "-q")
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    err = capfd.readouterr().err
    assert "model.tokenizer: " in err or "the tokenizer has no token" in err
    for bad, told in (("loss.prior=1.0", "loss.prior: 1 needs"), ("loss.heads=3", "width 16 is not a multiple")):
        assert main(["train", str(file), bad, "--run-dir", str(tmp_path / "run"), "-q"]) == 2
        assert told in capfd.readouterr().err
    file.write_text(recipe_of(digits, text="cbow", loss=LOSS, steps=1), encoding="utf-8")
    assert main(["train", str(file), "model.heads=kind", "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    assert "model.heads: the loss 'captioner' reads the tokens of texts itself" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_continues_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    """With the random choice of captions that are read without their image."""
    file = tmp_path / "r.yaml"
    loss = "{name: captioner, width: 16, layers: 1, heads: 2, drop_image: 0.3}"
    file.write_text(recipe_of(digits, text="null", loss=loss, steps=6), encoding="utf-8")
    command = ("train", file, "checkpoint.every=2", "-q", "--run-dir")
    on_ranks(1, *command, tmp_path / "whole")
    with pytest.raises(RuntimeError, match=r"exit (code )?9"):
        on_ranks(1, *command, tmp_path / "cut", UNICL_TEST_CRASH="before_latest:step-00000004")
    on_ranks(1, *command, tmp_path / "cut")
    assert max_difference(tmp_path / "whole", tmp_path / "cut") == 0
