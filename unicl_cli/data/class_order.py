"""The order of a training whose batches hold P classes with K rows of each, and captions."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from unicl_cli.contracts import NO_LABEL
from unicl_cli.core.class_batches import ClassBatches, JoinedBatches
from unicl_cli.core.sampler import Alternation, Mixture, Order, Stream
from unicl_cli.data.mix import LABELS, Strand, label_share
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of

KEY = "data.rows_per_class"


class ClassRows(NamedTuple):
    """The recipe's keys: K rows of each of P classes; P is None for as many as the label rows of a batch take."""

    rows: int
    classes: int | None


def order_by_class(
    strands: Sequence[Strand], asked: ClassRows, *, labels: float | str, by: str, batch_size: int, seed: int
) -> JoinedBatches | Alternation:
    """Return the order of a training as `mix.order_of`, with the rows with labels drawn as ``asked``.

    UniclError if the batches cannot be filled so. ValueError for a batch that is too small for the other streams.
    """
    share = label_share(strands, labels)
    is_alternating = by == "step" and 0 < share < 1
    own = [s for s in strands if s.kind == LABELS]
    if not own or not share:
        raise UniclError(f"{KEY}: the mix has no rows with labels", f"set {KEY}=null, or add a corpus with labels")
    if any(s.weight != 1 for s in own):
        raise UniclError(
            f"{KEY}: batches are drawn by class, so the weight of a corpus with labels has no effect",
            "remove weight from data.train, or use data.balance instead",
        )
    count = count_classes(asked, batch_size * (Fraction(1) if is_alternating else share), batch_size)
    found = [s.row_labels() if s.kind == LABELS else np.full(s.size, NO_LABEL, np.int64) for s in strands]
    if (met := len(np.unique(np.concatenate([of[of >= 0] for of in found])))) < count:
        raise UniclError(
            f"{KEY}: a batch takes {count_of(asked.rows, 'row')} of {count_of(count, 'class')}, "
            f"and only {met:,} have rows",
            f"use a larger {KEY}, or a smaller batch.size",
        )
    classes = ClassBatches(found, count, asked.rows, seed)
    if share == 1:
        return JoinedBatches(classes, None, seed)
    rest = batch_size if is_alternating else batch_size - classes.batch_size
    others = _mix_others(strands, rest, seed)
    if is_alternating:
        return Alternation(JoinedBatches(classes, None, seed), others, share)
    return JoinedBatches(classes, others, seed)


def count_classes(asked: ClassRows, rows: Fraction, batch_size: int) -> int:
    """Return the classes of a batch with ``rows`` rows with labels. UniclError if they are not P classes of K rows."""
    if asked.classes is not None and asked.classes * asked.rows != rows:
        wanted = asked.classes * asked.rows
        fitting = wanted * batch_size / rows
        hint = f"set batch.size={fitting}, or leave" if fitting.denominator == 1 else "leave"
        raise UniclError(
            f"data.classes_per_batch: {asked.classes} classes of {asked.rows} rows are {wanted:,} rows, and a batch "
            f"has {float(rows):g} rows with labels",
            f"{hint} data.classes_per_batch out to fill the batch",
        )
    if rows.denominator > 1 or rows % asked.rows:
        raise UniclError(
            f"{KEY}: the {float(rows):g} rows with labels of a batch are not a multiple of {asked.rows}",
            f"choose batch.size and data.mix.labels so that {asked.rows} rows of each class fill them",
        )
    return int(rows) // asked.rows


def describe_few(order: Order) -> list[str]:
    """Return a warning about classes whose rows a batch shows several times; none in orders without such classes."""
    part = order.first if isinstance(order, Alternation) else order
    if not isinstance(part, JoinedBatches) or not part.classes.few:
        return []
    few, rows = count_of(part.classes.few, "class"), part.classes.rows
    return [f"{KEY}: {few} with fewer than {rows} rows: a batch shows their rows several times"]


def _mix_others(strands: Sequence[Strand], rows: int, seed: int) -> Mixture:
    """Return the mixture of the strands without labels, each with its share by weight and rows."""
    sizes = [Fraction(str(s.weight)) * s.size if s.kind != LABELS else Fraction(0) for s in strands]
    streams = [Stream(s.group_sizes, f"{seed}/{n}") for n, s in enumerate(strands)]
    return Mixture(streams, [size / sum(sizes) for size in sizes], rows, seed + 1)
