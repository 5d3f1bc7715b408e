"""Every command in a directory full of a user's own files and modules: no byte of them changes, none of them is run."""

import os
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import typer
from launching import here, recipe
from PIL import Image

from unicl_cli.cli import BUILTIN, app, main

MODULES = (
    *("yaml", "random", "types", "threading", "signal", "json", "typing", "re", "enum", "runpy", "warnings", "logging"),
    *("multiprocessing", "pickle", "queue", "socket", "tempfile", "numpy", "torch", "PIL", "rich", "typer", "pydantic"),
    *("pyarrow", "tokenizers", "accelerate", "safetensors", "unicl_cli", "sitecustomize"),
)
"""Modules of the standard library and of our dependencies that a process of ours could import from here."""
FILES = (
    *("notes.tmp", ".tmp-work/thesis.tex", "work.tmp/inside", "src/editor.tmp", "step-00000004/notes.txt", "best.txt"),
    *("step-00000009", "step-8/model.safetensors", "checkpoints/latest", "checkpoints/step-00000002.tar.gz"),
    *("plan.json", "recipe.yaml", "env.json", "status.json", "meta.json", "manifest.json", "resolved.yaml"),
    *("classes.json", "tokenizer.json", "model.safetensors", "eval.jsonl", "metrics.jsonl", "run.lock", ".lock"),
    *("holdout.json", "duplicates.json", "data/kept/a.parquet", "parts/a.tsv", "rejects/b.jsonl", "latest", "best"),
    *("stage-1/status.json", "logs/today.log", "towers/a", ".unicl-0123.tmp", f"x.unicl-{'0' * 32}.tmp", "image.onnx"),
)
CONTENT = '{"mine": "every byte of it"}\n'
ANYWHERE = {0, 1, 2}
"""Exit codes of a command that has ended as it should, or that has refused the directory."""


def fill(folder: Path) -> Path:
    """Fill a folder with a user's files, links and modules; a module that is imported leaves the file ``RUN``."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CONTENT)
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RUN')!r}, 'a').write('{name} ')\nraise ImportError\n")
    (folder / "outside.txt").write_text(CONTENT)
    (folder / "step-00000006").symlink_to(folder / "step-00000004")
    (folder / f".unicl-{'1' * 32}.tmp").symlink_to(folder / "outside.txt")
    (folder / "nowhere.yaml").symlink_to(folder / "missing")
    (folder / "empty").mkdir()
    return folder


def state(folder: Path) -> dict[str, tuple[int, object]]:
    """Return the mode of all that is in a folder, with the bytes of a file and the target of a link."""
    found: dict[str, tuple[int, object]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.readlink() if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (mode, content)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits) -> dict[str, str]:
    """A corpus, a recipe, a finished run and its first checkpoint, and an image, in directories of their own."""
    root = tmp_path_factory.mktemp("made")
    file = recipe(root, digits, steps=2, every=1)
    here("train", file, "--run-dir", root / "a", "--devices", "cpu:1", "-q")
    Image.new("RGB", (16, 16)).save(root / "x.png")
    for split in ("train", "test"):
        (root / "photos" / split / "cat").mkdir(parents=True)
        Image.effect_noise((200, 200), 90).save(root / "photos" / split / "cat" / "1.png")
    first = root / "a" / "checkpoints" / "step-00000001"
    return {"corpus": str(digits), "recipe": str(file), "a": str(root / "a"), "b": str(first), "image": str(root)}


COMMANDS = (
    "prepare --labels digits?limit=20 -o .",
    "prepare --labels digits?limit=20 -o out/corpus",
    "prepare --labels digits?limit=20 -o work.tmp",
    "prepare --labels digits?limit=20 -o new --dry-run",
    "prepare --verify -o .",
    "prepare --verify -o {corpus}",
    "prepare --repair -o .",
    "export-corpus {corpus} -o .",
    "export-corpus {corpus} -o out/shards",
    "inspect . -o out/i.json",
    "inspect {corpus} --html out/i.html -o out/j.json",
    "inspect {a} -o {a}/meta.json",
    "train {recipe} --run-dir . --devices cpu:1",
    "train {recipe} --run-dir checkpoints --devices cpu:1",
    "train {recipe} --run-dir step-00000004 --devices cpu:1",
    "train {recipe} --run-dir logs --devices cpu:1",
    "train {recipe} --run-dir out/run --devices cpu:1",
    "train {recipe} --run-dir . --dry-run --devices cpu:1",
    "eval {a} --data {corpus} --predictions out/p.csv --html out/e.html -o out/e.json --devices cpu:1",
    "eval . --data . --devices cpu:1",
    "compare {a} {b} --data {corpus} --html out/c.html -o out/c.json --devices cpu:1",
    "probe {a} --data {corpus} --save out/p.safetensors -o out/p.json --devices cpu:1",
    "mix {a} {b} -o . --devices cpu:1",
    "mix {a} {b} -o out/mix --devices cpu:1",
    "export {a} -o .",
    "export {a} -o out/model",
    "zeroshot {image}/x.png --model {a} --classes cat,dog --devices cpu:1",
    "search cat --model {a} --data {corpus} -o out/s.json --devices cpu:1",
    "bench",
    "bench loss --all --sizes x -o out/b.json",
    "runs ls .",
    "runs show .",
    "runs show {a}",
    "recipes ls",
    "recipes show quickstart",
    "recipes cp quickstart recipe.yaml",
    "recipes cp quickstart nowhere",
    "recipes cp quickstart out",
    "recipes validate quickstart",
    "recipes validate recipe.yaml",
    "recipes diff quickstart recipe.yaml",
    "recipes schema",
    "plugins ls",
    "plugins show losses unicl",
    "doctor",
)
"""Each command as it should be used, and as it must refuse to write."""
PROCESSES = (
    "train {recipe} data.workers=1 --run-dir out/run2 --devices cpu:2",  # ranks, and a loader of each
    "prepare --labels {image}/photos --workers 2 -o out/corpus2",  # two shards of images that are not small
    "bench sampler --sizes 2e7 --rounds 1 -o out/b2.json",
)
"""A command for each way to start processes."""
OF_EACH = {line.split()[0]: line for line in COMMANDS}.values()
"""The last line of each command: it imports what the others do."""
SCRIPT = """
import sys
from unicl_cli.cli import main
lines = sys.argv[1:]
for line in lines:
    sys.argv[1:] = line.split()
    sys.stderr.write(f"{line}: {main()}\\n")
