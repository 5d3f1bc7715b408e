"""From the bytes of images to batches, on one core: decoding, augmenting, and all that the loader does."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from open_clip import get_tokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from unicl_cli.contracts import Batch, Sample
from unicl_cli.core.sampler import Mixture, Stream
from unicl_cli.data.corpus import Table
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws, Mix, Strand, TextChoice
from unicl_cli.data.transforms import TrainTransform, build_augment, eval_transform
from unicl_cli.jobs.bench.captions import captions
from unicl_cli.jobs.bench.kinds import PEER, Asked
from unicl_cli.jobs.bench.pictures import pictures
from unicl_cli.jobs.bench.protocol import Case, Ready
from unicl_cli.jobs.bench.twins import clip_tokens

OURS = "unicl"
SIZE, FILES = 224, 64
CROP = (0.9, 1.0)
"""open_clip's default crop; its output is a normalised float, ours uint8, which the device normalises."""


def cases(asked: Asked) -> list[Case]:
    who = (OURS, PEER) if asked.vs else (OURS,)
    rows: dict[str, Callable[..., Ready]] = {
        "decode": decoding,
        "decode+augment": augmenting,
        "batches": batching,
    }
    size = asked.batch or FILES
    return [Case(name, "images", who, who[-1], partial(make, size=size)) for name, make in rows.items()]


def opened(data: bytes) -> Image.Image:
    """As open_clip's loaders do ("pilrgb")."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def decoding(who: Collection[str], size: int) -> Ready:
    files = pictures(size)
    forms: dict[str, Callable[[bytes], Any]] = {OURS: decode_pixels, PEER: opened}

    def check() -> dict[str, float]:
        gaps = (
            np.abs(decode_pixels(f).permute(1, 2, 0).numpy().astype(int) - np.asarray(opened(f))).max() for f in files
        )
        return {"forward": float(max(gaps))}

    return Ready(size, {name: partial(each, forms[name], files) for name in who}, facts(files), check)


def each(work: Callable[[bytes], Any], files: Collection[bytes]) -> None:
    for file in files:
        work(file)


def facts(files: Collection[bytes]) -> dict[str, Any]:
    return {"mean_bytes": round(sum(map(len, files)) / len(files)), "pixels": "500 x 375", "to": SIZE}


def our_transform(size: int = SIZE, *, decoder: str = "auto", resize: str = "tensor") -> TrainTransform:
    ops = build_augment("none", {"crop": CROP})
    return TrainTransform(size, [ops], 0, decoder=decoder, resize=resize)


def augmenting(who: Collection[str], size: int) -> Ready:
    """A random crop, resized; checked with the middle of each image, where nothing is random."""
    files, draws = pictures(size), count()
    ours = our_transform()
    theirs = cast("Any", image_transform_v2(PreprocessCfg(size=SIZE), is_train=True))
    forms: dict[str, Callable[[bytes], Any]] = {
        OURS: lambda file: ours(file, next(draws)),
        PEER: lambda file: theirs(opened(file)),
    }
    check = (lambda: {"levels": levels(files)}) if PEER in who else None
    return Ready(size, {name: partial(each, forms[name], files) for name in who}, facts(files), check)


def levels(files: Collection[bytes]) -> float:
    """The most that a pixel of the evaluation's image is from open_clip's, in levels of 255."""
    cfg = PreprocessCfg(size=SIZE)
    theirs = cast("Any", image_transform_v2(cfg, is_train=False))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.mean, cfg.std))

    def gap(file: bytes) -> float:
        pixel: Tensor = (theirs(opened(file)) * std + mean) * 255
        return float((pixel - eval_transform(file, SIZE)).abs().max())

    return max(gap(file) for file in files)


class Files:
    """A corpus's table of generated files, each with its caption."""

    def __init__(self, files: tuple[bytes, ...], texts: list[str]) -> None:
        self.files, self.texts = files, texts

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int, *, media: bool = False) -> Sample:
        del media
        return Sample(self.files[row], (self.texts[row],), -1, "bench", str(row), (row,))


def endless(files: tuple[bytes, ...], texts: list[str], *, side: int = SIZE, workers: int = 0) -> Iterator[Batch]:
    """Batches of all files, through the loader of training."""
    sizes = np.array([len(files)])
    table = cast("Table", Files(files, texts))
    strand = Strand(table, "captions", 1.0, None, sizes, np.empty(0, np.int64), (), (), our_transform(side), 0)
    order = Mixture([Stream(sizes, "bench")], [Fraction(1)], len(files), 0)
    found = batches(
        Mix([strand], TextChoice("mixed", "first", 0)),
        Draws(order, 0, 10**9, 0, 1),
        clip_tokens(),
        caption_targets="unique",
        extra=None,
        distinct=True,
        workers=workers,
        pin_memory=False,
    )
    return (batch for _, batch in found)


def batching(who: Collection[str], size: int) -> Ready:
    """Decoded, augmented, tokenised, put together; open_clip's way is that of its CSV dataset."""
    files, texts = pictures(size), captions(size).texts
    ours = endless(files, texts)
    transform = cast("Any", image_transform_v2(PreprocessCfg(size=SIZE), is_train=True))
    tokenize = get_tokenizer("ViT-B-32")

    def theirs() -> Any:
        pairs = zip(files, texts, strict=True)
        return default_collate([(transform(opened(file)), tokenize([text])[0]) for file, text in pairs])

    def check() -> dict[str, float]:
        mine = clip_tokens()(texts)
        same = tokenize(texts)[:, : mine.shape[1]]
        return {"tokens": float((mine != same).sum())}

    runs: dict[str, Callable[[], Any]] = {OURS: lambda: next(ours), PEER: theirs}
    chosen = {name: runs[name] for name in who}
    return Ready(size, chosen, facts(files), check if PEER in who else None)
