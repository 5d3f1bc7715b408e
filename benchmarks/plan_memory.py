"""Peak memory and CPU time of planning `unicl prepare` for a list of so many lines, in a fresh process.

Run `python benchmarks/plan_memory.py urls|labels|captions LINES …`: captions of URLs; files with one of 1,000 classes;
five captions for each file. No image exists but the first, since planning reads no URL and missing files are counted.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = "a red bicycle leaning on the wall of an old house, number"


def write_list(folder: Path, form: str, lines: int) -> Path:
    """Write the list, and its first image."""
    from PIL import Image

    (folder / "img").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "img" / "0.png")
    path = folder / f"{form}.tsv"
    with path.open("w") as file:
        file.write({"urls": "caption\turl\n", "labels": "image\tlabel\n", "captions": "image\tcaption\n"}[form])
        for n in range(lines):
            if form == "urls":
                file.write(f"{TEXT} {n}\thttp://host{n % 997}.example/photos/{n:08d}.jpg\n")
            elif form == "labels":
                file.write(f"img/{n}.png\tclass {n % 1000}\n")
            else:
                file.write(f"img/{n // 5}.png\t{TEXT} {n}\n")
    return path


def measure(path: Path) -> dict[str, float]:
    """Return the peak memory before and after the plan, in MB, and its CPU seconds."""
    from unicl_cli.jobs.prepare.plan import make_plan
    from unicl_cli.jobs.prepare.request import PrepareRequest

    labels, captions = ((str(path),), ()) if path.stem == "labels" else ((), (str(path),))
    request = PrepareRequest(labels, captions, images=(), out=path.parent / "none")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    plan = make_plan(request.sources(), request.options)
    units = plan.units()
    plan.work(units[0], request.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"libraries_mb": round(before), "peak_mb": round(peak), "cpu_s": round(time.process_time() - started, 1)}


def main() -> None:
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]))))  # noqa: T201
        return
    for lines in map(int, sys.argv[2:]):
        with tempfile.TemporaryDirectory() as folder:
            path = write_list(Path(folder), sys.argv[1], lines)
            found = subprocess.run(
                [sys.executable, __file__, "--measure", str(path)], check=True, capture_output=True, text=True
            )
            print(lines, found.stdout.strip(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
