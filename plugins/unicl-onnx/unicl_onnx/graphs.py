"""The modules that are exported: plain tensors in and out, around a loaded model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.api import Loaded, prompts_of, zeroshot_classifier


class ImageGraph(nn.Module):
    """uint8 (b, 3, H, W) -> (b, D): normalisation of pixels, tower, projection, unit length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels).embed


class TextGraph(nn.Module):
    """int64 (b, L) -> (b, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens).embed


class ClassifyGraph(nn.Module):
    """uint8 (b, 3, H, W) -> (b, C) logits.

    ``weights`` (C, D) are the text features of the classes, ``scale`` and ``bias`` those of the model. A softmax or a
    sigmoid of the logits gives the probabilities of `unicl zeroshot`.
    """

    def __init__(self, model: nn.Module, weights: Tensor, *, scale: float, bias: float, unit: bool) -> None:
        super().__init__()
        self.image, self.scale, self.bias, self.unit = ImageGraph(model), scale, bias, unit
        self.register_buffer("weights", weights)
        self.weights: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        embed = self.image(pixels)
        cosines = (F.normalize(embed, dim=1) if self.unit else embed) @ self.weights.T
        return self.scale * cosines + self.bias


def scale_and_bias(loaded: Loaded) -> tuple[float, float]:
    """Return the factor on cosines and the bias that the loss adds (SigLIP; else 0)."""
    model: Any = loaded.step.model
    bias = torch.as_tensor(getattr(loaded.step.loss, "bias", 0.0))
    return float(model.scale().detach()), float(bias.detach())


def classify_graph(loaded: Loaded, names: tuple[str, ...]) -> ClassifyGraph:
    """Build the fixed classifier of ``names`` with the model's templates, as `unicl zeroshot` does."""
    model: Any = loaded.step.model
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no text tower")
    unit = bool(getattr(model, "normalize", True)) and not getattr(model, "biased", False)
    with torch.no_grad():
        shot = zeroshot_classifier(
            prompts_of([(name,) for name in names], loaded.templates),
            encode_text=lambda tokens: model.encode_text(tokens).embed,
            tokenizer=tokenizer,
            unit=unit,
        )
        scale, bias = scale_and_bias(loaded)
    return ClassifyGraph(loaded.step.model, shot.weights[shot.first], scale=scale, bias=bias, unit=unit)
