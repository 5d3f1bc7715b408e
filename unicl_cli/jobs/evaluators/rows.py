"""The rows of a split that evaluators use: their labels, and an even choice of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unicl_cli.data.corpus import integers_of
from unicl_cli.evaluator_contracts import EvalRows


def read_labels(table: EvalRows) -> Tensor:
    """Return the classes of all rows, int64 (n,)."""
    return torch.from_numpy(integers_of(table.column("label")))


def limit_rows(rows: Sequence[int], limit: int | None) -> list[int]:
    """Return at most ``limit`` of the rows, evenly over their order: the first ones may all be of one source."""
    if limit is None or len(rows) <= limit:
        return list(rows)
    return [rows[place * len(rows) // limit] for place in range(limit)]
