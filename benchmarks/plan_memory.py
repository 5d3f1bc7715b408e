"""Peak memory and CPU time of planning `unicl prepare` for a list of so many lines, in a fresh process.

Run `python benchmarks/plan_memory.py urls|labels|captions|folder|tars|img2dataset|imagenet LINES …`: captions of URLs;
files with one of 1,000 classes; five captions for each file; and the layouts of other sources, with so many images. The
images of lists do not exist but the first, since planning reads no URL and missing files are counted; those of the
other sources are a few bytes each, all different. The peak is that of all resident memory, mapped files included.
"""

import io
import json
import re
import subprocess
import sys
import tarfile
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


def write_source(folder: Path, form: str, images: int) -> Path:
    """Write images in the layout of another source than lists: 100 classes, or 100 tars."""
    place = folder / form
    place.mkdir()
    if form == "folder":
        for n in range(images):
            path = place / f"class {n % 100}" / f"{n}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content_of(n))
    elif form == "imagenet":
        with tarfile.open(place / "fall11_whole.tar", "w", format=tarfile.PAX_FORMAT) as outer:
            for synset in range(100):
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as tar:
                    for n in range(synset, images, 100):
                        add_file(tar, f"n{synset:08d}_{n}.JPEG", content_of(n))
                add_file(outer, f"n{synset:08d}.tar", inner.getvalue())
    else:
        for shard in range(100):
            write_tar(place, form, shard, range(shard, images, 100))
    return place


def write_tar(place: Path, form: str, shard: int, numbers: range) -> None:
    """Write a shard of images with captions; for img2dataset, the table and the statistics beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tarfile.open(place / f"{shard:05d}.tar", "w") as tar:
        for n in numbers:
            add_file(tar, f"{n:09d}.jpg", content_of(n))
            add_file(tar, f"{n:09d}.txt", f"{TEXT} {n}".encode())
    if form == "img2dataset":
        rows = [(f"{n:09d}", "success", f"http://h.example/{n}.jpg", f"{TEXT} {n}") for n in numbers]
        columns = dict(zip(("key", "status", "url", "caption"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), place / f"{shard:05d}.parquet")
        (place / f"{shard:05d}_stats.json").write_text("{}")


def content_of(number: int) -> bytes:
    """Return the bytes of an image file, of a size that about a thousand others have."""
    return b"\xff\xd8\xff" + number.to_bytes(8, "little") + bytes(number % 1000)


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def read_peak() -> float:
    """Return the peak of this process's resident memory in MB, as Linux counts it since its start."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def measure(path: Path) -> dict[str, float]:
    """Return the peak memory before and after the plan, in MB, and its CPU seconds."""
    from unicl_cli.jobs.prepare.plan.plan import make_plan
    from unicl_cli.jobs.prepare.plan.request import PrepareRequest

    src = {"imagenet": f"imagenet22k?path={path}"}.get(path.stem, str(path))
    labels, captions = ((src,), ()) if path.stem in ("labels", "folder", "imagenet") else ((), (src,))
    request = PrepareRequest(labels, captions, images=(), out=path.parent / "none")
    before = read_peak()
    started = time.process_time()
    plan = make_plan(request.sources(), request.options)
    units = plan.units()
    plan.work(units[0], request.out)
    peak = read_peak()
    return {"libraries_mb": round(before), "peak_mb": round(peak), "cpu_s": round(time.process_time() - started, 1)}


def main() -> None:
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]))))  # noqa: T201
        return
    for lines in map(int, sys.argv[2:]):
        with tempfile.TemporaryDirectory() as folder:
            write = write_list if sys.argv[1] in ("urls", "labels", "captions") else write_source
            path = write(Path(folder), sys.argv[1], lines)
            found = subprocess.run(
                [sys.executable, __file__, "--measure", str(path)], check=True, capture_output=True, text=True
            )
            print(lines, found.stdout.strip(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
