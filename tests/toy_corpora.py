"""Small corpora with several row groups per shard, and their strands, for tests of loader and mix."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.corpus_format import SCHEMA
from unicl_cli.data.mix import ClassPlace, strands_of
from unicl_cli.data.text import text_hash
from unicl_cli.data.transforms import TrainTransform, build_augment

CLASSES = (ClassName("n1", ("dog", "hound")), ClassName("n2", ("cat",)), ClassName("n3", ("cup & saucer",)))
TEMPLATES = ("a photo of a {}.", "the {}")
SIZES = [4, 7, 2, 9]  # row groups


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def row(number, kind):
    texts = {"labels": [], "captions": [f"caption {number // 2}", f"other {number}"], "images": []}[kind]
    if kind == "labels" and number % 3 == 0:
        texts = [f"labelled {number}"]
    return {
        "key": f"{kind}:{number}", "image": {"bytes": picture(number), "path": None}, "texts": texts,
        "text_hash": [text_hash(text) for text in texts], "label": number % 3 if kind == "labels" else NO_LABEL,
        "source": "s", "width": 8, "height": 8, "sha256": hashlib.sha256(picture(number)).digest(), "phash": 0,
        "url": None,
    }  # fmt: skip


def corpus(folder: Path, kinds=("labels", "captions"), *, classes=CLASSES, sizes=SIZES):
    """Write a finished corpus with several row groups per shard, as `prepare` does for large ones."""
    (folder / "data" / "train").mkdir(parents=True)
    shards = []
    for kind in kinds:
        file = folder / "data" / "train" / f"{kind}.parquet"
        with pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
            first = 0
            for size in sizes:
                rows = [row(first + n, kind) for n in range(size)]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                first += size
        place = {"file": f"data/train/{kind}.parquet", "split": "train", "source": "s", "kind": kind}
        data = file.read_bytes()
        sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        shards.append(place | sums | {"rows": first, "row_groups": sizes})
    named = [{"id": number, "key": c.key, "names": c.names} for number, c in enumerate(classes)]
    totals = {key: sum(shard[key] for shard in shards) for key in ("rows", "bytes")}
    manifest = {
        "schema_version": 1, "name": "c", "templates": TEMPLATES, "classes": named, "shards": shards, **totals,
        "rejected": {}, "class_counts": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_corpus(folder)


def strands(opened, *, labels=None, weight=1.0, fraction=1.0, limit=None, views=1):
    return strands_of(
        opened, "train", place=ClassPlace(np.arange(3) if labels is None else np.array(labels)), templates=TEMPLATES,
        transform=TrainTransform(8, [build_augment("shift", {})] * views, 0, decoder="auto", resize="tensor"),
        weight=weight, fraction=fraction, limit=limit,
    )  # fmt: skip


def assert_same(a, b):
    assert [step for step, _ in a] == [step for step, _ in b]
    for (_, one), (_, other) in zip(a, b, strict=True):
        for x, y in zip(one[:-1], other[:-1], strict=True):
            assert torch.equal(x, y)
        assert one.extra == other.extra == {}
