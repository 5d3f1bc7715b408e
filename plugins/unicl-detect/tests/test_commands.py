"""`unicl detect` as people call it: mistakes in one line, a whole pass, kills, and two processes against one."""

import json
from pathlib import Path

import pytest
from detect_toys import settings_of
from forked_ranks import on_ranks
from typer.testing import CliRunner
from unicl_detect.commands import app
from unicl_detect.options import FOLDER, DetectSettings

from unicl_cli.api import UniclError, load_settings
from unicl_cli.cli import main
from unicl_cli.testing import max_difference, recipe_of

SMALL = ("size=32", "max_size=32", "batch=2", "steps=4", "warmup=0", "milestones=[]", "log_every=1", "save_every=2")


def refusal(*words: object) -> str:
    """Return the message of a command that is refused."""
    result = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(result.exception, UniclError), result.output
    assert "\n" not in result.exception.message
    assert result.exception.hint
    return result.exception.message


def test_shipped_settings_are_sound_and_those_of_coco_are_the_papers() -> None:
    found = {path.stem: load_settings(path.stem, DetectSettings, FOLDER) for path in FOLDER.glob("*.yaml")}
    assert set(found) == {"coco-1x", "shapes", "shapes-boxes"}
    coco = found["coco-1x"]
    assert (coco.steps * coco.batch) / 118_287 == pytest.approx(12, abs=0.2)  # epochs over train2017
    assert (coco.lr, coco.weight_decay, coco.size, coco.max_size, coco.heads) == (1e-4, 0.05, 800, 1333, "full")
    rates = [coco.lr_at(step) for step in (0, 250, 500, 59_999, 60_000, 80_000)]
    assert rates == pytest.approx([1e-4 / 501, 1e-4 * 251 / 501, 1e-4, 1e-4, 1e-5, 1e-6])


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(f" {name} " in shown for name in ("train", "eval", "shapes", "regions", "draw"))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    scenes, run = tmp_path / "scenes", tmp_path / "run"
    made = CliRunner().invoke(app, ["shapes", str(scenes), "--count", "2", "--test", "1", "--size", "32"])
    assert made.exit_code == 0
    assert refusal("shapes", scenes) == f"{scenes}: exists already"
    assert refusal("train", "shape") == "no settings 'shape'; did you mean 'shapes'?"
    assert "neither a run nor a checkpoint" in refusal("train", "shapes", "--model", tmp_path)
    assert refusal("eval", tmp_path) == f"{tmp_path}: not a run of unicl detect train"
    assert refusal("regions", run, scenes, "-o", tmp_path / "a.json") == f"{run}: not a run of unicl detect train"
    assert refusal("draw", run, tmp_path / "none", "-o", tmp_path / "a.png") == f"{tmp_path / 'none'}: no such file"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Return a folder with a trained tower and scenes of 32 px."""
    folder = tmp_path_factory.mktemp("detect")
    recipe = folder / "tower.yaml"
    recipe.write_text(recipe_of(digits, steps=2))
    here("train", recipe, "--run-dir", folder / "tower", "-q")
    here("detect", "shapes", folder / "scenes", "--count", 6, "--test", 4, "--size", 32, "--most", 2)
    return folder


def here(*words: object, status: int = 0) -> None:
    """Run a command in this process."""
    assert main(list(map(str, words))) == status


def train_words(place: Path, run: str, *changes: object) -> tuple[object, ...]:
    options = ("--data", place / "scenes", "--model", place / "tower", "--run-dir", place / run)
    return ("detect", "train", "shapes", *SMALL, *changes, *options)


@pytest.mark.slow
def test_a_detector_is_trained_measured_read_and_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    here(*train_words(place, "none"), "--dry-run", "--json")
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["parameters"] == sum(value for name, value in sizes.items() if name.startswith("parameters_"))
    assert not (place / "none").exists()
    here(*train_words(place, "run"), "--json")
    assert capsys.readouterr().out.strip().endswith("}")
    here(*train_words(place, "run"))
    assert "already finished" in capsys.readouterr().err
    here("detect", "eval", place / "run", "-o", place / "eval.json", "--json")
    found = json.loads(capsys.readouterr().out)
    assert json.loads((place / "eval.json").read_text()) == found
    assert found["schema"] == "unicl/detect-eval/1"
    assert (found["n"], len(found["per_class"])) == (4, 6)
    assert set(found["box"]) == set(found["mask"]) == {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}
    here("detect", "regions", place / "run", place / "scenes/test", "-o", place / "regions.json", "--most", 5)
    document = json.loads((place / "regions.json").read_text())
    assert len(document["images"]) == 4
    for image in document["images"]:
        assert 0 < len(image["boxes"]) <= 5
        assert all(0 <= x1 <= x2 <= 32 and 0 <= y1 <= y2 <= 32 for x1, y1, x2, y2 in image["boxes"])
        assert all(len(row) == 7 and sum(row) == pytest.approx(1) for row in image["probabilities"])
    here("detect", "draw", place / "run", place / "scenes/test", "-o", place / "drawn.png", "--least", 0.05)
    assert (place / "drawn.png").read_bytes().startswith(b"\x89PNG")
    here(*train_words(place, "run", "lr=0.5"), status=2)
    assert "was trained with other settings (lr is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_weights(place: Path) -> None:
    on_ranks(1, *train_words(place, "whole"), "-q")
    with pytest.raises(RuntimeError, match=r"exit (code )?9"):
        on_ranks(1, *train_words(place, "cut"), "-q", UNICL_TEST_CRASH="before_latest:step-00000004")
    on_ranks(1, *train_words(place, "cut"), "-q")
    assert max_difference(place / "whole", place / "cut") == 0


@pytest.mark.slow
def test_two_and_three_processes_train_the_weights_of_one_and_measure_the_same(place: Path) -> None:
    for count in (1, 2, 3):  # few steps: AdamW turns rounding into differences of the size of its steps
        on_ranks(count, *train_words(place, f"on{count}", "steps=2", "lr=1e-5", "batch=6"), "-q")
    first, *others = ((place / f"on{count}" / "metrics.jsonl").read_text().splitlines() for count in (1, 2, 3))
    for lines in others:
        for one, other in zip(map(json.loads, first), map(json.loads, lines), strict=True):
            for name in [key for key in one if key.startswith("loss") or key == "grad_norm"]:
                assert other[name] == pytest.approx(one[name], rel=2e-3), name
    assert max(max_difference(place / "on1", place / f"on{count}") for count in (2, 3)) < 5e-5
    figures = [json.loads(on_ranks(count, "detect", "eval", place / "on1", "--json", "-q")) for count in (1, 2)]
    assert figures[0] == figures[1]


def test_settings_refuse_what_cannot_be() -> None:
    for changes in ({"size": 0}, {"lr": 0.0}, {"flip": 2.0}, {"heads": "tiny"}, {"steps": 0}):
        with pytest.raises(ValueError, match="validation error"):
            settings_of(**changes)
