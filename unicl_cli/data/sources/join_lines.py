"""The lines of a list joined into rows: one row per image, whatever the ids of its lines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from unicl_cli.contracts import NO_LABEL, Row
from unicl_cli.core.sampler import scramble
from unicl_cli.data.sources.lists.cells import is_web_url, key_of_url
from unicl_cli.data.sources.lists.list_classes import ListClasses
from unicl_cli.data.sources.lists.record import LabelSet, Line
from unicl_cli.data.sources.row_spool import spool_rows
from unicl_cli.errors import Remark, UniclError
from unicl_cli.storage.buckets import Buckets
from unicl_cli.storage.spool import Spool
from unicl_cli.storage.text_hashes import count_distinct, group_equal, hash_texts

NAMED = 10
"""Images with several labels that an error names."""
_CHUNK = 1024
_PRECEDENCE = ("test", "val")
"""The split of an image whose lines are in several: the first of these, else any but train."""


class LineReading(NamedTuple):
    """The meaning of a line: the identity of its image, its split and its labels.

    ``classes`` is None for a list without labels; ``hint`` is for images whose lines have different ones.
    """

    image: Callable[[Line], str]
    split: Callable[[Line], str]
    classes: ListClasses | None
    hint: str


class JoinedRows(NamedTuple):
    """Rows by split, in the order of the list, and notes for `prepare` on what was joined."""

    rows: dict[str, Sequence[Row]]
    notes: list[str]


@dataclass(slots=True)
class _Image:
    first: Line
    split: str
    texts: tuple[str, ...]
    found: LabelSet
    labelled: Line
    """The line that gave the first labels."""
    media: dict[str, str]
    has_conflict: bool = False
    is_moved: bool = False


class _Joiner:
    """Images made of their lines, one image after the other, with counts of what was joined."""

    def __init__(self, read: LineReading, path: str) -> None:
        self.read, self.path = read, path
        self.counts = {"equal": 0, "merged": 0, "labelled": 0, "moved": 0}
        self.conflicts: list[tuple[int, str]] = []

    def join(self, lines: Iterable[tuple[int, Line]]) -> list[_Image]:
        """Return the images of numbered lines, nearly always one: their names have one hash."""
        images: dict[str, _Image] = {}
        for number, line in lines:
            name = _name(line, self.read)
            if name in images:
                self._add(images[name], number, line)
            else:
                images[name] = _Image(line, self.read.split(line), line.texts, line.found, line, dict(line.media))
        self.counts["moved"] += sum(image.is_moved for image in images.values())
        return list(images.values())

    def _add(self, known: _Image, number: int, line: Line) -> None:
        before = known.found
        if (problem := _add_labels(known, line, self.read.classes)) and not known.has_conflict:
            known.has_conflict = True
            self.conflicts.append((number, problem))
        further = _add_media(known, line, self.path)
        new = tuple(text for text in line.texts if text not in known.texts)
        has_labels = known.found != before and before.labels != ()
        self.counts["merged" if new else "labelled" if has_labels or further else "equal"] += 1
        known.texts += new
        if (split := self.read.split(line)) != known.split:
            known.is_moved = True
            known.split = min(known.split, split, key=_precedence)


def join_lines(lines: Sequence[Line], read: LineReading, *, path: str, id_column: str | None) -> JoinedRows:
    """Join the lines of each image: its captions in order, its labels, its split.

    An equal line changes nothing and is counted. ``id_column`` gives the keys of the rows if each of its ids stands for
    one image and each image has one; otherwise the keys are the images' paths. UniclError for an image whose lines
    have different labels, unless it may have several. One image at a time is in memory.
    """
    names, ids_repeat, by_id = _hash_lines(lines, read, has_ids=id_column is not None)
    joiner = _Joiner(read, path)
    rows: dict[str, Spool[Row]] = {}
    for image in (
        image for group in group_equal(names) for image in joiner.join((number, lines[number]) for number in group)
    ):
        key = image.first.key if by_id and not image.first.fault else _path_key(image.first)
        if image.split not in rows:
            rows[image.split] = spool_rows()
        if not joiner.conflicts:
            rows[image.split].append(_row(key, image, read.classes))
    if joiner.conflicts:
        raise _label_error(path, [problem for _, problem in sorted(joiner.conflicts)], read.hint)
    return JoinedRows(dict(rows), _notes(path, joiner.counts, id_column if ids_repeat else None))


def _name(line: Line, read: LineReading) -> str:
    """Return the identity of a line's image; a line that cannot be read is a row of its own."""
    return line.place if line.fault else read.image(line)


