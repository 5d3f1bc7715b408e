"""The choice to encode each text of a frozen tower once and look it up afterwards, instead of at each step."""

from typing import Any, cast

from torch import nn

from unicl_cli.core.dist import bare
from unicl_cli.data.mix import LABELS, MixedCorpora
from unicl_cli.jobs.train.setup import Parts

PAYS = 6
"""Times that a text must come on average: it is encoded by itself, which takes about four times as long on a CPU."""
MAX_BYTES = 1 << 30
"""Memory limit of the cache."""


def texts_in(mix: MixedCorpora) -> int:
    """Count the texts that a mix can draw: each prompt of each class, and the captions."""
    prompts = sum(sum(map(len, s.names)) * len(s.templates) for s in mix.strands if s.kind == LABELS)
    return prompts + sum(len(part.flatten()) for s in mix.strands for part in s.table.column("texts").chunks)


def cache_texts(parts: Parts, step: nn.Module) -> str | None:
    """Let a frozen tower look its texts up, where that pays and the cache is not too large; return a note about it.

    The weights must be in place.
    """
    recipe, model = parts.recipe, cast("Any", bare(step)).model
    if recipe.parallel.text_cache == "off" or not hasattr(model, "remember_texts") or not model.remember_texts():
        return None
    count, seen = texts_in(parts.data.mix), parts.sizes.steps * recipe.batch.size
    size = 2 * 4 * count * model.text_width  # float32, and twice while the cache grows
    if seen < PAYS * count or size > MAX_BYTES:
        model.bank = None
        return None
    return f"texts are encoded once and looked up: their tower is frozen, and each comes about {seen // count} times"
