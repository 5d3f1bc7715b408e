"""Rows with a label and a caption of their own, from the source to the loss."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from launching import TINY, here, recipe, same

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.model import build_step
from unicl_cli.cli import main
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "corpus"
    here("prepare", "--labels", "shapes?captions=true&count=48&test=12&size=16", "-o", out, "--holdout", "0", "-q")
    return out


def train(folder: Path, corpus: Path, name: str, *changes: str) -> Path:
    file = recipe(folder, corpus, steps=4, every=2)
    here("train", file, *changes, "--run-dir", folder / name, "-q", "--devices", "cpu:1")
    return folder / name


def has_hook(recipe: Recipe) -> bool:
    """Return whether the loader makes columns, and reads media, for the loss."""
    data = build_data(recipe)
    facts = {"label_sets": data.label_sets, "shows_captions": data.shows_captions}
    step, _ = build_step(recipe, lambda: build_tokenizer(recipe, data), data.classes, 1, **facts)
    return hasattr(step.loss, "extra")


def written_before(run: Path, *, cut: bool) -> Path:
    """Make a run that of a version without the option; with ``cut``, stopped at its first checkpoint."""
    text = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(text.replace("  own_text: 0.0\n", ""))
    assert "own_text" not in (run / "resolved.yaml").read_text()
    if cut:
        shutil.rmtree(run / "checkpoints" / "step-00000004")
        (run / "checkpoints" / "latest").write_text("step-00000002")
        for name in ("model.safetensors", "meta.json", "status.json"):
            (run / name).unlink()
    return run


def first_losses(folder: Path, corpus: Path, own_text: float, text: str) -> list[float]:
    data = TINY["data"] | {"train": [{"corpus": str(corpus)}], "text_for_labelled": text}
    whole = TINY | {"data": data, "loss": {"name": "unicl", "own_text": own_text}, "steps": 2}
    file = folder / f"{text}-{own_text}.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(whole))))
    run = folder / f"run-{text}-{own_text}"
    here("train", file, "--run-dir", run, "-q")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "excess_loss")]


def test_the_share_counts_for_captions_of_rows_with_a_label_and_not_for_prompts(corpus, tmp_path, capsys):
    prompts = [first_losses(tmp_path, corpus, share, "prompt") for share in (0.0, 0.5)]
    assert prompts[0] == pytest.approx(prompts[1], abs=1e-6)
    captions = [first_losses(tmp_path, corpus, share, "caption") for share in (0.0, 0.5)]
    assert abs(captions[0][0] - captions[1][0]) > 1e-3
    assert min(captions[1]) > 0


def test_rows_with_both_texts_are_trained_on_both(corpus, tmp_path, capsys):
    both, captions = (first_losses(tmp_path, corpus, 0.5, text) for text in ("both", "caption"))
    assert abs(both[0] - captions[0]) > 1e-3
    assert min(both) > 0
    file = tmp_path / "clip.yaml"
    text = (tmp_path / "both-0.5.yaml").read_text()
    file.write_text(text.replace("name: unicl", "name: clip").replace("  own_text: 0.5\n", ""))
    capsys.readouterr()
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    assert "data.text_for_labelled=both: the loss 'clip' takes one text per row" in capsys.readouterr().err


def test_shapes_give_label_rows_a_caption_only_where_it_is_asked_for(corpus, tmp_path):
    from unicl_cli.data.corpus import open_corpus

    assert all(open_corpus(corpus).table("train", "labels").column("texts").to_pylist())
    here("prepare", "--labels", "shapes?count=12&test=1&size=16", "-o", tmp_path / "plain", "--holdout", "0", "-q")
    assert not any(open_corpus(tmp_path / "plain").table("train", "labels").column("texts").to_pylist())


def test_the_default_is_the_paper_s_target_and_a_share_costs_nothing_without_captions_of_labels(corpus, tmp_path):
    default, half = train(tmp_path, corpus, "default"), train(tmp_path, corpus, "half", "loss.own_text=0.5")
    paper = train(tmp_path, corpus, "paper", "loss.own_text=0")
    assert same(default, paper)
    assert not same(half, paper)
    whole = (tmp_path / "recipe-4-2-sgd.yaml").read_text()
    assert build_data(load_text(whole)).shows_captions
    for change in ("data.text_for_labelled=prompt", "data.train.0.split=test"):
        assert build_data(load_text(whole, overrides=[change])).shows_captions is (change == "data.train.0.split=test")
    here("prepare", "--labels", "shapes?count=24&test=1&size=16", "-o", tmp_path / "plain", "--holdout", "0", "-q")
    plain = f"data.train.0.corpus={tmp_path / 'plain'}"
    assert not has_hook(load_text(whole, overrides=[plain, "loss.own_text=0.5"]))
    assert has_hook(load_text(whole, overrides=["loss.own_text=0.5"]))
    assert not has_hook(load_text(whole))


def test_a_share_without_effect_is_told_and_the_default_is_not(corpus, tmp_path, capfd):
    told = []
    for change in ("loss.own_text=0.3", "loss.own_text=0"):
        train(tmp_path, corpus, f"run-{change}", change, "data.text_for_labelled=prompt")
        told.append(capfd.readouterr().err)
    assert "loss.own_text 0.3 is for captions of rows with a label, but data.text_for_labelled=prompt" in told[0]
    assert "own_text" not in told[1]


def test_a_run_of_an_older_version_ends_with_the_target_that_it_began_with(corpus, tmp_path, capfd):
    """It knew no ``own_text``: its resolved recipe lacks the key, its recipe never had it."""
    paper = train(tmp_path, corpus, "paper")
    old = written_before(train(tmp_path, corpus, "old"), cut=True)
    capfd.readouterr()
    assert same(train(tmp_path, corpus, "old"), paper)
    assert "another recipe" not in capfd.readouterr().err
    file = str(tmp_path / "recipe-4-2-sgd.yaml")
    assert main(["train", file, "loss.own_text=0.5", "--run-dir", str(old)]) == 2
    assert "old: was trained with another recipe (loss.own_text: 0.0 -> 0.5)" in capfd.readouterr().err
    here("train", file, "--run-dir", old)
    assert "already finished" in capfd.readouterr().err
