"""Trainings on rows with label sets: every loss that takes them, stages, dry runs and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from launching import TINY, here

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.model import build_step
from unicl_cli.core.batch_columns import LABEL_SET
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.dry_run import dry_run_facts
from unicl_cli.jobs.train.memory import BatchShape, columns_of_row, fake_batch
from unicl_cli.recipe.load import load_text

NO_TEXTS = {"image": TINY["model"]["image"], "text": None, "embed_dim": 16}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "corpus"
    source = "shapes?attributes=true&captions=true&count=48&test=12&size=16"
    here("prepare", "--labels", source, "-o", out, "--holdout", "0", "-q")
    return out


def recipe_text(corpus: Path, **changes: object) -> str:
    data = TINY["data"] | {"train": [{"corpus": str(corpus)}]}
    return yaml.safe_dump(json.loads(json.dumps(TINY | {"data": data, "steps": 2} | changes)))


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "loss",
    [{"name": "unicl", "own_text": 0.5, "weights": {"colour": 2.0, "shape": 0.0}}, {"name": "multitask"}],
    ids=["unicl", "multitask"],
)
def test_losses_with_texts_train_on_label_sets(corpus, tmp_path, loss):
    file = tmp_path / "r.yaml"
    file.write_text(recipe_text(corpus, loss=loss))
    here("train", file, "--run-dir", tmp_path / "run", "-q")
    lines = lines_of(tmp_path / "run")
    assert len(lines) == 2
    assert all(math.isfinite(line["loss"]) and line["excess_loss"] >= 0 for line in lines)


def test_a_stage_of_supcon_and_a_classifier_of_each_class_follow_one_another(corpus, tmp_path):
    file = tmp_path / "r.yaml"
    stages = [{"loss": {"name": "supcon"}, "data": {"views": 2}}, {"loss": {"name": "ce"}, "data": {"views": 1}}]
    file.write_text(recipe_text(corpus, model=NO_TEXTS, stages=stages))
    here("train", file, "--run-dir", tmp_path / "run", "-q")
    assert lines_of(tmp_path / "run/stage-1")[0]["excess_loss"] > 0
    assert lines_of(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=0.1), "a mean over classes"


def test_a_dry_run_rehearses_all_columns_of_the_width_of_the_mix(corpus):
    recipe = load_text(recipe_text(corpus, loss={"name": "unicl"}))
    found = dry_run_facts(recipe, Path("run"), 1)
    assert found["memory_method"].startswith("estimate")
    data = build_data(recipe)
    assert data.label_sets is not None
    assert data.label_sets.width == 3
    shape = BatchShape(12, 1, 16, 16)
    step, _ = build_step(recipe, lambda: build_tokenizer(recipe, data), data.classes, 1, label_sets=data.label_sets)
    batch = fake_batch(shape, columns_of_row(step, shape))
    assert batch.extra[LABEL_SET].shape == (12, 3)
    wide = data.label_sets._replace(width=300)
    step, _ = build_step(recipe, lambda: build_tokenizer(recipe, data), data.classes, 1, label_sets=wide)
    assert fake_batch(shape, columns_of_row(step, shape)).extra[LABEL_SET].shape == (12, 300)


def test_a_hook_that_needs_a_real_row_leaves_the_rehearsal_without_its_columns(corpus):
    recipe = load_text(recipe_text(corpus))
    data = build_data(recipe)
    step, _ = build_step(recipe, lambda: build_tokenizer(recipe, data), data.classes, 1, label_sets=data.label_sets)
    step.loss.extra = lambda drawn, tokens, index: {"sound": torch.tensor([len(row.media["audio"]) for row in drawn])}
    assert columns_of_row(step, BatchShape(12, 1, 16, 16)) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"name": "ce", "label_smoothing": 0.1}}, "loss.label_smoothing: .* label sets"),
        ({"loss": {"name": "supcon", "weights": {"color": 1.0}}, "model": NO_TEXTS}, "unknown group 'color'"),
        ({"loss": {"name": "clip"}}, "loss: 'clip' takes one label per row"),
    ],
)
def test_what_has_no_meaning_for_label_sets_is_refused_without_a_step(corpus, changes, message):
    with pytest.raises(UniclError, match=message):
        dry_run_facts(load_text(recipe_text(corpus, **changes)), Path("run"), 1)
