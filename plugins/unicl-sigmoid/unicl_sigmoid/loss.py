"""SigLIP's pairwise sigmoid loss (Zhai et al., ICCV 2023, eq. 1) with positives by key."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_KEY, NO_TEXT, Batch, Model, gather, share_of_mean


class Sigmoid(nn.Module):
    """-log sigmoid(z (s u.v + bias)) of all pairs, z = 1 for equal keys, else -1; sum over texts, mean over images.

    Keeps b x B logits in memory. The scale s is the model's; ``bias`` is learned and starts so low that all pairs look
    negative.
    """

    score, activation = "text", "sigmoid"

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full([1], bias))

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u = model.encode_image(batch.images).embed
        v = model.encode_text(batch.tokens).embed[batch.text_index]
        keys = batch.keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)
        scale, columns = model.scale(), gather(keys)
        with torch.autocast(u.device.type, enabled=False):
            logits = scale * u @ gather(v).T + self.bias  # (b, B)
            positive = keys[:, None] == columns
            each = F.softplus(torch.where(positive, -logits, logits)).masked_fill(columns == NO_KEY, 0).sum(1)
        loss = share_of_mean(each, keys != NO_KEY)
        return {"loss": loss, "logit_scale": scale.detach(), "logit_bias": self.bias.detach().squeeze(0)}
