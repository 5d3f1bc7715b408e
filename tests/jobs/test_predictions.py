"""Files of answers: the same rows in Parquet, CSV and JSON lines."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from unicl_cli.jobs.predictions import SUFFIXES, write_predictions

NAMES = ["crane, bird", 'say "hi"', "überall\nzwei"]


def answers(data: str, rows: int, kept: int) -> dict[str, list]:
    return {
        "data": [data] * rows,
        "class": [NAMES[row % 3] for row in range(rows)],
        "top_classes": [NAMES[:kept] for _ in range(rows)],
        "scores": [[0.5 / (1 + place) for place in range(kept)] for _ in range(rows)],
        "correct": [row % 2 == 0 for row in range(rows)],
    }


@pytest.fixture(params=SUFFIXES)
def file(request, tmp_path):
    path = tmp_path / "new" / f"answers{request.param}"
    write_predictions(path, [answers("two", 3, 2), answers("three", 2, 3)])
    return path


def read(path) -> list[dict]:
    """Read a file with a reader that is not ours; lists of a CSV come from their columns."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [
        {
            "data": row["data"],
            "class": row["class"],
            "top_classes": [row[f"top_classes_{n}"] for n in (1, 2, 3) if row[f"top_classes_{n}"]],
            "scores": [float(row[f"scores_{n}"]) for n in (1, 2, 3) if row[f"scores_{n}"]],
            "correct": row["correct"] == "True",
        }
        for row in rows
    ]


def test_every_kind_of_file_holds_the_same_rows(file):
    columns = [answers("two", 3, 2), answers("three", 2, 3)]
    expected = [dict(zip(part, row, strict=True)) for part in columns for row in zip(*part.values(), strict=True)]
    if file.suffix == ".csv":  # a row is one line there
        for row in expected:
            row["class"], *row["top_classes"] = (
                name.replace("\n", r"\n") for name in (row["class"], *row["top_classes"])
            )
    assert read(file) == expected
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no temporary file is left
