"""Batches ahead of their step: the same ones in the same order, errors where they belong, no thread left behind."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from on_device import needs_card

from unicl_cli.core.prefetch import move_batches, prefetch, tensors_of
from unicl_cli.errors import UniclError


class Pair(NamedTuple):
    x: torch.Tensor
    extra: dict[str, torch.Tensor]


def pairs(n: int, made: list[int] | None = None) -> Iterator[tuple[int, Pair]]:
    for step in range(n):
        if made is not None:
            made.append(step)
        yield step, Pair(torch.full((3,), step), {"y": torch.arange(step)})


def threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3])
def test_the_same_items_come_in_the_same_order(depth):
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    assert list(prefetch(iter(()), depth)) == []
    assert threads() == 0


def test_the_next_item_is_made_while_one_is_in_use_and_no_more_than_the_depth():
    made: list[int] = []
    items = prefetch(pairs(20, made), 2)
    assert next(items)[0] == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3], "one in use, two ready, one in the thread's hand"
    items.close()
    assert threads() == 0


def test_an_error_comes_after_the_items_before_it():
    def failing():
        yield 1
        raise UniclError("shard x: damaged", "repair it")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(UniclError, match="shard x: damaged"):
        next(items)
    assert threads() == 0


def test_a_reader_that_stops_ends_the_thread_and_what_it_reads():
    closed: list[bool] = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    items = prefetch(endless())
    next(items)
    items.close()
    assert threads() == 0
    assert closed == [True]


def test_batches_reach_the_device_whole_and_changed_there():
    moved = list(move_batches(pairs(4), torch.device("cpu"), lambda was, there: there._replace(x=was.x + 10)))
    assert [step for step, _ in moved] == [0, 1, 2, 3]
    for step, pair in moved:
        assert isinstance(pair, Pair)
        assert pair.x.tolist() == [step + 10] * 3
        assert pair.extra["y"].tolist() == list(range(step))


def test_all_tensors_of_a_batch_are_found():
    x = [torch.tensor(n) for n in range(4)]
    assert list(tensors_of(({"a": x[0], "b": [x[1], (x[2],)]}, 5, "text", x[3]))) == x


@pytest.mark.gpu
@needs_card
def test_a_gpu_gets_the_same_batches_as_the_cpu():
    device = torch.device("cuda")
    pinned = ((step, Pair(x.pin_memory(), {"y": extra["y"].pin_memory()})) for step, (x, extra) in pairs(20))
    for (step, there), (_, here) in zip(move_batches(pinned, device, lambda was, there: there), pairs(20), strict=True):
        assert there.x.device.type == "cuda"
        assert torch.equal(there.x.cpu(), here.x), step
        assert torch.equal(there.extra["y"].cpu(), here.extra["y"])
