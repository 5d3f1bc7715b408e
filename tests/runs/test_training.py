"""A training of any module in a run directory: resumed, stopped, finished, and other settings refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from unicl_cli import api
from unicl_cli.core.checkpoint import read_tensors
from unicl_cli.errors import Stopped, UniclError
from unicl_cli.runs.settings_file import check_settings, newest_weights, read_settings
from unicl_cli.runs.training import ModuleRun, train_module

STEPS = 6


class Numbers(NamedTuple):
    values: Tensor


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.3))

    def forward(self, batch: Numbers) -> dict[str, Tensor]:
        return {"loss": self.layer(batch.values).square().mean()}


def batches(start: int) -> Iterator[tuple[int, Numbers]]:
    for step in range(start, STEPS):
        yield step, Numbers(torch.arange(12.0).reshape(4, 3) + step)


def trained(run: Path, stop_after: int | None = None, last_rate: float = 0.01, **settings: Any) -> None:
    module, seen = Line(), 0
    stop = api.StopFlag()

    def watched(start: int) -> Iterator[tuple[int, Numbers]]:
        nonlocal seen
        for step, batch in batches(start):
            seen += 1
            stop.signal = 15 if seen == stop_after else None
            yield step, batch

    plan = api.Plan(steps=STEPS, seed=0, lr=lambda step: last_rate if step == STEPS - 1 else 0.01, log_every=1)
    place = ModuleRun(run, "toy train", settings, save_every=2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    train_module(place, module, optimizer, watched, plan, api.start_accelerator("fp32", "cpu"), stop)


def test_a_stopped_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    trained(tmp_path / "whole", size=3)
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        trained(tmp_path / "cut", stop_after=3, size=3)
    assert json.loads((tmp_path / "cut/status.json").read_text())["state"] == "stopped"
    assert not check_settings(tmp_path / "cut", "toy train", {"size": 3})
    assert newest_weights(tmp_path / "cut").parent.name == "step-00000003"
    trained(tmp_path / "cut", size=3)
    one, other = (read_tensors(newest_weights(tmp_path / run)) for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, STEPS + 1))
    assert check_settings(tmp_path / "cut", "toy train", {"size": 3})
    assert read_settings(tmp_path / "cut", "toy train") == {"size": 3}


def test_a_folder_of_another_run_or_with_other_files_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run", size=3)
    for command, settings, message in (
        ("toy train", {"size": 4}, r"was trained with other settings \(size is 3 there, 4 here\)"),
        ("toy train", {"size": 3, "more": 1}, r"other settings \(more is null there, 1 here\)"),
        ("odd train", {"size": 3}, "a run of unicl toy train"),
    ):
        with pytest.raises(UniclError, match=message):
            check_settings(tmp_path / "run", command, settings)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(UniclError, match=r"photos: contains other files \(a.jpg\)"):
        check_settings(tmp_path / "photos", "toy train", {})
    with pytest.raises(UniclError, match="photos: not a run of unicl toy train"):
        read_settings(tmp_path / "photos", "toy train")
    (tmp_path / "run/settings.json").write_text("{")
    with pytest.raises(UniclError, match=r"settings.json: damaged"):
        read_settings(tmp_path / "run", "toy train")
    with pytest.raises(UniclError, match="has no whole checkpoint yet"):
        newest_weights(tmp_path / "photos")


def test_weights_that_are_not_finite_do_not_count_as_finished(tmp_path: Path) -> None:
    with pytest.raises(UniclError, match="the weights are not finite: layer"):
        trained(tmp_path / "run", last_rate=float("inf"))
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run/model.safetensors").exists()
