"""Regions that a frozen run sees, with their zero-shot classes: cells of its tower's grid, or boxes of the corpus."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from unicl_cli.api import UniclError, copy_model, load_model, prompts_of, zeroshot_classifier
from unicl_regions.boxes import Regions, check_boxes, grid_boxes, read_boxes


class FrozenRun(NamedTuple):
    """A trained two-tower run: its Step, the prompts of its classes (C, D), the pixels of its input."""

    step: nn.Module
    prompts: Tensor
    side: int


def load_frozen_run(run: Path) -> FrozenRun:
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
    return FrozenRun(step.eval(), found.weights, loaded.transform.size[0])


class RunRegions(nn.Module):
    """Cells of the image tower's grid, or boxes of the corpus, with the zero-shot classes of a frozen run.

    A list holds the run outside of the trained model: it is neither in checkpoints nor wrapped by DDP or FSDP2.
    """

    units: Sequence[nn.Module] = ()

    def __init__(self, run: Path, boxes: str, most: int, *, image_size: int, moves: bool) -> None:
        super().__init__()
        if boxes == "media" and moves:
            raise UniclError(
                "model.regions.boxes=media: the augmentation moves pixels, but no boxes", "set data.augment=none"
            )
        self.run, self.boxes, self.dry = run, boxes, torch.get_default_device().type == "meta"
        self.frozen = [load_frozen_run(run)]
        frozen = self.frozen[0]
        self.classes = len(frozen.prompts)
        if boxes == "grid" and frozen.side != image_size:
            raise UniclError(
                f"model.regions: {run} sees {frozen.side} px, this recipe {image_size}",
                f"set data.image_size={frozen.side}",
            )
        with torch.device("cpu"), torch.no_grad():
            blank = torch.zeros(1, 3, frozen.side, frozen.side, dtype=torch.uint8)
            if boxes == "grid":
                self.cells = grid_boxes(cast("Any", frozen.step.model).image_tokens(blank).shape[1])
                self.width: int = cast("Any", frozen.step.model).image_tokens(blank).shape[2]
            else:
                self.width = cast("Any", frozen.step.model).image_width
                self.extra, self.check_rows = partial(read_boxes, most=most), partial(check_boxes, most=most)

    def store(self, folder: Path) -> None:
        """Copy what makes the run's model again."""
        copy_model(self.run, folder)

    def on_device(self, device: torch.device) -> FrozenRun:
        """Return the run on a device, where it stays."""
        frozen = self.frozen[0]
        if frozen.prompts.device != device:
            self.frozen[0] = frozen = FrozenRun(frozen.step.to(device), frozen.prompts.to(device), frozen.side)
        return frozen

    @torch.no_grad()
    def find(self, images: Tensor, extra: Mapping[str, Tensor]) -> Regions:
        """Find the regions of uint8 (b, 3, H, W); ``extra`` has the boxes of the corpus."""
        rows = len(images)
        if self.boxes == "grid":
            boxes = self.cells.to(images.device).expand(rows, -1, -1)
            there = torch.ones(boxes.shape[:2], dtype=torch.bool, device=images.device)
            if self.dry:
                return Regions(images.new_zeros(*boxes.shape[:2], self.width, dtype=torch.float32), boxes, there)
            cells = cast("Any", self.on_device(images.device).step.model).image_tokens(images)
            return Regions(cells[:, -boxes.shape[1] :], boxes, there)
        if "boxes" not in extra:
            raise UniclError(
                "vilbert: these regions are boxes of a corpus, which an image alone does not have",
                "use `unicl eval RUN --evaluator loss`, or train with model.regions.boxes=grid",
            )
        boxes, there = extra["boxes"], extra["region_mask"]
        if self.dry:
            return Regions(images.new_zeros(*boxes.shape[:2], self.width, dtype=torch.float32), boxes, there)
        features, classes = (x.unflatten(0, (rows, -1)) for x in self.encode_boxes(images, boxes))
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
        return self.encode_boxes(images, found.boxes)[1].unflatten(0, shape)

    def encode_boxes(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each box of (b, R, 5) as an image of its own: features (b R, width), classes (b R, K)."""
        frozen, model = self.on_device(images.device), cast("Any", self.on_device(images.device).step.model)
        height, width = images.shape[-2:]
        corners = boxes[..., :4].float() * torch.tensor([width, height, width, height], device=images.device)
        cut = roi_align(images.float(), list(corners), frozen.side, aligned=True)
        seen = model.encode_image(cut.round().clamp(0, 255).to(torch.uint8))
        return seen.pooled, (model.scale() * F.normalize(seen.embed, dim=-1) @ frozen.prompts.T).softmax(-1)
