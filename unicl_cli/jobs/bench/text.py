"""`bench text`: the text tower alone, forward and backward; the gain of trimming, deduplicating and packing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from unicl_cli.jobs.bench.captions import LabelledTexts, make_captions, make_prompts
from unicl_cli.jobs.bench.kinds import PEER, Request
from unicl_cli.jobs.bench.model_pair import (
    ModelPair,
    compare_pair,
    make_model_pair,
    pad_to_context,
    shape_of,
    zero_grads,
)
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.jobs.bench.step import OURS, PairBatch, make_pair_batch

FULL, TRIMMED, DISTINCT = "full", "trimmed", "distinct"
"""full: 77 tokens a row. trimmed: to the longest. distinct: each text once. unicl: packed too, as in training."""


def cases(request: Request) -> list[Case]:
    shape_of(request.model or "text")
    rows: dict[str, Callable[[int], LabelledTexts]] = {"captions": make_captions}
    for count in request.classes or (10, 100, 1000):
        rows[f"prompts-{count}"] = partial(make_prompts, classes=count, templates=1)
    rows["prompts-1000-t80"] = partial(make_prompts, classes=1000, templates=80)
    usual = ("captions", *(f"prompts-{count}" for count in request.classes or (100,)))
    found: list[Case] = []
    for name, texts in rows.items():
        whole = (TRIMMED, FULL) if name == "captions" else ()  # their cost does not depend on the texts
        variants = (OURS, DISTINCT, *whole, *((PEER,) if request.vs else ()))
        prepare = partial(prepare_text_tower, request, texts)
        found.append(
            Case(name, "texts", variants, variants[-1], prepare, int(name == "captions"), extra=name not in usual)
        )
    return found


def prepare_text_tower(
    request: Request, texts: Callable[[int], LabelledTexts], variants: Collection[str]
) -> PreparedCase:
    device, size = choose_device(request), request.batch or 64
    pair = make_model_pair(request.model or "text", device, size)
    batch = make_pair_batch(texts(size), pair.tokenizer, image_size=1).to(device)
    embed_dim = pair.recipe.model.part.options["embed_dim"]
    weights = torch.randn(size, embed_dim, generator=torch.Generator().manual_seed(1)).to(device)
    amp = partial(torch.autocast, device.type, torch.bfloat16, enabled=request.precision == "bf16")
    once, rows = batch.batch.tokens, batch.batch.text_index
    forward: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: pair.ours.encode_text(once).embed[rows],
        DISTINCT: lambda: pair.ours.encode_text(once).embed[rows],
        TRIMMED: lambda: pair.ours.encode_text(once[rows]).embed,
        FULL: lambda: pair.ours.encode_text(pad_to_context(once)[rows]).embed,
        PEER: lambda: pair.theirs.encode_text(batch.tokens, normalize=True),
    }

    def run(name: str) -> None:
        pair.ours.text.trunk.packs = name == OURS
        with amp():
            out = forward[name]()
        (out.float() * weights).sum().backward()
        zero_grads(pair.theirs if name == PEER else pair.step)

    runs = {name: partial(run, name) for name in forward if name in variants}
    check = partial(compare_text_towers, pair, batch, weights) if PEER in runs else None
    return PreparedCase(size, runs, {**batch.facts(), "model": request.model or "text"}, check)


def compare_text_towers(pair: ModelPair, batch: PairBatch, weights: Tensor) -> dict[str, float]:
    """Compare features and gradients in float32, whatever precision is measured."""
    zero_grads(pair.step, pair.theirs)
    mine = pair.ours.encode_text(batch.batch.tokens).embed[batch.batch.text_index]
    theirs = pair.theirs.encode_text(batch.tokens, normalize=True)
    for out in (mine, theirs):
        (out * weights).sum().backward()
    found = compare_pair(pair, mine, theirs)
    zero_grads(pair.step, pair.theirs)
    return found
