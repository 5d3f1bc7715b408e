"""Media from a source to a batch: stored beside the image, verified, read on request, the same for any workers."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_corpora import strands
from unicl_odd.many import LENGTH, stored_profiles
from unicl_odd.stripes import profile_of

from unicl_cli.cli import main
from unicl_cli.contracts import Row
from unicl_cli.data import corpus_format, loader
from unicl_cli.data.collate import Extra
from unicl_cli.data.corpus import MEDIA, RowTable, open_corpus
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws, MixedCorpora, TextChoice, order_of
from unicl_cli.data.shard_checks import ShardRules
from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.jobs.prepare.shards import shards
from unicl_cli.jobs.prepare.shards.shards import MediaError, stored_media

STRIPES = "odd-stripes?rows=30&profile=true"
SIZE = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Stripes with profiles as label rows, shapes without media as caption rows."""
    out = tmp_path_factory.mktemp("media") / "c"
    prepare(PrepareRequest((STRIPES,), ("shapes?count=20&test=5",), (), out, PrepareOptions()))
    return out


WITH_MEDIA = corpus_format.schema_of(sets=False, media=True)


def profiles(drawn, tokens, text_index):
    return stored_profiles(drawn, tokens, text_index, names=["profile"], length=LENGTH)


def load(corpus, workers, hooks, *, steps=3):
    parts = strands(open_corpus(corpus), labels=[0, 1])
    order = order_of(parts, labels="auto", by="sample", batch_size=SIZE, seed=0)
    options = {"caption_targets": "unique", "distinct": True, "pin_memory": False, "extra": Extra(hooks)}
    mix = MixedCorpora(parts, TextChoice("prompt", "first", 0))
    return [b for _, b in batches(mix, Draws(order, 0, steps, 0, 1), None, workers=workers, **options)]


def number(key):
    return int(key.split("/")[-1])


def test_a_corpus_gives_back_the_media_of_its_source(corpus):
    table = open_corpus(corpus).table("train", "labels")
    schema = pq.read_schema(table.shards[0])
    assert schema.equals(WITH_MEDIA)
    assert schema.metadata == WITH_MEDIA.metadata
    for row in range(len(table)):
        sample = table.read(row, media=True)
        n = number(sample.key)
        assert sample.media == ({} if n % 3 == 0 else {"profile": profile_of(n)})
        assert sample._replace(media={}) == table.read(row)
    assert json.loads((corpus / "manifest.json").read_text())["media"] == {"profile": 40}


def test_all_shards_of_a_corpus_with_media_have_one_schema(corpus):
    for kind in ("labels", "captions"):
        for split in ("train", "test"):
            table = open_corpus(corpus).table(split, kind)
            assert all(pq.read_schema(shard).equals(WITH_MEDIA) for shard in table.shards)
    assert open_corpus(corpus).table("train", "captions").read(0, media=True).media == {}


def test_a_corpus_without_media_has_neither_column_nor_entry(tmp_path):
    prepare(PrepareRequest(("odd-stripes?rows=30",), (), (), tmp_path / "c", PrepareOptions()))
    table = open_corpus(tmp_path / "c").table("train", "labels")
    schema = pq.read_schema(table.shards[0])
    assert schema.equals(corpus_format.SCHEMA)
    assert schema.metadata == corpus_format.SCHEMA.metadata
    assert MEDIA not in json.loads((tmp_path / "c/manifest.json").read_text())
    assert all(MEDIA not in json.loads(file.read_text()) for file in (tmp_path / "c/parts").iterdir())
    assert table.read(0, media=True).media == {}
    assert table.media_bytes() == 0


