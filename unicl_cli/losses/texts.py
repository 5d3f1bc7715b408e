"""The texts of a batch, as the losses that contrast images and texts need them."""

import torch
from torch import Tensor

from unicl_cli.contracts import NO_KEY, NO_TEXT, Batch, Model
from unicl_cli.core.batch_columns import OWN_TEXT, PROMPT, PROMPTED, SHOWN


def encode_texts(model: Model, batch: Batch, *, fold: bool) -> tuple[Tensor, Tensor | None]:
    """Encode the distinct texts: return (U, D) and the index of each row's text, or (b, D), one per row, and None."""
    v = model.encode_text(batch.tokens).embed
    if fold:
        return v, batch.text_index
    return v[batch.text_index], None  # a row without text reads the last one and is hidden


def text_keys(keys: Tensor, batch: Batch) -> Tensor:
    """Hide the rows without text."""
    return keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)


def double_rows(batch: Batch) -> Batch:
    """Return a batch of 2b rows in which row b + i is row i with its prompt as its text; the images stay b.

    A row without a second text stands there without a text. The batch itself if it has no columns of second texts.
    """
    if PROMPT not in batch.extra:
        return batch
    prompts, no_key = batch.extra[PROMPT], torch.full_like(batch.keys, NO_KEY)
    others = {OWN_TEXT: no_key, SHOWN: batch.extra[PROMPTED]}
    kept = {name: x for name, x in batch.extra.items() if name not in (PROMPT, PROMPTED)}
    extra = {name: torch.cat([x, others.get(name, x)]) for name, x in kept.items()}
    twice = {name: torch.cat([getattr(batch, name)] * 2) for name in ("labels", "keys", "draws")}
    return batch._replace(text_index=torch.cat([batch.text_index, prompts]), extra=extra, **twice)
