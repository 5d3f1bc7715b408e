"""`bench eval`: the two costs of a zero-shot evaluation, the classifier from class names and image features."""

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
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import largest_difference, make_model_pair, shape_of
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device

OURS = "unicl"
CLASSES, BATCH = 5, 32
CHECKED = 10
"""Number of classes, spread over all, whose vectors are compared with open_clip's."""


def cases(request: Request) -> list[Case]:
    shape_of(request.model or "small")
    variants = (OURS, PEER) if request.vs else (OURS,)
    rows = [
        Case(f"classifier-{n}x80", "prompts", variants, variants[-1], partial(prepare_classifier, request, n))
        for n in request.classes or (CLASSES,)
    ]
    return [*rows, Case("pictures", "images", variants, variants[-1], partial(prepare_images, request))]


def make_encoders(request: Request) -> tuple[Encoder, Any, Any]:
    """Return our model as evaluation calls it, open_clip's model, and the pair of both."""
    pair = make_model_pair(request.model or "small", choose_device(request))
    pair.theirs.eval()
    loaded = cast("Loaded", SimpleNamespace(step=pair.step.eval(), tokenizer=pair.tokenizer))
    return Encoder(loaded), pair.theirs, pair


def prepare_classifier(request: Request, count: int, variants: Collection[str]) -> PreparedCase:
    encoder, theirs, pair = make_encoders(request)
    names, templates = class_names(count), load_templates("clip80")
    tokenize = get_tokenizer("ViT-B-32")

    def ours() -> Tensor:
        prompts = prompts_of([(name,) for name in names], templates)
        return zeroshot_classifier(prompts, encode_text=encoder.encode_text, tokenizer=pair.tokenizer).weights

    def peer(names: list[str] = names) -> Tensor:
        return build_zero_shot_classifier(theirs, tokenize, names, templates, device=encoder.device).T.cpu()

    some = slice(None, None, -(-count // CHECKED))
    check = (lambda: {"forward": largest_difference(ours()[some], peer(names[some]))}) if PEER in variants else None
    runs: dict[str, Callable[[], Any]] = {OURS: ours, PEER: peer}
    facts = {"classes": count, "templates": len(templates), "model": request.model or "small"}
    return PreparedCase(count * len(templates), {name: runs[name] for name in variants}, facts, check)


def prepare_images(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare images on the device to features; open_clip gets normalised floats, we get uint8."""
    encoder, theirs, pair = make_encoders(request)
    size, side = request.batch or BATCH, pair.recipe.data.image_size
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(encoder.device)
    floats = pair.ours.pixels(images)

    @torch.inference_mode()
    def peer() -> Tensor:
        return theirs.encode_image(floats, normalize=True)

    def ours() -> Tensor:
        return encoder.encode_image(images).embed

    check = (lambda: {"forward": largest_difference(ours(), peer())}) if PEER in variants else None
    runs: dict[str, Callable[[], Any]] = {OURS: ours, PEER: peer}
    return PreparedCase(size, {name: runs[name] for name in variants}, {"model": request.model or "small"}, check)
