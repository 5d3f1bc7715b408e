"""The text tower alone, forward and backward: what trimming, encoding each text once, and like lengths save."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from unicl_cli.jobs.bench.captions import Texts, captions, prompts
from unicl_cli.jobs.bench.kinds import PEER, Asked
from unicl_cli.jobs.bench.protocol import Case, Ready, device_of
from unicl_cli.jobs.bench.step import OURS, Twin, batch_of
from unicl_cli.jobs.bench.twins import Twins, apart, padded, shape_of, twins, zero

FULL, TRIMMED, DISTINCT = "full", "trimmed", "distinct"
"""Every row's text with 77 tokens; cut to the longest; each text once. `unicl`: packed as well, as in training."""


def cases(asked: Asked) -> list[Case]:
    shape_of(asked.model or "text")
    rows: dict[str, Callable[[int], Texts]] = {"captions": captions}
    for count in asked.classes or (10, 100, 1000):
        rows[f"prompts-{count}"] = partial(prompts, classes=count, templates=1)
    rows["prompts-1000-t80"] = partial(prompts, classes=1000, templates=80)
    usual = ("captions", *(f"prompts-{count}" for count in asked.classes or (100,)))
    found: list[Case] = []
    for name, texts in rows.items():
        whole = (TRIMMED, FULL) if name == "captions" else ()  # these cost the same everywhere
        who = (OURS, DISTINCT, *whole, *((PEER,) if asked.vs else ()))
        prepare = partial(prepared, asked, texts)
        found.append(Case(name, "texts", who, who[-1], prepare, int(name == "captions"), extra=name not in usual))
    return found


def prepared(asked: Asked, texts: Callable[[int], Texts], who: Collection[str]) -> Ready:
    device, size = device_of(asked), asked.batch or 64
    pair = twins(asked.model or "text", device, size)
    batch = batch_of(texts(size), pair.tokenizer, image_size=1).to(device)
    embed_dim = pair.recipe.model.part.options["embed_dim"]
    weights = torch.randn(size, embed_dim, generator=torch.Generator().manual_seed(1)).to(device)
    amp = partial(torch.autocast, device.type, torch.bfloat16, enabled=asked.precision == "bf16")
    once, rows = batch.batch.tokens, batch.batch.text_index
    forward: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: pair.ours.encode_text(once).embed[rows],
        DISTINCT: lambda: pair.ours.encode_text(once).embed[rows],
        TRIMMED: lambda: pair.ours.encode_text(once[rows]).embed,
        FULL: lambda: pair.ours.encode_text(padded(once)[rows]).embed,
        PEER: lambda: pair.theirs.encode_text(batch.tokens, normalize=True),
    }

    def run(name: str) -> None:
        pair.ours.text.trunk.packs = name == OURS
        with amp():
            out = forward[name]()
        (out.float() * weights).sum().backward()
        zero(pair.theirs if name == PEER else pair.step)

    runs = {name: partial(run, name) for name in forward if name in who}
    check = partial(checked, pair, batch, weights) if PEER in runs else None
    return Ready(size, runs, {**batch.facts(), "model": asked.model or "text"}, check)


def checked(pair: Twins, batch: Twin, weights: Tensor) -> dict[str, float]:
    """In float32, whatever is measured."""
    zero(pair.step, pair.theirs)
    mine = pair.ours.encode_text(batch.batch.tokens).embed[batch.batch.text_index]
    theirs = pair.theirs.encode_text(batch.tokens, normalize=True)
    for out in (mine, theirs):
        (out * weights).sum().backward()
    found = apart(pair, mine, theirs)
    zero(pair.step, pair.theirs)
    return found
