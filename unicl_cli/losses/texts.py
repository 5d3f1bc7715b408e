"""The texts of a batch, as the losses that contrast images and texts need them."""

from torch import Tensor

from unicl_cli.contracts import NO_KEY, NO_TEXT, Batch, Model


def encode_texts(model: Model, batch: Batch, *, fold: bool) -> tuple[Tensor, Tensor | None]:
    """Encode the distinct texts: return (U, D) and the index of each row's text, or (b, D), one per row, and None."""
    v = model.encode_text(batch.tokens).embed
    if fold:
        return v, batch.text_index
    return v[batch.text_index], None  # a row without text reads the last one and is hidden


def text_keys(keys: Tensor, batch: Batch) -> Tensor:
    """Hide the rows without text."""
    return keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)
