"""Every example of docs/plugins.md runs as it stands on the page."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from unicl_cli import api, binding, registry
from unicl_cli.cli import run
from unicl_cli.testing import recipe_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
PARTS = {"one_way.py", "brightness.py", "patches.py", "rings.py", "spread.py", "size.py"}
PACKAGE = {"__init__.py", "test_one_way.py"}


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
    recipe.write_text(recipe_of(corpus, steps=3), encoding="utf-8")
    command = ["--plugin", str(files / plugin), "train", str(recipe), *overrides, "--run-dir", str(out / "run"), "-q"]
    assert run(command) == 0
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_page_has_an_example_of_each_group():
    assert set(BLOCKS) == PARTS | PACKAGE
    for kind in registry.KINDS:
        assert f"unicl.{kind}" in PAGE
        assert any(f'PARTS = {{"{kind}"' in text for text in BLOCKS.values())
    assert all("unicl_cli." not in BLOCKS[name].replace("unicl_cli.api", "") for name in PARTS), "the api alone"


def test_the_page_names_every_context_parameter():
    for name in binding.CONTEXT:
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


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """`unicl-one-way` as the page lays it out."""
    home = tmp_path / "unicl-one-way"
    for folder in ("unicl_one_way", "tests"):
        (home / folder).mkdir(parents=True)
    (project,) = (block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "[project]" in block)
    loss, _, _ = BLOCKS["one_way.py"].partition("\n\ndef build_one_way")
    (home / "pyproject.toml").write_text(project, encoding="utf-8")
    (home / "README.md").write_text("# unicl-one-way\n", encoding="utf-8")
    (home / "unicl_one_way" / "__init__.py").write_text(BLOCKS["__init__.py"], encoding="utf-8")
    (home / "unicl_one_way" / "loss.py").write_text(loss, encoding="utf-8")
    (home / "tests" / "test_one_way.py").write_text(BLOCKS["test_one_way.py"], encoding="utf-8")
    return home


def test_the_tests_of_the_page_hold(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(package))
    names: dict[str, Any] = {}
    exec((package / "tests" / "test_one_way.py").read_text(), names)
    names["test_it_is_the_sum_of_the_paper"]()
    names["test_a_batch_without_texts_gives_zero_and_every_gradient"]()


@pytest.mark.slow
def test_the_package_of_the_page_can_be_built_installed_and_tested(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shipped = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
    homes = [package, *(file.parent for file in shipped)]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(package)], check=True, timeout=300)
    for home in homes:
        project = tomllib.loads((home / "pyproject.toml").read_text())
        about = project["project"]
        if home != package:  # as pip does, but for seconds of pip
            monkeypatch.chdir(home)
            import_module(project["build-system"]["build-backend"]).build_wheel(str(wheels))
        (wheel,) = wheels.glob(f"{home.name.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as packed:
            names = packed.namelist()
            told = packed.read(next(name for name in names if name.endswith("METADATA"))).decode()
            if home == package:
                packed.extractall(site)
        assert f"Summary: {about['description']}" in told
        assert any(name.endswith("entry_points.txt") for name in names) == ("entry-points" in about)
        assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {home.name.replace("-", "_")}
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ask = [sys.executable, "-m", "unicl_cli", "plugins", "ls", "losses"]
    listed = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.search(r"one-way +unicl-one-way 0\.1\.0 +ok", listed)
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(test, cwd=package, env=environment, capture_output=True, text=True, timeout=600)
    assert "3 passed" in done.stdout, done.stdout


def wordlist(folder: Path) -> None:
    """A tiny BERT with random weights, as a download would lie there."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    library = Tokenizer(
        models.WordLevel({w: n for n, w in enumerate(["[PAD]", "[UNK]", "a", "cat"])}, unk_token="[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=library, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=4, pad_token_id=0, **sizes)).save_pretrained(folder)


def shards(folder: Path) -> None:
    """Two tars of an image and its caption each."""
    folder.mkdir()
    for shard in range(2):
        image = io.BytesIO()
        Image.new("RGB", (32, 32), (100 * shard, 0, 9)).save(image, "PNG")
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for name, data in (("one.png", image.getvalue()), ("one.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.slow
def test_the_commands_for_the_shipped_plugins_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "shards")
    wordlist(tmp_path / "my-bert")
    (tmp_path / "recipe.yaml").write_text(recipe_of(corpus, steps=2))
    section = PAGE[PAGE.index("## Shipped plugins") :]
    lines = [line[2:] for line in section.splitlines() if line.startswith("$ ")]
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0, line
    assert {shlex.split(line)[1] for line in lines} == {"prepare", "train", "onnx"}
    assert (tmp_path / "exported" / "classify.onnx").is_file()
    for project in (ROOT / "plugins").glob("*/pyproject.toml"):
        assert f"`{project.parent.name}`" in section


def test_the_evaluator_of_the_page_measures(
    files: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trained(files, corpus, tmp_path, "one_way.py", "loss=one-way")
    capsys.readouterr()
    words = ["--plugin", str(files / "spread.py"), "eval", str(tmp_path / "run"), "--evaluator", "spread", "--json"]
    assert run(words) == 0
    told = capsys.readouterr()
    (entry,) = json.loads(told.out)["data"]
    figures = entry["evaluators"]["spread"]
    assert figures["n"] == 60
    assert -1 <= figures["overall"] < figures["within_class"] <= 1 + 1e-6
