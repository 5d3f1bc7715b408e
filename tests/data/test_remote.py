"""Corpora on other file systems: the same batches as from the disk, by few requests, and faults in one line."""

import io
import pickle
from typing import ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from toy_corpora import SIZES, assert_same, corpus, strands

from unicl_cli.cli import main
from unicl_cli.data import corpus as reader
from unicl_cli.data.corpus import open_corpus, takewhile_fits
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws, MixedCorpora, TextChoice, order_of
from unicl_cli.data.shard_checks import _remote_size
from unicl_cli.errors import UniclError
from unicl_cli.storage.remote import RangeFile, RemotePath, place_of


class CountedFileSystem(LocalFileSystem):
    """Files of this machine behind a scheme of their own; requests are counted."""

    protocol = "counted"
    requests: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).replace("counted://", "file:///", 1))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.requests.append(f"get {path.rsplit('/', 1)[1]}")
        return super().cat_file(path, start=start, end=end, **kwargs)

    def info(self, path, **kwargs):
        if isinstance(path, str):  # a listing asks by the entries of a folder
            self.requests.append(f"size {path.rsplit('/', 1)[1]}")
        return super().info(path, **kwargs)


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)


@pytest.fixture
def local(tmp_path):
    corpus(tmp_path / "c", ("labels", "captions"))
    return tmp_path / "c"


@pytest.fixture
def remote(local):
    """The same corpus in the memory of this process."""
    MemoryFileSystem.store.clear()
    _remote_size.cache_clear()
    for file in local.rglob("*.*"):
        if file.is_file():
            MemoryFileSystem().pipe_file(f"/bucket/my corpus/{file.relative_to(local)}", file.read_bytes())
    yield "memory://bucket/my corpus"
    MemoryFileSystem.store.clear()


def steps_of(path):
    mix = MixedCorpora(strands(open_corpus(path)), TextChoice("mixed", "uniform", 0))
    order = order_of(mix.strands, labels="auto", by="sample", batch_size=8, seed=1)
    options = {"caption_targets": "unique", "extra": None, "distinct": False, "workers": 0, "pin_memory": False}
    return list(batches(mix, Draws(order, 0, 6, 0, 1), None, **options))


def test_batches_are_those_from_the_disk(local, remote):
    assert_same(steps_of(remote), steps_of(local))


def test_every_row_and_column_is_that_of_the_disk(local, remote):
    here, there = open_corpus(local), open_corpus(remote)
    assert there.checksum == here.checksum
    assert str(there.path) == remote
    for kind in ("labels", "captions"):
        one, other = here.table("train", kind), pickle.loads(pickle.dumps(there.table("train", kind)))
        assert [other.read(n) for n in range(len(other))] == [one.read(n) for n in range(len(one))]
        assert other.column("key").equals(one.column("key"))
        assert str(other.shard_of(0)) == f"{remote}/data/train/{kind}.parquet"


def test_a_row_group_is_one_request_and_is_read_once(local):
    CountedFileSystem.requests.clear()
    table = open_corpus(f"counted:/{local}").table("train", "labels")
    assert not any(line == "get labels.parquet" for line in CountedFileSystem.requests)
    table.read(0)
    CountedFileSystem.requests.clear()
    table.prefetch(range(len(table)))
    for row in range(len(table)):
        table.read(row)
    assert CountedFileSystem.requests == ["get labels.parquet"] * (len(SIZES) - 1)


def test_what_is_read_ahead_is_bounded(local, monkeypatch):
    assert list(takewhile_fits([5, 3, 4], lambda size: size, 8)) == [5, 3]
    table = open_corpus(f"counted:/{local}").table("train", "labels")
    table.read(0)
    CountedFileSystem.requests.clear()
    monkeypatch.setattr(reader, "CACHE_BYTES", 1)
    table.prefetch(range(len(table)))
    assert CountedFileSystem.requests == []
    assert [table.read(row).key for row in range(len(table))] == [f"labels:{n}" for n in range(len(table))]


