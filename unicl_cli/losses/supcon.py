"""SupCon's loss on views of images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import Batch, Model
from unicl_cli.errors import UniclError
from unicl_cli.losses.contrast import supcon_loss, widen


class SupCon(nn.Module):
    """Contrast of image views behind its own MLP; positives have equal keys: the label, else the image itself."""

    score, activation = "none", "softmax"

    def __init__(self, image_width: int, temperature: float = 0.1, dim: int = 128, tile: int | None = None) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(image_width, image_width), nn.ReLU(), nn.Linear(image_width, dim))
        self.temperature, self.tile = temperature, tile

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.images.dim() != 5:
            raise UniclError("data.views: loss supcon needs several views of each image, got 1", "set data.views=2")
        views = batch.images.shape[1]
        z = self.head(model.encode_image(batch.images.flatten(0, 1)).pooled)
        ids = (batch.draws[:, None] * views + torch.arange(views, device=z.device)).flatten()
        keys = batch.keys.repeat_interleave(views)
        return supcon_loss(F.normalize(widen(z), dim=-1), keys, ids, self.temperature, tile=self.tile)
