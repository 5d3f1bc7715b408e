"""BERT as a text tower and as the text stream of other models. Factories, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Count = Annotated[int, Field(gt=0, le=65536)]


def build_bert(
    *,
    vocab_size: int,
    context_length: int,
    pad_id: int,
    eot_id: int,
    width: Count = 768,
    layers: Count = 12,
    heads: Count = 12,
    hidden: Count = 3072,
) -> nn.Module:
    """BERT from random weights, without dropout; the sizes are BERT-base's."""
    from unicl_bert.bert import Bert, Size, Special

    size = Size(vocab_size + 1, width, layers, heads, hidden, context_length)
    return Bert(size, Special(pad_id, eot_id, vocab_size))


def build_bert_folder(*, folder: str, length: Count = 36, stored: Path | None) -> nn.Module:
    """BERT with weights, sizes and tokenizer from a folder, such as one that `unicl vilbert text` wrote."""
    from pathlib import Path

    from unicl_bert.bert import StoredBert, load_bert

    model = StoredBert(Path(folder).expanduser() if stored is None else stored, length)
    if stored is None and not model.bias.is_meta:
        load_bert(model, Path(folder).expanduser())
    return model
