"""CPU time of `unicl prepare` for a list of URLs, beside img2dataset, in turns: the same list and server.

Run `python benchmarks/url_list.py --img2dataset VENV/bin/img2dataset`. Images are kept as they come, as is our default,
or with `--size 256` made smaller. img2dataset tries a URL once, or with `--retries 2` three times, as ours tries one
whose connection broke. A server of its own process answers on 97
addresses of loopback; one URL in ten is a fault: no such image, a page of HTML, an image that is cut off, a reset, or a
redirect to an address that stands for a private network, where each connection is counted. For ours, the addresses of
the server count as public and all others as they are, so that its check for private addresses is at work.
"""

import hashlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer

HOSTS = [f"127.1.0.{n}" for n in range(1, 98)]
PRIVATE = "127.2.0.1"
FAULTS = ("gone", "page", "cut", "reset", "private")
IMAGES = 64
DOWNLOADS = 32
"""Threads of either side that download."""
RULE = """\
import ipaddress
from unicl_cli.data import addresses
HERE = ipaddress.IPv4Network("127.1.0.0/24")
rule = addresses.is_public
addresses.is_public = lambda text: rule(text) or (":" not in text and ipaddress.IPv4Address(text) in HERE)
"""
"""Code that each process of unicl runs first: it makes the server's addresses public."""


def url_at(number: int, port: int) -> str:
    fault = f"{FAULTS[number // 10 % len(FAULTS)]}" if number % 10 == 7 else "image"
    return f"http://{HOSTS[number % len(HOSTS)]}:{port}/{fault}/{number}.jpg"


def serve(pipe: Connection) -> None:
    """Answer until the pipe is asked; then tell how often the private address was reached, and end."""
    from unicl_cli.jobs.bench.jpegs import make_jpegs

    images = make_jpegs(IMAGES)
    reached: list[int] = []
    first = socket.create_server((HOSTS[0], 0), backlog=512)
    port = first.getsockname()[1]
    for server in (first, *(socket.create_server((host, port), backlog=512) for host in HOSTS[1:])):
        threading.Thread(target=accept, args=(server, lambda raw: answer(raw, images, port)), daemon=True).start()
    private = socket.create_server((PRIVATE, port))
    threading.Thread(target=accept, args=(private, lambda raw: reached.append(raw.close() or 1)), daemon=True).start()
    pipe.send(port)
    while pipe.recv() == "count":
        pipe.send(len(reached))
        reached.clear()


def accept(server: socket.socket, work: Callable[[socket.socket], Any]) -> None:
    while True:
        raw, _ = server.accept()
        threading.Thread(target=work, args=(raw,), daemon=True).start()


