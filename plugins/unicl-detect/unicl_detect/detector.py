"""Mask R-CNN (He et al., ICCV 2017) on an image tower, and its loss as the share of a global mean."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from unicl_coco.batches import Scenes

from unicl_cli.api import TowerPyramid, seed_of, share_of_mean, traits_of
from unicl_detect.options import DetectSettings

SAMPLER = 3
"""Salt of the seeds."""
HEADS = {"full": (256, 1024, (256, 256, 256, 256)), "small": (64, 128, (64,))}
"""Channels of the pyramid, width of the box head, channels of the mask head."""
SMALL = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_test": 100,
    "box_batch_size_per_image": 64,
}
"""Fewer proposals, for small images."""


class DrawSampler:
    """Torchvision's choice of anchors or proposals to learn from, made for each image by (seed, draw) alone.

    It does not depend on the number of processes if all images of a step have one size. ``chosen`` and ``positive``
    count what this rank's last step took: the numbers that torchvision's losses divide by.
    """

    def __init__(self, size: int, positive_fraction: float, seed: int, salt: int) -> None:
        self.size, self.positive_fraction, self.seed, self.salt = size, positive_fraction, seed, salt
        self.draws: Sequence[int] = ()
        self.chosen = self.positive = 0

    def begin(self, draws: Sequence[int]) -> None:
        """Begin a step with images of these draws."""
        self.draws, self.chosen, self.positive = draws, 0, 0

    def __call__(self, kinds: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map (n,) for each image (>= 1 object, 0 ground, -1 neither) to the masks, uint8 (n,), of both choices."""
        both = [self._choose(kind, draw) for kind, draw in zip(kinds, self.draws, strict=True)]
        self.positive += sum(int(objects.sum()) for objects, _ in both)
        self.chosen += sum(int(objects.sum() + ground.sum()) for objects, ground in both)
        return [objects for objects, _ in both], [ground for _, ground in both]

    def _choose(self, kind: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        coin = torch.Generator().manual_seed(seed_of(self.seed, draw, SAMPLER, self.salt))
        order = torch.rand(len(kind), generator=coin).to(kind.device).argsort()
        objects = first_of(kind >= 1, order, int(self.size * self.positive_fraction))
        return objects, first_of(kind == 0, order, self.size - int(objects.sum()))


def first_of(wanted: Tensor, order: Tensor, most: int) -> Tensor:
    """Return the mask, uint8 (n,), of up to ``most`` places that are ``wanted``, the first in ``order``."""
    found = torch.zeros_like(wanted, dtype=torch.uint8)
    found[order[wanted[order]][:most]] = 1
    return found


class Detector(nn.Module):
    """The module that is trained: Mask R-CNN, or Faster R-CNN without masks, on the pyramid of an image tower.

    BatchNorm of the tower keeps its statistics and weights, since a step has few images.
    """

    def __init__(self, tower: nn.Module, image_size: int, classes: int, settings: DetectSettings) -> None:
        super().__init__()
        self.net = build_rcnn(tower, image_size, 1 + classes, settings)
        rpn, heads = cast("Any", self.net.rpn), cast("Any", self.net.roi_heads)
        self.samplers: list[DrawSampler] = []
        for salt, part in enumerate((rpn, heads)):
            own = part.fg_bg_sampler
            part.fg_bg_sampler = DrawSampler(own.batch_size_per_image, own.positive_fraction, settings.seed, salt)
            self.samplers.append(part.fg_bg_sampler)
        for module in tower.modules():
            if settings.freeze or isinstance(module, _BatchNorm):
                module.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Detector":  # noqa: FBT001, FBT002 - nn.Module's signature
        """Set the mode; BatchNorm, and a frozen tower as a whole, stay in evaluation."""
        super().train(mode)
        tower = cast("Any", self.net.backbone).tower
        is_frozen = not any(parameter.requires_grad for parameter in tower.parameters())
        for module in tower.modules():
            if is_frozen or isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, batch: Scenes) -> Mapping[str, Tensor]:
        """Return the loss of this rank's share, and its parts; the mean over ranks is the loss of the global batch.

        Torchvision divides each part by the numbers of anchors or proposals of its own process. They differ, so each
        part is weighted by them here.
        """
        for sampler in self.samplers:
            sampler.begin(batch.draws)
        parts = self.net([image.float() / 255 for image in batch.images], batch.targets)
        rpn, heads = self.samplers
        counts = {"loss_objectness": rpn.chosen, "loss_rpn_box_reg": rpn.chosen, "loss_mask": heads.positive}
        shares = {name: share(part, counts.get(name, heads.chosen)) for name, part in sorted(parts.items())}
        total = torch.stack(list(shares.values())).sum()
        return {"loss": total, **{name: part.detach() for name, part in shares.items()}}

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Map uint8 images (3, H, W) to boxes (n, 4), labels (n,) from 1, scores (n,) and masks (n, 1, H, W)."""
        return self.net([image.float() / 255 for image in images])


def share(mean: Tensor, count: int) -> Tensor:
    """Return this rank's share of a global mean: its own mean () over ``count`` entries, weighted by them."""
    entries = mean.reshape(1).expand(count)
    return share_of_mean(entries, torch.ones_like(entries, dtype=torch.bool))


def build_rcnn(tower: nn.Module, image_size: int, outputs: int, settings: DetectSettings) -> FasterRCNN:
    """Build torchvision's model; ``outputs`` are the classes and the ground."""
    channels, width, mask_channels = HEADS[settings.heads]
    backbone = TowerPyramid(tower, image_size, channels)
    steps = [*backbone.strides, 2 * backbone.strides[-1]]
    levels = [str(level) for level in range(len(backbone.strides))]
    traits = traits_of(tower)
    options: dict[str, Any] = {
        "min_size": settings.size,
        "max_size": settings.max_size,
        "image_mean": list(traits.mean),
        "image_std": list(traits.std),
        "size_divisible": backbone.divisor,
        "rpn_anchor_generator": AnchorGenerator(tuple((8 * step,) for step in steps), ((0.5, 1.0, 2.0),) * len(steps)),
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
        "box_head": TwoMLPHead(channels * 49, width),
        "box_predictor": FastRCNNPredictor(width, outputs),
        **(SMALL if settings.heads == "small" else {}),
    }
    if settings.boxes_only:
        return FasterRCNN(backbone, **options)
    return MaskRCNN(
        backbone,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        mask_head=MaskRCNNHeads(channels, mask_channels, 1),
        mask_predictor=MaskRCNNPredictor(mask_channels[-1], mask_channels[-1], outputs),
        **options,
    )