"""
"""The console script, once for each line: what one of them has imported, none of the others imports again."""


def test_every_command_is_among_them():
    tried = {tuple(line.split()[:2]) for line in COMMANDS}
    groups = {"runs", "recipes", "plugins"}
    assert {words[0] for words in tried} == set(BUILTIN)
    for name in groups:
        command = typer.main.get_command(app).commands[name].load()
        assert {words[1] for words in tried if words[0] == name} == set(command.commands)


def test_no_command_touches_a_users_file(tmp_path, made, monkeypatch, capfd):
    """In one process, which spares each command seconds of imports."""
    folder = fill(tmp_path / "mine")
    monkeypatch.chdir(folder)
    before, corpus, run = state(folder), state(Path(made["corpus"])), state(Path(made["a"]))
    for line in COMMANDS:
        code = main(line.format(**made).split())
        told = capfd.readouterr().err
        assert code in ANYWHERE, (line, told)
        after = state(folder)
        assert {name: after.get(name) for name in before} == before, (line, told)
        new = {name for name in after.keys() - before.keys() if Path(name).parts[0] not in ("out", "__pycache__")}
        assert not new, (line, new)
    assert state(Path(made["corpus"])) == corpus
    assert state(Path(made["a"])) == run
    assert {"corpus", "run", "mix", "e.json", "p.csv", "p.safetensors"} <= {
        path.name for path in (folder / "out").iterdir()
    }


@pytest.mark.slow
def test_no_command_takes_the_current_directory_for_code(tmp_path, made):
    script = tmp_path / "unicl"
    script.write_text(SCRIPT)
    lines = [line.format(**made) for line in (*OF_EACH, *PROCESSES)]
    folder = fill(tmp_path / "mine")
    before = state(folder)
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, script, *lines]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    after = state(folder)
    assert not (folder / "RUN").exists(), (folder / "RUN").read_text()
    assert {name: after.get(name) for name in before} == before, done.stderr
    assert done.returncode == 0, done.stderr
    ended = (said.rpartition(": ") for said in done.stderr.splitlines())
    codes = {line: int(code) for line, _, code in ended if line in lines}
    assert list(codes) == lines, done.stderr
    assert set(codes.values()) <= ANYWHERE, done.stderr
    assert {codes[line] for line in lines[-len(PROCESSES) :]} == {0}, done.stderr


def test_the_module_runs_no_module_of_the_current_directory_that_python_itself_spares(tmp_path):
    """`python -m` imports some modules of the standard library before any code of ours."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("typer", "yaml", "logging", "pathlib", "json", "importlib_metadata"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RUN')!r}, 'a').write('{name} ')\n")
    command = [sys.executable, "-m", "unicl_cli", "recipes", "show", "quickstart"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "RUN").exists()


def test_a_plugin_file_of_the_current_directory_still_works(tmp_path):
    (tmp_path / "mine.py").write_text("def mine():\n    '''Mine.'''\n\nPARTS = {'losses': {'mine': mine}}\n")
    script = Path(sysconfig.get_path("scripts")) / "unicl"
    command = [sys.executable, script, "--plugin", "mine.py", "plugins", "show", "losses", "mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
