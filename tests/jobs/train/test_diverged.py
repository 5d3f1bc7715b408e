"""A training that diverges at its end is not done, and diverged weights are one line wherever they are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import TINY
from safetensors.torch import load_file, save_file

from unicl_cli.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the file of a tiny recipe and a finished run of it."""
    where = tmp_path_factory.mktemp("diverged")
    tiny: dict[str, Any] = TINY
    recipe = tiny | {"data": tiny["data"] | {"train": [{"corpus": str(digits)}]}, "steps": 4, "schedule": {"warmup": 1}}
    (where / "r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    assert main(["train", str(where / "r.yaml"), "--run-dir", str(where / "run"), "--devices", "cpu:1", "-q"]) == 0
    return where


@pytest.mark.parametrize(
    "changes",
    [
        ["steps=1", "optim.lr=1e38", "optim.clip_norm=null", "schedule.name=constant", "schedule.warmup=0"],
        ["steps=4", "guard.max_bad_steps=10", "optim.lr=1e30", "schedule.name=constant", "schedule.warmup=0"],
    ],
)
def test_a_run_that_diverges_in_its_last_steps_is_not_done(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: list[str]
) -> None:
    run = tmp_path / "run"
    for _ in range(2):  # nor when the same command is run again
        code = main(["train", str(folder / "r.yaml"), "--run-dir", str(run), "--devices", "cpu:1", *changes])
        assert code == 3, capfd.readouterr().err
        assert "the loss of the trained model is not finite" in capfd.readouterr().err
        assert json.loads((run / "status.json").read_text())["state"] == "failed"
        assert not (run / "meta.json").exists()
        assert (run / "crash" / f"step-{changes[0].removeprefix('steps=')}" / "evidence.json").is_file()


@pytest.mark.parametrize("value", [100.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["model.logit_scale", "model.image.proj.weight"])
def test_diverged_weights_are_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    if name != "model.logit_scale" and value == 100.0:
        return  # a weight may be large
    shutil.copytree(folder / "run", tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    name = next(key for key in tensors if key == name or (name.endswith("weight") and key.startswith("model.image")))
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, tmp_path / "run" / "model.safetensors")
    run = str(tmp_path / "run")
    image = tmp_path / "x.png"
    image.write_bytes(b"")
    for line in (["eval", run], ["probe", run], ["zeroshot", str(image), "--model", run], ["mix", run, run]):
        out = ["-o", str(tmp_path / "mixed")] if line[0] == "mix" else []
        assert main([*line, *out]) != 0
        said = capfd.readouterr().err
        assert f"{run}: the weights have diverged (not finite: {name})" in said
        assert "Traceback" not in said


def test_a_checkpoint_of_another_recipe_is_told(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = folder / "run" / "checkpoints" / "step-00000003"
    words = ["train", str(folder / "r.yaml"), "--devices", "cpu:1", "--resume", str(given), "--run-dir"]
    assert main([*words, str(tmp_path / "same")]) == 0
    assert "another recipe" not in capfd.readouterr().err
    assert main([*words, str(tmp_path / "other"), "optim.lr=0.5"]) == 0
    told = capfd.readouterr().err
    assert f"warning: {given}: was trained with another recipe (optim.lr: 0.001 -> 0.5)" in told
    assert main([*words, str(tmp_path / "short"), "steps=2"]) == 2
    assert f"{given}: is of step 3, but this training has 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "meta.json", "classes.json", "checkpoints/latest", "model.safetensors"]
)
def test_what_is_not_a_file_is_found_before_the_first_step(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "run.lock").write_text("unicl: pid 1 on here\n")
    (tmp_path / "run" / "resolved.yaml").write_text((folder / "run" / "resolved.yaml").read_text())
    assert main(["train", str(folder / "r.yaml"), "--run-dir", str(tmp_path / "run"), "--devices", "cpu:1"]) == 2
    said = capfd.readouterr().err
    assert f"{tmp_path / 'run' / name}: not a regular file" in said
    assert "step 1" not in said
