"""CLIP's loss."""

from torch import Tensor, nn

from unicl_cli.contracts import Batch, Model
from unicl_cli.losses.contrast import both_ways
from unicl_cli.losses.texts import encode_texts, text_keys


class Clip(nn.Module):
    """Identity targets, labels ignored: the only positive of a row is its own text. CLIP (ICML 2021)."""

    score, activation = "text", "softmax"

    def __init__(self, tile: int | None = None, *, fold: bool = True) -> None:
        super().__init__()
        self.tile, self.fold = tile, fold

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u, scale = model.encode_image(batch.images).embed, model.scale()
        v, index = encode_texts(model, batch, fold=self.fold)
        out = both_ways(u, v, text_keys(batch.draws, batch), scale, tile=self.tile, index=index)
        return {**out, "logit_scale": scale.detach()}
