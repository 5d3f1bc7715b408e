"""ImageBind's loss: every modality against images, and never against another."""

import torch
from torch import Tensor, nn

from unicl_cli.api import NO_KEY, Batch, Model, UniclError, both_ways
from unicl_imagebind.model import ImageBind


class ImageAnchored(nn.Module):
    """The sum of L(I, M) and L(M, I) over texts and all further modalities M (ImageBind, section 3.1, eq. 1).

    A row without a modality is hidden from its terms; every tower runs in every step. Rows with equal keys are each
    other's positives, so that rows of one class are; without labels these are InfoNCE's pairs.
    """

    score, activation = "text", "softmax"
    reads_media = True

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if not isinstance(model, ImageBind):
            raise UniclError("loss: 'imagebind' needs the towers of model.name=imagebind", "set model.name=imagebind")
        u = model.encode_image(batch.images).embed
        pairs = {"text": (model.encode_text(batch.tokens).embed, batch.text_index)} | {
            name: (model.encode_extra(name, batch.extra[name]).embed, None) for name in model.others
        }
        losses: list[Tensor] = []
        logged: dict[str, Tensor] = {"loss_per_image": torch.zeros((), device=u.device)}
        for name, (k, index) in pairs.items():
            keys = batch.keys.masked_fill(~batch.extra[f"has_{name}"], NO_KEY)
            found = both_ways(u, k, keys, model.scale(name), index=index)
            losses.append(2 * found["loss"])  # of which `both_ways` gives the mean of its two directions
            logged["loss_per_image"] = logged["loss_per_image"] + found["loss_per_image"]
            logged[f"loss_per_{name}"] = found["loss_per_text"]
        return {"loss": torch.stack(losses).sum(), **logged, "logit_scale": model.scale().detach()}
