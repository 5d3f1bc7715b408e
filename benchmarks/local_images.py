"""CPU time of `unicl prepare` for a folder of images, beside a raw copy with verification, in turns on one core.

Run `python benchmarks/local_images.py` (Linux). The raw copy reads each file, takes its sha256, decodes it to RGB, and
writes its bytes to one file, which it syncs at the end; it keeps no key, size, hash of the pixels, or index.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import typer

DISTINCT = 64


def write_images(folder: Path, count: int) -> None:
    """Write photographs of 27 KB as two classes, each with bytes of its own behind its end."""
    from unicl_cli.jobs.bench.jpegs import make_jpegs

    files = make_jpegs(DISTINCT)
    for n in range(count):
        place = folder / f"class{n % 2}" / f"{n:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(files[n % DISTINCT] + n.to_bytes(4, "little"))


def copy_raw(folder: Path, out: Path) -> None:
    """Copy and verify all images of a folder into one file."""
    from unicl_cli.data.pictures import decode

    with out.open("wb") as file:
        for path in sorted(folder.rglob("*.jpg")):
            data = path.read_bytes()
            hashlib.sha256(data).digest()
            decode(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def cpu_of_copy(folder: Path, out: Path) -> float:
    """Return the CPU seconds of the raw copy, which counts no start of a process."""
    started = time.process_time()
    copy_raw(folder, out)
    return time.process_time() - started


def cpu_of_prepare(folder: Path, out: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "unicl_cli", "prepare", "--labels", str(folder), "-o", str(out), "--workers", "1"]
    subprocess.run([*argv, "--holdout", "0", "-q"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(images: int = 3000, few: int = 100, rounds: int = 5) -> None:
    """Prepare many and few images in turns with the raw copy of the many; print the ratios of CPU seconds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that share a core's cache take more CPU time
    seconds: dict[str, list[float]] = {"prepare": [], "of its start": [], "raw copy": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder / "many", images)
        write_images(folder / "few", few)
        for turn in range(rounds):
            seconds["of its start"].append(cpu_of_prepare(folder / "few", folder / f"few-{turn}"))
            seconds["raw copy"].append(cpu_of_copy(folder / "many", folder / f"raw-{turn}"))
            seconds["prepare"].append(cpu_of_prepare(folder / "many", folder / f"many-{turn}"))
    start, raw, whole = seconds["of its start"], seconds["raw copy"], seconds["prepare"]
    share = (images - few) / images
    ratios = [share * copy / (ours - begun) for copy, ours, begun in zip(raw, whole, start, strict=True)]
    facts = {name: round(median(of), 2) for name, of in seconds.items()}
    speed = {"per_image": [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))]}
    speed["with_start"] = [round(median(copy / ours for copy, ours in zip(raw, whole, strict=True)), 2)]
    print(json.dumps({"images": images, "cpu_s": facts, "speed_beside_the_copy": speed}))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
