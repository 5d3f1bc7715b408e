"""The classes of a list: its labels by name, number or group, once all lines are read."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from unicl_cli.contracts import MOST_GROUPS, NO_LABEL, ClassName
from unicl_cli.core.class_groups import groups_of
from unicl_cli.data.class_entry import ClassEntry, NameList
from unicl_cli.data.class_numbers import (
    LabelledClasses,
    RowLabels,
    describe_changed_names,
    match_labels,
    name_classes,
    pair_names,
    set_row_labels,
)
from unicl_cli.data.number_spellings import check_spelling, is_integer
from unicl_cli.data.sources.lists.cells import is_plain, text_of
from unicl_cli.data.sources.lists.column_names import usual_columns
from unicl_cli.data.sources.lists.columns import Roles, used_columns
from unicl_cli.data.sources.lists.labels import check_missing
from unicl_cli.data.sources.lists.record import Label, LabelSet, Line, ListOptions, Reader
from unicl_cli.errors import Remark, UniclError

_PARTLY = "neg_category_ids"
"""LVIS's column of the categories that an image was searched for in vain."""


class ListClasses:
    """The classes of the labels in all lines of a list, and the row labels of each line."""

    def __init__(
        self,
        path: Path,
        reader: Reader,
        roles: Roles,
        options: ListOptions,
        names: NameList | None,
        lines: Sequence[Line],
        whole: Mapping[str, str],
    ) -> None:
        self.whole = whole  # label as a float in the list -> as the integer that it is
        self.path, self.reader, self.columns, self.options = path, reader, roles.columns, options
        self.is_onehot, self.has_sets = roles.is_onehot, roles.has_sets(options)
        self.notes: list[str] = []
        self._rows: dict[LabelSet, RowLabels] = {}
        self.found: dict[LabelSet, Line] = {}
        """The first line with each set of labels."""
        for line in lines:
            if not line.fault:
                self.found.setdefault(line.found, line)
        self.column_groups = self._group_columns()
        self.class_groups = reader.class_groups(options.group) if options.group else {}
        self.groups = tuple(dict.fromkeys(self.class_groups.values() or self.column_groups))
        if self.has_sets and _PARTLY in reader.columns:
            self.notes.append(
                f"{path.name}: images with '{_PARTLY}' are annotated for some categories; others are taken as absent"
            )
        names = names or self._find_names()
        check_missing(path, lines, names, options)
        labels = {label for found in self.found for label in found.labels}
        if self.is_onehot:  # a column is a class, whether an image has it or not
            labels |= {Label(number, name) for number, name in enumerate(self.columns.label)}
        if self.has_sets and not labels:
            raise UniclError(f"{path}: no row has a label", f"check the column: {', '.join(self.columns.label)}")
        self._numbers = self._number(labels, names)
        self.groups = groups_of(self.classes)  # those of COCO that some image has
        self.notes += describe_changed_names(self.classes, "classes=FILE gives others")

    def _number(self, labels: set[Label], names: NameList | None) -> Mapping[Label, int]:
        """Make the classes of the labels, and return the number of each."""
        if names:
            self.notes += names.notes
            spellings = {of for entry in names.entries for of in (entry.id or "", entry.written, entry.names[0])}
            with_group = {label: f"{self._group_of(label)}:{label.text}" for label in labels}
            named = {label: name if name in spellings else label.text for label, name in with_group.items()}
            found = match_labels(names, set(named.values()), self.options.first)
        else:
            self._check_groups(labels)
            named = {label: label.text for label in labels}
            found = self._number_labels(labels)
        numbers = {label: found.numbers[name] for label, name in named.items() if name in found.numbers}
        self.classes = self._give_groups(found, numbers)
        return numbers

    def _number_labels(self, labels: set[Label]) -> LabelledClasses:
        """Return a class for each label, which is its name. UniclError if several labels are one number."""
        texts = {label.text for label in labels}
        check_spelling(str(self.path), texts)
        order = {group: at for at, group in enumerate(self.groups)}
        of_text = {label.text: order[self._group_of(label)] for label in labels}
        by_text = sorted(texts, key=int) if self.is_numbered else sorted(texts)
        keys = [text for text in sorted(by_text, key=lambda text: of_text[text]) if text != str(NO_LABEL)]
        return LabelledClasses(name_classes([(key,) for key in keys]), {key: at for at, key in enumerate(keys)})

    def _group_of(self, label: Label) -> str:
        return self.class_groups.get(label.text) or self.column_groups[label.column]

    def _group_columns(self) -> tuple[str, ...]:
        """Return the group of each label column. UniclError for a column that no line fills, or too many groups."""
        columns, group = self.columns.label, self.options.group or ""
        known = set[int]()
        doubtful = set[int]()
        for found in self.found:
            known |= set(range(len(columns))).difference(found.unknown)
            doubtful.update(found.unknown)
        if not self.is_onehot and len(columns) > 1 and not group:
            known = {label.column for found in self.found for label in found.labels}
        if self.has_sets and len(known) < len(columns):
            empty = next(name for number, name in enumerate(columns) if number not in known)
            raise UniclError(
                f"{self.path}: column '{empty}' is empty in every row, so no row is annotated for it",
                f"leave it out of {'onehot' if self.is_onehot else 'label'}=",
            )
        if not self.is_onehot:
            return (group,) * len(columns) if group or len(columns) == 1 else columns
        if group and doubtful:
            raise UniclError(
                f"{self.path}: group={group}: a row is annotated for all of a group or not at all, but column "
                f"'{columns[min(doubtful)]}' has unknown cells",
                "remove group=, so that each such column becomes a group of its own",
            )
        if len(doubtful) + (len(doubtful) < len(columns)) > MOST_GROUPS:
            raise UniclError(
                f"{self.path}: {len(doubtful)} columns have unknown cells, and each would be a group of its own; the "
                f"limit is {MOST_GROUPS}",
                "name fewer columns by onehot=, or fill their cells with 0 or 1",
            )
        return tuple(name if number in doubtful else group for number, name in enumerate(columns))

    def _check_groups(self, labels: Iterable[Label]) -> None:
        """Raise UniclError for a label in two groups, whose prompts would be equal."""
        met: dict[str, str] = {}
        for label in sorted(labels):
            group = self._group_of(label)
            if (other := met.setdefault(label.text, group)) != group:
                raise self._two_groups_error(label.text, other, group)

    def _two_groups_error(self, name: str, one: str, other: str) -> UniclError:
        return UniclError(
            f"{self.path}: label '{name}' is in two groups, {one or 'the unnamed one'} and {other}",
            f"write it differently in one of them, or name both in a file, {one}:{name}<TAB>NAME and "
            f"{other}:{name}<TAB>NAME: add classes=FILE; or make one group of all columns: add group=NAME",
        )

    def _give_groups(self, found: LabelledClasses, numbers: Mapping[Label, int]) -> tuple[ClassName, ...]:
        """Return the classes with their groups. UniclError for a class in two, or in none that is known."""
        if self.groups == ("",):
            return found.classes
        groups = dict.fromkeys(range(len(found.classes)), self.groups[0]) if len(self.groups) == 1 else {}
        for text, number in found.numbers.items():
            for group in self.groups:
                if group and text.startswith(f"{group}:"):
                    groups[number] = group
        for label, number in sorted(numbers.items()):
            group = self._group_of(label)
            if (other := groups.setdefault(number, group)) != group:
                raise self._two_groups_error(label.text, other, group)
        if lost := next((c for number, c in enumerate(found.classes) if number not in groups), None):
            raise UniclError(
                f"{self.options.classes}: no row has the class '{lost.names[0]}', so its group is not known",
                f"remove it, or give it an id with its group: {self.groups[0]}:{lost.key}",
            )
        return tuple(c._replace(group=groups[number]) for number, c in enumerate(found.classes))

    def row_labels(self, found: LabelSet, line: Line) -> RowLabels:
        """Return the labels of an image. UniclError for a label of ``line`` that is not a class."""
        if line.fault:
            return RowLabels()
        if found not in self._rows:
            self._rows[found] = self._row_labels(found, line)
        return self._rows[found]

    def _row_labels(self, found: LabelSet, line: Line) -> RowLabels:
        numbers = [number for label in found.labels if (number := self._number_of(label, line)) != NO_LABEL]
        if not self.has_sets:
            return RowLabels(numbers[0] if numbers else NO_LABEL)
        return set_row_labels(numbers, self._known(found.unknown), self.groups)

    def join(self, one: LabelSet, other: LabelSet, line: Line) -> LabelSet | None:
        """Return the labels of an image from two of its lines, of which ``line`` is the later; None if they differ."""
        if one == other:
            return one
        if self.is_onehot:
            marked = [{label.column for label in found.labels} for found in (one, other)]
            differ = (marked[0] ^ marked[1]) - {*one.unknown, *other.unknown}
        elif self.options.sets is None:
            numbers = {label.column: self._number_of(label, line) for label in one.labels}
            differ = {label for label in other.labels if not self._agrees(numbers, label, line)}
        else:
            differ = set[int]()
        if differ:
            return None
        labels = (*one.labels, *(label for label in other.labels if label not in one.labels))
        return LabelSet(labels, tuple(number for number in one.unknown if number in other.unknown))

    def _agrees(self, numbers: Mapping[int, int], label: Label, line: Line) -> bool:
        number, own = self._number_of(label, line), numbers.get(label.column, NO_LABEL)
        return NO_LABEL in (number, own) or number == own

    def _known(self, unknown: tuple[int, ...]) -> tuple[str, ...]:
        """Return the groups of which a column says something, in order."""
        if not unknown:
            return self.groups
        if self.class_groups:
            return ()
        return tuple(dict.fromkeys(group for number, group in enumerate(self.column_groups) if number not in unknown))

    def _number_of(self, label: Label, line: Line) -> int:
        if self.is_numbered and int(label.text) == NO_LABEL:
            return NO_LABEL
        if (number := self._numbers.get(label)) is not None:
            return number
        if label.text == str(NO_LABEL):  # among words
            return NO_LABEL
        shown = ", ".join([c.key for c in self.classes[:3]] + ["…"] * (len(self.classes) > 3))
        raise UniclError(
            f"{self.path}: {line.place}: unknown label {label.text} (number of classes: {len(self.classes):,})",
            f"use a number or name from the list of classes ({shown}), or -1 for no label",
        )

    @cached_property
    def is_numbered(self) -> bool:
        """True if all labels are integers. UniclError for numbers with a fraction, or below -1."""
        labels = list(self._labels())
        if not all(is_integer(label) for label, _ in labels):
            self._refuse_fractions(labels)
            return False
        if negative := next(((label, line) for label, line in labels if int(label) < NO_LABEL), None):
            raise UniclError(
                f"{self.path}: {negative[1].place}: label {negative[0]} is negative",
                "use -1 only, which means no label",
            )
        return bool(labels)

    def _refuse_fractions(self, labels: Sequence[tuple[str, Line]]) -> None:
        """Raise UniclError if all labels are numbers and some have a fraction: they are not names of classes."""
        broken = next(((label, line) for label, line in labels if label.partition(".")[2].strip("0")), None)
        if broken and all(re.fullmatch(r"[+-]?\d+(\.\d*)?", label) for label, _ in labels):
            raise UniclError(
                f"{self.path}: {broken[1].place}: label {broken[0]} is not an integer",
                "label images with class names or whole numbers, or choose another column: ?label=COLUMN",
            )

    def _labels(self) -> Iterator[tuple[str, Line]]:
        """Yield each label with the first line of those with the same labels, in the lines' order."""
        for found, line in self.found.items():
            for label in found.labels:
                yield label.text, line

    def _find_names(self) -> NameList | None:
        """Return the names given for the labels by the label column or one beside it."""
        if len(self.columns.label) != 1:
            return None
        if names := self.reader.class_names(self.columns.label[0]):
            return NameList(str(self.path), tuple(ClassEntry((name,), str(at)) for at, name in enumerate(names)))
        return self._names_beside() if self.is_numbered and not self.has_sets else None

    def _names_beside(self) -> NameList | None:
        """Return the names of numbered classes from the one column that has a text of its own for each number."""
        label = self.columns.label[0]
        used = used_columns(self.columns, self.reader.columns)
        found: dict[str, dict[str, str]] = {}
        for column in self.reader.columns:
            if column not in used and label in used:
                records = (record.cells for record in self.reader.records([label, column]) if not record.fault)
                pairs = ((text_of(cells.get(label)).strip(), cells.get(column)) for cells in records)
                if names := pair_names(
                    (self.whole.get(number, number), text_of(name).strip()) for number, name in pairs if is_plain(name)
                ):
                    found[column] = names
        usual = usual_columns("label", found)
        fit = usual or list(found)
        if len(fit) != 1:
            if fit:
                self.notes.append(f"{self.path.name}: columns {', '.join(fit)} name the labels: add ?label={fit[0]}")
            return None
        column = fit[0]
        names = found[column]
        number, name = next(iter(names.items()))
        note = Remark(f"{self.path.name}: column '{column}' names the labels, for example {number}: {name}")
        return NameList(str(self.path), tuple(ClassEntry((name,), number) for number, name in names.items()), (note,))
