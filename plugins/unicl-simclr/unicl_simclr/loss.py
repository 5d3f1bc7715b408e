"""SimCLR's loss NT-Xent and its projection head (Chen et al., ICML 2020, section 2.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import Batch, Model, UniclError, at_least_float32, contrast_tiled, gather, share_of_mean

COUNTED = 1024
"""Views of each process whose nearest view is looked up for ``contrastive_top1``."""
AT_ONCE = 256
"""Rows of cosines that the look-up holds."""


class SimClr(nn.Module):
    """NT-Xent of z = g(h), mean over all views: -log exp(s_ij / t) / sum_{k not i} exp(s_ik / t) (eq. 1).

    i and j are two views of one image, s their cosine (their product without ``normalize``), t the temperature. With
    more than two views, the mean over the others stands outside the log. Images that are drawn twice in a batch are
    negatives, as in the paper. Features for transfer are h, before the head (section 4.2).

    Also logged: ``contrastive_top1``, the share of views whose nearest other view is of the same image, from up to
    1,024 views of each process; ``z_norm``, the mean norm of z before the normalisation.
    """

    score, activation = "none", "softmax"

    def __init__(self, head: nn.Module, temperature: float, tile: int | None, *, normalize: bool) -> None:
        super().__init__()
        self.head, self.temperature, self.tile, self.normalize = head, temperature, tile, normalize

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.images.dim() != 5:
            raise UniclError("data.views: loss simclr needs two views of each image, got 1", "set data.views=2")
        views = batch.images.shape[1]
        h = model.encode_image(batch.images.flatten(0, 1)).pooled  # (b V, width)
        z = at_least_float32(self.head(h))  # (b V, dim)
        norm = z.detach().norm(dim=1).mean()
        if self.normalize:
            z = F.normalize(z, dim=1)
        ids = (batch.draws[:, None] * views + torch.arange(views, device=z.device)).flatten()
        everyone, all_ids = gather(z), gather(ids)  # (B V, dim), (B V,)
        if len(all_ids) == views:
            raise UniclError("batch.size 1: loss simclr compares an image with others", "set batch.size=2 or more")
        own, images = ids // views, all_ids // views
        each = contrast_tiled(z, everyone, own, images, 1 / self.temperature, (ids, all_ids), tile=self.tile)
        loss = share_of_mean(each, torch.ones_like(ids, dtype=torch.bool))
        hits = nearest_of(z[:COUNTED], everyone, ids[:COUNTED], all_ids) // views == own[:COUNTED]
        return {"loss": loss, "contrastive_top1": hits.float().mean(), "z_norm": norm}


@torch.no_grad()
def nearest_of(z: Tensor, everyone: Tensor, ids: Tensor, all_ids: Tensor) -> Tensor:
    """Return the id of the nearest other view of each row: (n, D), (N, D), (n,), (N,) -> (n,)."""
    found: list[Tensor] = []
    with torch.autocast(z.device.type, enabled=False):
        for rows, own in zip(z.split(AT_ONCE), ids.split(AT_ONCE), strict=True):
            logits = (rows @ everyone.T).masked_fill_(own[:, None] == all_ids, -torch.inf)
            found.append(all_ids[logits.argmax(1)])
    return torch.cat(found)


def build_head(width: int, dim: int, layers: int, *, batch_norm: bool) -> nn.Sequential:
    """Build g (section 2.1): linear layers from ``width`` to ``width``, each with a ReLU, and a last one to ``dim``.

    As in the authors' code, BatchNorm follows every linear layer, which then has no bias, and the last layer has no
    bias in either form.
    """
    head = nn.Sequential()
    for number in range(1, layers + 1):
        is_last = number == layers
        out = dim if is_last else width
        head.append(nn.Linear(width, out, bias=not (batch_norm or is_last)))
        if batch_norm:
            norm = nn.BatchNorm1d(out)
            norm.bias.requires_grad_(not is_last)
            head.append(norm)
        if not is_last:
            head.append(nn.ReLU())
    return head
