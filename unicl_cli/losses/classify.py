"""Losses with a linear classifier on the image tower."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch, LabelSets, Model
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET
from unicl_cli.core.dist import share_of_mean
from unicl_cli.core.label_sets import set_columns
from unicl_cli.errors import UniclError
from unicl_cli.losses.contrast import both_ways, widen
from unicl_cli.losses.label_sets import labels_of
from unicl_cli.losses.texts import encode_texts, text_keys


def class_loss(head: nn.Linear, pooled: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute this rank's share of the mean cross-entropy of rows with a label; without any, 0 with a gradient."""
    valid = labels != NO_LABEL
    with torch.autocast(pooled.device.type, enabled=False):
        targets = labels.masked_fill(~valid, 0)
        values = F.cross_entropy(head(widen(pooled)), targets, reduction="none", label_smoothing=smoothing)
        return share_of_mean(values, valid)


def set_loss(head: nn.Linear, pooled: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Compute this rank's share of the mean binary cross-entropy of known pairs of row and class; without any, 0.

    ``labels``: int64 (b, S), NO_LABEL where a row has fewer; ``known``: bool (b, classes). A label is known by itself.
    """
    with torch.autocast(pooled.device.type, enabled=False):
        logits = head(widen(pooled))
        places = labels.masked_fill(labels == NO_LABEL, logits.shape[1])  # a column more, for the labels that are none
        has = torch.zeros(len(labels), logits.shape[1] + 1, dtype=logits.dtype, device=logits.device)
        has = has.scatter_(1, places, 1)[:, :-1]
        return share_of_mean(F.binary_cross_entropy_with_logits(logits, has, reduction="none"), known | (has > 0))


class SetHead(nn.Linear):
    """A linear classifier; with label sets, its loss is that of each class alone, over the groups that a row knows."""

    groups: Tensor

    def __init__(self, image_width: int, num_classes: int, label_sets: LabelSets | None) -> None:
        super().__init__(image_width, num_classes)
        self.label_sets = label_sets
        groups = () if label_sets is None else label_sets.groups
        self.register_buffer("groups", torch.tensor(groups, dtype=torch.int64), persistent=False)

    def loss(self, pooled: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """Compute this rank's share of the mean over labelled rows, or over known pairs of row and class."""
        if self.label_sets is None:
            return class_loss(self, pooled, batch.labels, smoothing)
        every_group = torch.arange(len(self.label_sets.names), device=pooled.device)
        known = (batch.extra[KNOWN][:, None] >> every_group & 1).bool()  # (b, groups)
        return set_loss(self, pooled, batch.extra[LABEL_SET], known[:, self.groups])


class CrossEntropy(nn.Module):
    """A linear classifier on the image tower's pooled output; rows without a label are not counted.

    With label sets, each class has its own binary cross-entropy, over the rows annotated for its group.
    """

    score = "head"

    def __init__(
        self,
        image_width: int,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        label_sets: LabelSets | None = None,
    ) -> None:
        super().__init__()
        if label_smoothing and label_sets is not None:
            raise UniclError(
                "loss.label_smoothing: smooths the choice of one class, and rows of data.train have label sets",
                "set loss.label_smoothing=0",
            )
        self.head = SetHead(image_width, num_classes, label_sets)
        self.label_smoothing = label_smoothing
        self.activation = "softmax" if label_sets is None else "sigmoid"
        if label_sets is not None:
            self.extra = partial(set_columns, label_sets=label_sets)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        pooled = model.encode_image(batch.images).pooled
        return {"loss": self.head.loss(pooled, batch, self.label_smoothing)}


class MultiTask(nn.Module):
    """CLIP on rows without a label plus ``weight`` times cross-entropy on rows with one. UniCL, Table 6.

    With label sets, binary cross-entropy as in `CrossEntropy`.
    """

    score, activation = "text", "softmax"

    def __init__(
        self,
        image_width: int,
        num_classes: int,
        weight: float = 1.0,
        tile: int | None = None,
        *,
        fold: bool = True,
        label_sets: LabelSets | None = None,
    ) -> None:
        super().__init__()
        self.head = SetHead(image_width, num_classes, label_sets)
        self.weight, self.tile, self.fold = weight, tile, fold
        if label_sets is not None:
            self.extra = partial(set_columns, label_sets=label_sets)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        image, scale = model.encode_image(batch.images), model.scale()
        v, index = encode_texts(model, batch, fold=self.fold)
        labelled = (labels_of(batch, self.head.label_sets) != NO_LABEL).any(1)
        keys = text_keys(batch.draws, batch).masked_fill(labelled, NO_KEY)
        clip = both_ways(image.embed, v, keys, scale, tile=self.tile, index=index)
        ce = self.head.loss(image.pooled, batch)
        loss = clip["loss"] + self.weight * ce
        logged = {"loss_clip": clip["loss"], "loss_ce": ce, "excess_loss": loss, "logit_scale": scale}  # the floor is 0
        return {**clip, **{name: value.detach() for name, value in logged.items()}, "loss": loss}
