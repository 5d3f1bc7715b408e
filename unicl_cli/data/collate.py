"""The step from drawn samples to one Batch: keys, distinct texts, tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, NO_TEXT, Batch, Drawn
from unicl_cli.core.batch_columns import HASH_KEYS, PROMPT, PROMPTED, ROW_KEYS
from unicl_cli.core.prompt_marks import start_prompts
from unicl_cli.data.tokenizers import TextTokenizer

Hook = Callable[[Sequence[Drawn], Tensor, Tensor], Mapping[str, Tensor]]
Place = tuple[str, int, int]
"""Text, number, and the class that it names, NO_LABEL for a caption: what makes a row of tokens."""


class Extra:
    """The ``extra`` hooks of model and loss as one: (drawn, tokens, text_index) -> fields by name."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = tuple(hooks)

    def __bool__(self) -> bool:
        return bool(self.hooks)

    @property
    def reads_images(self) -> bool:
        """True if a hook may read images."""
        return any(map(reads_images, self.hooks))

    def __call__(self, drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for hook in self.hooks:
            rows = drawn if reads_images(hook) else [row._replace(image=cast("Any", None)) for row in drawn]
            found |= hook(rows, tokens, text_index)
        return found


def reads_images(hook: Hook) -> bool:
    """Return False if a hook, or the function that it is a partial of, says so by an attribute ``reads_images``.

    Such a hook gets rows whose image is None.
    """
    return bool(getattr(hook, "reads_images", getattr(getattr(hook, "func", None), "reads_images", True)))


def sample_key(drawn: Drawn, caption_targets: str) -> int:
    """Return a sample's key: its label; without one its row, or its text where ``caption_targets`` is text_hash.

    Labels are below 2^31, keys of rows between 2^40 and 2^62, keys of texts between 2^62 and 2^63.
    """
    if drawn.label != NO_LABEL:
        return drawn.label
    if caption_targets == "text_hash" and drawn.text is not None:
        return HASH_KEYS | drawn.text_hash
    return ROW_KEYS + drawn.row


def collate(
    drawn: Sequence[Drawn],
    images: Tensor,
    *,
    tokenizer: TextTokenizer | None,
    caption_targets: str,
    extra: Hook | None,
    distinct: bool = True,
    two_texts: bool = False,
) -> Batch:
    """Build the Batch of one rank's samples of a step and their images as one tensor.

    Equal texts are encoded once, in the order of their first rows; a caption and prompts of several classes, which
    losses hide from different rows, are not equal. Without ``distinct``, each row's text is encoded by itself, for a
    text tower whose dropout gives each row another vector. ``two_texts``: rows may have a second one.
    """
    shows = [(d.text, n, d.shown) for n, d in enumerate(drawn)]
    if two_texts:
        shows += [(d.prompt, n, d.prompted) for n, d in enumerate(drawn)]
    rows: dict[Place, int] = {}
    places = [None if text is None else (text, 0 if distinct else n, shown) for text, n, shown in shows]
    found = [NO_TEXT if place is None else rows.setdefault(place, len(rows)) for place in places]
    index, seconds = torch.tensor(found[: len(drawn)]), torch.tensor(found[len(drawn) :])
    second = {PROMPT: seconds, PROMPTED: torch.tensor([d.prompted for d in drawn])} if two_texts else {}
    # never empty, since every rank runs the text tower in every step
    texts = list(rows) or [("", 0, NO_LABEL)]
    tokens = torch.zeros(1, 1, dtype=torch.int64) if tokenizer is None else tokenizer([text for text, _, _ in texts])
    start_prompts(tokens, tokenizer, torch.tensor([shown != NO_LABEL for _, _, shown in texts]))
    return Batch(
        images=images,
        tokens=tokens,
        text_index=index,
        labels=torch.tensor([d.label for d in drawn]),
        keys=torch.tensor([sample_key(d, caption_targets) for d in drawn]),
        draws=torch.tensor([d.draw for d in drawn]),
        extra={**second, **(extra(drawn, tokens, index) if extra else {})},
    )
