"""The columns and the weights of label sets, as losses use them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unicl_cli.contracts import NO_LABEL, Batch, LabelSets
from unicl_cli.core.batch_columns import LABEL_SET
from unicl_cli.errors import UniclError, did_you_mean


def class_weights(label_sets: LabelSets | None, weights: Mapping[str, float]) -> Tensor:
    """Return the weight of each class, that of its group, (classes,); raise UniclError for a group that is unknown."""
    names = () if label_sets is None else label_sets.names
    for name in weights:
        if name not in names:
            have = f"use one of {', '.join(names)}" if any(names) else "remove it: the classes have no groups"
            raise UniclError(f"loss.weights: unknown group '{name}'{did_you_mean(name, names)}", have)
    groups = () if label_sets is None else label_sets.groups
    return torch.tensor([weights.get(names[group], 1.0) for group in groups])


def labels_of(batch: Batch, label_sets: LabelSets | None) -> Tensor:
    """Return all labels of each row, int64 (b, S), NO_LABEL where a row has fewer."""
    return batch.labels[:, None] if label_sets is None else batch.extra[LABEL_SET]


def drop_weightless(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the labels without those of weight 0, which count as if they were not there."""
    return labels.masked_fill(weights[labels.clamp(min=0)] == 0, NO_LABEL)
