"""`--dedup` and `--not-in` for lists of URLs: images are asked for once, compared, and told apart after every stop."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_server import ImageServer, serve_images
from scenes import change, draw_scene, encode
from toys import prepared, put

from unicl_cli import registry
from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.fetch import Fetcher
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare import estimate
from unicl_cli.jobs.prepare import prepare as job
from unicl_cli.jobs.prepare.engines import local
from unicl_cli.jobs.prepare.plan import duplicates
from unicl_cli.jobs.prepare.shards import signatures

SCENES = [0, 1, 2, 100, 201, 3, 0, 302]
"""Numbers of `do_scene`: 100, 201 and 302 are changed copies of 0, 1 and 2; 0 stands there twice."""
Run = Callable[..., dict]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ImageServer]:
    monkeypatch.setattr(Fetcher.__new__, "__defaults__", tuple(Fetcher(pause=0.01)))
    monkeypatch.setattr(local, "_run_pool", lambda todo, workers, *rest: local._run_here(todo, *rest))
    monkeypatch.chdir(tmp_path)
    with serve_images() as images:
        yield images


@pytest.fixture
def run(server: ImageServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Prepare the list; each line's caption is its number, and each address is another."""
    lines = [f"a scene {n}\t{server.url('scene', number)}?{n}\n" for n, number in enumerate(SCENES)]
    lines += [f"a gap {n}\t{server.url(kind, n)}\n" for n, kind in enumerate(("404", "html"))]
    lines += [f"a later one {n}\t{server.url('scene503', n)}?9\n" for n in (4, 104, 301, 5)]
    Path("list.tsv").write_text("".join(lines), encoding="utf-8")

    def prepare(*more: str, out: str = "c", dedup: str = "near", code: int = 0) -> dict:
        argv = ["prepare", "--captions", "list.tsv", "--allow-private", "--keep-order", "--holdout", "0", "-o", out]
        capsys.readouterr()
        assert main([*argv, "--dedup", dedup, *more, "--json"]) == code
        text = capsys.readouterr().out
        return json.loads(text) if text else {}

    return prepare


def captions(corpus: str = "c") -> list[tuple[str, ...]]:
    table = open_corpus(corpus).table("train", "captions")
    return [table.read(row).texts for row in range(len(table))]


def hashes(corpus: str = "c") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(corpus, "data").rglob("*.parquet"))}


def test_of_near_duplicates_the_first_of_the_list_stays_and_nothing_is_asked_twice(server, run):
    found = run()
    assert found["rejected"] == {
        "duplicate": 1, "http_404": 1, "http_503": 4, "near_duplicate": 3, "not_image": 1
    }  # fmt: skip
    assert captions() == [
        ("a scene 0", "a scene 3", "a scene 6"), ("a scene 1", "a scene 4"), ("a scene 2", "a scene 7"), ("a scene 5",)
    ]  # fmt: skip
    assert {name: found["dedup"]["near"][name] for name in ("groups", "rows", "equal", "texts")} == {
        "groups": 3, "rows": 4, "equal": 1, "texts": 4
    }  # fmt: skip
    counts = {name: found["downloads"][name] for name in ("urls", "images", "kept")}
    assert counts == {"urls": 14, "images": 8, "kept": 4}, "a duplicate is not counted as lost by its host"
    asked = dict(server.asked)
    assert set(asked.values()) == {1, 3}, "a 503 is tried three times"
    assert run() == found
    assert main(["prepare", "--verify", "-o", "c"]) == 0
    assert dict(server.asked) == asked
    assert not list(Path("c/parts").glob("*.arrow"))
    run(out="again")
    assert hashes("again") == hashes()


