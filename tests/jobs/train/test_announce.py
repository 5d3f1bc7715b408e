"""The first lines of a training come before torch; the last ones have the figures and the next command."""

import json
import subprocess
import sys
from pathlib import Path

from unicl_cli.jobs.train.announce import closing_lines, opening_lines
from unicl_cli.recipe.load import load

HIDDEN = """
import sys
sys.modules["torch"] = None
from unicl_cli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def corpus(folder: Path, *shards: tuple[str, str, int]) -> Path:
    folder.mkdir()
    listed = [
        {"file": f"data/{split}/{number}.parquet", "split": split, "source": "c", "kind": kind, "rows": rows}
        | {"row_groups": [rows], "bytes": 1, "sha256": "0" * 64}
        for number, (split, kind, rows) in enumerate(shards)
    ]
    classes = [{"id": n, "key": str(n), "names": [str(n)]} for n in range(1200)]
    totals = {"rows": sum(rows for _, _, rows in shards), "bytes": len(shards), "rejected": {}, "class_counts": {}}
    manifest = {"schema_version": 1, "name": "c", "templates": "clip80", "shards": listed, "classes": classes, **totals}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_run_and_data_are_shown_before_torch_is_imported(digits, tmp_path):
    """Without torch the command fails, after it has said where it writes and what it reads."""
    words = ["train", "quickstart", "--data", str(digits), "--run-dir", "runs/x"]
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    run, data = done.stderr.splitlines()[:2]
    assert run == "run: runs/x"
    assert data == f"data: {digits} train: rows 120 (labels 60, captions 60), classes 10"
    assert "torch" in done.stderr
    assert done.returncode


def test_rows_of_the_split_are_counted_by_kind(tmp_path):
    one = corpus(tmp_path / "c", ("train", "labels", 1000), ("train", "labels", 234), ("val", "labels", 9))
    recipe = load("quickstart", [f"data.train=[{{corpus: {one}, limit: 50}}]"])
    assert (
        opening_lines(recipe, Path("r"))[1] == f"data: {one} train: rows 1,234 (labels 1,234), classes 1,200, limit 50"
    )


def test_the_end_has_last_and_best_figures_and_the_next_command(tmp_path):
    one = corpus(tmp_path / "c", ("train", "labels", 10), ("val", "labels", 9))
    run = tmp_path / "my run"
    run.mkdir()
    rows = [(100, 0.5, 0.1), (1200, 0.75, 0.2), (1300, 0.625, 0.3)]
    lines = [{"step": n, "corpus": "c", "split": "val", "top1": a, "text_to_image_r1": b} for n, a, b in rows]
    (run / "eval.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    recipe = load("quickstart", [f"data.train=[{{corpus: {one}}}]"])
    assert closing_lines(recipe, run, 185.3) == [
        f"done in 3m05s: {run}",
        "c val: top-1 62.5 %, best 75.0 % at step 1,200",
        "c val: text to image R@1 30.0 %, best 30.0 % at step 1,300",
        f"next: unicl eval '{run}'",
    ]


def test_a_run_that_eval_cannot_measure_is_used_otherwise(tmp_path):
    one = corpus(tmp_path / "c", ("train", "labels", 10))
    plain = load("quickstart", [f"data.train=[{{corpus: {one}}}]"])
    views = load("digits-supcon", [f"data.train=[{{corpus: {one}}}]"])
    assert closing_lines(plain, tmp_path, 1)[-1] == f"next: unicl zeroshot IMAGE --model {tmp_path}"
    assert closing_lines(views, tmp_path, 1)[-1] == f"next: unicl probe {tmp_path}"
