"""Reads of values that the device has not computed yet, which a step must not do; seen without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unicl_cli.contracts import NO_KEY, NO_LABEL, Batch
from unicl_cli.core import host_copy
from unicl_cli.core.host_copy import send
from unicl_cli.data.device_augment import turn_hue
from unicl_cli.jobs.train.stage import batch_figures
from unicl_cli.losses.contrast import both_ways, supcon_loss

KEYS = torch.tensor([3, 3, 2**40, NO_KEY, 5, 3, NO_KEY, 2**40 + 7])


def batch(keys: torch.Tensor) -> Batch:
    rows = len(keys)
    tokens = torch.ones(2, 4, dtype=torch.int64)
    labels = torch.where((keys >= 0) & (keys < 2**40), keys, NO_LABEL)
    return Batch(torch.zeros(rows, 3, 2, 2), tokens, torch.zeros(rows, dtype=torch.int64), labels, keys, keys, {})


def test_the_figures_of_a_batch_are_those_of_its_keys():
    figures = batch_figures(batch(KEYS), pad_id=0)
    groups = {"3": 3, "2^40": 1, "5": 1, "2^40+7": 1}  # two rows are hidden
    assert figures["positives"].item() == pytest.approx(sum(n * n for n in groups.values()) / 6)
    assert figures["single_positive"].item() == pytest.approx(3 / 6)
    assert figures["label_share"].item() == pytest.approx(4 / 8)
    none = batch_figures(batch(torch.full((4,), NO_KEY)), pad_id=None)
    assert (none["positives"].item(), none["single_positive"].item()) == (0, 0)


@pytest.mark.parametrize("what", ["describe", "unicl", "supcon"])
def test_figures_and_losses_never_depend_on_a_value_that_the_host_would_have_to_read(what):
    """A tensor without numbers raises where the host reads one (`item`, `unique`, a mask as an index)."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        keys = mode.from_tensor(KEYS)
        u, v = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
        if what == "describe":
            batch_figures(batch(keys), pad_id=0)
        elif what == "unicl":
            both_ways(u, v, keys, 14.0)["loss"].backward()
        else:
            supcon_loss(u, keys, torch.arange(8), 0.1)["loss"].backward()


def test_a_host_tensor_goes_to_a_gpu_from_pinned_memory(monkeypatch):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (pinned.append(x), x)[1])
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, *, non_blocking: (device.type, non_blocking))
    assert send(torch.ones(2), torch.device("cuda")) == ("cuda", True)
    assert len(pinned) == 1
    assert host_copy.send(torch.ones(2), torch.device("cpu")) == ("cpu", True)
    assert len(pinned) == 1


def test_the_hue_is_turned_without_a_copy_of_constants():
    x = torch.tensor([[[[255]], [[0]], [[0]]], [[[10]], [[200]], [[30]]]], dtype=torch.uint8)
    third = torch.full((2, 1, 1, 1), 1 / 3)
    assert turn_hue(x, third).flatten(1).tolist() == [[0, 255, 0], [30, 10, 200]]
