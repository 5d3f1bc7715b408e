"""`bench loader`: from JPEG bytes to batches on one core, by decoding, augmenting and the whole loader."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from open_clip import get_tokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.utils.data import default_collate

from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.transforms import eval_transform
from unicl_cli.jobs.bench.captions import make_captions
from unicl_cli.jobs.bench.feeding import feeding_case
from unicl_cli.jobs.bench.file_batches import FILES, OURS, SIZE, file_facts, open_rgb, our_transform, repeat_batches
from unicl_cli.jobs.bench.jpegs import make_jpegs
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import clip_bpe
from unicl_cli.jobs.bench.protocol import Case, PreparedCase


def cases(request: Request) -> list[Case]:
    variants = (OURS, PEER) if request.vs else (OURS,)
    rows: dict[str, Callable[..., PreparedCase]] = {
        "decode": prepare_decoding,
        "decode+augment": prepare_augmenting,
        "batches": prepare_batches,
    }
    size = request.batch or FILES
    made = [Case(name, "images", variants, variants[-1], partial(make, size=size)) for name, make in rows.items()]
    return [*made, feeding_case(request)]


def prepare_decoding(variants: Collection[str], size: int) -> PreparedCase:
    files = make_jpegs(size)
    forms: dict[str, Callable[[bytes], Any]] = {OURS: decode_pixels, PEER: open_rgb}

    def check() -> dict[str, float]:
        gaps = (
            np.abs(decode_pixels(f).permute(1, 2, 0).numpy().astype(int) - np.asarray(open_rgb(f))).max() for f in files
        )
        return {"forward": float(max(gaps))}

    return PreparedCase(
        size, {name: partial(run_on_files, forms[name], files) for name in variants}, file_facts(files), check
    )


def run_on_files(work: Callable[[bytes], Any], files: Collection[bytes]) -> None:
    for file in files:
        work(file)


def prepare_augmenting(variants: Collection[str], size: int) -> PreparedCase:
    """Prepare a random crop, resized; the check compares the centre crop, which has nothing random."""
    files, draws = make_jpegs(size), count()
    ours = our_transform()
    theirs = cast("Any", image_transform_v2(PreprocessCfg(size=SIZE), is_train=True))
    forms: dict[str, Callable[[bytes], Any]] = {
        OURS: lambda file: ours(file, next(draws)),
        PEER: lambda file: theirs(open_rgb(file)),
    }
    check = (lambda: {"levels": largest_pixel_gap(files)}) if PEER in variants else None
    return PreparedCase(
        size, {name: partial(run_on_files, forms[name], files) for name in variants}, file_facts(files), check
    )


def largest_pixel_gap(files: Collection[bytes]) -> float:
    """Return the largest pixel difference to open_clip's evaluation transform, in levels of 255."""
    cfg = PreprocessCfg(size=SIZE)
    theirs = cast("Any", image_transform_v2(cfg, is_train=False))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.mean, cfg.std))

    def gap(file: bytes) -> float:
        pixel: Tensor = (theirs(open_rgb(file)) * std + mean) * 255
        return float((pixel - eval_transform(file, SIZE)).abs().max())

    return max(gap(file) for file in files)


def prepare_batches(variants: Collection[str], size: int) -> PreparedCase:
    """Prepare whole batches: decode, augment, tokenize, collate; open_clip does it as in its CSV dataset."""
    files, texts = make_jpegs(size), make_captions(size).texts
    ours = repeat_batches(files, texts)
    transform = cast("Any", image_transform_v2(PreprocessCfg(size=SIZE), is_train=True))
    tokenize = get_tokenizer("ViT-B-32")

    def theirs() -> Any:
        pairs = zip(files, texts, strict=True)
        return default_collate([(transform(open_rgb(file)), tokenize([text])[0]) for file, text in pairs])

    def check() -> dict[str, float]:
        mine = clip_bpe()(texts)
        same = tokenize(texts)[:, : mine.shape[1]]
        return {"tokens": float((mine != same).sum())}

    runs: dict[str, Callable[[], Any]] = {OURS: lambda: next(ours), PEER: theirs}
    chosen = {name: runs[name] for name in variants}
    return PreparedCase(size, chosen, file_facts(files), check if PEER in variants else None)
