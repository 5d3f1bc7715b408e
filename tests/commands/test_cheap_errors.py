"""Errors about paths come before torch is imported: each command is run where that import fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from unicl_cli.cli import main
told = []
for line in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(line.split())
        except BaseException as error:
            code = repr(error)
    told.append([code, err.getvalue()])
print(json.dumps(told))
"""
LINES = {
    "eval": "no --model is given, runs/ has no finished run",
    "probe": "no --model is given, runs/ has no finished run",
    "compare nothere there": "model nothere: no such run",
    "inspect nothere": "nothere: no such file or directory",
    "eval -o file/e.json": "-o file/e.json: cannot be written",
    "eval nothere": "model nothere: no such run or checkpoint directory",
    "eval folder": "folder: neither a run nor a checkpoint directory",
    "eval --model local-dir:nothere": "model local-dir:nothere: no such folder",
    "probe local-dir:folder": "model local-dir:folder: has no open_clip_config.json",
    "eval run --data nothere": "nothere: no corpus here",
    "eval run --data corpus --split val": "has no split 'val'",
    "eval run": "corpus cut has neither a test nor a val split",
    "probe run": "corpus cut has neither a test nor a val split",
    "mix run nothere --data corpus": "model nothere: no such run",
    "zeroshot nothere.png --model run": "nothere.png: no such file",
    "zeroshot a.png b.png --model run": "2 images: no such files, first a.png",
    "zeroshot picture.png --model nothere": "model nothere: no such run",
    "zeroshot picture.png --model run --classes @nothere": "--classes @nothere",
    "zeroshot picture.png --probe nothere": "--probe nothere: no such file",
    "zeroshot picture.png --probe picture.png --classes a": "--probe: cannot be combined with --classes",
    "probe run --method knn --save x": "--save: --method knn has no weights",
    "probe run --c 0": "--c 0: not a positive number",
    **{
        f"{line} {output}": f"output '{output}': not the name of a file"
        for line in (
            *("eval run -o", "eval run --html", "eval run --predictions", "probe run -o", "probe run --save"),
            *("compare run run -o", "compare run run --html", "inspect corpus -o", "inspect corpus --html"),
            *("bench loader -o", "recipes cp quickstart"),
        )
        for output in ("-", "new/", "folder/new/")
    },
    "prepare --labels digits -o -": "output '-': not the name of a folder",
    "mix run run -o -": "output '-': not the name of a folder",
    "eval run -o folder/": "-o folder: cannot be written: neither a file nor a stream",
    "train nothere": "no recipe 'nothere'",
    "train quickstart": "no finished corpus at quickstart/corpus",
    "train quickstart --data corpus --init nothere": "model nothere: no such run",
}


@pytest.fixture(scope="module")
def told(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    home = tmp_path_factory.mktemp("cheap")
    (home / "folder").mkdir()
    (home / "file").touch()
    (home / "picture.png").write_bytes(b"")
    (home / "corpus").symlink_to(digits)
    cut = home / "cut"
    cut.mkdir()
    manifest = json.loads((digits / "manifest.json").read_text())
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    manifest |= {total: sum(shard[total] for shard in manifest["shards"]) for total in ("rows", "bytes")}
    (cut / "manifest.json").write_text(json.dumps(manifest))
    (cut / "data").symlink_to(digits / "data")
    run = home / "run"
    run.mkdir()
    (run / "resolved.yaml").write_text("extends: quickstart\ndata: {train: [{corpus: cut}]}\n")
    (run / "meta.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(LINES))], cwd=home, capture_output=True, text=True, check=True
    )
    return dict(zip(LINES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_in_a_path_is_told_without_torch(line, told):
    code, err = told[line]
    assert LINES[line] in err
    assert code == 2
