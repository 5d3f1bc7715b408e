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
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import Case, Prepared

OURS, TABLE = "unicl", "randperm"
"""A table of all rows in random order, as torch's RandomSampler makes one at the beginning of each pass."""
GROUP, BATCH = 100, 4096
"""Rows of a row group, as `prepare` writes them about, and of a batch."""
FAR = 1_000_000
MOST_TABLE = 10_000_000
"""Rows of the largest table that is made: 80 MB, in seconds."""


def cases(request: Request) -> list[Case]:
    batch = request.batch or BATCH
    found: list[Case] = []
    for rows in request.sizes or tuple(10**power for power in range(4, 9)):
        if rows < batch:
            raise UniclError(f"--sizes {rows}: fewer rows than a batch of {batch}", "give more, or a smaller --batch")
        tables = (TABLE,) if rows <= MOST_TABLE else ()
        for name, make, variants, memory in (
            ("first", prepare_first, (OURS, *tables), 1),
            ("next", prepare_next, (OURS,), 0),
            ("resumed", prepare_resumed, (OURS,), 0),
        ):
            prepare = partial(make, rows, batch)
            found.append(Case(f"{rows:.0e} {name}".replace("e+0", "e"), "batches", variants, OURS, prepare, memory))
    return found


def make_mixture(rows: int, batch: int) -> Mixture:
    """Of one corpus of label rows; the sizes of its row groups are all that is known of it."""
    sizes = np.full(-(-rows // GROUP), GROUP, np.int64)
    sizes[-1] -= sizes.sum() - rows
    return Mixture([Stream(sizes, "0/0")], [Fraction(1)], batch, 0)


def prepare_first(rows: int, batch: int, variants: Collection[str]) -> Prepared:
    """Nothing is there yet; the first batch's rows are what comes out."""
    draw = torch.Generator().manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: make_mixture(rows, batch).batch(0),
        TABLE: lambda: torch.randperm(rows, generator=draw)[:batch],
    }
    return Prepared(1, {name: runs[name] for name in variants}, {"rows": rows, "batch": batch})


def prepare_next(rows: int, batch: int, variants: Collection[str]) -> Prepared:
    """Each batch of a training that runs."""
    del variants
    order, steps = make_mixture(rows, batch), count()
    return Prepared(1, {OURS: lambda: order.batch(next(steps))}, {"rows": rows, "batch": batch})


def prepare_resumed(rows: int, batch: int, variants: Collection[str]) -> Prepared:
    """The first batch after a training has been continued at step 1,000,000."""
    del variants
    return Prepared(
        1, {OURS: lambda: make_mixture(rows, batch).batch(FAR)}, {"rows": rows, "batch": batch, "step": FAR}
    )
