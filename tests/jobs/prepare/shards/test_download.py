"""Lists of URLs through the real command: every URL is in the corpus or among what is left out, with its reason."""

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from image_server import ImageServer, draw_png

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.fetch import FetchError
from unicl_cli.jobs.prepare.shards import download
from unicl_cli.jobs.prepare.shards.download import Backlog, host_of, map_ahead

FAULTS = {"404": "http_404", "503": "http_503", "html": "not_image", "empty": "empty", "short": "short_body"}
FAULTS |= {"reset": "reset", "loop": "too_many_redirects", "robots": "robots"}
Report = Callable[..., dict]


@pytest.fixture
def here(in_this_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def report(here: Path, capsys: pytest.CaptureFixture[str]) -> Report:
    def run(*words: str, code: int = 0) -> dict:
        assert main(["prepare", *words, "-o", "c", "--json"]) == code
        out = capsys.readouterr().out
        return json.loads(out) if out else {}

    return run


def write_list(server: ImageServer, kinds: list[str], name: str = "list.tsv") -> str:
    lines = [f"the caption of {kind} {n}\t{server.url(kind, n)}\n" for n, kind in enumerate(kinds)]
    Path(name).write_text("".join(lines), encoding="utf-8")
    return name


def test_every_url_is_in_the_corpus_or_left_out_with_its_reason_and_is_asked_for_once(server, report, here):
    kinds = [*["ok"] * 20, *["once"] * 2, *FAULTS]
    words = ("--captions", write_list(server, kinds), "--allow-private", "--holdout", "0")
    found = report(*words)
    assert found["rejected"] == dict(sorted(Counter(FAULTS.values()).items()))
    assert found["rows"] == 22
    table = open_corpus(here / "c").table("train", "captions")
    rows = [table.read(row) for row in range(len(table))]
    assert {row.texts[0]: row.image for row in rows if "ok" in row.texts[0]} == {
        f"the caption of ok {n}": draw_png(n) for n in range(20)
    }
    urls = table.column("url").to_pylist()
    assert {url.rsplit("/", 2)[1] for url in urls} == {"ok", "once"}
    assert found["downloads"] | {"worst": []} == {"urls": 30, "images": 22, "kept": 22, "hosts": 1, "worst": []}
    asked = dict(server.asked)
    assert asked["/ok/3.png"] == 1
    assert asked["/404/22.png"] == 1, "never tried again"
    assert asked["/once/20.png"] == 2
    assert report(*words) == found
    assert dict(server.asked) == asked, "a finished corpus asks for nothing"
    assert main(["prepare", "--verify", "-o", "c"]) == 0


def test_what_failed_for_a_while_comes_back_in_new_shards(server, report, here):
    kinds = ["ok", "503", "404"] * 8
    words = ("--captions", write_list(server, kinds), "--allow-private")
    before = report(*words)
    shards = {file: file.read_bytes() for file in (here / "c" / "data").rglob("*.parquet")}
    server.asked.clear()
    assert report(*words, "--retry-failed") == before, "the server is still ill"
    assert {path.split("/")[1] for path in server.asked} == {"503"}
    server.is_well = True
    after = report(*words, "--retry-failed")
    assert (after["rows"], after["rejected"]) == (16, {"http_404": 8})
    assert after["downloads"]["kept"] == 16
    assert {file: file.read_bytes() for file in shards} == shards
    assert report(*words) == after
    assert report(*words, "--retry-failed") == after
    assert main(["prepare", "--verify", "-o", "c"]) == 0
    corpus = open_corpus(here / "c")
    keys = [key for split in corpus.splits for key in corpus.table(split, "captions").column("key").to_pylist()]
    assert len(keys) == len(set(keys)) == 16


def test_a_lost_shard_is_made_again_with_its_retried_rows_once(server, report, here):
    """Its unit asks for all its URLs: those that came back in a later shard would stand there twice."""
    words = ("--captions", write_list(server, ["ok", "503", "404"] * 4), "--allow-private", "--holdout", "0")
    report(*words)
    server.is_well = True
    whole = report(*words, "--retry-failed")
    (first,) = (here / "c" / "data").rglob("*captions-00000*.parquet")
    first.unlink()
    again = report(*words)
    assert (again["rows"], again["rejected"]) == (whole["rows"], whole["rejected"]) == (8, {"http_404": 4})
    table = open_corpus(here / "c").table("train", "captions")
    assert len(set(table.column("url").to_pylist())) == len(table) == 8
    assert main(["prepare", "--verify", "-o", "c"]) == 0
    first.write_bytes(b"damaged")
    assert main(["prepare", "--repair", "--allow-private", "-o", "c"]) == 0
    assert len(open_corpus(here / "c").table("train", "captions")) == 8


def test_a_lost_shard_takes_no_retried_row_from_another_split(server, report, here):
    """Shards of two splits have one name."""
    lines = [
        f"{server.url(kind, n)},text {n},{split}\n"
        for n, (kind, split) in enumerate((kind, split) for split in ("train", "val") for kind in ("ok", "503"))
    ]
    (here / "s.csv").write_text("".join(["image,caption,split\n", *lines]), encoding="utf-8")
    words = ("--captions", "s.csv", "--allow-private")
    report(*words)
    server.is_well = True
    report(*words, "--retry-failed")
    (here / "c" / "data" / "train" / "s-captions-00000-of-00001.parquet").unlink()
    kept = here / "c" / "data" / "val" / "s-captions-retry1-00000-of-00001.parquet"
    before = kept.stat().st_mtime_ns
    assert report(*words)["rows"] == 4
    assert kept.stat().st_mtime_ns == before


def test_a_repair_that_gets_no_image_keeps_plan_and_markers(server, report, here):
    words = ("--captions", write_list(server, ["ok"] * 4), "--holdout", "0")
    report(*words, "--allow-private")
    (shard,) = (here / "c" / "data").rglob("*.parquet")
    shard.write_bytes(b"damaged")
    assert main(["prepare", "--repair", "-o", "c"]) == 2, "private addresses are not asked"
    assert (here / "c" / "plan.json").exists()
    report(*words, "--allow-private", "--retry-failed")
    assert len(open_corpus(here / "c").table("train", "captions")) == 4


def test_a_retry_that_was_stopped_continues_and_edited_rejects_are_refused(server, report, here):
    words = ("--captions", write_list(server, ["ok", "503"] * 4), "--allow-private", "--holdout", "0")
    report(*words)
    server.is_well = True
    report(*words, "--retry-failed")
    (marker,) = (here / "c" / "parts").glob("*retry1*")
    marker.unlink()
    assert report(*words, "--retry-failed")["rows"] == 8
    (rejects,) = (here / "c" / "rejects").iterdir()
    rejects.write_text("")
    assert report(*words, "--retry-failed", code=2) == {}


def test_spellings_of_a_url_are_one_image(server, report, here):
    url = server.url("ok", 3)
    port = url.split(":")[2].split("/")[0]
    lines = [f"one\t{url}\n", f"two\t{url}#0\n", f"three\tHTTP://127.0.0.1:{port}/ok/3.png\n"]
    (here / "same.tsv").write_text("".join(lines), encoding="utf-8")
    found = report("--captions", "same.tsv", "--allow-private", "--holdout", "0")
    assert (found["rows"], found["sources"][0]["texts"]) == (1, 3)
    assert server.asked.total() == 1


def test_private_addresses_are_not_asked_without_leave(server, report, here):
    assert report("--captions", write_list(server, ["ok", "private"]), code=2) == {}
    assert not server.asked
    lines = [line for file in (here / "c" / "rejects").iterdir() for line in file.read_text().splitlines()]
    assert {json.loads(line)["reason"] for line in lines} == {"private_address"}


def test_files_and_urls_stand_in_one_list_and_one_url_is_one_image(server, report, here):
    (here / "a.png").write_bytes(draw_png(500))
    url = server.url("ok", 7)
    lines = f"image,caption\na.png,a file\n{url},an address\n{url},the same address\n"
    (here / "mixed.csv").write_text(lines, encoding="utf-8")
    assert report("--captions", "mixed.csv", "--allow-private", "--holdout", "0")["rows"] == 2
    table = open_corpus(here / "c").table("train", "captions")
    texts = {row.image: row.texts for row in map(table.read, range(2))}
    assert texts == {draw_png(500): ("a file",), draw_png(7): ("an address", "the same address")}
    assert server.asked == {"/ok/7.png": 1}


def test_an_image_that_is_too_small_was_downloaded(server, report, here):
    listed = write_list(server, ["ok", "scene", "404"])
    found = report("--captions", listed, "--allow-private", "--holdout", "0", "--min-side", "30")["downloads"]
    assert {name: found[name] for name in ("urls", "images", "kept")} == {"urls": 3, "images": 2, "kept": 1}


def test_equal_images_at_two_addresses_are_counted(server, report, here):
    lines = [f"one {n}\t{server.url('ok', 1)}?{n}\n" for n in range(2)]
    (here / "twice.tsv").write_text("".join(lines), encoding="utf-8")
    found = report("--captions", "twice.tsv", "--allow-private", "--holdout", "0")
    assert found["equal_pictures"]["in_a_kind"] == 1
    assert report("--captions", "twice.tsv", "--dedup", "exact", code=2) == {}


def test_a_dry_run_asks_for_a_sample_and_writes_nothing(server, here, capsys):
    listed = write_list(server, ["ok", "404"] * 100)
    assert main(["prepare", "--captions", listed, "--allow-private", "-o", "c", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(server.asked.values()) <= 256
    low, high = found["rows_expected"][1:]
    assert low <= 100 <= high
    assert not (here / "c").exists()


def test_a_host_has_few_downloads_at_a_time_and_a_slow_one_holds_back_no_other():
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def fetch_slowly(url: str) -> bytes:
        host = host_of(url)
        running[host] += 1
        most[host] = max(most[host], running[host])
        time.sleep(0.01)
        running[host] -= 1
        return url.encode()

    urls = [f"http://{random.Random(n).choice('ab')}.org/{n}" for n in range(40)]
    found = map_ahead(fetch_slowly, urls, threads=16, ahead=32, host=host_of, per_host=2)
    assert list(found) == [url.encode() for url in urls]
    assert most == {"a.org": 2, "b.org": 2}


def test_a_host_that_does_not_answer_holds_up_no_other():
    """Its rows come first, and are more than there are threads."""
    rest = threading.Event()
    done: list[str] = []

    def fetch_one(url: str) -> str:
        if host_of(url) == "slow.org":
            assert rest.wait(60)
        done.append(url)
        if len(done) == 30:
            rest.set()
        return url

    urls = [f"http://slow.org/{n}" for n in range(40)] + [f"http://b{n}.org/" for n in range(30)]
    assert list(map_ahead(fetch_one, urls, threads=4, ahead=100, host=host_of, per_host=2)) == urls
    assert sorted(done[:30]) == sorted(urls[40:])


def test_waiting_bytes_and_a_busy_host_never_keep_the_next_row_from_its_turn(monkeypatch):
    monkeypatch.setattr(download, "MOST_WAITING", 3)
    draw = random.Random(0)

    def work(number: int) -> bytes:
        time.sleep(draw.random() / 1000)
        return bytes([number])

    hosts = [random.Random(n).choice("abc") for n in range(200)]
    found = map_ahead(work, range(200), threads=16, ahead=64, weigh=len, host=hosts.__getitem__, per_host=2)
    assert b"".join(found) == bytes(range(200))


def test_a_slow_first_row_holds_back_no_other_until_their_bytes_fill_the_memory(monkeypatch):
    monkeypatch.setattr(download, "MOST_WAITING", 100)
    begun: list[int] = []
    full = threading.Event()

    def work(number: int) -> bytes:
        begun.append(number)
        if number == 10:
            full.set()
        elif number == 0:
            assert full.wait(60)
            time.sleep(0.1)  # in which a later one could begin
            assert max(begun) == 10
        return bytes(10)

    assert len(list(map_ahead(work, range(40), threads=2, ahead=40, weigh=len))) == 40
    assert sorted(begun) == list(range(40))


def test_an_iteration_that_ends_early_leaves_no_thread_behind(monkeypatch):
    monkeypatch.setattr(download, "MOST_WAITING", 1)
    before = threading.active_count()
    found = map_ahead(lambda number: bytes(10), range(100), threads=8, ahead=64, weigh=len)
    next(found)
    found.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_process_that_is_stopped_waits_for_no_download():
    """``--dry-run`` waited a minute for its threads after Ctrl-C."""
    code = (
        "import threading\n"
        "from unicl_cli.jobs.prepare.shards.download import map_ahead\n"
        "for _ in map_ahead(lambda n: n and threading.Event().wait(), range(9), threads=2, ahead=4):\n"
        "    raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.stderr.rstrip().endswith(b"KeyboardInterrupt")


def test_a_failed_download_frees_its_host():
    def fail(url: str) -> bytes:
        raise FetchError("http_404")

    for _ in range(3):
        with pytest.raises(FetchError):
            list(map_ahead(fail, ["http://a.org/1"] * 20, threads=4, ahead=8, host=host_of, per_host=1))
    backlog = Backlog(fail, lambda _: 0, host_of, 1)
    futures = [backlog.put("http://a.org/1") for _ in range(3)]
    threading.Thread(target=backlog.run_all, daemon=True).start()
    assert all(isinstance(future.exception(60), FetchError) for future in futures)
    backlog.close()
    assert not backlog.busy


@pytest.mark.parametrize("url", ["s3://bucket/1.png", "data:image/png;base64,xx", "ftp://a.org/1.png"])
def test_an_address_of_another_scheme_is_refused_in_one_line(url, here, capsys):
    (here / "list.csv").write_text(f"image,caption\n{url},one\n", encoding="utf-8")
    assert main(["prepare", "--captions", "list.csv", "-o", "c"]) == 2
    assert f"the image is a URL of scheme '{url.partition(':')[0]}'" in capsys.readouterr().err
