"""Losses with a linear classifier on the image tower."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch, Model
from unicl_cli.core.dist import share_of_mean
from unicl_cli.losses.contrast import both_ways, widen
from unicl_cli.losses.texts import encode_texts, text_keys


def class_loss(head: nn.Linear, pooled: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute this rank's share of the mean cross-entropy of rows with a label; without any, 0 with a gradient."""
    valid = labels != NO_LABEL
    with torch.autocast(pooled.device.type, enabled=False):
        targets = labels.masked_fill(~valid, 0)
        values = F.cross_entropy(head(widen(pooled)), targets, reduction="none", label_smoothing=smoothing)
        return share_of_mean(values, valid)


class CrossEntropy(nn.Module):
    """A linear classifier on the image tower's pooled output; rows without a label are not counted."""

    score, activation = "head", "softmax"

    def __init__(self, image_width: int, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(image_width, num_classes)
        self.label_smoothing = label_smoothing

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        pooled = model.encode_image(batch.images).pooled
        return {"loss": class_loss(self.head, pooled, batch.labels, self.label_smoothing)}


class MultiTask(nn.Module):
    """CLIP on rows without a label plus ``weight`` times cross-entropy on rows with one. UniCL, Table 6."""

    score, activation = "text", "softmax"

    def __init__(
        self, image_width: int, num_classes: int, weight: float = 1.0, tile: int | None = None, *, fold: bool = True
    ) -> None:
        super().__init__()
        self.head = nn.Linear(image_width, num_classes)
        self.weight, self.tile, self.fold = weight, tile, fold

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        image, scale = model.encode_image(batch.images), model.scale()
        v, index = encode_texts(model, batch, fold=self.fold)
        keys = text_keys(batch.draws, batch).masked_fill(batch.labels != NO_LABEL, NO_KEY)
        clip = both_ways(image.embed, v, keys, scale, tile=self.tile, index=index)
        ce = class_loss(self.head, image.pooled, batch.labels)
        loss = clip["loss"] + self.weight * ce
        logged = {"loss_clip": clip["loss"], "loss_ce": ce, "excess_loss": loss, "logit_scale": scale}  # the floor is 0
        return {**clip, **{name: value.detach() for name, value in logged.items()}, "loss": loss}
