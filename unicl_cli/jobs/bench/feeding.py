"""The `training` row of `bench loader`: from JPEG bytes to trained steps with the machine's cores, in wall time.

Our loader and loop, open_clip's loader and step; and SimCLR's augmentation in the loader's workers or on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from open_clip import get_tokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unicl_cli.contracts import Batch
from unicl_cli.core.machine import cores
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.transforms import TrainTransform, build_augment, split_augment
from unicl_cli.jobs.bench.captions import make_captions
from unicl_cli.jobs.bench.file_batches import FILES, OURS, file_facts, open_rgb, our_transform, repeat_batches
from unicl_cli.jobs.bench.jpegs import make_jpegs
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import ModelPair, make_model_pair
from unicl_cli.jobs.bench.protocol import WALL, Case, PreparedCase, choose_device, wall_seconds
from unicl_cli.jobs.bench.recipe import WaitSink
from unicl_cli.jobs.bench.step import choose_precision, make_our_loop, make_their_update

SIMCLR_LOADER, SIMCLR_DEVICE = "simclr in workers", "simclr on device"
STEPS = 4
"""Steps of one run."""
MOST_WORKERS = 8


def feeding_case(request: Request) -> Case:
    variants = (OURS, SIMCLR_DEVICE, SIMCLR_LOADER, *((PEER,) if request.vs else ()))
    return Case("training", "images", variants, variants[-1], partial(prepare_feeding, request), extra=True)


class EndlessPairs(Dataset["tuple[Tensor, Tensor]"]):
    """Image files and captions over and over, as open_clip's CSV data set gives them."""

    def __init__(self, files: tuple[bytes, ...], texts: list[str], side: int) -> None:
        self.files, self.texts = files, texts
        self.transform = cast("Any", image_transform_v2(PreprocessCfg(size=side), is_train=True))
        self.tokenize = get_tokenizer("ViT-B-32")

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        at = index % len(self.files)
        return self.transform(open_rgb(self.files[at])), self.tokenize([self.texts[at]])[0]


def worker_processes() -> int:
    """Return the number of decoding processes of both loaders: one core is left for the step."""
    return max(1, min(MOST_WORKERS, cores() - 1))


def prepare_feeding(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare steps with their data; the facts hold the share of time in which ours waited for data."""
    device, size, precision = choose_device(request), request.batch or FILES, choose_precision(request)
    pair = make_model_pair(request.model or "small", device, size, precision=precision)
    side, workers = pair.recipe.data.image_size, worker_processes()
    files = make_jpegs(min(size, FILES))
    files, texts = tuple(files[n % len(files)] for n in range(size)), make_captions(size).texts
    ops = build_augment("simclr", {})
    crop, late = split_augment(ops)
    load = partial(repeat_batches, files, texts, workers=workers, device=device)
    transforms = {
        OURS: our_transform(side),
        SIMCLR_LOADER: make_transform(side, ops),
        SIMCLR_DEVICE: make_transform(side, crop),
    }
    augment = {SIMCLR_DEVICE: DeviceAugment([late], 0)}
    waited: dict[str, float] = {}
    runs: dict[str, Callable[[], None]] = {}
    for name in variants:
        if name == PEER:
            runs[name] = make_their_feeding(pair, EndlessPairs(files, texts, side), size, workers, device, precision)
        else:
            found = load(transform=transforms[name], augment=augment.get(name))
            runs[name] = make_our_feeding(pair, found, device, WaitSink(waited, name))
    facts = {
        **file_facts(files),
        "to": side,
        "workers": workers,
        "precision": precision,
        "waited": waited,
        "clock": WALL,
    }
    return PreparedCase(STEPS * size, runs, facts | {"model": request.model or "small"}, timer=wall_seconds)


def make_transform(side: int, ops: Any) -> TrainTransform:
    return TrainTransform(side, [ops], 0, decoder="auto", resize="tensor")


def make_our_feeding(
    pair: ModelPair, found: Iterator[Batch], device: torch.device, sink: WaitSink
) -> Callable[[], None]:
    """Return STEPS steps of our loop on the next batches."""
    loops: list[Any] = []

    def run() -> None:
        if not loops:
            loops.append(make_our_loop(pair.recipe, pair.step, device, log_every=STEPS))
        loops[0](enumerate(islice(found, STEPS)), sink)

    return run


def make_their_feeding(
    pair: ModelPair, data: EndlessPairs, size: int, workers: int, device: torch.device, precision: str
) -> Callable[[], None]:
    """Return STEPS steps of open_clip on the next batches of its loader."""
    update = make_their_update(pair.theirs, device, precision)
    loader: Any = DataLoader(data, size, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True)
    found: list[Iterator[Any]] = []

    def run() -> None:
        if not found:
            found.append(iter(loader))
        for images, tokens in islice(found[0], STEPS):
            update(images.to(device, non_blocking=True), tokens.to(device, non_blocking=True))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run
