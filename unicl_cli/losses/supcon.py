"""SupCon's loss on views of images."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import Batch, LabelSets, Model
from unicl_cli.core.batch_columns import LABEL_SET, ROW_KEYS
from unicl_cli.core.label_sets import set_columns
from unicl_cli.errors import UniclError
from unicl_cli.losses.contrast import supcon_loss, widen
from unicl_cli.losses.label_sets import class_weights, drop_weightless


class SupCon(nn.Module):
    """Contrast of image views after its own MLP; positives have equal keys: the label, else the image itself.

    Of rows with label sets, positives are the views that share labels, by their summed ``weights``.
    """

    score, activation = "none", "softmax"

    weights: Tensor

    def __init__(
        self,
        image_width: int,
        temperature: float = 0.1,
        dim: int = 128,
        tile: int | None = None,
        *,
        label_sets: LabelSets | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(image_width, image_width), nn.ReLU(), nn.Linear(image_width, dim))
        self.temperature, self.tile, self.has_sets = temperature, tile, label_sets is not None
        self.register_buffer("weights", class_weights(label_sets, weights or {}), persistent=False)
        if label_sets is not None:
            self.extra = partial(set_columns, label_sets=label_sets)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.images.dim() != 5:
            raise UniclError("data.views: loss supcon needs several views of each image, got 1", "set data.views=2")
        views = batch.images.shape[1]
        z = self.head(model.encode_image(batch.images.flatten(0, 1)).pooled)
        ids = (batch.draws[:, None] * views + torch.arange(views, device=z.device)).flatten()
        keys = batch.keys.repeat_interleave(views)
        z = F.normalize(widen(z), dim=-1)
        if not self.has_sets:
            return supcon_loss(z, keys, ids, self.temperature, tile=self.tile)
        labels = drop_weightless(batch.extra[LABEL_SET], self.weights).repeat_interleave(views, 0)
        # the key of a row with one label is this label, which may weigh nothing: then only its views are positives
        keys = torch.where(keys < ROW_KEYS, 2 * ROW_KEYS + batch.draws.repeat_interleave(views), keys)
        return supcon_loss(z, keys, ids, self.temperature, tile=self.tile, labels=labels, weights=self.weights)
