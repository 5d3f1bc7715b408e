"""Whether the texts of a frozen tower are looked up in a stage, rather than encoded at each step."""

from typing import Any, cast

from torch import nn

from unicl_cli.core.dist import bare
from unicl_cli.data.mix import LABELS, Mix
from unicl_cli.jobs.train.setup import Parts

PAYS = 6
"""How often a text has to come: one that is looked up is encoded by itself, on a CPU in about four times the time."""
BANK_BYTES = 1 << 30


def texts_in(mix: Mix) -> int:
    """How many texts a mix can draw: each prompt of each class, and the captions."""
    prompts = sum(sum(map(len, s.names)) * len(s.templates) for s in mix.strands if s.kind == LABELS)
    return prompts + sum(len(part.flatten()) for s in mix.strands for part in s.table.column("texts").chunks)


def remember_texts(parts: Parts, step: nn.Module) -> str | None:
    """Looks up the texts of a frozen tower where that pays and has room; what to say of it.

    The weights must be in place.
    """
    recipe, model = parts.recipe, cast("Any", bare(step)).model
    if recipe.parallel.text_cache == "off" or not hasattr(model, "remember_texts") or not model.remember_texts():
        return None
    count, seen = texts_in(parts.data.mix), parts.steps * recipe.batch.size
    size = 2 * 4 * count * model.text_width  # float32, twice of it while the bank grows
    if seen < PAYS * count or size > BANK_BYTES:
        model.bank = None
        return None
    return f"texts are encoded once and looked up: their tower is frozen, and each comes about {seen // count} times"
