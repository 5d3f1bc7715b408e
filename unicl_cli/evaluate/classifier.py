"""The zero-shot classifier: one unit vector per class, made from its names in templates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.core.prompt_marks import mark_prompts
from unicl_cli.core.prompts import fill_template
from unicl_cli.tower_contracts import Tokenizer


class TextClassifier(NamedTuple):
    """``weights`` (C, D) float32. ``first`` int64 (C,): the lowest class with the very same prompts.

    ``duplicates`` are the groups of classes that share all their prompts, ``cut`` counts the prompts that are longer
    than the context of the text tower, ``prompts`` the distinct ones.
    """

    weights: Tensor
    first: Tensor
    duplicates: tuple[tuple[int, ...], ...]
    cut: int
    prompts: int

    def cosines(self, image_features: Tensor, classes: slice = slice(None)) -> Tensor:
        """(b, D) -> float32 (b, C), the cosines of a slice of the classes.

        Classes with the same prompts get bitwise equal scores: a matrix product may round equal columns differently.
        """
        first = self.first[classes]
        if len(first) == len(self.weights):
            return (image_features.float() @ self.weights.T)[:, first]
        distinct, places = first.unique(return_inverse=True)
        return (image_features.float() @ self.weights[distinct].T)[:, places]


def prompts_of(names: Sequence[Sequence[str]], templates: Sequence[str]) -> list[list[str]]:
    """Return each name of each class in each template."""
    return [[fill_template(template, name) for name in own for template in templates] for own in names]


def zeroshot_classifier(
    prompts: Sequence[Sequence[str]],
    *,
    encode_text: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    unit: bool = True,
    batch: int = 256,
) -> TextClassifier:
    """Build the classifier from the prompts of each class (C x at least one).

    ``encode_text`` maps tokens (b, L) to (b, D).

    normalise -> mean over the prompts -> normalise, in float32, whatever the tower already does: without the
    inner step long vectors would outvote others, without the outer one classes with spread prompts are penalised.
    ``unit=False`` leaves both out, for models whose text vectors are the rows of a linear classifier.
    Each distinct prompt is encoded once (a prompt encoded twice may differ in the last bit), in batches of like length.
    """
    prompts = [sorted(own) for own in prompts]
    owners: dict[str, list[int]] = defaultdict(list)
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for label, own in enumerate(prompts):
        same[tuple(own)].append(label)
        for prompt in own:
            owners[prompt].append(label)
    texts = sorted(owners, key=lambda text: (len(text.split()), text))  # a tower packs prefixes that texts share
    if not texts:
        raise ValueError("a classifier needs at least one class and one template")
    sums, cut = torch.empty(0), 0
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        tokens = tokenizer(part)
        cut += count_cut(part, tokens, tokenizer)
        if getattr(tokenizer, "marks_prompts", False):
            mark_prompts(tokens)
        embed = encode_text(tokens).float().cpu()  # on the CPU index_add_ has one order
        embed = F.normalize(embed, dim=1) if unit else embed
        sums = sums if start else embed.new_zeros(len(prompts), embed.shape[1])
        rows = torch.tensor([row for row, text in enumerate(part) for _ in owners[text]])
        classes = torch.tensor([label for text in part for label in owners[text]])
        sums.index_add_(0, classes, embed[rows])
    means = sums / torch.tensor([len(own) for own in prompts])[:, None]
    return TextClassifier(
        weights=F.normalize(means, dim=1) if unit else means,
        first=torch.tensor([same[tuple(own)][0] for own in prompts]),
        duplicates=tuple(tuple(group) for group in same.values() if len(group) > 1),
        cut=cut,
        prompts=len(texts),
    )


def count_cut(texts: Sequence[str], tokens: Tensor, tokenizer: Tokenizer) -> int:
    """Count the texts that are longer than the context, if the tokenizer has ``cuts``: it cuts them silently."""
    cuts = getattr(tokenizer, "cuts", None)
    return cuts(texts) if cuts is not None and tokens.shape[1] >= tokenizer.context_length else 0