def test_a_shard_that_is_missing_or_cut_is_named(remote):
    shard = "/bucket/my corpus/data/train/captions.parquet"
    data = MemoryFileSystem.store[shard].getvalue()
    MemoryFileSystem().pipe_file(shard, data[:-1])
    with pytest.raises(UniclError, match=f"{remote}/data/train/captions.parquet: shard has {len(data) - 1} bytes"):
        open_corpus(remote)
    MemoryFileSystem().rm(shard)
    with pytest.raises(UniclError, match=r"captions\.parquet: shard is missing"):
        open_corpus(remote)
    with pytest.raises(UniclError, match="memory://bucket/none: no corpus here"):
        open_corpus("memory://bucket/none")


def test_damage_inside_a_shard_is_named(remote):
    shard = "/bucket/my corpus/data/train/labels.parquet"
    data = bytearray(MemoryFileSystem.store[shard].getvalue())
    data[data.index(b"IDAT")] ^= 0xFF  # inside the page of the images
    MemoryFileSystem().pipe_file(shard, bytes(data))
    table = open_corpus(remote).table("train", "labels")
    with pytest.raises(UniclError, match=r"labels\.parquet: damaged: row group") as caught:
        [table.read(row) for row in range(len(table))]
    assert "memory://bucket/my corpus" in caught.value.hint


def test_an_answer_that_is_too_short_is_an_error(remote, monkeypatch):
    path = place_of(f"{remote}/manifest.json")
    assert isinstance(path, RemotePath)
    file = RangeFile(path, path.read_size())
    assert io.BufferedReader(file).read() == path.read_regular(10**6)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **kwargs: b"short")
    file.seek(0)
    with pytest.raises(OSError, match="5 bytes came instead of"):
        file.read()


def test_a_request_that_fails_is_tried_again_and_then_one_line(remote, monkeypatch):
    table = open_corpus(remote).table("train", "labels")
    table.read(0)
    monkeypatch.setattr(RemotePath, "PAUSES", (0, 0))
    faults = [ConnectionResetError(104, "reset by peer"), RuntimeError("the server\nis busy")]
    read = MemoryFileSystem.cat_file

    def fail(*args, **kwargs):
        if faults:
            raise faults.pop()
        return read(*args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    assert table.read(len(table) - 1).key == f"labels:{len(table) - 1}"
    faults += [ConnectionResetError(104, "reset by peer")] * 3
    with pytest.raises(UniclError, match=r"labels\.parquet: cannot be read: reset by peer") as caught:
        table.read(5)
    assert caught.value.hint == "check the connection, then run the same command again to continue"


def test_a_listing_that_is_refused_is_one_line(remote, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    with pytest.raises(UniclError, match=r"memory://bucket/my corpus: cannot be reached: .*Access Denied"):
        open_corpus(remote)


def test_a_scheme_that_cannot_be_read_says_what_to_do(capsys, monkeypatch):
    assert main(["inspect", "nowhere://bucket/c"]) == 2
    error = capsys.readouterr().err
    assert "nowhere://bucket/c: Protocol not known: nowhere" in error
    assert "check the scheme" in error

    def refuse(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(UniclError, match=r"s3://bucket/c.*: Install s3fs") as caught:
        open_corpus("s3://bucket/c")
    assert caught.value.hint == "pip install s3fs"


def test_inspect_reads_a_remote_corpus(remote, capsys):
    assert main(["inspect", remote, "--json"]) == 0
    assert f'"path": "{remote}"' in capsys.readouterr().out


@pytest.mark.parametrize("text", ["s3://b/c d/e", "memory://c", "file:///a/b", "gs://b", "filecache::s3://b/c"])
def test_a_remote_path_prints_as_its_url(text):
    path = place_of(text)
    assert isinstance(path, RemotePath)
    assert str(path) == text
    assert str(path / "data" / "x") == f"{text}/data/x"
    assert str(pickle.loads(pickle.dumps(path))) == text
    assert str((path / "data" / "x").parent.parent.absolute()) == text


@pytest.mark.parametrize("text", ["corpus", "/a/b", "C:/a", "./s3:/b", "~/c"])
def test_other_places_are_of_this_machine(text):
    assert not isinstance(place_of(text), RemotePath)


def test_a_python_file_of_arrow_reads_ranges(local):
    path = place_of(f"counted:/{local}/data/train/labels.parquet")
    assert isinstance(path, RemotePath)
    data = (local / "data" / "train" / "labels.parquet").read_bytes()
    file = pa.PythonFile(RangeFile(path, len(data)), mode="r")
    assert file.read_at(10, 100) == data[100:110]
    file.seek(0)
    assert file.read() == data
