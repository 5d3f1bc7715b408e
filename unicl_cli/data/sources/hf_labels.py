"""Classes of a data set of the `datasets` library: the names of each split's own label column, joined by name."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.class_entry import ClassEntry, NameList
from unicl_cli.data.class_numbers import LabelledClasses, match_labels, name_classes, pair_names
from unicl_cli.data.number_spellings import check_spelling, describe_whole_numbers, is_integer, read_whole_numbers
from unicl_cli.data.sources.lists.cells import CellError
from unicl_cli.data.sources.lists.label_cells import SetCells
from unicl_cli.errors import Remark, UniclError


class LabelColumn(NamedTuple):
    """The label column of a data set. ``features`` are by split and column; ``read`` gives the cells of a column.

    ``texts`` are the text columns that may hold the names of numbers. ``sets`` reads cells with several labels.
    ``whole`` are the integers of labels that are written as floats (`read_whole_numbers`).
    """

    path: str
    name: str
    features: Mapping[str, Mapping[str, Any]]
    read: Callable[[str, str], Iterator[Any]]
    texts: Sequence[str]
    sets: SetCells | None = None
    whole: Mapping[str, str] = {}

    def names_of(self, split: str) -> tuple[str, ...]:
        """Return the names that a split's own ClassLabel gives its numbers; () if it has none."""
        return tuple(getattr(item_of(self.features[split].get(self.name)), "names", None) or ())

    def label_of(self, split: str, value: object) -> str:
        """Return the label of a cell as a text, a number by its name in this split; "" for none."""
        text = "" if value is None or value != value else str(value)
        text = self.whole.get(text, text)
        names = self.names_of(split)
        if names and text.isdecimal() and int(text) < len(names):
            return names[int(text)]
        return "" if text == str(NO_LABEL) else text

    def labels_of(self, split: str, at: int, value: object) -> tuple[str, ...] | None:
        """Return the labels of a cell; None if it says nothing, and () if it says that there are none."""
        if self.sets is None:
            label = self.label_of(split, value)
            return (label,) if label else None
        try:
            found = self.sets.read(value, self.name)
        except CellError as error:
            raise UniclError(
                f"{self.path}: {split} row {at}: {error.fault}", error.hint or "correct the cell"
            ) from error
        return None if found is None else tuple(self.label_of(split, label) for label in found)


def item_of(feature: Any) -> Any:
    """Return the feature of the items of a list, and any other feature as it is."""
    return getattr(feature, "feature", feature)


def with_whole_numbers(column: LabelColumn, notes: list[str]) -> LabelColumn:
    """Return the column with its labels read as integers if all are whole; UniclError for floats with a fraction."""
    if any(column.names_of(split) for split in column.features):
        return column
    counts = Counter(label for split in column.features for label in _labels(column, split) if label)
    whole = read_whole_numbers(counts)
    notes += [f"{column.path}: {note}" for note in describe_whole_numbers(whole, counts)]
    broken = next((label for label in counts if not is_integer(label) and not read_whole_numbers([label])), None)
    if broken and any("float" in _type_of(features.get(column.name)) for features in column.features.values()):
        raise UniclError(
            f"{column.path}: column '{column.name}' holds {broken}, which is not an integer",
            "label images with class names or whole numbers, or choose another column: ?label=COLUMN",
        )
    return column._replace(whole=whole)


def find_classes(column: LabelColumn, given: NameList | None, first: int | None, notes: list[str]) -> LabelledClasses:
    """Return the classes, and the number of each label as ``LabelColumn.label_of`` writes it.

    ``given`` are the names of a file, for bare numbers or instead of those in the data set.
    """
    own = {split: names for split in column.features if (names := column.names_of(split))}
    differ = len(set(own.values())) > 1
    if given:
        return _match_given(column, given, first, own)
    if own:
        if differ:
            splits = ", ".join(own)
            notes.append(Remark(f"{column.path}: splits {splits} number their classes differently: joined by name"))
        return _number(dict.fromkeys(name for names in own.values() for name in names))
    labels = {label: None for split in column.features for label in _labels(column, split) if label}
    kind = _type_of(item_of(next(iter(column.features.values()))[column.name]))
    if kind.endswith("string"):
        check_spelling(column.path, labels)
        return _number(dict.fromkeys(sorted(labels)))
    if column.sets is None and (names := _names_from_texts(column, notes)):
        return match_labels(names, labels, first)
    raise UniclError(
        f"{column.path}: column '{column.name}' ({kind}) has no class names",
        "write the names into a file, one per line, and add ?classes=FILE",
    )


def _type_of(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _match_given(
    column: LabelColumn, given: NameList, first: int | None, own: Mapping[str, tuple[str, ...]]
) -> LabelledClasses:
    """Match the labels with a file; where the data set names them too, both count them from 0."""
    if not own:
        labels = {label for split in column.features for label in _labels(column, split) if label}
        return match_labels(given, labels, first)
    names = next(iter(own.values()))
    if len(set(own.values())) > 1 or len(own) < len(column.features):
        raise UniclError(
            f"{column.path}: the splits name their classes differently, so {given.origin} cannot name them all",
            "remove classes=FILE, or choose splits: ?splits=NAME,NAME",
        )
    if len(given.entries) != len(names):
        raise UniclError(
            f"{given.origin}: has {len(given.entries):,} names; column '{column.name}' has {len(names):,} classes",
            "name every class, or remove classes=FILE",
        )
    matched = match_labels(given, [str(at) for at in range(len(names))], first)
    return LabelledClasses(matched.classes, {name: matched.numbers[str(at)] for at, name in enumerate(names)})


def _number(names: Mapping[str, None]) -> LabelledClasses:
    return LabelledClasses(name_classes([(name,) for name in names]), {name: at for at, name in enumerate(names)})


def _labels(column: LabelColumn, split: str) -> Iterator[str]:
    """Yield all labels of a split; without sets one for each row, "" for none."""
    if column.sets is not None:
        column = column._replace(sets=SetCells(column.sets.separator))  # what is unusual is counted once, by the rows
    for at, value in enumerate(column.read(split, column.name)):
        labels = column.labels_of(split, at, value)
        yield from labels or (("",) if column.sets is None else ())


def _names_from_texts(column: LabelColumn, notes: list[str]) -> NameList | None:
    """Return the names of bare numbers from the one text column that has a text of its own for each."""
    found: dict[str, dict[str, str]] = {}
    for text in column.texts:
        pairs = (
            (label, name or "")
            for split in column.features
            for label, name in zip(_labels(column, split), column.read(split, text), strict=True)
        )
        if names := pair_names(pairs):
            found[text] = names
    if len(found) != 1:
        return None
    text, names = next(iter(found.items()))
    number, name = next(iter(names.items()))
    notes.append(Remark(f"{column.path}: column '{text}' names the labels, for example {number}: {name}"))
    return NameList(column.path, tuple(ClassEntry((name,), number) for number, name in names.items()))
