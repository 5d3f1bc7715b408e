"""The lines of a list joined into rows: one row per image, whatever the ids of its lines."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from unicl_cli.contracts import NO_LABEL, Row
from unicl_cli.data.sources.lists.cells import is_web_url, key_of_url
from unicl_cli.data.sources.lists.list_classes import ListClasses
from unicl_cli.data.sources.lists.record import LabelSet, Line
from unicl_cli.errors import Remark, UniclError

NAMED = 10
"""Images with several labels that an error names."""
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

    rows: dict[str, list[Row]]
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


def join_lines(lines: Iterable[Line], read: LineReading, *, path: str, id_column: str | None) -> JoinedRows:
    """Join the lines of each image: its captions in order, its labels, its split.

    An equal line changes nothing and is counted. ``id_column`` gives the keys of the rows if each of its ids stands for
    one image and each image has one; otherwise the keys are the images' paths. UniclError for an image whose lines
    have different labels, unless it may have several.
    """
    images: dict[str, _Image] = {}
    owners: dict[str, str] = {}
    counts = {"equal": 0, "merged": 0, "labelled": 0}
    moved: set[str] = set()
    conflicts: dict[str, str] = {}
    ids_repeat = several_ids = False
    for line in lines:
        name = line.place if line.fault else read.image(line)  # a line that cannot be read is a row of its own
        if not line.fault:
            ids_repeat |= owners.setdefault(line.key, name) != name
        known = images.get(name)
        if known is None:
            images[name] = _Image(line, read.split(line), line.texts, line.found, line, dict(line.media))
            continue
        several_ids |= known.first.key != line.key
        before = known.found
        if problem := _add_labels(known, line, read.classes):
            conflicts.setdefault(name, problem)
        further = _add_media(known, line, path)
        new = tuple(text for text in line.texts if text not in known.texts)
        has_labels = known.found != before and before.labels != ()
        counts["merged" if new else "labelled" if has_labels or further else "equal"] += 1
        known.texts += new
        if (split := read.split(line)) != known.split:
            moved.add(name)
            known.split = min(known.split, split, key=_precedence)
    if conflicts:
        raise _label_error(path, list(conflicts.values()), read.hint)
    by_id = not (ids_repeat or several_ids)
    rows: dict[str, list[Row]] = {}
    for image in images.values():
        key = image.first.key if by_id and not image.first.fault else _path_key(image.first)
        rows.setdefault(image.split, []).append(_row(key, image, read.classes))
    return JoinedRows(rows, _notes(path, counts, len(moved), id_column if ids_repeat else None))


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


def _notes(path: str, counts: dict[str, int], moved: int, id_column: str | None) -> list[str]:
    notes: list[str] = []
    if merged := counts["merged"]:
        notes.append(Remark(f"{path}: merged lines with further captions of the same image: {merged:,}"))
    if labelled := counts["labelled"]:
        notes.append(Remark(f"{path}: joined lines with further labels of the same image: {labelled:,}"))
    if equal := counts["equal"]:
        notes.append(Remark(f"{path}: dropped lines that repeat an earlier one (same image, nothing new): {equal:,}"))
    if moved:
        notes.append(f"{path}: images with lines in several splits, kept in one (test, else val): {moved:,}")
    if id_column is not None:
        what = f"column '{id_column}' repeats for different images"
        notes.append(Remark(f"{path}: {what}, so rows are named by their images"))
    return notes
