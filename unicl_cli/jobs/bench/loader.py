"""`bench loader`: from JPEG bytes to batches on one core, by decoding, augmenting and the whole loader."""

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
from unicl_cli.data.corpus import RowTable
from unicl_cli.data.decoding import decode_pixels
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.loader import batches
from unicl_cli.data.mix import Draws, MixedCorpora, Strand, TextChoice
from unicl_cli.data.transforms import TrainTransform, build_augment, eval_transform
from unicl_cli.jobs.bench.captions import make_captions
from unicl_cli.jobs.bench.jpegs import make_jpegs
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import clip_bpe
from unicl_cli.jobs.bench.protocol import Case, PreparedCase
from unicl_cli.jobs.train.batches import move_ahead

OURS = "unicl"
CPU = torch.device("cpu")
SIZE, FILES = 224, 64
CROP = (0.9, 1.0)
"""open_clip's default crop. Its output is normalised floats; ours is uint8, normalised on the device."""


def cases(request: Request) -> list[Case]:
    from unicl_cli.jobs.bench.feeding import feeding_case  # it takes this module's parts

    variants = (OURS, PEER) if request.vs else (OURS,)
    rows: dict[str, Callable[..., PreparedCase]] = {
        "decode": prepare_decoding,
        "decode+augment": prepare_augmenting,
        "batches": prepare_batches,
    }
    size = request.batch or FILES
    made = [Case(name, "images", variants, variants[-1], partial(make, size=size)) for name, make in rows.items()]
    return [*made, feeding_case(request)]


def open_rgb(data: bytes) -> Image.Image:
    """Open an image as open_clip's loaders do ("pilrgb")."""
    return Image.open(io.BytesIO(data)).convert("RGB")


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


def file_facts(files: Collection[bytes]) -> dict[str, Any]:
    return {"mean_bytes": round(sum(map(len, files)) / len(files)), "pixels": "500 x 375", "to": SIZE}


def our_transform(size: int = SIZE, *, decoder: str = "auto", resize: str = "tensor") -> TrainTransform:
    ops = build_augment("none", {"crop": CROP})
    return TrainTransform(size, [ops], 0, decoder=decoder, resize=resize)


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


class FileTable:
    """Generated image files and their captions, in place of a corpus's table."""

    def __init__(self, files: tuple[bytes, ...], texts: list[str]) -> None:
        self.files, self.texts = files, texts

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int, *, media: bool = False) -> Sample:
        del media
        return Sample(self.files[row], (self.texts[row],), -1, "bench", str(row), (row,))


def repeat_batches(
    files: tuple[bytes, ...],
    texts: list[str],
    *,
    transform: TrainTransform | None = None,
    workers: int = 0,
    device: torch.device = CPU,
    augment: DeviceAugment | None = None,
) -> Iterator[Batch]:
    """Yield batches of all files on ``device`` without end, through the loader of training."""
    sizes = np.array([len(files)])
    table = cast("RowTable", FileTable(files, texts))
    cropped = transform or our_transform()
    strand = Strand(table, "captions", 1.0, None, sizes, np.empty(0, np.int64), (), (), cropped, 0)
    order = Mixture([Stream(sizes, "bench")], [Fraction(1)], len(files), 0)
    found = batches(
        MixedCorpora([strand], TextChoice("mixed", "first", 0)),
        Draws(order, 0, 10**9, 0, 1),
        clip_bpe(),
        caption_targets="unique",
        extra=None,
        distinct=True,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    return (batch for _, batch in move_ahead(found, device, workers, augment))


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
