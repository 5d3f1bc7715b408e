"""Images per second of the training loader from a web server that waits 10 ms for each request, beside the disk.

Run `python benchmarks/remote_reads.py` (fsspec needs aiohttp for http://). Both read one whole pass of the same corpus,
in turns and with no cache filled before, in the loader's own process; their batches are compared.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import typer
from local_images import write_images

from unicl_cli.contracts import Batch
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import ClassPlace, Draws, MixedCorpora, TextChoice, order_of, strands_of
from unicl_cli.data.transforms import TrainTransform, build_augment

SIDE = 224


class Handler(SimpleHTTPRequestHandler):
    """Files by range, after a wait."""

    protocol_version = "HTTP/1.1"
    wait = 0.0
    log_message: Any = staticmethod(lambda *_: None)

    def do_HEAD(self) -> None:
        time.sleep(self.wait)
        super().do_HEAD()

    def do_GET(self) -> None:
        time.sleep(self.wait)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, end = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(end - start + 1))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        with path.open("rb") as file:
            os.sendfile(self.wfile.fileno(), file.fileno(), start, end - start + 1)


def serve(folder: str, wait: float, pipe: Connection) -> None:
    Handler.wait = wait
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    pipe.send(server.server_port)
    server.serve_forever()


def open_pass(place: str, batch: int) -> Iterator[tuple[int, Batch]]:
    """Return the batches of one pass over the corpus, without any of it read."""
    opened = open_corpus(place)
    transform = TrainTransform(SIDE, [build_augment("basic", {})], 0, decoder="auto", resize="tensor")
    numbers = torch.arange(len(opened.classes)).numpy()
    every = {"weight": 1.0, "fraction": 1.0, "limit": None}
    place_of = ClassPlace(numbers)
    found = strands_of(opened, "train", place=place_of, templates=("a {}.",), transform=transform, **every)
    mix = MixedCorpora(found, TextChoice("mixed", "uniform", 0))
    order = order_of(mix.strands, labels="auto", by="sample", batch_size=batch, seed=1)
    steps = opened.manifest.rows // batch
    options = {"caption_targets": "unique", "extra": None, "distinct": False, "workers": 0, "pin_memory": False}
    return batches(mix, Draws(order, 0, steps, 0, 1), None, **options)


def time_pass(place: str, batch: int) -> tuple[float, float, int]:
    """Return the wall and CPU seconds of one pass, and a checksum of its images."""
    found, total = open_pass(place, batch), 0
    wall, cpu = time.perf_counter(), time.process_time()
    for _, one in found:
        total += int(one.images.sum())
    return time.perf_counter() - wall, time.process_time() - cpu, total


def main(images: int = 2048, batch: int = 256, rounds: int = 5, wait_ms: float = 10) -> None:
    """Read the corpus from both places in turns; print images per second of wall and of CPU time, and the ratios."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", images)
        corpus = Path(folder) / "corpus"
        argv = [sys.executable, "-m", "unicl_cli", "prepare", "--labels", f"{folder}/images", "-o", str(corpus)]
        subprocess.run([*argv, "--holdout", "0", "-q"], check=True)
        context = get_context("spawn")
        pipe, end = context.Pipe()
        server = context.Process(target=serve, args=(str(corpus), wait_ms / 1000, end), daemon=True)
        server.start()
        places = {"disk": str(corpus), "server": f"http://127.0.0.1:{pipe.recv()}"}
        wall: dict[str, list[float]] = {name: [] for name in places}
        cpu: dict[str, list[float]] = {name: [] for name in places}
        sums: set[int] = set()
        for _ in range(rounds):
            for name, place in places.items():
                seconds, used, total = time_pass(place, batch)
                wall[name].append(seconds)
                cpu[name].append(used)
                sums.add(total)
        server.terminate()
    if len(sums) != 1:
        raise SystemExit("the batches differ")
    rows = images // batch * batch
    facts: dict[str, Any] = {"images": rows}
    for clock, seconds in (("wall", wall), ("cpu", cpu)):
        ratios = [disk / remote for disk, remote in zip(seconds["disk"], seconds["server"], strict=True)]
        facts[f"images_per_{clock}_s"] = {name: round(rows / median(of)) for name, of in seconds.items()}
        shares = (median(ratios), min(ratios), max(ratios))
        facts[f"server_beside_disk_{clock}"] = [round(value, 2) for value in shares]
    print(json.dumps(facts))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