def test_equal_images_at_two_addresses_are_one_with_exact(run):
    found = run(dedup="exact")
    assert found["rejected"]["duplicate"] == 1
    assert found["dedup"]["exact"]["rows"] == 1


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_a_dry_run_tells_the_disk_that_downloads_take_until_their_shards_are_written(run, monkeypatch, capsys, dedup):
    planned = run("--dry-run", dedup=dedup)

    def fail(*args, **options):
        raise UniclError("the power is gone", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "find_duplicates", fail)
        run(dedup=dedup, code=2)
    waiting = [file for file in Path("c/parts").iterdir() if file.suffix in (".arrow", ".sha256", ".near")]
    assert planned["bytes_staged"] == sum(file.stat().st_size for file in waiting)
    assert len(waiting) == (3 if dedup == "near" else 2)
    images = planned["bytes_expected"][1]
    assert planned["bytes_at_once"] == images + planned["bytes_staged"], "of one shard all waits until it is there"
    words = ["prepare", "--captions", "list.tsv", "--allow-private", "-o", "d", "--dedup", dedup, "--dry-run"]
    assert main(words) == 0
    assert "--dedup keeps downloads on the disk until their shards are written: up to" in capsys.readouterr().out
    monkeypatch.setattr(estimate, "_free_bytes", lambda out: int(1.2 * planned["bytes_at_once"]) - 99)
    assert main(words) == 2
    assert "1.2 times the expected size with the downloads that wait for --dedup" in capsys.readouterr().err
    assert main([*words[:-2], "off", "--dry-run"]) == 0


def test_without_dedup_no_download_waits(run):
    planned = run("--dry-run", dedup="off")
    assert planned["bytes_staged"] == 0
    assert planned["bytes_at_once"] == planned["bytes_expected"][1]


def test_rows_that_come_back_are_compared_with_those_that_are_there(server, run, capsys):
    run()
    before = hashes()
    server.asked.clear()
    server.is_well = True
    found = run("--retry-failed")
    assert {path.split("/")[1] for path in server.asked} == {"scene503"}, "no duplicate is asked for"
    assert found["rejected"] == {"duplicate": 1, "http_404": 1, "near_duplicate": 5, "not_image": 1}
    assert captions()[4:] == [("a later one 4", "a later one 104"), ("a later one 5",)]
    assert {name: data for name, data in hashes().items() if name in before} == before
    assert found["dedup"]["near"]["rows"] == 6
    asked = dict(server.asked)
    assert run() == run("--retry-failed") == found
    assert dict(server.asked) == asked
    assert main(["prepare", "--verify", "-o", "c"]) == 0


def test_a_caption_that_cannot_move_into_a_finished_shard_is_told(server, run, capsys):
    run()
    server.is_well = True
    argv = ["prepare", "--captions", "list.tsv", "--allow-private", "--keep-order", "--holdout", "0", "-o", "c"]
    assert main([*argv, "--dedup", "near", "--retry-failed"]) == 0
    assert "the row that stays is in a finished shard: 1" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["stage_unit", "find_duplicates", "write_unit", "fold_manifest"])
