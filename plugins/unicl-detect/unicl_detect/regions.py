"""Regions of an image with their class distributions, for other models."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from unicl_detect.detector import Detector


@torch.no_grad()
def find_regions(detector: Detector, image: Tensor, most: int) -> dict[str, Any]:
    """Return up to ``most`` regions of a uint8 image (3, H, W): boxes, and the distribution over ground and classes.

    The regions are the proposals moved to their likeliest class, the surest first, without near duplicates (IoU 0.5).
    ViLBERT (Lu et al., NeurIPS 2019, section 3.1) takes 10 to 36 of them.
    """
    net: Any = detector.net
    inputs, _ = net.transform([image.float() / 255])
    maps = net.backbone(inputs.tensors)
    proposals, _ = net.rpn(inputs, maps)
    heads = net.roi_heads
    logits, moves = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, inputs.image_sizes)))
    shares = logits.float().softmax(1)  # (n, 1 + classes)
    sure, label = shares[:, 1:].max(1)
    boxes = heads.box_coder.decode(moves, proposals)[torch.arange(len(label)), label + 1]
    boxes = clip_boxes_to_image(boxes, inputs.image_sizes[0])
    kept = batched_nms(boxes, sure, torch.zeros_like(label), 0.5)[:most]
    scale = torch.tensor([image.shape[2], image.shape[1]]) / torch.tensor(inputs.image_sizes[0]).flip(0)
    corners = boxes[kept].cpu() * scale.repeat(2)
    return {"boxes": corners.tolist(), "probabilities": shares[kept].cpu().tolist()}