def answer(raw: socket.socket, images: tuple[bytes, ...], port: int) -> None:
    """Answer one request, by what its path asks for."""
    with raw:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := raw.recv(4096)):
                return
            request += data
        _, kind, name = request.split(b" ")[1].decode().split("/")
        body, head = images[int(name.partition(".")[0]) % IMAGES], "200 OK"
        if kind == "gone":
            body, head = b"", "404 Not Found"
        elif kind == "page":
            body = b"<html>no image</html>" * 100
        elif kind == "cut":
            body = body[: len(body) // 2]
        elif kind == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        elif kind == "private":
            body, head = b"", f"302 Found\r\nLocation: http://{PRIVATE}:{port}/image/{name}"
        raw.sendall(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


def cpu_of(command: list[str], environment: dict[str, str]) -> float:
    """Run a command, and return the CPU seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def run_ours(work: Path, urls: Path, size: int | None) -> tuple[float, set[str]]:
    """Prepare the list; return the CPU seconds, and each URL that is kept with the size, or the hash, of its image."""
    (work / "sitecustomize.py").write_text(RULE)
    environment = os.environ | {"PYTHONPATH": str(work)}
    out = work / "ours"
    argv = [sys.executable, "-m", "unicl_cli", "prepare", "--captions", str(urls), "-o", str(out), "--workers", "1"]
    smaller = [] if size is None else ["--size", str(size)]
    seconds = cpu_of([*argv, "--holdout", "0", *smaller, "-q"], environment)
    shards = sorted((out / "data").rglob("*.parquet"))
    columns = ["url", "width", "height", "sha256"]
    rows = [row for shard in shards for row in pq.read_table(shard, columns=columns).to_pylist()]
    return seconds, {describe(row, row["sha256"].hex(), size) for row in rows}


def describe(row: dict[str, Any], sha256: str, size: int | None) -> str:
    return f"{row['url']} {sha256 if size is None else (row['width'], row['height'])}"


def run_peer(program: str, retries: int) -> Callable[[Path, Path, int | None], tuple[float, set[str]]]:
    def run(work: Path, urls: Path, size: int | None) -> tuple[float, set[str]]:
        out = work / "peer"
        options = {
            "url_list": urls,
            "input_format": "tsv",
            "url_col": "url",
            "caption_col": "caption",
            "output_folder": out,
            "output_format": "parquet",
            "processes_count": 1,
            "thread_count": DOWNLOADS,
            "encode_quality": 90,
            "number_sample_per_shard": 10_000,
            "enable_wandb": False,
            "retries": retries,
        }
        if size is None:
            options |= {"resize_mode": "no", "skip_reencode": True}
        else:
            options |= {"resize_mode": "keep_ratio", "resize_only_if_bigger": True, "image_size": size}
        environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        seconds = cpu_of([program, *(f"--{name}={value}" for name, value in options.items())], environment)
        columns = ["url", "width", "height", "status", "jpg"]
        rows = [
            row for shard in sorted(out.glob("*.parquet")) for row in pq.read_table(shard, columns=columns).to_pylist()
        ]
        kept = [row for row in rows if row["status"] == "success"]
        return seconds, {describe(row, hashlib.sha256(row["jpg"]).hexdigest(), size) for row in kept}

    return run


def main(
    img2dataset: Annotated[str, typer.Option()],
    rows: int = 3000,
    few: int = 100,
    rounds: int = 3,
    size: int | None = None,
    retries: int = 0,
) -> None:
    """Prepare a long and a short list in turns; print the CPU seconds of each, and of the rows between the two."""
    sides = {"unicl": run_ours, "img2dataset": run_peer(img2dataset, retries)}
    context = get_context("spawn")
    pipe, end = context.Pipe()
    server = context.Process(target=serve, args=(end,), daemon=True)
    server.start()
    port = pipe.recv()
    seconds: dict[tuple[str, int], list[float]] = {(side, n): [] for side in sides for n in (few, rows)}
    wall: dict[tuple[str, int], list[float]] = {(side, n): [] for side in sides for n in (few, rows)}
    kept: dict[str, set[str]] = {}
    reached = dict.fromkeys(sides, 0)
    for _ in range(rounds):
        for count in (few, rows):
            for side, run in sides.items():
                with tempfile.TemporaryDirectory() as folder:
                    urls = Path(folder) / "list.tsv"
                    lines = (f"a red bicycle at a wall, number {n}\t{url_at(n, port)}\n" for n in range(count))
                    urls.write_text("caption\turl\n" + "".join(lines))
                    started = time.perf_counter()
                    used, kept[side] = run(Path(folder), urls, size)
                seconds[side, count].append(used)
                wall[side, count].append(time.perf_counter() - started)
                pipe.send("count")
                reached[side] += pipe.recv()
    pipe.send("end")
    net = {side: [b - a for a, b in zip(seconds[side, few], seconds[side, rows], strict=True)] for side in sides}
    for name, of in (("whole", {side: seconds[side, rows] for side in sides}), ("without the start", net)):
        ratios = [peer / ours for ours, peer in zip(of["unicl"], of["img2dataset"], strict=True)]
        facts: dict[str, Any] = {"cpu_s": {side: round(median(used), 2) for side, used in of.items()}}
        facts["wall_s"] = {side: round(median(wall[side, rows]), 1) for side in sides}
        facts["times_as_fast"] = [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))]
        print(name, json.dumps(facts))  # noqa: T201
    sizes = {side: len(of) for side, of in kept.items()}
    alike = len(kept["unicl"] & kept["img2dataset"])
    print(json.dumps({"kept": sizes, "alike": alike, "private_address_reached": reached}))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
