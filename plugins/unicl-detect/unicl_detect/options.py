"""The settings of a detector's training: what its YAML files hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from unicl_cli.api import Section

FOLDER = Path(__file__).with_name("settings")
"""The shipped settings."""
COMMAND = "detect train"


class DetectSettings(Section):
    """Settings of `unicl detect train`; the defaults are those of Mask R-CNN's 1x schedule with AdamW."""

    size: Annotated[int, Field(ge=16, le=4096)] = 800
    """Short side of the images in pixels."""
    max_size: Annotated[int, Field(ge=16, le=8192)] = 1333
    """Longest side: a longer image gets a shorter short side."""
    boxes_only: bool = False
    """Faster R-CNN, without masks."""
    heads: Literal["full", "small"] = "full"
    """Heads as in torchvision, or small ones that train on a CPU."""
    freeze: bool = False
    """Train the pyramid and the heads alone."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images of a step, over all processes."""
    steps: Annotated[int, Field(ge=1)] = 90_000
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 500
    """Steps of linear warm-up."""
    milestones: Sequence[Annotated[int, Field(ge=1)]] = (60_000, 80_000)
    """Steps after which the learning rate is a tenth of what it was."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that an image is mirrored."""
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    workers: Annotated[int, Field(ge=0, le=256)] = 4
    """Processes that read images; 0 reads in this process."""
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 1000

    def lr_at(self, step: int) -> float:
        """Return the learning rate of update ``step``, 0 for the first."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return self.lr * warm * 0.1 ** sum(step >= milestone for milestone in self.milestones)