def test_media_is_read_only_on_request(corpus):
    table = open_corpus(corpus).table("train", "labels")
    table.read(0)
    (bare,) = table._cache.values()
    assert bare.media is None
    table.read(0, media=True)
    assert table._cache[0, True, True].size >= bare.size + 20 * 4 * LENGTH
    assert table.media_bytes() >= 20 * 4 * LENGTH / 30


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hook_turns_media_into_the_same_tensors_for_any_number_of_workers(corpus, workers, monkeypatch):
    monkeypatch.setattr(loader, "LEAST_CHUNK", 2)
    table = open_corpus(corpus).table("train", "labels")
    parts = strands(open_corpus(corpus), labels=[0, 1])
    order = order_of(parts, labels="auto", by="sample", batch_size=SIZE, seed=0)
    alone = load(corpus, 0, [profiles])
    for step, (batch, one) in enumerate(zip(load(corpus, workers, [profiles]), alone, strict=True)):
        assert torch.equal(batch.images, one.images)
        assert torch.equal(batch.extra["profile"], one.extra["profile"])
        strand, rows = order.batch(step)
        for at, (s, r) in enumerate(zip(strand.tolist(), rows.tolist(), strict=True)):
            n = number(table.read(r).key)
            has = s == 0 and n % 3 != 0
            assert bool(batch.extra["has_profile"][at]) == has
            expected = np.frombuffer(profile_of(n), np.float32) if has else np.zeros(LENGTH, np.float32)
            np.testing.assert_array_equal(batch.extra["profile"][at].numpy(), expected)
    assert any(batch.extra["has_profile"].any() and not batch.extra["has_profile"].all() for batch in alone)


def test_a_run_without_hooks_reads_no_media(corpus, monkeypatch):
    asked = []
    read = RowTable.read

    def spy(self, row, *, media=False, image=True):
        asked.append((media, image))
        return read(self, row, media=media, image=image)

    monkeypatch.setattr(RowTable, "read", spy)
    assert load(corpus, 0, [])[0].extra == {}
    assert Counter(asked) == {(False, True): 3 * SIZE}
    load(corpus, 0, [profiles], steps=1)
    assert Counter(asked) == {(False, True): 3 * SIZE, (True, True): SIZE}


def test_workers_keep_less_ready_where_rows_have_media(corpus):
    mix = MixedCorpora(strands(open_corpus(corpus), labels=[0, 1]), TextChoice("prompt", "first", 0))
    assert mix.row_bytes == 3 * 8 * 8
    assert mix.with_media().row_bytes >= 3 * 8 * 8 + 80


def test_verify_finds_a_flipped_bit_in_media(corpus, tmp_path, capfd):
    out = tmp_path / "c"
    prepare(PrepareRequest((STRIPES,), (), (), out, PrepareOptions()))
    shard = open_corpus(out).table("train", "labels").shards[0]
    data = bytearray(shard.read_bytes())
    data[data.index(profile_of(4)) + 5] ^= 1
    shard.write_bytes(data)
    assert main(["prepare", "--verify", "-o", str(out)]) == 1
    assert "different sha256" in capfd.readouterr().out


def test_a_unit_with_media_writes_the_same_bytes_again(corpus, tmp_path):
    prepare(PrepareRequest((STRIPES,), ("shapes?count=20&test=5",), (), tmp_path / "again", PrepareOptions()))
    for shard in corpus.rglob("*.parquet"):
        other = tmp_path / "again" / shard.relative_to(corpus)
        assert hashlib.sha256(other.read_bytes()).digest() == hashlib.sha256(shard.read_bytes()).digest()


