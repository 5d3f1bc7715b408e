"""The moving average of the weights: validations, best, eval and the end of a training speak of the same model."""

import contextlib
import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from forked_ranks import on_ranks
from launching import TINY, here, same
from safetensors.torch import load_file

from unicl_cli.build.optimizer import average_warnings
from unicl_cli.cli import main
from unicl_cli.core.ema import share_of_start
from unicl_cli.recipe.load import load_text

FIGURES = ("top1", "text_to_image_r1", "image_to_text_r1")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, digits):
    """A run with an average that lags behind, validated along the way, and what its training said."""
    folder = tmp_path_factory.mktemp("averaged")
    entry = {"corpus": str(digits), "split": "test", "every": 4}
    changes = {"ema": {"decay": 0.8}, "eval": [entry], "steps": 12, "optim": {"lr": 1e-2}}
    changes["checkpoint"] = {"every": 4, "keep": 5, "best": {"metric": "top1"}}
    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump(whole(digits, **changes)))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        here("train", file, "--run-dir", folder / "run")
    return folder / "run", said.getvalue()


def whole(digits, **changes):
    data = TINY["data"] | {"train": [{"corpus": str(digits)}]}
    return json.loads(json.dumps(TINY | {"data": data} | changes))


def lines(run):
    return [json.loads(line) for line in (Path(run) / "eval.jsonl").read_text().splitlines()]


def measured(model, capsys, *words):
    capsys.readouterr()
    assert main(["eval", str(model), "--json", "-q", *words]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["data"]
    ways = entry["retrieval"]
    return {"top1": entry["top1"]} | {f"{way}_r1": ways[way]["r1"] for way in ("text_to_image", "image_to_text")}


def test_validations_and_eval_speak_of_the_average_and_tell_the_trained_weights_apart(averaged, capsys):
    run, _ = averaged
    last = lines(run)[-1]
    assert last["weights"] == "average"
    assert measured(run, capsys) == {name: last[name] for name in FIGURES}
    assert measured(run, capsys, "--raw-weights") == {name: last[f"raw_{name}"] for name in FIGURES}
    assert any(last[name] != last[f"raw_{name}"] for name in FIGURES), "else nothing was told apart"


def test_the_best_checkpoint_is_that_of_the_average(averaged, capsys):
    run, said = averaged
    best = json.loads((run / "checkpoints/step-00000012/trainer.json").read_text())["best"]
    values = {row["step"]: row["top1"] for row in lines(run)}
    assert best["weights"] == "average"
    assert best["value"] == max(values.values()) == values[best["step"]]
    assert measured(run / "checkpoints" / (run / "checkpoints/best").read_text(), capsys)["top1"] == best["value"]
    closing = said[said.index("done in") :]
    assert f"top-1 {100 * values[12]:.1f} %, best {100 * best['value']:.1f} % at step {best['step']}" in closing
    assert main(["runs", "ls", str(run.parent)]) == 0
    assert f"top-1 {100 * best['value']:.1f} %" in capsys.readouterr().out


def test_to_measure_the_average_changes_no_weight(averaged, digits, tmp_path, monkeypatch):
    run, _ = averaged
    recipe = yaml.safe_load((run / "resolved.yaml").read_text()) | {"eval": []}
    recipe["checkpoint"]["best"] = None
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "r.yaml", "--run-dir", "quiet", "-q"]) == 0
    assert same(Path("quiet"), run)
    assert same(Path("quiet"), run, "ema.safetensors")
    one, other = load_file("quiet/model.safetensors"), load_file("quiet/ema.safetensors")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_validation_that_was_cut_is_made_again_with_the_average(averaged, tmp_path, monkeypatch):
    run, _ = averaged
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut/meta.json").unlink()
    expected = lines(run)
    (tmp_path / "cut/eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expected[:-1]))
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(run / "resolved.yaml"), "--run-dir", "cut", "-q"]) == 0
    assert lines("cut") == expected


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.05, 0.1, 0.11, 0.5, 0.99, 0.9999])
def test_the_share_of_the_first_weights_is_the_product_of_the_decays(decay, warmup):
    for steps in (1, 2, 7, 90, 1000):
        kept = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(1, steps + 1)]
        assert share_of_start(decay, steps, warmup=warmup) == pytest.approx(math.prod(kept), rel=1e-9)


def test_a_decay_that_cannot_move_in_so_few_steps_is_told_with_a_better_one(digits):
    def said(**changes):
        recipe = load_text(json.dumps(whole(digits, **changes)))
        return average_warnings(recipe, recipe.steps or 0)

    assert said(ema=None) == said(ema={"decay": 0.9}, steps=60) == said(ema={"warmup": True}, steps=60) == []
    (warning,) = said(ema={}, steps=60)
    assert warning.startswith("ema.decay 0.9999: after 60 steps, 99 % of the average is still the start weights")
    better = float(warning.partition("ema.decay=")[2].split()[0])
    assert 0.005 < share_of_start(better, 60, warmup=False) < 0.02
    assert said(ema={"decay": better}, steps=60) == []
    (long,) = said(ema={"decay": 1 - 1e-9}, steps=10**6)
    assert "try ema.decay=0.9999954 or ema.warmup=true" in long


def test_the_start_of_a_training_and_a_dry_run_tell_it(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump(whole(digits, ema={}, steps=2)))
    for more in (("--dry-run",), ()):
        assert main(["train", "r.yaml", "--run-dir", "run", *more]) == 0
        assert "warning: ema.decay 0.9999: after 2 steps, 100 % of the average" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_with_shards_measure_the_same_average_and_go_on_with_their_own_weights(digits, tmp_path):
    """FSDP2 keeps gathered weights of the root after a validation: they must not reach the next step."""
    sgd = {"ema": {"decay": 0.95}, "optim": {"name": "sgd", "lr": 0.2}, "parallel": {"strategy": "fsdp2"}, "steps": 12}
    entry = {"corpus": str(digits), "split": "train", "every": 4}
    for name, entries in (("measured", [entry]), ("quiet", [])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(whole(digits, **sgd, eval=entries)))
    for name, recipe, count in (("two", "measured", 2), ("quiet", "quiet", 2), ("one", "measured", 1)):
        on_ranks(count, "train", tmp_path / f"{recipe}.yaml", "--run-dir", tmp_path / name, "-q")
    assert same(tmp_path / "two", tmp_path / "quiet")
    assert same(tmp_path / "two", tmp_path / "quiet", "ema.safetensors")
    apart = 0.0
    for two, one in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        for name in FIGURES:
            assert two[name] == pytest.approx(one[name], abs=0.04)
            assert two[f"raw_{name}"] == pytest.approx(one[f"raw_{name}"], abs=0.04)
            apart = max(apart, abs(one[name] - one[f"raw_{name}"]))
    assert apart > 0.04, "else the figures of the one could pass for those of the other"
