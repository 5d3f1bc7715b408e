"""Kills of a `prepare` that downloads: every URL ends once, in the corpus or among what is left out.

`python benchmarks/download_kills.py KILLS [--dedup near] [--urls N]` serves images on the loopback and starts the
command as often, killed by SIGKILL at a random moment; then the same command runs to its end. What the commands print
goes into a file: a worker whose command is killed while it starts ends in a traceback, which is normal. Only what a
command says that fails by itself is shown.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from forking import begin, complete
from image_server import serve_images

from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import print_line

KINDS = ("ok", "scene", "ok", "404", "html")
LONGEST = 40
"""The most requests between a start and its kill."""
LINES = 12
"""Lines that are shown of a command that fails."""


class Outcome(NamedTuple):
    """Kills, the URLs, those that are stored and those that are left out, and the most requests for one of them."""

    kills: int
    urls: list[str]
    stored: list[str]
    left_out: dict[str, str]
    most_asked: int
    is_same: bool
    """Shards have the bytes of a command that is not killed."""
    failed: list[str]
    """The last lines of each command that failed by itself."""

    def problems(self) -> list[str]:
        """Return what is not as it must be."""
        found = sorted([*self.stored, *self.left_out])
        said = [] if found == sorted(self.urls) else ["a URL is lost, or has two outcomes"]
        said += self.failed
        said += [] if self.is_same else ["the shards are not those of a command that is not killed"]
        bad = {url for url in self.urls if "/404/" in url or "/html/" in url}
        kept = [url for url, reason in self.left_out.items() if url not in bad and "duplicate" not in reason]
        return said + [f"{url}: left out: {self.left_out[url]}" for url in kept]


def kill_downloads(folder: Path, *, urls: int, kills: int, dedup: str = "off", seed: int = 0) -> Outcome:
    """Prepare a list of URLs in ``folder``, with that many kills."""
    moments, killed = random.Random(seed), 0
    with serve_images() as server:
        server.delay = 0.01
        addresses = [f"{server.url(KINDS[n % len(KINDS)], n % 500)}?{n}" for n in range(urls)]
        lines = [f"caption {n}\t{address}\n" for n, address in enumerate(addresses)]
        (folder / "list.tsv").write_text("".join(lines), encoding="utf-8")
        words = ["prepare", "--captions", "list.tsv", "--allow-private", "-o", "c", "--shard-mb", "1", "--workers", "2"]
        command = [sys.executable, "-m", "unicl_cli", *words, "--dedup", dedup, "-q"]
        failed: list[str] = []
        for number in range(kills):
            enough = server.asked.total() + moments.randint(1, LONGEST)
            late = time.monotonic() + moments.uniform(0.5, 4)  # also where nothing is asked: compare, write
            told = folder / f"command{number}.log"
            with told.open("wb") as log:
                running: Any = begin(command, cwd=folder, start_new_session=True, stdout=log, stderr=log)
                while running.poll() is None and server.asked.total() < enough and time.monotonic() < late:
                    time.sleep(0.005)
                if running.poll() is None:
                    os.killpg(running.pid, signal.SIGKILL)
                    killed += 1
            if running.wait() not in (0, -signal.SIGKILL):
                failed.append(describe_failure(running.returncode, told.read_text("utf-8", "replace")))
        most = 0
        for out in ("c", "whole"):
            done: Any = complete([out if word == "c" else word for word in command], cwd=folder)
            if done.returncode:
                sys.exit(describe_failure(done.returncode, done.stderr))
            most = most or max(server.asked.values())
    corpus = open_corpus(folder / "c")
    stored = [url for split in corpus.splits for url in corpus.table(split, "captions").column("url").to_pylist()]
    rejects = [json.loads(line) for file in (folder / "c" / "rejects").iterdir() for line in file.open()]
    left_out = {row["ref"]: row["reason"] for row in rejects}
    if len(left_out) < len(rejects):
        left_out["a second outcome"] = "of a URL"
    is_same = read_shards(folder / "c") == read_shards(folder / "whole")
    return Outcome(killed, addresses, stored, left_out, most, is_same, failed)


def describe_failure(status: int, told: str) -> str:
    """Return the status of a command and the end of what it printed."""
    return "\n  ".join([f"a command ended with exit status {status}:", *told.splitlines()[-LINES:]])


def read_shards(corpus: Path) -> dict[str, bytes]:
    """Return the bytes of each shard."""
    return {file.name: file.read_bytes() for file in (corpus / "data").rglob("*.parquet")}


def main() -> None:
    """Run as often as asked, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--urls", type=int, default=2000)
    parser.add_argument("--dedup", default="off", choices=("off", "exact", "near"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_downloads(Path(folder), urls=given.urls, kills=given.kills, dedup=given.dedup, seed=given.seed)
    counts = {"kills": found.kills, "urls": len(found.urls), "stored": len(found.stored)}
    print_line(json.dumps(counts | {"left_out": len(found.left_out), "most_asked": found.most_asked}))
    if problems := found.problems():
        sys.exit("\n".join(problems[:10]))


if __name__ == "__main__":
    main()
