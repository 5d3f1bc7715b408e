"""Whatever the files of a run hold, each command answers or says one line: no traceback, no hang, no write outside."""

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from launching import TINY

from unicl_cli.build.load import load_model
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.cli import main
from unicl_cli.core.checkpoint_files import fingerprint
from unicl_cli.core.ema import Average
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.train.setup import resume, set_up
from unicl_cli.jobs.train.stage import Stage
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.recipe.load import load
from unicl_cli.runs.place import is_finished

CHECKPOINT = "checkpoints/step-00000006"
JSON = ("status.json", "env.json", "meta.json", "classes.json", "tokenizer.json", f"{CHECKPOINT}/trainer.json")
LINES = ("metrics.jsonl", "eval.jsonl")
TENSORS = ("model.safetensors", *(f"{CHECKPOINT}/{name}.safetensors" for name in ("model", "optim", "ema")))
OTHERS = ("resolved.yaml", "checkpoints/latest", "checkpoints/best")
RAW = ("1e999", "-1e999", "1" + "0" * 400, str(2**63), "[" * 70 + "]" * 70, "NaN", '"\\ud800"')
"""Texts of JSON that Python's own writer does not write."""
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**32 - 1,
    1.5,
    "",
    "x",
    "../../x",
    "/etc/hostname",
    "a" * 5000,
    "\0",
    [],
    {},
    [[]],
    [0],
)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the recipe of a finished tiny training, and its run."""
    folder = tmp_path_factory.mktemp("written")
    tiny: dict[str, Any] = TINY
    recipe = tiny | {
        "data": tiny["data"] | {"train": [{"corpus": str(digits)}]},
        "steps": 6,
        "ema": {"decay": 0.5},
        "eval": [{"corpus": str(digits), "every": 3}],
        "checkpoint": {"every": 3, "keep": 2, "best": {}},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    assert main(["train", str(folder / "r.yaml"), "--run-dir", str(folder / "run"), "--devices", "cpu:1", "-q"]) == 0
    return folder


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(found for key, item in list(items)[:40] for found in places(item, (*at, key)))]


def spoil_tree(tree: Any, data: st.DataObject) -> str:
    """One value of a tree deleted or replaced, as JSON."""
    at = data.draw(st.sampled_from(places(tree)))
    value = data.draw(st.sampled_from((*VALUES, *RAW)))
    marked = "@raw@" if value in RAW else value
    if not at:
        return json.dumps(marked).replace('"@raw@"', str(value))
    tree = copy.deepcopy(tree)
    inner = tree
    for key in at[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[at[-1]] = marked
    else:
        del inner[at[-1]]
    return json.dumps(tree).replace('"@raw@"', str(value))


def spoil_bytes(content: bytes, data: st.DataObject) -> bytes:
    at = data.draw(st.integers(0, max(0, min(len(content) - 1, 2000))))
    how = data.draw(st.sampled_from(("cut", "flip", "insert", "append")))
    if how == "cut":
        return content[:at]
    if how == "append":
        return content + data.draw(st.binary(min_size=1, max_size=20))
    put = bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) if how == "flip" and content else b"\xff\0"
    return content[:at] + put + content[at + (how == "flip") :]


def spoil_header(content: bytes, data: st.DataObject) -> bytes:
    """A safetensors file whose header was changed and has the right length."""
    size = int.from_bytes(content[:8], "little")
    header = spoil_tree(json.loads(content[8 : 8 + size]), data).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def spoil(run: Path, data: st.DataObject) -> None:
    """Change one file; the checksum of a checkpoint's file follows it, as one who means harm would do."""
    name = data.draw(st.sampled_from((*JSON, *JSON, *LINES, *TENSORS, *OTHERS)))
    path = run / name
    how = data.draw(st.sampled_from(("content", "content", "content", "bytes", "folder", "fifo", "gone")))
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes(spoil_content(name, content, data) if how == "content" else spoil_bytes(content, data))
        sign(run, path)


def sign(run: Path, path: Path) -> None:
    if path.suffix == ".safetensors" and path.parent != run:
        facts = json.loads((run / CHECKPOINT / "trainer.json").read_text())
        facts["files"][path.name] = fingerprint(path)
        (run / CHECKPOINT / "trainer.json").write_text(json.dumps(facts))


