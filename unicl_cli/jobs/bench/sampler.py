"""`bench sampler`: the cost of drawing a batch's rows as the corpus grows, at the start and far into a run."""

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
from unicl_cli.jobs.bench.protocol import Case, PreparedCase

OURS, TABLE = "unicl", "randperm"
"""randperm: a table of all rows in random order, as torch's RandomSampler makes at the start of each epoch."""
GROUP, BATCH = 100, 4096
"""Rows of a row group (about what `prepare` writes) and of a batch."""
FAR = 1_000_000
MOST_TABLE = 10_000_000
"""Rows of the largest table: it takes 80 MB and seconds to make."""


def cases(request: Request) -> list[Case]:
    batch = request.batch or BATCH
    found: list[Case] = []
    for rows in request.sizes or tuple(10**power for power in range(4, 9)):
        if rows < batch:
            raise UniclError(
                f"--sizes {rows}: fewer rows than a batch of {batch}", "give more rows, or a smaller --batch"
            )
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
    """Return the order of one corpus of label rows, from the sizes of its row groups alone."""
    sizes = np.full(-(-rows // GROUP), GROUP, np.int64)
    sizes[-1] -= sizes.sum() - rows
    return Mixture([Stream(sizes, "0/0")], [Fraction(1)], batch, 0)


def prepare_first(rows: int, batch: int, variants: Collection[str]) -> PreparedCase:
    """Prepare the first batch, from nothing."""
    draw = torch.Generator().manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: make_mixture(rows, batch).batch(0),
        TABLE: lambda: torch.randperm(rows, generator=draw)[:batch],
    }
    return PreparedCase(1, {name: runs[name] for name in variants}, {"rows": rows, "batch": batch})


def prepare_next(rows: int, batch: int, variants: Collection[str]) -> PreparedCase:
    """Prepare the next batch of a run in progress."""
    del variants
    order, steps = make_mixture(rows, batch), count()
    return PreparedCase(1, {OURS: lambda: order.batch(next(steps))}, {"rows": rows, "batch": batch})


def prepare_resumed(rows: int, batch: int, variants: Collection[str]) -> PreparedCase:
    """Prepare the first batch after resuming at step 1,000,000."""
    del variants
    return PreparedCase(
        1, {OURS: lambda: make_mixture(rows, batch).batch(FAR)}, {"rows": rows, "batch": batch, "step": FAR}
    )
