"""Random rows with label sets in groups, and their scores in blocks: what tests of their metrics share."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from unicl_cli.contracts import NO_LABEL, Sample
from unicl_cli.core.class_groups import groups_of
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


class SetRows:
    """Rows in memory, each (labels, known bits), with random images; a row of one label has it in column `label`."""

    has_sets = True

    def __init__(self, rows, seed=0):
        self.rows = rows
        pixels = np.random.default_rng(seed).integers(0, 256, (len(rows), 8, 8, 3), np.uint8)
        self.images = [_png(own) for own in pixels]

    def __len__(self):
        return len(self.rows)

    def label_sets(self):
        return sets_of([sorted(labels) for labels, _ in self.rows], [known for _, known in self.rows])

    def read(self, row):
        return Sample(self.images[row], (), NO_LABEL, "made", f"made:{row}", ())

    def column(self, name):
        columns = {
            "label": [labels[0] if len(labels) == 1 else NO_LABEL for labels, _ in self.rows],
            "source": ["made"] * len(self.rows),
            "texts": [[]] * len(self.rows),
            "key": [f"made:{row}" for row in range(len(self.rows))],
        }
        return pa.chunked_array([pa.array(columns[name])])


class SetCorpus:
    """A corpus in memory; ``splits`` maps the name of a split to its rows."""

    name, path, checksum = "made", Path("made"), "0"

    def __init__(self, classes, **splits):
        self.classes = tuple(classes)
        names = groups_of(self.classes)
        self.groups = tuple(names.index(item.group) for item in self.classes)
        self.splits = {name: SetRows(rows, seed) for seed, (name, rows) in enumerate(splits.items())}

    def kinds(self, split):
        return ("labels",) if split in self.splits else ()

    def table(self, split, kind):
        assert kind == "labels"
        return self.splits[split]


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
