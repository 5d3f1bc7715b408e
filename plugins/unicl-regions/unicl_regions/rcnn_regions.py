"""Regions that torchvision's Faster R-CNN detects, with the features and the class distribution of its box head."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unicl_cli.api import UniclError
from unicl_regions.boxes import Regions, five_numbers


class RcnnRegions(nn.Module):
    """The ``most`` best boxes of torchvision's Faster R-CNN (ResNet-50 with FPN, v2) with its head's features."""

    units: Sequence[nn.Module] = ()
    width = 1024

    def __init__(self, weights: Path | None, classes: int, most: int) -> None:
        super().__init__()
        from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

        self.classes, self.most, self.dry = classes, most, torch.get_default_device().type == "meta"
        if self.dry:
            return
        if weights is None:
            raise UniclError(
                "model.regions.weights: Faster R-CNN has no weights", "name a file of torchvision's state_dict"
            )
        net = fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=classes, box_detections_per_img=most
        )
        try:
            net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises many kinds for a file that is not one
            line = str(error).strip().splitlines()[0]
            raise UniclError(
                f"{weights}: not the weights of fasterrcnn_resnet50_fpn_v2 with {classes} classes: {line}",
                "save a state_dict with torch.save; set model.regions.classes to its classes, background included",
            ) from error
        self.weights = weights
        self.frozen = [net.requires_grad_(requires_grad=False).eval()]

    def store(self, folder: Path) -> None:
        """Keep the detector's weights in the run."""
        shutil.copyfile(self.weights, folder / "detector.pt")

    @torch.no_grad()
    def find(self, images: Tensor, extra: Mapping[str, Tensor]) -> Regions:
        """Detect in uint8 (b, 3, H, W)."""
        del extra
        shape = (len(images), self.most)
        boxes, there = images.new_zeros(*shape, 5, dtype=torch.float32), images.new_zeros(shape, dtype=torch.bool)
        if self.dry:
            return Regions(images.new_zeros(*shape, self.width, dtype=torch.float32), boxes, ~there)
        net = self.frozen[0] = self.frozen[0].to(images.device)
        height, width = images.shape[-2:]
        for row, one in enumerate(net(list(images / 255))):
            count = len(one["boxes"])
            boxes[row, :count], there[row, :count] = five_numbers(one["boxes"], width, height), True
        return Regions(self.head_states(images, boxes).masked_fill(~there[..., None], 0), boxes, there)

    @torch.no_grad()
    def distributions(self, images: Tensor, found: Regions) -> Tensor:
        """Return the detector's class distribution of each region, background included: (b, R, K)."""
        if self.dry:
            return images.new_zeros(*found.there.shape, self.classes, dtype=torch.float32)
        return cast("Any", self.frozen[0]).roi_heads.box_predictor.cls_score(found.features.float()).softmax(-1)

    def head_states(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Return the states of the box head for (b, R, 5), (b, R, 1024)."""
        net = cast("Any", self.frozen[0])
        height, width = images.shape[-2:]
        corners = boxes[..., :4] * boxes.new_tensor([width, height, width, height])
        batch, targets = net.transform(
            list(images / 255), [{"boxes": each, "labels": torch.zeros(len(each))} for each in corners]
        )
        pooled = net.roi_heads.box_roi_pool(
            net.backbone(batch.tensors), [each["boxes"] for each in targets], batch.image_sizes
        )
        return net.roi_heads.box_head(pooled).unflatten(0, boxes.shape[:2])