def spoil_content(name: str, content: bytes, data: st.DataObject) -> bytes:
    """The file with one value changed, as its format has it; a pointer has no values."""
    if name in TENSORS:
        return spoil_header(content, data)
    if name in LINES:
        lines = content.decode().splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = spoil_tree(json.loads(lines[number]), data)
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    if name in OTHERS[1:]:
        return spoil_bytes(content, data)
    tree = yaml.safe_load(content) if name.endswith(".yaml") else json.loads(content)
    return spoil_tree(tree, data).encode("utf-8", "surrogatepass")


def command(*words: object) -> None:
    """Run a command in this process: it may refuse in a line, and shows no traceback."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    assert code in (0, 1, 2), (words, said.getvalue())
    assert "Traceback" not in said.getvalue(), said.getvalue()
    assert "bug in unicl" not in said.getvalue(), said.getvalue()


def use_model(name: Path) -> None:
    """Load a model as eval and zeroshot do, and encode its prompts."""
    loaded = load_model(str(name))
    if loaded.tokenizer is not None:
        texts = [template.replace("{}", c.names[0]) for c in loaded.classes[:2] for template in loaded.templates[:2]]
        known = getattr(loaded.tokenizer, "known", None)
        if texts and known is None:
            Encoder(loaded).encode_texts(texts, batch=8, label="test")


def continue_training(folder: Path, run: Path) -> None:
    """All that a training does before its first step."""
    recipe = load(str(folder / "r.yaml"))
    is_finished(recipe, run)
    accelerator = start_accelerator("fp32", "cpu")
    parts = set_up(recipe, accelerator, run, "auto", None)
    optimizer, average = build_optimizer(recipe, parts.step), Average(parts.step, 0.5, warmup=False)
    facts = resume("auto", run, parts, parts.step, optimizer, average)
    stage = Stage(parts, run, accelerator, optimizer, average)
    if facts is not None:
        stage.checkpoints.restore(facts)
    stage.open_sinks(0 if facts is None else facts["step"], [], quiet=True)
    stage.validations.lines()
    stage.checkpoints.close()


def show(written: Path, run: Path) -> None:
    """List, show and inspect a run and its checkpoint; the other run is listed as it was."""
    command("runs", "show", run)
    command("inspect", run)
    command("inspect", run / CHECKPOINT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["runs", "ls", str(run.parent), "--json"]) == 0
    assert [item["state"] for item in json.loads(out.getvalue())["runs"] if item["run"].endswith("sound")] == ["done"]


def use_models(written: Path, run: Path) -> None:
    for name in (run, run / CHECKPOINT):
        with contextlib.suppress(UniclError):
            use_model(name)


def go_on(written: Path, run: Path) -> None:
    with contextlib.suppress(UniclError):
        continue_training(written, run)


def check(work: Callable[[Path, Path], None], written: Path, data: st.DataObject) -> None:
    """Do the work on a run with one spoilt file; nothing outside of the run is written."""
    with tempfile.TemporaryDirectory(prefix="unicl-spoilt-") as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        shutil.copytree(written / "run", folder / "run")
        (folder / "sound").mkdir()
        shutil.copy(written / "run" / "status.json", folder / "sound")
        spoil(folder / "run", data)
        before = {path for path in folder.rglob("*") if folder / "run" not in path.parents}
        work(written, folder / "run")
        assert {path for path in folder.rglob("*") if folder / "run" not in path.parents} == before


WORKS = [(show, 12), (use_models, 12), (go_on, 10)]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example that fails is not made smaller: that would take minutes."""


@pytest.mark.parametrize(("work", "count"), WORKS)
def test_a_spoilt_file_is_answered_in_lines(written: Path, work: Callable[[Path, Path], None], count: int) -> None:
    @settings(max_examples=count, phases=PHASES)
    @given(st.data())
    def test(data: st.DataObject) -> None:
        check(work, written, data)

    test()


@pytest.mark.slow
@pytest.mark.parametrize("work", [work for work, _ in WORKS])
def test_many_spoilt_files_are_answered_in_lines(written: Path, work: Callable[[Path, Path], None]) -> None:
    @settings(max_examples=40, phases=PHASES)
    @given(st.data())
    def test(data: st.DataObject) -> None:
        check(work, written, data)

    test()
