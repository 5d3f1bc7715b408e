"""What a zero-shot evaluation spends its time on: the classifier of the class names, and images to features."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from open_clip import build_zero_shot_classifier, get_tokenizer
from torch import Tensor

from unicl_cli.build.load import Loaded
from unicl_cli.core.prompts import load_templates
from unicl_cli.evaluate.classifier import prompts_of, zeroshot_classifier
from unicl_cli.inference.encoder import Encoder
from unicl_cli.jobs.bench.captions import class_names
from unicl_cli.jobs.bench.kinds import PEER, Asked
from unicl_cli.jobs.bench.protocol import Case, Ready, device_of
from unicl_cli.jobs.bench.twins import difference, shape_of, twins

OURS = "unicl"
CLASSES, BATCH = 5, 32
CHECKED = 10
"""Classes of which open_clip's vectors are compared, spread over all: each class has its own."""


def cases(asked: Asked) -> list[Case]:
    shape_of(asked.model or "small")
    who = (OURS, PEER) if asked.vs else (OURS,)
    rows = [
        Case(f"classifier-{n}x80", "prompts", who, who[-1], partial(classifier, asked, n))
        for n in asked.classes or (CLASSES,)
    ]
    return [*rows, Case("pictures", "images", who, who[-1], partial(pictures, asked))]


def both(asked: Asked) -> tuple[Encoder, Any, Any]:
    """Our model as evaluation calls it, open_clip's, and our tokenizer."""
    pair = twins(asked.model or "small", device_of(asked))
    pair.theirs.eval()
    loaded = cast("Loaded", SimpleNamespace(step=pair.step.eval(), tokenizer=pair.tokenizer))
    return Encoder(loaded), pair.theirs, pair


def classifier(asked: Asked, count: int, who: Collection[str]) -> Ready:
    encoder, theirs, pair = both(asked)
    names, templates = class_names(count), load_templates("clip80")
    tokenize = get_tokenizer("ViT-B-32")

    def ours() -> Tensor:
        prompts = prompts_of([(name,) for name in names], templates)
        return zeroshot_classifier(prompts, encode_text=encoder.encode_text, tokenizer=pair.tokenizer).weights

    def peer(names: list[str] = names) -> Tensor:
        return build_zero_shot_classifier(theirs, tokenize, names, templates, device=encoder.device).T.cpu()

    some = slice(None, None, -(-count // CHECKED))
    check = (lambda: {"forward": difference(ours()[some], peer(names[some]))}) if PEER in who else None
    runs: dict[str, Callable[[], Any]] = {OURS: ours, PEER: peer}
    facts = {"classes": count, "templates": len(templates), "model": asked.model or "small"}
    return Ready(count * len(templates), {name: runs[name] for name in who}, facts, check)


def pictures(asked: Asked, who: Collection[str]) -> Ready:
    """Images on the device to features; open_clip's come normalised, ours as uint8."""
    encoder, theirs, pair = both(asked)
    size, side = asked.batch or BATCH, pair.recipe.data.image_size
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(encoder.device)
    floats = pair.ours.pixels(images)

    @torch.inference_mode()
    def peer() -> Tensor:
        return theirs.encode_image(floats, normalize=True)

    def ours() -> Tensor:
        return encoder.encode_image(images).embed

    check = (lambda: {"forward": difference(ours(), peer())}) if PEER in who else None
    runs: dict[str, Callable[[], Any]] = {OURS: ours, PEER: peer}
    return Ready(size, {name: runs[name] for name in who}, {"model": asked.model or "small"}, check)
