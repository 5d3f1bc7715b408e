"""Images that a frozen tower has encoded stand in for pixels: finished as if encoded now, and of no other use."""

from functools import partial

import pytest
import torch
from torch import nn

from unicl_cli.contracts import Batch, Drawn, LogitScale
from unicl_cli.core.host_copy import to_device
from unicl_cli.core.image_cache import EncodedImages, PixelsNeeded, reads_no_images
from unicl_cli.core.loop import Step
from unicl_cli.core.prefetch import tensors_of
from unicl_cli.data.collate import Extra
from unicl_cli.encoders.cbow import Cbow
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.losses.unicl import UniCL
from unicl_cli.model import TwoTower

USES = {
    "float": lambda x: x.float(),
    "shape": lambda x: x.shape,
    "to": lambda x: x.to(torch.float32),
    "mean": torch.mean,
    "cat": lambda x: torch.cat([x, x]),
    "==": lambda x: x == 0,
    "/": lambda x: x / 255,
    "* tensor": lambda x: torch.ones(3) * x,
    "[0]": lambda x: x[0],
    "loop": list,
}


class Projecting(nn.Module):
    """An image tower that returns (pooled, joint) itself."""

    projects, width, units = True, 8, ()

    def __init__(self):
        super().__init__()
        self.look = nn.Linear(3, 24)

    def forward(self, x):
        return self.look(x.mean((2, 3))).split([8, 16], 1)


def step_of(tower=None, *, chunks=1):
    torch.manual_seed(0)
    model = TwoTower(
        tower or Cnn(8, 2), Cbow(20, 0, 16), embed_dim=16, normalize=True, logit_scale=LogitScale(), chunks=chunks
    )
    (model.image if tower else model.image.trunk).requires_grad_(requires_grad=False)
    return Step(model, UniCL()).train()


def batch_of(rows=10):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, 3, 8, 8), generator=random).to(torch.uint8)
    tokens = torch.randint(1, 20, (rows, 4), generator=random)
    return Batch(images, tokens, *[torch.arange(rows)] * 4, {})


@pytest.mark.parametrize(("tower", "chunks"), [(None, 1), (None, 3), (Projecting, 1), (Projecting, 3)])
def test_encoded_images_train_as_their_pixels(tower, chunks):
    """Loss and every gradient: bit for bit, or up to rounding if the pixels are encoded in chunks.

    Some processors add up a product of matrices in another order for another number of rows.
    """
    step, batch = step_of(tower and tower(), chunks=chunks), batch_of()
    found = []
    for images in (batch.images, EncodedImages(step.call("encode_frozen", batch.images))):
        step.zero_grad()
        out = step(batch._replace(images=images))
        out["loss"].backward()
        found.append([out["loss"].detach(), *(p.grad for p in step.parameters() if p.grad is not None)])
    assert len(found[0]) > 2
    within = {} if chunks > 1 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(*found, **within)


@pytest.mark.parametrize("why", ["learns", "training"])
def test_a_tower_that_may_change_is_not_encoded_ahead(why):
    step, batch = step_of(), batch_of()
    assert step.call("encode_frozen", batch.images).shape == (10, step.model.image_width)
    if why == "learns":
        next(step.model.image.trunk.parameters()).requires_grad = True
    else:
        step.model.image.trunk.train()
    assert step.call("encode_frozen", batch.images) is None


@pytest.mark.parametrize("use", USES)
def test_any_other_use_of_encoded_images_is_refused(use):
    with pytest.raises((PixelsNeeded, TypeError)) as error:
        USES[use](EncodedImages(torch.rand(4, 8)))
    if isinstance(error.value, PixelsNeeded):
        assert "parallel.image_cache: the images of the batch are encoded already" in error.value.message
        assert error.value.hint == "set parallel.image_cache=off"


def test_a_batch_of_encoded_images_moves_as_any_other():
    outputs = torch.rand(10, 8)
    batch = batch_of()._replace(images=EncodedImages(outputs))
    moved = to_device(batch, "meta").images
    assert isinstance(moved, EncodedImages)
    assert len(moved) == 10
    assert moved.outputs.device.type == "meta"
    assert any(x is outputs for x in tensors_of(batch))
    assert not hasattr(moved, "dim")


def test_a_hook_that_reads_no_images_gets_none():
    seen = []

    def hook(drawn, tokens, text_index):
        seen.append([row.image for row in drawn])
        return {}

    rows = [Drawn(0, 0, 0, torch.zeros(3, 8, 8), 0, None, 0, {})]
    for mark, reads in ((lambda each: each, True), (reads_no_images, False)):
        extra = Extra([partial(mark(hook))])
        assert extra.reads_images is reads
        extra(rows, torch.zeros(1, 1), torch.zeros(1))
    assert seen[0][0].shape == (3, 8, 8)
    assert seen[1] == [None]
