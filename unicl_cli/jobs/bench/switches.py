"""What each switch of speed gains: our own training with it at each of its values, the plain way last."""

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
from unicl_cli.data.transforms import Augment, TrainTransform, build_augment, split_augment
from unicl_cli.jobs.bench.captions import Texts, captions, mixed, prompts
from unicl_cli.jobs.bench.kinds import Asked
from unicl_cli.jobs.bench.loader import FILES, SIZE, endless, facts, our_transform
from unicl_cli.jobs.bench.pictures import pictures
from unicl_cli.jobs.bench.protocol import Case, Ready, device_of, wall_seconds
from unicl_cli.jobs.bench.recipe import Shares
from unicl_cli.jobs.bench.step import RATE, batch_of, our_loop, our_step
from unicl_cli.jobs.bench.twins import clip_tokens, difference, gradients, gradients_apart, recipe_of, shape_of
from unicl_cli.jobs.train.micro_batch import chunks_of
from unicl_cli.recipe.schema import Recipe

RESNET = {"name": "timm", "model": "resnet18"}
STEPS = 4
"""Of a run in which a training waits for its loader."""
LABELS = partial(prompts, classes=100, templates=80)
BOTH = partial(mixed, classes=1000, templates=80)


class Switch(NamedTuple):
    """A key's values with the plain one last; ``image`` is the backbone that it is for, else the model's own.

    ``memory``: is it there for the sake of memory? ``usual``: does it run without being named?
    """

    values: tuple[str, ...] = ("true", "false")
    texts: Callable[[int], Texts] = BOTH
    frozen: bool = False
    image: Mapping[str, Any] | None = None
    memory: bool = False
    usual: bool = True


OF_STEPS: Mapping[str, Switch] = MappingProxyType(
    {
        "parallel.pack_texts": Switch(),
        "parallel.text_cache": Switch(("auto", "off"), texts=LABELS, frozen=True),
        "parallel.channels_last": Switch(image=RESNET),
        "parallel.compile": Switch(usual=False),
        "parallel.grad_checkpoint": Switch(memory=True),
        "batch.micro": Switch(("8", "auto"), memory=True),
    }
)


def cases(asked: Asked) -> list[Case]:
    shape_of(asked.model or "small")
    steps = [
        Case(key, "images", s.values, s.values[-1], partial(stepping, asked, key, s), 2 * s.memory, extra=not s.usual)
        for key, s in OF_STEPS.items()
    ]
    files: dict[str, tuple[tuple[str, ...], Callable[..., Ready]]] = {
        "data.decoder": (("auto", "pillow"), decoding),
        "data.resize": (("tensor", "pillow"), resizing),
        "data.augment_on": ((LATER, "device", "loader"), augmenting),
    }
    size = asked.batch or FILES
    made = [Case(key, "images", who, who[-1], partial(make, size=size)) for key, (who, make) in files.items()]
    adamw = Case("AdamW", "updates", tuple(ADAMW), PLAIN, partial(updating, asked))
    return [*steps, adamw, *made, Case("data.workers", "images", ("2", "1", "0"), "0", partial(waiting, asked))]


def stepping(asked: Asked, key: str, switch: Switch, who: Collection[str]) -> Ready:
    """Updates of models with the same weights on one batch, each built as its recipe says."""
    device, size = device_of(asked), asked.batch or FILES
    shape = shape_of(asked.model or "small")
    shape = shape if switch.image is None else shape._replace(image=switch.image)
    precision = asked.precision or ("bf16" if device.type == "cuda" else "fp32")
    side = shape.theirs["vision_cfg"]["image_size"]
    batch = batch_of(switch.texts(size), clip_tokens(), side).to(device)
    recipes = {
        value: recipe_of(shape, size, precision=precision, frozen_text=switch.frozen, changes=(f"{key}={value}",))
        for value in switch.values
        if value in who
    }
    makers = {value: partial(built, recipe, device) for value, recipe in recipes.items()}
    runs = {value: our_step(recipes[value], make(), batch.batch, device) for value, make in makers.items()}
    about = {**batch.facts(), "precision": precision, "model": asked.model or "small"}
    return Ready(size, runs, about, partial(checked, makers, batch.batch) if len(runs) > 1 else None)


def built(recipe: Recipe, device: torch.device) -> Step:
    """As `train` makes it, on one process."""
    rows = recipe.batch.size if recipe.batch.micro == "auto" else recipe.batch.micro
    step, _ = build_step(recipe, clip_tokens, (), chunks_of(recipe.batch.size, rows))
    if recipe.parallel.compile:
        compile_units(step)
    step.train().to(device)  # a tower that is frozen goes to evaluation
    if recipe.parallel.text_cache == "auto":
        cast("Any", step.model).remember_texts()
    return step


