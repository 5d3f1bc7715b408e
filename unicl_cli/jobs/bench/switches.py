"""`bench switches`: the gain of each speed switch, our training at each of its values, the plain one last."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unicl_cli.build.model import build_step
from unicl_cli.contracts import Batch
from unicl_cli.core.loop import Step
from unicl_cli.core.switches import compile_units
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.transforms import Augmentation, TrainTransform, build_augment, split_augment
from unicl_cli.jobs.bench.captions import LabelledTexts, make_captions, make_prompts, mix_captions_and_prompts
from unicl_cli.jobs.bench.file_batches import FILES, SIZE, file_facts, our_transform, repeat_batches
from unicl_cli.jobs.bench.jpegs import make_jpegs
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.model_pair import (
    clip_bpe,
    gradients_apart,
    gradients_of,
    largest_difference,
    make_recipe,
    shape_of,
)
from unicl_cli.jobs.bench.protocol import WALL, Case, PreparedCase, choose_device, wall_seconds
from unicl_cli.jobs.bench.recipe import WaitSink
from unicl_cli.jobs.bench.step import RATE, make_our_loop, make_our_step, make_pair_batch
from unicl_cli.jobs.train.sizes import chunk_count
from unicl_cli.recipe.schema import Recipe

RESNET = {"name": "timm", "model": "resnet18"}
STEPS = 4
"""Training steps of one run of `data.workers`."""
LABELS = partial(make_prompts, classes=100, templates=80)
BOTH = partial(mix_captions_and_prompts, classes=1000, templates=80)


class Switch(NamedTuple):
    """The values of a recipe key, the plain one last; ``image`` replaces the model's own backbone.

    ``memory``: the switch saves memory. ``usual``: its row runs without being named.
    """

    values: tuple[str, ...] = ("true", "false")
    texts: Callable[[int], LabelledTexts] = BOTH
    frozen: bool = False
    image: Mapping[str, Any] | None = None
    memory: bool = False
    usual: bool = True


STEP_SWITCHES: Mapping[str, Switch] = MappingProxyType(
    {
        "parallel.pack_texts": Switch(),
        "parallel.text_cache": Switch(("auto", "off"), texts=LABELS, frozen=True),
        "parallel.channels_last": Switch(image=RESNET),
        "parallel.compile": Switch(usual=False),
        "parallel.grad_checkpoint": Switch(memory=True),
        "batch.micro": Switch(("8", "auto"), memory=True),
    }
)


def cases(request: Request) -> list[Case]:
    shape_of(request.model or "small")
    steps = [
        Case(
            key,
            "images",
            s.values,
            s.values[-1],
            partial(prepare_switch, request, key, s),
            2 * s.memory,
            extra=not s.usual,
        )
        for key, s in STEP_SWITCHES.items()
    ]
    files: dict[str, tuple[tuple[str, ...], Callable[..., PreparedCase]]] = {
        "data.decoder": (("auto", "pillow"), prepare_decoders),
        "data.resize": (("tensor", "pillow"), prepare_resizers),
        "data.augment_on": ((CROP_ONLY, "device", "loader"), prepare_augment_on),
    }
    size = request.batch or FILES
    made = [
        Case(key, "images", variants, variants[-1], partial(make, size=size)) for key, (variants, make) in files.items()
    ]
    adamw = Case("AdamW", "updates", tuple(ADAMW), PLAIN, partial(prepare_adamw, request))
    return [
        *steps,
        adamw,
        *made,
        Case("data.workers", "images", ("2", "1", "0"), "0", partial(prepare_workers, request)),
    ]


def prepare_switch(request: Request, key: str, switch: Switch, variants: Collection[str]) -> PreparedCase:
    """Prepare updates on one batch by models with the same weights, one for each value of the switch."""
    device, size = choose_device(request), request.batch or FILES
    shape = shape_of(request.model or "small")
    shape = shape if switch.image is None else shape._replace(image=switch.image)
    precision = request.precision or ("bf16" if device.type == "cuda" else "fp32")
    side = shape.theirs["vision_cfg"]["image_size"]
    batch = make_pair_batch(switch.texts(size), clip_bpe(), side).to(device)
    recipes = {
        value: make_recipe(shape, size, precision=precision, frozen_text=switch.frozen, changes=(f"{key}={value}",))
        for value in switch.values
        if value in variants
    }
    makers = {value: partial(build_trained_step, recipe, device) for value, recipe in recipes.items()}
    runs = {value: make_our_step(recipes[value], make(), batch.batch, device) for value, make in makers.items()}
    about = {**batch.facts(), "precision": precision, "model": request.model or "small"}
    return PreparedCase(size, runs, about, partial(compare_values, makers, batch.batch) if len(runs) > 1 else None)


def build_trained_step(recipe: Recipe, device: torch.device) -> Step:
    """Build a step as `train` does, on one process."""
    rows = recipe.batch.size if recipe.batch.micro == "auto" else recipe.batch.micro
    step, _ = build_step(recipe, clip_bpe, (), chunk_count(recipe.batch.size, rows))
    if recipe.parallel.compile:
        compile_units(step)
    step.train().to(device)  # frozen towers stay in evaluation mode
    if recipe.parallel.text_cache == "auto":
        cast("Any", step.model).remember_texts()
    return step


def compare_values(makers: Mapping[str, Callable[[], Step]], batch: Batch) -> dict[str, float]:
    """Compare loss and gradients with those of the plain value, in float64.

    In float32, a ReLU near 0 would amplify rounding. ``first_s``: CPU seconds of the slowest first step.
    """
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}
    first = 0.0
    for value, make in makers.items():
        step = make().double()
        began = sum(os.times()[:4])
        loss = step(batch)["loss"]
        loss.backward()
        first = max(first, sum(os.times()[:4]) - began)
        found[value] = float(loss.detach()), gradients_of(step)
    plain, expected = found[list(makers)[-1]]
    return {
        "forward": max(abs(loss - plain) for loss, _ in found.values()),
        "gradients": max(gradients_apart(grads, expected) for _, grads in found.values()),
        "first_s": first,
    }


PLAIN = "one by one"
ADAMW: Mapping[str, Any] = {"fused": {"fused": True}, "foreach": {"foreach": True}, PLAIN: {"foreach": False}}
"""Training has no switch for this: it always uses the first."""


def prepare_adamw(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare AdamW alone, on all parameters of the model."""
    device = choose_device(request)
    recipe = make_recipe(shape_of(request.model or "small"), FILES, precision="fp32", frozen_text=False)
    step = build_trained_step(recipe, device)
    drawn = [torch.randn_like(p) for p in step.parameters()]
    copies = {name: deepcopy(step) for name in variants}
    for copy in copies.values():
        for p, gradient in zip(copy.parameters(), drawn, strict=True):
            p.grad = gradient
    ways = {name: torch.optim.AdamW(copy.parameters(), lr=RATE, **ADAMW[name]) for name, copy in copies.items()}

    def check() -> dict[str, float]:
        for optimizer in ways.values():
            optimizer.step()
        flat = [torch.cat([p.flatten() for p in copy.parameters()]) for copy in copies.values()]
        return {"forward": max(largest_difference(x, flat[-1]) for x in flat)}

    about = {"parameters": sum(p.numel() for p in step.parameters())}
    return PreparedCase(1, {name: way.step for name, way in ways.items()}, about, check)


