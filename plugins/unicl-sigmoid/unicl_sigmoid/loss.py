"""SigLIP's pairwise sigmoid loss (Zhai et al., ICCV 2023, eq. 1) with positives by key or by labels."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import NO_KEY, NO_LABEL, NO_TEXT, Batch, LabelSets, Model, gather, set_columns, share_of_mean


class Sigmoid(nn.Module):
    """-log sigmoid(z (s u.v + bias)) of all pairs, z = 1 for equal keys, else -1; sum over texts, mean over images.

    With label sets, z = 1 if the image has every label that the text says: a prompt the class that it names, a caption
    all labels of its row. A prompt is hidden from images that are annotated, but not for its group. Keeps b x B logits
    in memory. The scale s is the model's; ``bias`` is learned and starts so low that all pairs look negative.
    """

    score, activation = "text", "sigmoid"
    groups: Tensor

    def __init__(self, bias: float, label_sets: LabelSets | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full([1], bias))
        self.has_sets = label_sets is not None
        groups = () if label_sets is None else label_sets.groups
        self.register_buffer("groups", torch.tensor(groups, dtype=torch.int64), persistent=False)
        if label_sets is not None:
            self.extra = partial(set_columns, label_sets=label_sets)

    def forward(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        u = model.encode_image(batch.images).embed
        v = model.encode_text(batch.tokens).embed[batch.text_index]
        keys = batch.keys.masked_fill(batch.text_index == NO_TEXT, NO_KEY)
        scale, columns = model.scale(), gather(keys)
        with torch.autocast(u.device.type, enabled=False):
            logits = scale * u @ gather(v).T + self.bias  # (b, B)
            positive, hidden = keys[:, None] == columns, columns == NO_KEY
            if self.has_sets:
                positive, unknown = self.compare_labels(batch, positive)
                hidden = hidden | unknown
            each = F.softplus(torch.where(positive, -logits, logits)).masked_fill(hidden, 0).sum(1)
        loss = share_of_mean(each, keys != NO_KEY)
        return {"loss": loss, "logit_scale": scale.detach(), "logit_bias": self.bias.detach().squeeze(0)}

    def compare_labels(self, batch: Batch, same: Tensor) -> tuple[Tensor, Tensor]:
        """Return which pairs of image and text are positives and which are unknown, bool (b, B).

        A text that says no label fits the images of the ``same`` key.
        """
        labels, shown, known = (batch.extra[name] for name in ("label_set", "shown", "known"))
        prompts = gather(shown)
        said = torch.where(prompts[:, None] == NO_LABEL, gather(labels), prompts[:, None])  # (B, S)
        fits = torch.ones_like(same)
        for label in said.unbind(1):
            fits &= (labels[:, :, None] == label).any(1) | (label == NO_LABEL)
        positive = torch.where((said == NO_LABEL).all(1), same, fits)
        asks = 1 << self.groups[prompts.clamp(min=0)]
        return positive, (prompts != NO_LABEL) & (known[:, None] != 0) & (known[:, None] & asks == 0)
