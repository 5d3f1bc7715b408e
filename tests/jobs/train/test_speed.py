"""The time that a dry run tells: from a run of the same work on this machine, or none."""

import json
import socket
import time
from pathlib import Path

import pytest

from unicl_cli.jobs.train.speed import estimate_time
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump

TEXT = "data: {{train: [{{corpus: c}}], image_size: {size}}}\nmodel: {{image: cnn, text: cbow}}\nsteps: {steps}\n"


def recipe_of(*, size: int = 32, steps: int = 10):
    return load_text(TEXT.format(size=size, steps=steps))


def run_at(folder: Path, recipe, **facts: object) -> None:
    folder.mkdir(parents=True)
    here = {"host": socket.gethostname(), "pid": 1, "updated": time.time(), "img_s": 200.0, "world": 1}
    status = {"schema": "unicl/runs/1", "state": "done", "step": 10, "steps": 10, **here, **facts}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "resolved.yaml").write_text(dump(recipe))


def test_a_run_of_the_same_work_gives_the_time(tmp_path: Path):
    run_at(tmp_path / "one", recipe_of())
    found = estimate_time(recipe_of(steps=500), tmp_path, 1, 8000)
    assert found == {"time_s": 40, "time_from": f"{tmp_path / 'one'}, 200 img/s"}


@pytest.mark.parametrize("facts", [{"host": "elsewhere"}, {"world": 2}, {"img_s": None}])
def test_another_machine_or_number_of_processes_gives_none(tmp_path: Path, facts: dict[str, object]):
    run_at(tmp_path / "one", recipe_of(), **facts)
    assert estimate_time(recipe_of(), tmp_path, 1, 8000) == {}


def test_another_size_of_image_gives_none_and_so_does_an_empty_folder(tmp_path: Path):
    run_at(tmp_path / "one", recipe_of(size=64))
    assert estimate_time(recipe_of(), tmp_path, 1, 8000) == {}
    assert estimate_time(recipe_of(), tmp_path / "nothing", 1, 8000) == {}
