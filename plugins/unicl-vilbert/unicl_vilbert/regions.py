"""Regions of images and their class distributions: cells or boxes seen by a trained run, or Faster R-CNN's."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from unicl_cli.api import Drawn, UniclError, load_model, prompts_of, zeroshot_classifier
from unicl_vilbert.streams import Regions

KEPT = ("resolved.yaml", "classes.json", "tokenizer.json", "meta.json", "model.safetensors", "ema.safetensors")
"""Files of a run that make its model again, beside its folder `towers`."""


class Seer(NamedTuple):
    """A trained two-tower run: its Step, the prompts of its classes (C, D), the pixels of its input."""

    step: nn.Module
    prompts: Tensor
    side: int


def load_seer(run: Path) -> Seer:
    """Load a finished run that scores classes by text; UniclError for any other."""
    if not (run / "model.safetensors").is_file():
        raise UniclError(
            f"model.regions.model: {run}: not a finished run", "name the folder that `unicl train` printed"
        )
    with torch.device("cpu"):  # a dry run builds on the meta device, where nothing can be looked at
        loaded = load_model(str(run))
        step = loaded.step
        if cast("Any", step.loss).score != "text" or loaded.tokenizer is None or not loaded.classes:
            raise UniclError(
                f"model.regions.model: {run}: it does not score classes by text",
                "name a run of unicl or clip on labels",
            )

        def encode(tokens: Tensor) -> Tensor:
            return cast("Any", step.model).encode_text(tokens).embed

        with torch.no_grad():
            found = zeroshot_classifier(
                prompts_of([each.names[:1] for each in loaded.classes], loaded.templates),
                encode_text=encode,
                tokenizer=loaded.tokenizer,
            )
    step.requires_grad_(requires_grad=False)
    return Seer(step.eval(), found.weights, loaded.transform.size[0])


class RunRegions(nn.Module):
    """Cells of the image tower's grid, or boxes of the corpus, with the zero-shot classes of a frozen run.

    The run is held outside of the trained model: it is neither in checkpoints nor wrapped by DDP or FSDP2.
    """

    units: Sequence[nn.Module] = ()

    def __init__(self, run: Path, boxes: str, most: int, *, image_size: int, moves: bool) -> None:
        super().__init__()
        if boxes == "media" and moves:
            raise UniclError(
                "model.regions.boxes=media: the augmentation moves pixels, but no boxes", "set data.augment=none"
            )
        self.run, self.boxes, self.dry = run, boxes, torch.get_default_device().type == "meta"
        self.held = [load_seer(run)]
        seer = self.held[0]
        self.classes = len(seer.prompts)
        if boxes == "grid" and seer.side != image_size:
            raise UniclError(
                f"model.regions: {run} sees {seer.side} px, this recipe {image_size}",
                f"set data.image_size={seer.side}",
            )
        with torch.device("cpu"), torch.no_grad():
            blank = torch.zeros(1, 3, seer.side, seer.side, dtype=torch.uint8)
            if boxes == "grid":
                self.cells = grid_boxes(cast("Any", seer.step.model).image_tokens(blank).shape[1])
                self.width: int = cast("Any", seer.step.model).image_tokens(blank).shape[2]
            else:
                self.width = cast("Any", seer.step.model).image_width
                self.extra = partial(read_boxes, most=most)

    def store(self, folder: Path) -> None:
        """Copy what makes the run's model again."""
        for name in KEPT:
            if (self.run / name).is_file():
                shutil.copyfile(self.run / name, folder / name)
        if (self.run / "towers").is_dir():
            shutil.copytree(self.run / "towers", folder / "towers", dirs_exist_ok=True)

    def seer(self, device: torch.device) -> Seer:
        """Return the run on a device, where it stays."""
        seer = self.held[0]
        if seer.prompts.device != device:
            self.held[0] = seer = Seer(seer.step.to(device), seer.prompts.to(device), seer.side)
        return seer

    @torch.no_grad()
    def find(self, images: Tensor, extra: Mapping[str, Tensor]) -> Regions:
        """Find the regions of uint8 (b, 3, H, W); ``extra`` has the boxes of the corpus."""
        rows = len(images)
        if self.boxes == "grid":
            boxes = self.cells.to(images.device).expand(rows, -1, -1)
            there = torch.ones(boxes.shape[:2], dtype=torch.bool, device=images.device)
            if self.dry:
                return Regions(images.new_zeros(*boxes.shape[:2], self.width, dtype=torch.float32), boxes, there)
            cells = cast("Any", self.seer(images.device).step.model).image_tokens(images)
            return Regions(cells[:, -boxes.shape[1] :], boxes, there)
        if "boxes" not in extra:
            raise UniclError(
                "vilbert: these regions are boxes of a corpus, which an image alone does not have",
                "use `unicl eval RUN --evaluator vilbert`, or train with model.regions.boxes=grid",
            )
        boxes, there = extra["boxes"], extra["region_mask"]
        if self.dry:
            return Regions(images.new_zeros(*boxes.shape[:2], self.width, dtype=torch.float32), boxes, there)
        features, classes = (x.unflatten(0, (rows, -1)) for x in self.look_closer(images, boxes))
        return Regions(features.masked_fill(~there[..., None], 0), boxes, there, classes)

    @torch.no_grad()
    def distributions(self, images: Tensor, found: Regions) -> Tensor:
        """Return the zero-shot class distribution of each region, cut out and seen alone: (b, R, K).

        So ViLD makes the targets of a detector's regions (ICLR 2022, section 3.3).
        """
        shape = found.boxes.shape[:2]
        if found.classes is not None:
            return found.classes
        if self.dry:
            return images.new_zeros(*shape, self.classes, dtype=torch.float32)
        return self.look_closer(images, found.boxes)[1].unflatten(0, shape)

    def look_closer(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each box of (b, R, 5) as an image of its own: features (b R, width), classes (b R, K)."""
        seer, model = self.seer(images.device), cast("Any", self.seer(images.device).step.model)
        height, width = images.shape[-2:]
        corners = boxes[..., :4].float() * torch.tensor([width, height, width, height], device=images.device)
        cut = roi_align(images.float(), list(corners), seer.side, aligned=True)
        seen = model.encode_image(cut.round().clamp(0, 255).to(torch.uint8))
        return seen.pooled, (model.scale() * F.normalize(seen.embed, dim=-1) @ seer.prompts.T).softmax(-1)


def grid_boxes(tokens: int) -> Tensor:
    """Return the cells of a square grid, (1, R, 5), row by row; one token more than a square is a class token."""
    side = math.isqrt(tokens)
    if tokens - side**2 > 1:
        raise UniclError(f"vilbert: {tokens} image tokens are not a square grid", "use another image tower")
    ys, xs = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    return five_numbers(torch.stack([xs, ys, xs + 1 / side, ys + 1 / side], -1).view(1, -1, 4), 1, 1)


def read_boxes(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor, *, most: int) -> dict[str, Tensor]:
    """Return ``boxes`` (b, most, 5) and ``region_mask`` bool (b, most), from the rows' media `boxes`."""
    del tokens, text_index
    padded, there = torch.zeros(len(drawn), most, 5), torch.zeros(len(drawn), most, dtype=torch.bool)
    for row, one in enumerate(drawn):
        boxes, _ = parse_boxes(one)
        if len(boxes) > most:
            raise UniclError(
                f"row {one.row}: {len(boxes)} boxes, more than model.regions.most={most}",
                f"set model.regions.most={len(boxes)}",
            )
        padded[row, : len(boxes)], there[row, : len(boxes)] = boxes, True
    if len(drawn) > 1 and not there.any():  # a dry run asks for one empty row
        raise UniclError("vilbert: no row has boxes", "prepare a corpus with boxes, or set model.regions.boxes=grid")
    return {"boxes": padded, "region_mask": there}


def read_targets(drawn: Sequence[Drawn], tokens: Tensor, text_index: Tensor) -> dict[str, Tensor]:
    """Return ``target_box`` (b, 5), which the text refers to, and ``has_target`` bool (b,)."""
    del tokens, text_index
    targets, has = torch.zeros(len(drawn), 5), torch.zeros(len(drawn), dtype=torch.bool)
    for row, (boxes, target) in enumerate(map(parse_boxes, drawn)):
        if target is not None:
            targets[row], has[row] = boxes[target], True
    if len(drawn) > 1 and not has.any():
        raise UniclError("vilbert-refer: no row has a target", 'prepare such a corpus, for example "scenes?task=refer"')
    return {"target_box": targets, "has_target": has}


def parse_boxes(one: Drawn) -> tuple[Tensor, int | None]:
    """Return the boxes (n, 5) of a row and the number of its target; UniclError if they do not fit the image.

    The media `boxes` is JSON with ``width``, ``height``, ``boxes`` of four corner numbers in pixels and, for referring
    expressions, ``target``, the number of the box that the text names.
    """
    if "boxes" not in one.media:
        return torch.zeros(0, 5), None
    hint = "fix the boxes of the data set and prepare it again"
    try:
        found = json.loads(one.media["boxes"])
        width, height = float(found["width"]), float(found["height"])
        corners = torch.tensor(found["boxes"], dtype=torch.float64).view(-1, 4)
        target = found.get("target")
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise UniclError(f"row {one.row}: boxes: not JSON with width, height and boxes", hint) from error
    if width != height or one.image.shape[-1] != one.image.shape[-2]:
        raise UniclError(f"row {one.row}: boxes: an image of {width:g}×{height:g} px is cropped to a square", hint)
    x1, y1, x2, y2 = corners.T if len(corners) else torch.zeros(4, 0)
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    if not bool(inside.all()):
        number = int((~inside).nonzero()[0])
        raise UniclError(f"row {one.row}: box {number} {corners[number].tolist()} is empty or outside the image", hint)
    if target is not None and not (type(target) is int and 0 <= target < len(corners)):
        raise UniclError(f"row {one.row}: target {target!r} is not the number of a box", hint)
    return five_numbers(corners, width, height).float(), target


def five_numbers(corners: Tensor, width: float, height: float) -> Tensor:
    """Encode (…, 4) corners in pixels as (x1 / W, y1 / H, x2 / W, y2 / H, area / (W H)), (…, 5) (section 3.1)."""
    scaled = corners / corners.new_tensor([width, height, width, height])
    return torch.cat([scaled, (scaled[..., 2:] - scaled[..., :2]).prod(-1, keepdim=True)], -1)


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
        self.held = [net.requires_grad_(requires_grad=False).eval()]

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
        net = self.held[0] = self.held[0].to(images.device)
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
        return cast("Any", self.held[0]).roi_heads.box_predictor.cls_score(found.features.float()).softmax(-1)

    def head_states(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Return the states of the box head for (b, R, 5), (b, R, 1024)."""
        net = cast("Any", self.held[0])
        height, width = images.shape[-2:]
        corners = boxes[..., :4] * boxes.new_tensor([width, height, width, height])
        batch, targets = net.transform(
            list(images / 255), [{"boxes": each, "labels": torch.zeros(len(each))} for each in corners]
        )
        pooled = net.roi_heads.box_roi_pool(
            net.backbone(batch.tensors), [each["boxes"] for each in targets], batch.image_sizes
        )
        return net.roi_heads.box_head(pooled).unflatten(0, boxes.shape[:2])
