"""The timm backbones as image towers."""

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import timm
import torch
from timm.models.resnet import ResNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unicl_cli.core.foreign import explain_foreign
from unicl_cli.encoders.pyramid import timm_pyramid
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.tower_contracts import TowerTraits

BLOCKS = ("Block", "Bottleneck")
LARGEST, DEEPEST = 65_536, 1_000
"""The largest number of ``args``, and the most layers; a model of absurd size would take all memory, or hours."""
RESERVED = frozenset(inspect.signature(timm.create_model).parameters) | {
    *("img_size", "drop_path_rate", "num_classes", "in_chans", "features_only"),
}
"""Names that ``args`` may not set: files or addresses to load, and settings that other options make."""


class LastBlock(Block):
    """timm's block with the same parameters and output, and a shorter way for the last block of a tower."""

    def forward(self, x: Tensor, *others: Any, last: bool = False, **options: Any) -> Tensor:
        """``last``: return the class token alone, (b, 1, width), since nothing else is read after it."""
        if not last:
            return super().forward(x, *others, **options)
        x = x[:, :1] + self.drop_path1(self.ls1(self.attn(self.norm1(x))[:, :1]))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def prepare_last_block(backbone: Any) -> bool:
    """Let the last block of a ViT compute the class token alone; return False if the backbone reads more than that.

    Only for timm's own VisionTransformer, pooled by its class token, without dropout in the block (whose random
    numbers would change).
    """
    if type(backbone) is not VisionTransformer or backbone.attn_pool is not None or backbone.global_pool != "token":
        return False
    if not len(backbone.blocks):
        return False
    block = backbone.blocks[-1]
    if type(block) is not Block or any(m.p for m in block.modules() if isinstance(m, nn.Dropout)):
        return False
    block.__class__ = LastBlock
    return True


def blocks_in_sequences(backbone: nn.Module) -> list[nn.Module]:
    """Find the blocks of EfficientNet, MobileNet and others, whatever timm calls them.

    A block is in an ``nn.Sequential``, has parameters in at least two places, and is inside no other block.
    """
    chains = (chain for chain in backbone.modules() if isinstance(chain, nn.Sequential))
    found = [link for chain in chains for link in chain if not isinstance(link, nn.Sequential)]
    blocks = [link for link in found if sum(any(True for _ in m.parameters(recurse=False)) for m in link.modules()) > 1]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if id(block) not in inside]


