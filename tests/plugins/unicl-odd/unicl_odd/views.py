"""A loss like SimCLR's: two views with self-exclusion, without text."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_KEY, Batch, Model, contrast_tiled, gather, share_of_mean


class Views(nn.Module):
    score, activation = "none", "softmax"

    def __init__(self, width: int, temperature: float, dim: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.temperature = temperature

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        count = batch.images.shape[1]
        z = self.head(model.encode_image(batch.images.flatten(0, 1)).pooled)
        z = F.normalize(z, dim=-1)
        keys = batch.draws.repeat_interleave(count)
        ids = (batch.draws[:, None] * count + torch.arange(count, device=z.device)).flatten()
        each = contrast_tiled(
            z, gather(z), keys, gather(keys), 1 / self.temperature, exclude=(ids, gather(ids)), tile=5
        )
        return {"loss": share_of_mean(each, keys != NO_KEY)}
