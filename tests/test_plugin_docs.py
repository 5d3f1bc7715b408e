"""Every example of docs/plugins.md runs as it stands on the page."""

import json
import re
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from unicl_cli import api, registry
from unicl_cli.cli import run

PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 32, augment: none}}
model:
  image: {{name: cnn, width: 8, stages: 2}}
  text: {{name: transformer, width: 16, layers: 1, heads: 2}}
  embed_dim: 16
batch: {{size: 12}}
steps: 3
log: {{every: 1}}
precision: fp32
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin file and no signal handler of one test is seen by the next."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.setenv("UNICL_PLUGINS", "")
    registry.forget()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in [name for name in sys.modules if name.startswith("unicl_local_")]:
        del sys.modules[name]
    monkeypatch.undo()
    registry.forget()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All named blocks of the page as files."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in BLOCKS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(files: Path) -> Path:
    """The page's own data set, prepared as the page says."""
    out = files / "rings-corpus"
    command = ["--plugin", str(files / "rings.py"), "prepare", "--labels", "rings?count=60", "--captions", "rings"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICL_PLUGINS", "")
        assert run([*command, "-o", str(out), "--workers", "1"]) == 0
    registry.forget()
    return out


def trained(files: Path, corpus: Path, out: Path, plugin: str, *overrides: str) -> list[dict[str, float]]:
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE.format(corpus=corpus), encoding="utf-8")
    command = ["--plugin", str(files / plugin), "train", str(recipe), *overrides, "--run-dir", str(out / "run"), "-q"]
    assert run(command) == 0
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_page_has_an_example_of_each_group():
    assert set(BLOCKS) == {"one_way.py", "brightness.py", "patches.py", "rings.py", "size.py"}
    for kind in registry.KINDS:
        assert f"unicl.{kind}" in PAGE
        assert any(f'PARTS = {{"{kind}"' in text for text in BLOCKS.values())
    assert "".join(BLOCKS.values()).count("unicl_cli") == PAGE.count("from unicl_cli.api import"), "the api alone"


def test_the_page_names_every_context_parameter():
    for name in registry.CONTEXT:
        assert f"`{name}`" in PAGE


def test_the_loss_of_the_page_is_short_and_trains(files: Path, corpus: Path, tmp_path: Path):
    assert len(BLOCKS["one_way.py"].strip().splitlines()) <= 30
    whole = trained(files, corpus, tmp_path, "one_way.py", "loss=one-way")
    assert len(whole) == 3
    (tmp_path / "half").mkdir()
    half = trained(files, corpus, tmp_path / "half", "one_way.py", "loss=one-way", "loss.weight=0.5")
    assert half[0]["loss"] == pytest.approx(whole[0]["loss"] / 2)
    (tmp_path / "builtin").mkdir()
    builtin = trained(files, corpus, tmp_path / "builtin", "one_way.py", "loss={name: unicl, terms: [image]}")
    assert whole[0]["loss"] == pytest.approx(builtin[0]["loss"], rel=1e-5), "it is what it says"


def test_the_hook_of_the_page_fills_the_batch(files: Path, corpus: Path, tmp_path: Path):
    lines = trained(files, corpus, tmp_path, "brightness.py", "loss=brightness")
    assert lines[0]["loss_brightness"] > 0
    (tmp_path / "none").mkdir()
    none = trained(files, corpus, tmp_path / "none", "brightness.py", "loss=brightness", "loss.known=0.0")
    assert [line["loss_brightness"] for line in none] == [0, 0, 0]


def test_the_tower_of_the_page_trains_and_refuses(files: Path, corpus: Path, tmp_path: Path):
    image = "model.image={name: patches, width: 32}"
    assert len(trained(files, corpus, tmp_path, "patches.py", image)) == 3
    model = api.load_model(str(tmp_path / "run")).step.model
    assert model.image_width == 32
    (tmp_path / "odd").mkdir()
    with pytest.raises(api.UniclError, match="32 px are not cut by patch 5"):
        trained(files, corpus, tmp_path / "odd", "patches.py", "model.image={name: patches, patch: 5}")
    with pytest.raises(api.UniclError, match="unknown key; did you mean 'width'"):
        trained(files, corpus, tmp_path, "patches.py", "model.image={name: patches, widht: 5}")


def test_the_command_of_the_page_counts(files: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(files, corpus, tmp_path, "one_way.py", "loss=one-way")
    capsys.readouterr()
    assert run(["--plugin", str(files / "size.py"), "size", str(tmp_path / "run")]) == 0
    assert int(capsys.readouterr().out) > 1000


def test_a_run_of_a_plugin_without_the_plugin_says_what_is_missing(
    files: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(files, corpus, tmp_path, "one_way.py", "loss=one-way")
    monkeypatch.setenv("UNICL_PLUGINS", "")
    registry.forget()
    with pytest.raises(api.UniclError, match="no loss 'one-way'"):
        run(["eval", str(tmp_path / "run")])


def test_the_package_in_the_contributors_guide_trains(
    files: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (project,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    factory, loss = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    about = tomllib.loads(project)["project"]
    package = tmp_path / "unicl_one_way"
    package.mkdir()
    (package / "__init__.py").write_text(factory, encoding="utf-8")
    (package / "loss.py").write_text(loss, encoding="utf-8")
    info = tmp_path / "unicl_one_way-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in about["entry-points"]["unicl.losses"].items())
    (info / "entry_points.txt").write_text(f"[unicl.losses]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.forget()
    (tmp_path / "out").mkdir()
    lines = trained(files, corpus, tmp_path / "out", "size.py", "loss={name: one-way, tile: 5}")
    assert len(lines) == 3
    assert registry.find("losses", "unicl-one-way/one-way").version == "0.1.0"


@pytest.mark.slow
def test_the_hook_of_a_local_file_reaches_loader_processes(files: Path, corpus: Path, tmp_path: Path):
    options = ("loss=brightness", "data.workers=1")
    lines = trained(files, corpus, tmp_path, "brightness.py", *options)
    (tmp_path / "alone").mkdir()
    alone = trained(files, corpus, tmp_path / "alone", "brightness.py", "loss=brightness")
    assert [line["loss"] for line in lines] == [line["loss"] for line in alone]