def prepare_decoders(variants: Collection[str], size: int) -> PreparedCase:
    forms = {name: our_transform(decoder=name) for name in ("auto", "pillow")}
    return prepare_transforms(forms, variants, size, limit="forward")  # bit for bit


def prepare_resizers(variants: Collection[str], size: int) -> PreparedCase:
    return prepare_transforms(
        {name: our_transform(resize=name) for name in ("tensor", "pillow")}, variants, size, limit="levels"
    )


def prepare_transforms(
    forms: Mapping[str, TrainTransform], variants: Collection[str], size: int, *, limit: str
) -> PreparedCase:
    """Prepare cropping of image files; equal draws make decode_pixels comparable. ``off``: the share that differs."""
    files = make_jpegs(size)

    def check() -> dict[str, float]:
        one, other = forms.values()
        gaps = torch.stack([(one(file, n).int() - other(file, n).int()).abs() for n, file in enumerate(files)])
        return {limit: float(gaps.max()), "off": float(gaps.bool().float().mean())}

    def run(form: TrainTransform) -> None:
        for n, file in enumerate(files):
            form(file, n)

    return PreparedCase(
        size, {name: partial(run, form) for name, form in forms.items() if name in variants}, file_facts(files), check
    )


CROP_ONLY = "its crop"
"""The part of the augmentation that `device` leaves to a worker."""


def prepare_augment_on(variants: Collection[str], size: int) -> PreparedCase:
    """Prepare SimCLR's augmentation, the longest after the crop. Its random numbers differ, so nothing is compared."""
    ops = build_augment("simclr", {})
    crop, late = split_augment(ops)
    files, on_device = make_jpegs(size), DeviceAugment([late], 0)
    draws = torch.arange(size)

    def cut(ops: Augmentation) -> Tensor:
        made = TrainTransform(SIZE, [ops], 0, decoder="auto", resize="tensor")
        return torch.stack([made(file, n) for n, file in enumerate(files)])

    forms: dict[str, Callable[[], Any]] = {
        CROP_ONLY: lambda: cut(crop),
        "device": lambda: on_device(cut(crop), draws),
        "loader": lambda: cut(ops),
    }
    return PreparedCase(size, {name: forms[name] for name in variants}, file_facts(files))


def prepare_workers(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare steps with their data in wall time, by number of decoding processes, with the share spent waiting."""
    device, size = choose_device(request), request.batch or FILES
    shape = shape_of(request.model or "small")
    recipe = make_recipe(shape, size, precision=request.precision or "fp32", frozen_text=False)
    loop = make_our_loop(recipe, build_trained_step(recipe, device), device, log_every=STEPS)
    waited: dict[str, float] = {}
    about: dict[str, Any] = {"clock": WALL, "waited": waited, "model": request.model or "small"}
    transform, texts = our_transform(recipe.data.image_size), make_captions(size).texts
    load = partial(repeat_batches, make_jpegs(size), texts, transform=transform, device=device)
    loaders = {name: load(workers=int(name)) for name in variants}

    def run(name: str) -> None:
        loop(enumerate(islice(loaders[name], STEPS)), WaitSink(waited, name))

    return PreparedCase(STEPS * size, {name: partial(run, name) for name in variants}, about, timer=wall_seconds)