def test_stopped_in_any_phase_the_same_command_asks_for_nothing_again(server, run, monkeypatch, phase):
    whole = run(out="whole")
    server.asked.clear()
    places = {"stage_unit": signatures, "find_duplicates": duplicates}

    def fail(*args, **options):
        raise UniclError("the power is gone", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(places.get(phase, job), phase, fail)
        run(code=2)
    run()
    assert hashes() == hashes("whole")
    assert set(server.asked.values()) == {1, 3}
    assert run()["rejected"] == whole["rejected"]


def test_a_shard_that_is_lost_is_made_again_of_the_images_that_were_compared(server, run):
    run()
    server.is_well = True
    whole = run("--retry-failed")
    bytes_before = hashes()
    first = next(Path("c/data").rglob("list-captions-00000-of-*"))
    first.unlink()
    server.asked.clear()
    assert run() == whole
    assert hashes() == bytes_before
    assert {path.split("/")[1] for path in server.asked} == {"scene"}, "what gave no image is not asked again"
    assert server.asked.total() == 4, "nor is a duplicate"
    # another image than the one that was compared
    first.unlink()
    server.changed = {1: 7}
    found = run()
    assert found["rejected"]["not_compared"] == 1
    assert found["rows"] == whole["rows"] - 1
    found = run("--retry-failed")
    assert "not_compared" not in found["rejected"]
    assert found["rows"] == whole["rows"]
    assert main(["prepare", "--verify", "-o", "c"]) == 0
    # and back: its row is in a later shard by now
    first.unlink()
    server.changed = {}
    assert run() == found
    assert main(["prepare", "--verify", "-o", "c"]) == 0


def test_an_image_that_is_no_longer_in_the_corpus_stays_for_no_other(server, run):
    """The copy of scene 1 that comes back is kept, because scene 1 itself has become another image."""
    run()
    next(Path("c/data").rglob("list-captions-00000-of-*")).unlink()
    server.changed = {1: 7}
    assert run()["rejected"]["not_compared"] == 1
    server.is_well = True
    run("--retry-failed")
    assert ("a later one 301",) in captions()


def test_a_corpus_that_lost_its_findings_is_refused_and_keeps_its_manifest(server, run, capsys):
    run()
    Path("c/duplicates.json").rename("kept.json")
    assert run("--retry-failed", code=2) == run(code=2) == {}
    argv = ["prepare", "--captions", "list.tsv", "--holdout", "0", "-o", "c", "--dedup", "near", "--keep-order"]
    assert main(argv) == 2
    assert "duplicates.json: missing" in capsys.readouterr().err
    assert len(captions()) == 4
    Path("kept.json").rename("c/duplicates.json")
    server.is_well = True
    assert run("--retry-failed")["rows"] == 6


def test_images_of_another_corpus_are_left_out_and_stay_for_no_other(server, run, tmp_path, capsys):
    put(tmp_path / "t", {"x/0.jpg": change(draw_scene(0), "jpeg"), "x/3.png": encode(draw_scene(3))})
    prepared(capsys, "--labels", "t", "-o", "test")
    found = run("--not-in", "test")
    assert found["rejected"]["in_other_corpus"] >= 3
    assert all("a scene 5" not in texts for texts in captions())
    lines = [json.loads(line) for file in Path("c/rejects").iterdir() for line in file.open()]
    assert {row["reason"] for row in lines if row["key"].startswith("list:")} >= {"in_other_corpus", "near_duplicate"}


def test_files_and_urls_are_compared_with_each_other(server, tmp_path, capsys):
    put(tmp_path / "p", {"1.png": encode(draw_scene(1)), "9.png": encode(draw_scene(9))})
    Path("mixed.csv").write_text(
        f"image,caption\np/1.png,a file\n{server.url('scene', 101)},an address\np/9.png,another\n", encoding="utf-8"
    )
    Path("files.csv").write_text("image,caption\np/9.png,again\n", encoding="utf-8")
    argv = ("--captions", "files.csv", "--captions", "mixed.csv", "--allow-private", "--keep-order", "-o", "c")
    report, _ = prepared(capsys, *argv, "--dedup", "near")
    assert sorted(captions()) == [("a file", "an address"), ("again", "another")]
    assert report["rejected"] == {"duplicate": 1, "near_duplicate": 1}


PLUGIN = """
from unicl_cli.api import Row

class Spoken:
    splits, classes, templates, media = ("train",), (), "clip80", ("audio",)
    def __init__(self, at): self.at = at
    def rows(self, split): return [Row(f"{n}", f"{n}", (f"a scene {n}",), -1) for n in range(3)]
    def url(self, row): return f"{self.at}/scene/{101 * (row.ref == '1') or row.ref}.png?{row.ref}"
    def read(self, row): return {"audio": b"RIFF" + row.ref.encode()} if row.ref != "2" else {}

def spoken(*, kind: str, at: str): return Spoken(at)

PARTS = {"datasets": {"spoken": spoken}}
"""


@pytest.mark.parametrize("dedup", ["off", "exact"])
def test_a_source_may_read_the_media_of_an_image_that_is_downloaded(server, tmp_path, monkeypatch, capsys, dedup):
    Path("spoken.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.setenv("UNICL_PLUGINS", str(tmp_path / "spoken.py"))
    registry.forget()
    try:
        argv = ("--captions", f"spoken?at=http://127.0.0.1:{server.server_port}", "--allow-private", "-o", "c")
        report, _ = prepared(capsys, *argv, "--keep-order", "--dedup", dedup)
    finally:
        monkeypatch.undo()
        registry.forget()
    table = open_corpus(tmp_path / "c").table("train", "captions")
    assert [table.read(row, media=True).media for row in range(3)] == [{"audio": b"RIFF0"}, {"audio": b"RIFF1"}, {}]
    assert report["sources"][0]["media"] == {"audio": {"rows": 2, "missing": 1}}


@pytest.fixture
def run_splits(server: ImageServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Prepare a list whose lines say the split; 101 and 203 are copies of 1 and 3, and 503 is over in a second try."""
    rows = [("train", "scene", 0), ("train", "scene", 1), ("train", "scene", 2), ("train", "scene", 5)]
    rows += [("val", "scene", 101), ("val", "scene", 7), ("val", "scene503", 302)]
    rows += [("train", "scene503", 203), ("val", "scene", 3), ("train", "scene503", 4)]
    lines = [f"{server.url(kind, n)}?{at},{split} {n},{split}\n" for at, (split, kind, n) in enumerate(rows)]
    Path("splits.csv").write_text("url,caption,split\n" + "".join(lines), encoding="utf-8")

    def prepare(*more: str, out: str = "c", code: int = 0) -> dict:
        argv = ["prepare", "--captions", "splits.csv", "--allow-private", "--keep-order", "-o", out, "--dedup", "near"]
        capsys.readouterr()
        assert main([*argv, *more, "--json"]) == code
        text = capsys.readouterr().out
        return json.loads(text) if text else {}

    return prepare


def texts_of(split: str) -> list[str]:
    table = open_corpus("c").table(split, "captions")
    return [" + ".join(table.read(row).texts) for row in range(len(table))]


@pytest.mark.parametrize("phase", ["stage_unit", "find_duplicates", "write_unit", "fold_manifest"])
def test_downloaded_training_images_of_another_split_are_left_out_also_after_a_stop(
    server, run_splits, monkeypatch, phase
):
    places = {"stage_unit": signatures, "find_duplicates": duplicates}

    def fail(*args, **options):
        raise UniclError("the power is gone", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(places.get(phase, job), phase, fail)
        run_splits(code=2)
    found = run_splits()
    assert found["dedup"]["near"]["leaks"] == {"val": 1}
    assert texts_of("train") == ["train 0", "train 2", "train 5"]
    assert texts_of("val") == ["val 101", "val 7", "val 3"]
    assert max(server.asked.values()) == 3, "a 503 is tried three times"


def test_of_rows_that_come_back_only_training_rows_go_for_another_split(server, run_splits, capsys):
    """A row of `val` that comes back never goes, and what is in a finished shard of `train` stays, with a note."""
    run_splits()
    before = hashes()
    server.is_well = True
    found = run_splits("--retry-failed")
    assert found["dedup"]["near"]["leaks"] == {"val": 2}
    assert found["dedup"]["near"]["also_in_train"] == {"val": 1}
    assert texts_of("train") == ["train 0", "train 2", "train 5", "train 4"]
    assert texts_of("val") == ["val 101", "val 7", "val 3", "val 302"]
    assert {name: data for name, data in hashes().items() if name in before} == before
    assert any("1 row of the val split nearly equal to a training row" in note for note in found["notes"])
    # a shard that is lost comes back as it was
    whole = hashes()
    server.asked.clear()
    for shard in Path("c/data/train").iterdir():
        shard.unlink()
    assert run_splits() == found
    assert hashes() == whole
    assert "/scene/1.png?1" not in server.asked
    assert main(["prepare", "--verify", "-o", "c"]) == 0
