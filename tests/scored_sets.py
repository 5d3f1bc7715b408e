"""Random rows with label sets in groups, and their scores in blocks: what tests of their metrics share."""

import numpy as np

from unicl_cli.evaluate.annotations import Annotations
from unicl_cli.evaluator_contracts import RowSets


def sets_of(rows, known):
    """Rows given as lists of labels, with the bits of the groups that each knows."""
    ends = np.cumsum([0, *map(len, rows)])
    return RowSets(ends, np.array([label for own in rows for label in own], np.int64), np.array(known, np.int64))


def blocks_of(scores, size):
    """The scores (n, C) as blocks of ``size`` classes."""

    def read():
        columns = np.ascontiguousarray(scores.T)
        return ((start, columns[start : start + size]) for start in range(0, len(columns), size))

    return read


def random_case(seed, *, rows=60, groups=(0, 0, 0, 1, 1, 2, 2, 2), rounded=1, share=0.3):
    """Scores (n, C) with ties, labels (n, C) as bools, the pairs that are known, and both as `Annotations`.

    The last class has no row; a third of the rows are annotated for some groups only.
    """
    rng = np.random.default_rng(seed)
    classes = len(groups)
    scores = np.round(rng.normal(size=(rows, classes)), rounded).astype(np.float32)
    bits = np.where(rng.random(rows) < 0.33, rng.integers(1, 8, rows), 7)
    known = (bits[:, None] >> np.array(groups)) & 1 == 1
    has = (rng.random((rows, classes)) < share) & known
    has[:, -1] = False
    truth = Annotations(sets_of([own.nonzero()[0].tolist() for own in has], bits), groups)
    return scores, has, known, truth
