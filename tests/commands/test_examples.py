"""The examples at the end of each `--help`: every line runs, in a small world of the files that it names."""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unicl_cli.cli import BUILTIN, Stub, app, main

RECIPE = """\
name: mine
data: {train: [{corpus: corpus}], image_size: 32}
model: {image: {name: cnn, width: 8, stages: 2}, text: {name: cbow, width: 16}, embed_dim: 16}
batch: {size: 8}
steps: 2
schedule: {warmup: 0}
"""
VIT = (
    "model.image={name: timm, model: vit_tiny_patch16_224, args: {depth: 1}}",
    "model.text={name: transformer, width: 32, layers: 1, heads: 1}",
)
"""Towers that open_clip has, too."""
CLASSES = ("cat", "dog", "red fox")
WORDS = ("day", "night", "snow", "grass", "water")
SHORT = ["--rounds", "1", "--no-peak"]
"""Added to each `unicl bench KIND`: what is tested is that the line works."""
SLOW = ("unicl bench loader", 'unicl prepare --labels "digits')


def lines_of(command: Any) -> Iterator[str]:
    """The examples of a command and of the commands inside it."""
    yield from (line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  "))
    for inner in getattr(command, "commands", {}).values():
        yield from lines_of(inner)


def examples() -> list[str]:
    """Every example of every command, each once."""
    found = [line for name in BUILTIN for line in lines_of(Stub(name, callback=None).load())]
    return list(dict.fromkeys([*found, *(line.strip() for line in app.info.epilog.splitlines()[2:])]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a list of captions, a corpus, a recipe and two short runs."""
    root = tmp_path_factory.mktemp("examples")
    for shade, name in enumerate(CLASSES):
        for number in range(40):
            draw(root / "photos" / name / f"{number}.jpg", 60 * shade + number)
    captions = [f"photos/cat/{number}.jpg\ta cat in the evening sun, {number}" for number in range(40)]
    (root / "captions.tsv").write_text("\n".join(["file\ttitle", *captions]) + "\n", encoding="utf-8")
    draw(root / "photo.jpg", 77)
    (root / "names.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for shade, name in enumerate(("robin", "jay", "owl")):
        for number in range(3):
            draw(root / "birds" / name / f"{number}.jpg", 80 * shade + number)
    tree = ("robin,songbirds", "jay,songbirds", "songbirds,birds", "owl,birds", "birds,")
    (root / "tree.csv").write_text("\n".join(["name,parent", *tree]) + "\n", encoding="utf-8")
    tags = [f"photos/{name}/{number}.jpg,{name};{word}" for name in CLASSES for number, word in enumerate(WORDS * 4)]
    (root / "tags.csv").write_text("\n".join(["file,tags", *tags]) + "\n", encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (root / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    here = Path.cwd()
    os.chdir(root)
    try:
        assert main(["prepare", "-q", "--labels", "photos", "--captions", "captions.tsv", "--holdout", "0.2"]) == 0
        train = ["train", "recipe.yaml", "-q", "--devices", "cpu:1", "--run-dir"]
        assert main([*train, "runs/first"]) == 0
        tags = "tags.csv?image=file&label=tags&sets=;"
        assert main(["prepare", "-q", "--labels", tags, "-o", "tags", "--holdout", "0.2"]) == 0
        assert main([*train, "runs/tags", "data.train.0.corpus=tags"]) == 0
        assert main(["eval", "runs/tags", "--fit-thresholds", "--data", "tags"]) == 0
        assert main([*train, "runs/photos", *VIT]) == 0
        assert main([*train, "runs/tuned", "--init", "runs/first", "seed=1"]) == 0
    finally:
        os.chdir(here)
    return root


def draw(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (shade, 60, 200)).save(file)


def test_the_words_of_the_examples_cover_every_command():
    assert {line.split()[1] for line in examples()} == set(BUILTIN)


def cases() -> list[Any]:
    return [pytest.param(line, marks=pytest.mark.slow) if line.startswith(SLOW) else line for line in examples()]


@pytest.mark.parametrize("line", cases())
def test_an_example_runs(line: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    here = tmp_path / "here"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    words = shlex.split(line)[1:]
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "prepare" and "--labels" in words:
        shutil.rmtree("corpus")  # the directory that this line writes
    if words[:2] == ["recipes", "cp"]:
        Path("mine.yaml").unlink()  # the file that this line writes
    if words[0] == "bench" and len(words) > 1:
        words += SHORT
    assert main(words) == 0, capfd.readouterr().err
