"""Time and memory from the manifest of a long corpus to the first batch of a step far into a training.

Run `python benchmarks/long_corpus.py ROWS STEP`. Shards are holes of the size that the manifest says: no image is read.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNIT, GROUP, SIZE = 8192, 128, 1000


def write_corpus(folder: Path, rows: int) -> None:
    """Write a manifest of ``rows`` captions, and its shards as holes."""
    shards = []
    (folder / "data" / "train").mkdir(parents=True)
    for number, first in enumerate(range(0, rows, UNIT)):
        count = min(UNIT, rows - first)
        name = f"data/train/web-captions-{number:05d}-of-{-(-rows // UNIT):05d}.parquet"
        with (folder / name).open("wb") as file:
            file.truncate(SIZE)
        groups = [min(GROUP, count - at) for at in range(0, count, GROUP)]
        facts = {"file": name, "split": "train", "source": "web", "kind": "captions", "rows": count, "bytes": SIZE}
        shards.append({**facts, "sha256": "0" * 64, "row_groups": groups})
    whole = {"schema_version": 1, "name": "long", "rows": rows, "rejected": {}, "bytes": SIZE * len(shards)}
    whole |= {"shards": shards, "classes": [], "class_counts": {}, "templates": "clip80"}
    (folder / "manifest.json").write_text(json.dumps(whole))


def measure(folder: Path, step: int) -> dict[str, float]:
    """Return seconds and megabytes of each part of the start: manifest, order, first batch."""
    from fractions import Fraction

    from unicl_cli.core.sampler import Mixture, Stream
    from unicl_cli.data.corpus import open_corpus

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    found = {"libraries_mb": peak()}
    start = time.process_time()
    table = open_corpus(folder).table("train", "captions")
    found |= {"manifest_s": time.process_time() - start, "manifest_mb": peak()}
    start = time.process_time()
    order = Mixture([Stream(table.group_sizes, "0/0")], [Fraction(1)], 4096, 0)
    _, rows = order.batch(step)
    found |= {"batch_s": time.process_time() - start, "batch_mb": peak(), "rows": len(table), "first": int(rows[0])}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    rows, step = int(float(sys.argv[1])), int(float(sys.argv[2]))
    if len(sys.argv) > 3:
        print(json.dumps(measure(Path(sys.argv[3]), step)))  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), rows)  # in this process, so that its memory does not count
        subprocess.run([sys.executable, __file__, sys.argv[1], sys.argv[2], folder], check=True)


if __name__ == "__main__":
    main()
