"""Kills of a prepare that downloads: every URL ends once, in the corpus or among what is left out."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from forking import begin, complete
from image_server import serve_images

from unicl_cli.data.corpus import open_corpus

URLS, KILLS = 400, 8


@pytest.mark.slow
def test_a_killed_download_loses_and_doubles_no_url(tmp_path: Path):
    kinds = ["ok", "ok", "ok", "404", "html"]
    with serve_images() as server:
        server.delay = 0.02
        lines = [f"caption {n}\t{server.url(kinds[n % 5], n)}\n" for n in range(URLS)]
        (tmp_path / "list.tsv").write_text("".join(lines), encoding="utf-8")
        words = ["prepare", "--captions", "list.tsv", "--allow-private", "-o", "c", "--shard-mb", "1", "--workers", "2"]
        command = [sys.executable, "-m", "unicl_cli", *words, "-q"]
        moments, killed = random.Random(0), 0
        for _ in range(KILLS):
            enough = server.asked.total() + moments.randint(10, 90)
            running = begin(command, cwd=tmp_path, start_new_session=True)
            while running.poll() is None and server.asked.total() < enough:
                time.sleep(0.005)
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                killed += 1
            running.wait()
        complete(command, cwd=tmp_path, check=True)
        assert killed > 2
    corpus = open_corpus(tmp_path / "c")
    stored = [u for s in corpus.splits for u in corpus.table(s, "captions").column("url").to_pylist()]
    lost = [json.loads(line)["ref"] for file in (tmp_path / "c" / "rejects").iterdir() for line in file.open()]
    assert sorted(stored + lost) == sorted(line.rstrip("\n").partition("\t")[2] for line in lines)
    assert len(lost) == URLS * 2 // 5
    assert max(server.asked.values()) <= KILLS + 1
