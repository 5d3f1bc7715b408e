"""The plugins of a run: kept with it, and named where one is missing."""

import json
from pathlib import Path

import pytest

from unicl_cli import registry
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load
from unicl_cli.recipe.text import dump
from unicl_cli.runs.plugins import list_plugins, load_run_recipe

FILE = """
def anchored(*, weight: float = 1.0):
    return None
PARTS = {"losses": {"anchored": anchored}, "encoders": {"tiny": anchored}}
"""
RECIPE = """
data: {train: [{corpus: c}]}
model: {image: tiny, text: cbow}
loss: anchored
steps: 1
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "anchored.py"
    path.write_text(FILE)
    monkeypatch.setenv("UNICL_PLUGINS", str(path))
    registry.forget()
    yield path
    monkeypatch.undo()
    registry.forget()


def run_with(plugin: Path, monkeypatch: pytest.MonkeyPatch, env: object) -> Path:
    """A run directory of RECIPE, and no plugin any more."""
    (plugin.parent / "r.yaml").write_text(RECIPE)
    recipe = load(str(plugin.parent / "r.yaml"))
    run = plugin.parent / "run"
    run.mkdir()
    (run / "resolved.yaml").write_text(dump(recipe))
    (run / "env.json").write_text(json.dumps({"plugins": list_plugins(recipe)} if env is None else env))
    monkeypatch.delenv("UNICL_PLUGINS")
    registry.forget()
    return run


def test_a_missing_plugin_is_named_with_its_file(plugin: Path, monkeypatch: pytest.MonkeyPatch):
    run = run_with(plugin, monkeypatch, None)
    found = json.loads((run / "env.json").read_text())["plugins"]
    assert [(each["kind"], each["name"], each["file"]) for each in found] == [
        ("losses", "anchored", str(plugin)),
        ("encoders", "tiny", str(plugin)),
    ]
    with pytest.raises(UniclError, match="no loss 'anchored'") as caught:
        load_run_recipe(run)
    assert caught.value.hint == f"add the plugin file of this run: unicl --plugin {plugin} …"
    registry.add_local(str(plugin))
    assert load_run_recipe(run).loss.name == "anchored"


def test_a_missing_distribution_is_named_and_a_file_that_is_gone(plugin: Path, monkeypatch: pytest.MonkeyPatch):
    gone = {"kind": "losses", "name": "anchored", "file": "/nowhere/a.py"}
    dist = {"kind": "encoders", "name": "tiny", "dist": "unicl-tiny", "version": "1.0"}
    run = run_with(plugin, monkeypatch, {"plugins": [gone, dist]})
    with pytest.raises(UniclError) as caught:
        load_run_recipe(run)
    assert "--plugin /nowhere/a.py … (this file is gone)" in str(caught.value.hint)
    assert "install unicl-tiny (1.0), which has 'tiny'" in str(caught.value.hint)


@pytest.mark.parametrize("env", [[], {"plugins": 3}, {"plugins": [7, {"kind": "losses"}]}, {}])
def test_an_older_or_damaged_record_leaves_the_error_as_it_is(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, env: object
):
    run = run_with(plugin, monkeypatch, env)
    with pytest.raises(UniclError, match="no loss 'anchored'"):
        load_run_recipe(run)