def checked(makers: Mapping[str, Callable[[], Step]], batch: Batch) -> dict[str, float]:
    """Loss and gradients of all against the plain way's, in float64 (a ReLU near 0 turns float32's rounding into much
    more); ``first_s``: CPU seconds of the slowest, with all that is done at a first call.
    """
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}
    first = 0.0
    for value, make in makers.items():
        step = make().double()
        began = sum(os.times()[:4])
        loss = step(batch)["loss"]
        loss.backward()
        first = max(first, sum(os.times()[:4]) - began)
        found[value] = float(loss.detach()), gradients(step)
    plain, wanted = found[list(makers)[-1]]
    return {
        "forward": max(abs(loss - plain) for loss, _ in found.values()),
        "gradients": max(gradients_apart(grads, wanted) for _, grads in found.values()),
        "first_s": first,
    }


PLAIN = "one by one"
ADAMW: Mapping[str, Any] = {"fused": {"fused": True}, "foreach": {"foreach": True}, PLAIN: {"foreach": False}}
"""Training has no switch for it: it always takes the first."""


def updating(asked: Asked, who: Collection[str]) -> Ready:
    """The update alone, of all parameters of the model."""
    device = device_of(asked)
    recipe = recipe_of(shape_of(asked.model or "small"), FILES, precision="fp32", frozen_text=False)
    step = built(recipe, device)
    drawn = [torch.randn_like(p) for p in step.parameters()]
    copies = {name: deepcopy(step) for name in who}
    for copy in copies.values():
        for p, gradient in zip(copy.parameters(), drawn, strict=True):
            p.grad = gradient
    ways = {name: torch.optim.AdamW(copy.parameters(), lr=RATE, **ADAMW[name]) for name, copy in copies.items()}

    def check() -> dict[str, float]:
        for optimizer in ways.values():
            optimizer.step()
        flat = [torch.cat([p.flatten() for p in copy.parameters()]) for copy in copies.values()]
        return {"forward": max(difference(x, flat[-1]) for x in flat)}

    about = {"parameters": sum(p.numel() for p in step.parameters())}
    return Ready(1, {name: way.step for name, way in ways.items()}, about, check)


def decoding(who: Collection[str], size: int) -> Ready:
    forms = {name: our_transform(decoder=name) for name in ("auto", "pillow")}
    return files_by(forms, who, size, limit="forward")  # bit for bit


def resizing(who: Collection[str], size: int) -> Ready:
    return files_by({name: our_transform(resize=name) for name in ("tensor", "pillow")}, who, size, limit="levels")


def files_by(forms: Mapping[str, TrainTransform], who: Collection[str], size: int, *, limit: str) -> Ready:
    """Files to cropped images; the draws are the same, so the pixels can be compared. ``off``: share that differs."""
    files = pictures(size)

    def check() -> dict[str, float]:
        one, other = forms.values()
        gaps = torch.stack([(one(file, n).int() - other(file, n).int()).abs() for n, file in enumerate(files)])
        return {limit: float(gaps.max()), "off": float(gaps.bool().float().mean())}

    def run(form: TrainTransform) -> None:
        for n, file in enumerate(files):
            form(file, n)

    return Ready(size, {name: partial(run, form) for name, form in forms.items() if name in who}, facts(files), check)


LATER = "its crop"
"""What `device` leaves to a worker."""


def augmenting(who: Collection[str], size: int) -> Ready:
    """SimCLR's, which has the most to do after the crop. The random numbers differ, so there is nothing to compare."""
    ops = build_augment("simclr", {})
    crop, late = split_augment(ops)
    files, on_device = pictures(size), DeviceAugment([late], 0)
    draws = torch.arange(size)

    def cut(ops: Augment) -> Tensor:
        made = TrainTransform(SIZE, [ops], 0, decoder="auto", resize="tensor")
        return torch.stack([made(file, n) for n, file in enumerate(files)])

    forms: dict[str, Callable[[], Any]] = {
        LATER: lambda: cut(crop),
        "device": lambda: on_device(cut(crop), draws),
        "loader": lambda: cut(ops),
    }
    return Ready(size, {name: forms[name] for name in who}, facts(files))


def waiting(asked: Asked, who: Collection[str]) -> Ready:
    """Steps with their data, decoded by so many processes beside them, in wall time; and its share spent waiting."""
    device, size = device_of(asked), asked.batch or FILES
    shape = shape_of(asked.model or "small")
    recipe = recipe_of(shape, size, precision=asked.precision or "fp32", frozen_text=False)
    loop = our_loop(recipe, built(recipe, device), device, log_every=STEPS)
    waited: dict[str, float] = {}
    about: dict[str, Any] = {"waited": waited, "model": asked.model or "small"}
    side, texts = recipe.data.image_size, captions(size).texts
    loaders = {name: endless(pictures(size), texts, side=side, workers=int(name)) for name in who}

    def run(name: str) -> None:
        loop(enumerate(islice(loaders[name], STEPS)), Shares(waited, name))

    return Ready(STEPS * size, {name: partial(run, name) for name in who}, about, timer=wall_seconds)
