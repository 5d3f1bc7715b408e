"""The classes that captions without a label name, as facts of the rows that show them."""

from collections.abc import Sequence

from unicl_cli.contracts import NO_LABEL, ClassName, Drawn
from unicl_cli.core.label_sets import MOST_NAMED
from unicl_cli.data.class_mentions import ClassNameFinder, split_text


class CaptionLabels:
    """Adds to a row the classes of the mix that its caption names: as ``named``, or with ``labels`` as its labels.

    A caption says nothing about the classes that it does not name: the row is not annotated for their groups.
    A caption that names more than `MOST_NAMED` classes is a list of words and counts as one that names none. ``above``
    are for each class its own number and those of the classes above it, which become labels too.
    """

    def __init__(self, classes: Sequence[ClassName], above: Sequence[Sequence[int]], *, labels: bool) -> None:
        self.finder, self.above, self.labels = ClassNameFinder(classes), above, labels

    def named_in(self, text: str | None) -> tuple[int, ...]:
        """Return the classes that a caption names, in ascending order."""
        found = set(self.finder.named_by(split_text(text or "")))
        return tuple(sorted(found)) if len(found) <= MOST_NAMED else ()

    def complete(self, row: Drawn) -> Drawn:
        """Add the named classes to a row without a label."""
        named = self.named_in(row.text)
        if not self.labels or not named:
            return row._replace(named=named)
        labels = tuple(sorted({upper for label in named for upper in self.above[label]}))  # none of a shared root
        return row._replace(labels=labels, label=labels[0] if len(labels) == 1 else NO_LABEL)