class TimmTower(nn.Module):
    """(b, 3, H, W) -> (b, width): the backbone's own pooling and hidden layer, without its classifier.

    Pixels are normalised with ``mean`` and ``std`` of the published weights, which expect them. ``args`` are passed to
    timm unchanged. ``small_stem`` gives a ResNet a stem for 32 px images (3 x 3, no stride, no pooling; SupCon,
    NeurIPS 2020, CIFAR). Raise UniclError for an unknown name or argument.
    """

    def __init__(
        self,
        model: str,
        *,
        pretrained: bool,
        drop_path: float,
        image_size: int,
        args: Mapping[str, Any],
        small_stem: bool,
    ) -> None:
        super().__init__()
        if model.split(".")[0] not in timm.list_models():
            raise UniclError(
                f"timm has no model '{model}'{did_you_mean(model, timm.list_models())}",
                "list them with `python -c 'import timm; print(timm.list_models())'`",
            )
        if taken := sorted(set(args) & RESERVED):
            raise UniclError(f"{model}: args may not set {', '.join(taken)}", "use the options of the encoder timm")
        if large := [f"{key}: {value}" for key, value in args.items() if not -LARGEST <= _number(value) <= LARGEST]:
            raise UniclError(f"{model}: args: {large[0]} is too large", f"use numbers up to {LARGEST:,}")
        if _number(args.get("depth", 0)) > DEEPEST:
            raise UniclError(f"{model}: args: depth: {args['depth']} is too large", f"use up to {DEEPEST:,} layers")
        config = timm.get_pretrained_cfg(model)
        settings = dict(args)
        if config is not None and config.fixed_input_size:
            settings["img_size"] = image_size
        real = torch.get_default_device().type != "meta"  # a dry run needs shapes, not weights
        with _explain_refusal(model):
            backbone = _create_backbone(model, drop_path, pretrained=pretrained and real, **settings)
        if small_stem:
            _replace_stem(backbone, model)
        size: Any = getattr(getattr(backbone, "patch_embed", None), "patch_size", None) or 1
        patch = size if isinstance(size, int) else max(size)
        if image_size % patch:
            raise UniclError(
                f"{model}: patches of {patch} px do not divide data.image_size {image_size}",
                f"set data.image_size to a multiple of {patch}",
            )
        width: int = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        with _explain_refusal(f"{model} for images of {image_size} px"):
            _try_backbone(backbone, image_size, width)
        self.reads_class_token = prepare_last_block(backbone)
        self.model, self.args = cast("nn.Module", backbone), dict(args)
        self.width = width
        self.token_width: int = backbone.num_features  # differs from width if the head has a hidden layer
        self.traits = TowerTraits(
            mean=backbone.pretrained_cfg["mean"],
            std=backbone.pretrained_cfg["std"],
            channels_last=any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()),
        )

    @property
    def units(self) -> Sequence[nn.Module]:
        named = [module for module in self.model.modules() if type(module).__name__.endswith(BLOCKS)]
        return named or blocks_in_sequences(self.model)

    def tokens(self, x: Tensor) -> Tensor:
        """Map (b, 3, H, W) to the features before pooling and the head's hidden layer, (b, N, token_width)."""
        features = cast("Any", self.model).forward_features(x)
        if not isinstance(features, Tensor):
            name = cast("Any", self.model).pretrained_cfg["architecture"]
            raise UniclError(f"{name}: has no single grid of features", "use another image tower")
        if features.ndim == 3:
            return features
        channels_last = features.shape[-1] == self.token_width
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Map (b, 3, H, W) of any size to feature maps (b, C, H / s, W / s), from fine to coarse."""
        return timm_pyramid(self.model, x)

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        if not self.reads_class_token:
            return model(x.contiguous(memory_format=torch.channels_last) if self.traits.channels_last else x)
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        *blocks, last = model.blocks
        for block in blocks:
            x = block(x)
        return model.forward_head(model.norm(last(x, last=True)))


@contextmanager
def _explain_refusal(model: str) -> Generator[None]:
    """Turn whatever timm raises into one line."""
    with explain_foreign(f"{model}: timm does not accept these args", "check timm's documentation of this model"):
        try:
            yield
        except OSError as error:
            raise UniclError(
                f"{model}: its published weights are not on this machine and could not be downloaded",
                "connect to the network once (they are kept), or set pretrained: false",
            ) from error


def _try_backbone(backbone: nn.Module, image_size: int, width: int) -> None:
    """Encode a black image once: what timm builds from odd args may still not run, or return something else."""
    training = backbone.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    backbone.train(training)
    if not isinstance(found, Tensor) or found.shape != (1, width):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"an image gives {shape} instead of (1, {width})")


def _create_backbone(model: str, drop_path: float, **settings: Any) -> Any:
    """Create timm's backbone without a classifier.

    Some backbones take no ``drop_path_rate``; some that do have another default than 0.
    """
    try:
        return timm.create_model(model, num_classes=0, drop_path_rate=drop_path, **settings)
    except TypeError as error:
        if drop_path or "drop_path_rate" not in str(error):
            raise
    return timm.create_model(model, num_classes=0, **settings)


def _number(value: float | str) -> float:
    return value if isinstance(value, int | float) else 0


def _replace_stem(backbone: Any, model: str) -> None:
    if not isinstance(backbone, ResNet) or not isinstance(backbone.conv1, nn.Conv2d):
        raise UniclError(f"{model}: has no stem that small_stem could replace", "use small_stem with ResNets only")
    backbone.conv1 = nn.Conv2d(3, backbone.conv1.out_channels, 3, padding=1, bias=False)
    backbone.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue] - timm types it by its own pooling
