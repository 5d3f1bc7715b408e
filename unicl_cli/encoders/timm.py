"""Any timm backbone as image tower."""

from collections.abc import Sequence
from typing import Any, cast

import timm
from torch import Tensor, nn

from unicl_cli.errors import UniclError, did_you_mean

BLOCKS = ("Block", "Bottleneck")


class TimmTower(nn.Module):
    """(b, 3, H, W) -> (b, width): the backbone's own pooling, without its classifier.

    ``mean, std`` are those of the backbone's published weights, since its pretrained weights expect them.
    """

    def __init__(self, model: str, *, pretrained: bool, drop_path: float, image_size: int) -> None:
        super().__init__()
        if model.split(".")[0] not in timm.list_models():
            raise UniclError(
                f"timm has no model '{model}'{did_you_mean(model, timm.list_models())}",
                "see `python -c 'import timm; print(timm.list_models())'`",
            )
        config = timm.get_pretrained_cfg(model)
        size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        backbone: Any = timm.create_model(model, pretrained=pretrained, num_classes=0, drop_path_rate=drop_path, **size)
        patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
        if patch is not None and image_size % max(patch):
            raise UniclError(
                f"{model}: patches of {max(patch)} px do not divide data.image_size {image_size}",
                f"set data.image_size to a multiple of {max(patch)}",
            )
        self.model = cast("nn.Module", backbone)
        self.width: int = backbone.num_features
        self.mean: tuple[float, ...] = backbone.pretrained_cfg["mean"]
        self.std: tuple[float, ...] = backbone.pretrained_cfg["std"]

    @property
    def units(self) -> Sequence[nn.Module]:
        return [module for module in self.model.modules() if type(module).__name__.endswith(BLOCKS)]

    def tokens(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, N, width): the features before pooling."""
        features = cast("Tensor", cast("Any", self.model).forward_features(x))
        if features.ndim == 3:
            return features
        channels_last = features.shape[-1] == self.width
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