@pytest.mark.parametrize(
    ("found", "reason", "detail"),
    [
        ({"image": b"", "depth": b""}, "bad_media", r"'depth' is not in the source's media \(audio\)"),
        ({"image": b"", "audio": None}, "bad_media", "audio: NoneType instead of bytes"),
        ({"image": b"", "audio": b"12345"}, "media_too_large", "audio: 5 bytes"),
    ],
)
def test_media_that_cannot_be_stored_has_a_reason(found, reason, detail, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEDIA_BYTES", 4)
    with pytest.raises(MediaError, match=detail) as caught:
        stored_media(found, ("audio",))
    assert caught.value.reason == reason


def test_media_is_stored_in_the_order_that_the_source_names():
    found = {"depth": b"2", "image": b"", "audio": b"1"}
    assert stored_media(found, ("audio", "depth", "heat")) == [
        {"kind": "audio", "bytes": b"1"},
        {"kind": "depth", "bytes": b"2"},
    ]


def test_a_row_whose_media_is_too_large_is_left_out_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEDIA_BYTES", 4 * LENGTH - 1)
    report = prepare(PrepareRequest((STRIPES,), (), (), tmp_path / "c", PrepareOptions()))
    assert report["rejected"] == {"media_too_large": 40}
    line = json.loads(next((tmp_path / "c/rejects").iterdir()).read_text().splitlines()[0])
    assert line["detail"] == "profile: 128 bytes"


def test_a_row_group_ends_before_its_media_is_too_much_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_MEDIA_BYTES", 5 * 4 * LENGTH)
    prepare(PrepareRequest((STRIPES,), (), (), tmp_path / "c", PrepareOptions()))
    table = open_corpus(tmp_path / "c").table("train", "labels")
    assert len(table.group_sizes) == 4
    assert sorted(number(table.read(row, media=True).key) for row in range(30)) == list(range(30))


def test_a_row_group_ends_before_its_images_are_too_much_to_hold(tmp_path, monkeypatch):
    """Images of URLs of 9 MB each, in a group that was planned for 100 kB each, took 3 GB."""
    monkeypatch.setattr(shards, "GROUP_IMAGE_BYTES", 1)
    prepare(PrepareRequest(("shapes?count=20&test=5",), (), (), tmp_path / "c", PrepareOptions()))
    table = open_corpus(tmp_path / "c").table("train", "labels")
    assert len(table.group_sizes) == len(table) > 1


def test_other_media_in_a_source_are_another_plan(tmp_path, capfd):
    argv = ["prepare", "--labels", "odd-stripes?rows=30", "-o", str(tmp_path / "c")]
    assert main(argv) == 0
    assert main([*argv[:2], STRIPES, *argv[3:]]) == 2
    assert "has changed (contents)" in capfd.readouterr().err


def test_a_dry_run_counts_media(tmp_path, capfd):
    sizes = []
    for src in ("odd-stripes?rows=30", STRIPES):
        assert main(["prepare", "--labels", src, "-o", str(tmp_path / "c"), "--dry-run", "--json"]) == 0
        sizes.append(json.loads(capfd.readouterr().out)["bytes_expected"][0])
    assert sizes[1] - sizes[0] == 40 * 4 * LENGTH


def test_an_old_shard_without_the_column_has_no_media(tmp_path):
    row = dict.fromkeys(corpus_format.SCHEMA.names)
    row |= {"image": {"bytes": b"x", "path": None}, "texts": [], "text_hash": [], "label": 0, "source": "s", "key": "k"}
    row |= {"width": 1, "height": 1}
    pq.write_table(pa.Table.from_pylist([row], corpus_format.SCHEMA), tmp_path / "old.parquet")
    assert RowTable([tmp_path / "old.parquet"], [[1]], ShardRules("labels", 1)).read(0, media=True).media == {}


@pytest.mark.slow
def test_the_datasets_library_reads_media_as_kinds_and_bytes(corpus):
    script = (
        "import sys; from datasets import load_dataset\n"
        "d = load_dataset('parquet', data_files=sys.argv[1] + '/data/train/*.parquet', cache_dir=sys.argv[1] + 'x')\n"
        "rows = {row['key'].split(':')[1]: row for row in d['train']}\n"
        "assert len(rows) == 50 and rows['train/4']['image'].size == (32, 32), d\n"
        "(item,) = rows['train/4']['media']\n"
        "assert item['kind'] == 'profile' and len(item['bytes']) == 128, item\n"
        "assert rows['train/3']['media'] == [] == rows['train/000003']['media']"
    )
    subprocess.run([sys.executable, "-c", script, str(corpus)], check=True)


def test_a_source_names_its_media():
    class Plain:
        def read(self, row: Row) -> dict[str, bytes]:
            return {"image": b""}

    assert shards.media_of(Plain()) == ()
