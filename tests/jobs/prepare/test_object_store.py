"""`prepare` into an object store: the bytes of a local corpus, by whole objects; locks; faults in one line."""

import errno
import json
import os
import re
import signal
import tempfile

import pytest
from object_store import Store, files_in, objects_in
from scenes import draw_scene
from toys import prepared, put

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.storage import lock
from unicl_cli.storage.holder import STALE_SECONDS, Holder, describe_self
from unicl_cli.storage.remote import RemoteOutput, RemotePath, output_of

OUT, CORPUS, LOCK = "store://bucket/x/c", "bucket/x/c", "bucket/x/c/.lock"
ELSEWHERE = Holder(7, "node3", "00000000-0000-00000001")
SMALL = ("--labels", "digits?limit=12", "--holdout", "0", "-q")


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """An empty store."""
    monkeypatch.setattr(lock, "_SETTLE", 0)
    monkeypatch.setattr(RemotePath, "PAUSES", (0, 0))
    for found in (Store.objects, Store.requests):
        found.clear()
    Store.clock[0] = 1e9
    yield Store.objects
    Store.objects.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Sources with near duplicates, an image of a test set and one that is broken; their corpus on the disk."""
    root = tmp_path_factory.mktemp("sources")
    for number in range(14):
        image = draw_scene(number % 10)
        image = image.resize((70, 70)) if number >= 10 else image
        (root / f"f/{number % 2}").mkdir(parents=True, exist_ok=True)
        image.save(root / f"f/{number % 2}/{number}.png")
    put(root, {"f/0/broken.png": b"not an image"})
    (root / "t/a").mkdir(parents=True)
    draw_scene(1).resize((80, 80)).save(root / "t/a/1.png")
    assert main(["prepare", "--labels", str(root / "t"), "-o", str(root / "test"), "-q"]) == 0
    command = ("--labels", root / "f", "--dedup", "near", "--not-in", root / "test", "--holdout", "0.3")
    assert main(["prepare", *map(str, command), "-o", str(root / "c"), "-q"]) == 0
    return command, files_in(root / "c")


def test_the_objects_are_the_files_of_a_local_corpus(local, capsys):
    command, files = local
    report, _ = prepared(capsys, *command, "-o", OUT)
    assert objects_in(CORPUS) == files
    assert report["corpus"] == OUT
    assert set(report["rejected"]) == {"in_other_corpus", "near_duplicate", "not_image"}
    order = [name for request, name in Store.requests if request == "put"]
    shards = [name for name in order if name.endswith(".parquet")]
    for shard in shards:
        split, name = shard.removeprefix(f"{CORPUS}/data/").removesuffix(".parquet").split("/")
        assert order.index(shard) < order.index(f"{CORPUS}/parts/{split}.{name}.json")
    assert order[-1] == f"{CORPUS}/manifest.json"
    again, err = prepared(capsys, *command, "-o", OUT)
    assert (again, objects_in(CORPUS)) == (report, files)
    assert f"{OUT} is complete: nothing to do" in err
    assert open_corpus(OUT).manifest.rows == report["rows"]


def test_what_an_upload_that_fails_leaves_is_gone_on_with(local, capsys, monkeypatch):
    command, files = local
    upload = RemoteOutput.upload

    def fail(path, file):
        if path.name.startswith("val.") and path.suffix == ".json":
            raise OSError(errno.EIO, "the server is gone", str(path))
        upload(path, file)

    monkeypatch.setattr(RemoteOutput, "upload", fail)
    _, err = prepared(capsys, *command, "-o", OUT, code=2)
    assert re.search(
        rf"^error: {OUT}/parts/val\.\S+\.json: the server is gone\n  hint: fix it, then run the same", err, re.M
    )
    left = objects_in(CORPUS)
    assert "manifest.json" not in left
    assert ".lock" not in left
    monkeypatch.undo()
    monkeypatch.setattr(lock, "_SETTLE", 0)
    Store.requests.clear()
    _, err = prepared(capsys, *command, "-o", OUT)
    assert "continuing: 1 of 2 shards are already written" in err
    assert objects_in(CORPUS) == files
    assert [name for request, name in Store.requests if (request, name[-8:]) == ("put", ".parquet")] == [
        f"{CORPUS}/{name}" for name in files if name.startswith("data/val")
    ]


def test_stopped_it_leaves_no_lock_and_the_same_command_goes_on(local, capsys, monkeypatch):
    command, files = local
    upload = RemoteOutput.upload

    def stop(path, file):
        upload(path, file)
        if path.suffix == ".parquet":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RemoteOutput, "upload", stop)
    _, err = prepared(capsys, *command, "-o", OUT, code=75)
    assert "  continue with: unicl" in err
    assert not {".lock", "manifest.json"} & objects_in(CORPUS).keys()
    monkeypatch.setattr(RemoteOutput, "upload", upload)
    prepared(capsys, *command, "-o", OUT)
    assert objects_in(CORPUS) == files


def test_urls_that_failed_are_asked_again(server, in_this_process, tmp_path, capsys):
    lines = [f"the caption of {kind} {n}\t{server.url(kind, n)}\n" for n, kind in enumerate(["ok", "503", "404"] * 2)]
    (tmp_path / "list.tsv").write_text("".join(lines), encoding="utf-8")
    words = ("--captions", tmp_path / "list.tsv", "--allow-private", "--holdout", "0")
    report, _ = prepared(capsys, *words, "-o", OUT)
    assert report["rejected"] == {"http_404": 2, "http_503": 2}
    server.is_well = True
    report, _ = prepared(capsys, *words, "-o", OUT, "--retry-failed")
    assert (report["rows"], report["rejected"]) == (4, {"http_404": 2})
    assert main(["prepare", "--verify", "-o", OUT]) == 0


def test_downloaded_images_are_compared_in_a_store_as_on_the_disk(server, in_this_process, tmp_path, capsys):
    lines = [f"caption {n}\t{server.url(kind, n)}\n" for n, kind in enumerate(["ok", "404", "ok", "ok"])]
    lines += [f"another caption\t{server.url('ok', 0)}?again\n"]
    (tmp_path / "list.tsv").write_text("".join(lines), encoding="utf-8")
    words = ("--captions", tmp_path / "list.tsv", "--allow-private", "--holdout", "0", "--dedup", "near")
    report, _ = prepared(capsys, *words, "-o", tmp_path / "c")
    assert report["rejected"].pop("http_404") == 1
    assert report["rejected"], "the image that came twice"
    for request in ("", "--retry-failed"):
        prepared(capsys, *words, *request.split(), "-o", OUT)
        assert objects_in(CORPUS) == files_in(tmp_path / "c")


def test_a_corpus_in_a_store_keeps_its_images_out_of_another(local, tmp_path, capsys):
    command, _ = local
    prepared(capsys, *command, "-o", OUT)
    report, _ = prepared(capsys, *command[:2], "--not-in", OUT, "--holdout", "0", "-o", tmp_path / "c")
    assert report["rejected"]["in_other_corpus"] >= 9
    _, err = prepared(capsys, *command[:2], "--not-in", OUT, "-o", OUT, code=2)
    assert f"--not-in {OUT}: is the same corpus" in err


def test_nothing_of_an_earlier_corpus_of_the_place_is_remembered(tmp_path, local, capsys, store):
    command, _ = local
    prepared(capsys, "--labels", "digits?limit=30", "--holdout", "0", "-o", tmp_path / "other")
    prepared(capsys, *SMALL, *command[4:6], "-o", OUT)
    store.clear()
    digits = ("--labels", "digits?limit=40", "--holdout", "0", "-q", "--not-in", tmp_path / "other")
    prepared(capsys, *digits, "-o", tmp_path / "c")
    prepared(capsys, *digits, "-o", OUT)
    assert objects_in(CORPUS) == files_in(tmp_path / "c")


def test_damage_is_found_and_repaired(local, capsys):
    command, files = local
    prepared(capsys, *command, "-o", OUT)
    assert main(["prepare", "--verify", "-o", OUT]) == 0
    assert "every sha256 matches" in capsys.readouterr().out
    shard = next(name for name in files if name.startswith("data/train"))
    data = bytearray(files[shard])
    data[len(data) // 2] ^= 1
    Store.objects[f"{CORPUS}/{shard}"] = bytes(data), 1e9
    Store.objects[f"{CORPUS}/data/train/foreign.parquet"] = b"", 1e9
    assert main(["prepare", "--verify", "-o", OUT]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"{shard}: its bytes have changed (different sha256)"
    del Store.objects[f"{CORPUS}/data/train/foreign.parquet"]
    assert main(["prepare", "--repair", "-o", OUT]) == 0
    assert "byte for byte as before" in capsys.readouterr().out
    assert objects_in(CORPUS) == files
    Store.objects[f"{CORPUS}/data/train/foreign.parquet"] = b"", 1e9
    assert main(["prepare", "--verify", "-o", OUT]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "data/train/foreign.parquet: not a shard of this corpus"


@pytest.mark.parametrize("name", ["thesis.doc", "data/a.bin", ".lock", "plan.json", "rejects/mine.jsonl"])
def test_objects_of_others_are_refused_and_stay(capsys, name):
    Store.objects[f"{CORPUS}/{name}"] = b'{"mine": 1}', 1e9
    before = dict(Store.objects)
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert Store.objects == before


def test_an_object_of_the_name_is_no_folder_and_a_folder_without_objects_is_empty(capsys):
    Store.objects[CORPUS] = b"mine", 1e9
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    assert f"{OUT}: is a file, not a directory" in capsys.readouterr().err
    del Store.objects[CORPUS]
    Store.objects[f"{CORPUS}/"] = b"", 1e9  # as a web console makes a folder
    assert main(["prepare", *SMALL, "-o", OUT]) == 0


def hold(of, age=0.0):
    Store.objects[LOCK] = of.as_line().encode(), Store.clock[0] - age


def test_the_lock_of_another_machine_is_told_and_taken_over_when_it_is_old(capsys):
    hold(ELSEWHERE, 50)
    before = dict(Store.objects)
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {OUT}: locked by pid 7 on node3, last sign of life 50s ago"
    assert hint == (
        "  hint: wait for it, or choose another directory with -o; "
        "if that machine is gone, run the same command again in 1m11s"
    )
    assert Store.objects == before
    hold(ELSEWHERE, STALE_SECONDS)
    assert main(["prepare", *SMALL, "-o", OUT]) == 0
    said = f"{OUT}: took over the lock of pid 7 on node3, whose last sign of life was 2m00s ago"
    assert said in capsys.readouterr().err
    assert LOCK not in Store.objects


def test_a_lock_of_this_machine_ends_with_its_process(capsys):
    hold(describe_self())
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {OUT}: locked by {describe_self()}"
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    hold(describe_self()._replace(pid=gone))
    assert main(["prepare", *SMALL, "-o", OUT]) == 0
    assert "took over" not in capsys.readouterr().err


def test_of_two_that_begin_at_once_the_last_one_has_the_lock(capsys, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda _: hold(ELSEWHERE))
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    assert f"{OUT}: locked by pid 7 on node3" in capsys.readouterr().err
    assert objects_in(CORPUS) == {".lock": ELSEWHERE.as_line().encode()}


def test_a_missing_bucket_and_a_server_that_does_not_answer_are_one_line(capsys, monkeypatch):
    assert main(["prepare", *SMALL, "-o", "store://none/c"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: store://none/c: cannot be written: The specified bucket does not exist"
    assert hint == "  hint: check the address and your rights, or choose another directory with -o"

    def fail(*args, **kwargs):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(Store, "info", fail)
    for command in (SMALL, (*SMALL, "--dry-run"), ("--verify",)):
        assert main(["prepare", *command, "-o", OUT]) == 2
        error = f"error: {OUT}/{'manifest' if '--verify' in command else 'plan'}.json: cannot be reached: Connection"
        assert capsys.readouterr().err.splitlines()[0].startswith(error)


def test_a_full_folder_for_temporary_files_is_named(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unicl_cli.storage.files._nameless_file", fail)
    monkeypatch.setattr(lock, "show_life", lambda path, me: tempfile.TemporaryDirectory())
    monkeypatch.setattr(lock, "_check_alone", lambda *args: None)
    assert main(["prepare", *SMALL, "-o", OUT]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {tempfile.gettempdir()}: No space left on device"
    assert "set TMPDIR" in hint


def test_a_preview_of_a_store_knows_no_free_space(capsys):
    assert main(["prepare", *SMALL, "-o", OUT, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["free"] is None
    assert main(["prepare", *SMALL, "-o", OUT, "--dry-run"]) == 0
    assert "free)" not in capsys.readouterr().out
    assert objects_in(CORPUS) == {}


@pytest.mark.parametrize(
    ("address", "path"),
    [("s3://b/c/", "s3://b/c"), ("S3://B/c", "s3://B/c"), ("gs://b", "gs://b"), ("store://b/a b", "store://b/a b")],
)
def test_an_address_is_written_to_as_it_prints(address, path):
    found = output_of(address)
    assert isinstance(found, RemoteOutput)
    assert isinstance(found / "data", RemoteOutput)
    assert str(found) == path


@pytest.mark.parametrize(
    ("text", "path"), [("file:///a/b", "/a/b"), ("FILE:///a", "/a"), ("local:///a", "/a"), ("a", "a")]
)
def test_a_file_address_is_a_path_of_this_machine(text, path):
    found = output_of(text)
    assert not isinstance(found, RemotePath)
    assert str(found) == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file://host/a", "names a machine, not a folder"),
        ("memory://a", "ends with this command"),
        ("https://host/a", "cannot be listed"),
        ("hf://datasets/a/b", "would make a commit of every file"),
        ("simplecache::s3://b/c", "is a chain of file systems"),
        ("s3:/b/c", "is not an address"),
    ],
)
def test_an_address_that_takes_no_output_says_why(text, said):
    with pytest.raises(UniclError, match=re.escape(said)) as error:
        output_of(text)
    assert error.value.message.startswith(f"output '{text}': ")
    assert re.match("write|name", error.value.hint)