def _hash_lines(lines: Iterable[Line], read: LineReading, *, has_ids: bool) -> tuple[Buckets, bool, bool]:
    """Return the hashes of the lines' images with the lines' numbers, and two facts on ids.

    They are whether an id stands for several images, and whether each id stands for one image and has no other.
    """
    names, images, ids, pairs = Buckets(2), Buckets(1), Buckets(1), Buckets(1)
    of = iter(lines)
    while chunk := list(islice(of, _CHUNK)):
        found = hash_texts(_name(line, read) for line in chunk)
        names.add(found, np.arange(len(names), len(names) + len(chunk)))
        if has_ids:
            is_sound = np.array([not line.fault for line in chunk])
            own = hash_texts(line.key for line in chunk)
            images.add(found[is_sound])
            ids.add(own[is_sound])
            pairs.add((own ^ scramble(found))[is_sound])
    if not has_ids:
        return names, False, False
    count, paired = count_distinct(ids), count_distinct(pairs)
    return names, paired > count, paired == count == count_distinct(images)


def _row(key: str, image: _Image, classes: ListClasses | None) -> Row:
    media = tuple(image.media.items())
    if classes is None:
        return Row(key, image.first.ref, image.texts, NO_LABEL, media=media)
    return Row(key, image.first.ref, image.texts, *classes.row_labels(image.found, image.labelled), media=media)


def _add_labels(known: _Image, line: Line, classes: ListClasses | None) -> str | None:
    """Give the image the labels of another of its lines; return the conflict in words if they differ."""
    if classes is None:
        return None
    first = known.labelled
    found = classes.join(known.found, line.found, line)
    if found is None:
        return f"{first.place} and {line.place} ({line.ref}: {_spell(first.found)}, {_spell(line.found)})"
    if not known.found.labels:
        known.labelled = line
    known.found = found
    return None


def _add_media(known: _Image, line: Line, path: str) -> bool:
    """Give the image the media of another of its lines; return whether it lacked them. UniclError if it had others."""
    before = len(known.media)
    for kind, place in line.media:
        if (first := known.media.setdefault(kind, place)) != place:
            raise UniclError(
                f"{path}: an image has more than one {kind}: {known.first.place} and {line.place} "
                f"({line.ref}: {first}, {place})",
                f"keep one {kind} for each image, or give each line a copy of the image",
            )
    return len(known.media) > before


def _spell(found: LabelSet) -> str:
    return " + ".join(label.text for label in found.labels) or "none"


def _label_error(path: str, conflicts: list[str], hint: str) -> UniclError:
    shown = "; ".join(conflicts[:NAMED])
    if len(conflicts) > NAMED:
        shown += "; …"
    count = f"{len(conflicts):,} images have" if len(conflicts) > 1 else "1 image has"
    return UniclError(f"{path}: {count} more than one label: {shown}", hint)


def _precedence(split: str) -> tuple[int, bool]:
    return (_PRECEDENCE.index(split) if split in _PRECEDENCE else len(_PRECEDENCE), split == "train")


def _path_key(line: Line) -> str:
    """Return the path of the line's image as a key; the row number for one inside the list, a hash for a URL."""
    if line.fault:
        return line.place
    if line.ref.startswith("row:"):
        return f"{int(line.ref[4:]):08d}"
    return key_of_url(line.ref) if is_web_url(line.ref) else line.ref


def _notes(path: str, counts: dict[str, int], id_column: str | None) -> list[str]:
    notes: list[str] = []
    if merged := counts["merged"]:
        notes.append(Remark(f"{path}: merged lines with further captions of the same image: {merged:,}"))
    if labelled := counts["labelled"]:
        notes.append(Remark(f"{path}: joined lines with further labels of the same image: {labelled:,}"))
    if equal := counts["equal"]:
        notes.append(Remark(f"{path}: dropped lines that repeat an earlier one (same image, nothing new): {equal:,}"))
    if moved := counts["moved"]:
        notes.append(f"{path}: images with lines in several splits, kept in one (test, else val): {moved:,}")
    if id_column is not None:
        what = f"column '{id_column}' repeats for different images"
        notes.append(Remark(f"{path}: {what}, so rows are named by their images"))
    return notes
