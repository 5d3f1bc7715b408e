"""Which rows make a batch: what the order costs as the corpus grows, at the beginning and far into a training."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch

from unicl_cli.core.sampler import Mixture, Stream
from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench.kinds import Asked
from unicl_cli.jobs.bench.protocol import Case, Ready

OURS, TABLE = "unicl", "randperm"
"""A table of all rows in random order, as torch's RandomSampler makes one at the beginning of each pass."""
GROUP, BATCH = 100, 4096
"""Rows of a row group, as `prepare` writes them about, and of a batch."""
FAR = 1_000_000
MOST_TABLE = 10_000_000
"""Rows of the largest table that is made: 80 MB, in seconds."""


def cases(asked: Asked) -> list[Case]:
    batch = asked.batch or BATCH
    found: list[Case] = []
    for rows in asked.sizes or tuple(10**power for power in range(4, 9)):
        if rows < batch:
            raise UniclError(f"--sizes {rows}: fewer rows than a batch of {batch}", "give more, or a smaller --batch")
        tables = (TABLE,) if rows <= MOST_TABLE else ()
        for name, make, who, memory in (
            ("first", first, (OURS, *tables), 1),
            ("next", following, (OURS,), 0),
            ("resumed", resumed, (OURS,), 0),
        ):
            prepare = partial(make, rows, batch)
            found.append(Case(f"{rows:.0e} {name}".replace("e+0", "e"), "batches", who, OURS, prepare, memory))
    return found


def mixture(rows: int, batch: int) -> Mixture:
    """Of one corpus of label rows; the sizes of its row groups are all that is known of it."""
    sizes = np.full(-(-rows // GROUP), GROUP, np.int64)
    sizes[-1] -= sizes.sum() - rows
    return Mixture([Stream(sizes, "0/0")], [Fraction(1)], batch, 0)


def first(rows: int, batch: int, who: Collection[str]) -> Ready:
    """Nothing is there yet; the first batch's rows are what comes out."""
    draw = torch.Generator().manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: mixture(rows, batch).batch(0),
        TABLE: lambda: torch.randperm(rows, generator=draw)[:batch],
    }
    return Ready(1, {name: runs[name] for name in who}, {"rows": rows, "batch": batch})


def following(rows: int, batch: int, who: Collection[str]) -> Ready:
    """Each batch of a training that runs."""
    del who
    order, steps = mixture(rows, batch), count()
    return Ready(1, {OURS: lambda: order.batch(next(steps))}, {"rows": rows, "batch": batch})


def resumed(rows: int, batch: int, who: Collection[str]) -> Ready:
    """The first batch after a training has been continued at step 1,000,000."""
    del who
    return Ready(1, {OURS: lambda: mixture(rows, batch).batch(FAR)}, {"rows": rows, "batch": batch, "step": FAR})
