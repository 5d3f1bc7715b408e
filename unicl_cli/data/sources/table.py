"""A list as a source: text, JSON or Parquet, a line per image, with its caption, label or split."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.class_entry import NameList
from unicl_cli.data.class_numbers import read_names
from unicl_cli.data.media import check_media, read_medium
from unicl_cli.data.number_spellings import describe_whole_numbers, read_whole_numbers
from unicl_cli.data.pictures import Extent, ImageError
from unicl_cli.data.sources.join_lines import LineReading, join_lines
from unicl_cli.data.sources.lists.cells import is_web_url, look_up, looks_like_image, plain_url
from unicl_cli.data.sources.lists.columns import Roles, resolve_roles, used_columns
from unicl_cli.data.sources.lists.files import LISTS
from unicl_cli.data.sources.lists.formats import open_reader
from unicl_cli.data.sources.lists.image_paths import ImagePaths
from unicl_cli.data.sources.lists.label_cells import read_separator
from unicl_cli.data.sources.lists.labels import LISTS_ONLY, check_repeats, check_single_labels, label_set_hint
from unicl_cli.data.sources.lists.line_spool import LineSpool
from unicl_cli.data.sources.lists.lines import URL_FAULT, LineBuilder
from unicl_cli.data.sources.lists.list_classes import ListClasses
from unicl_cli.data.sources.lists.parquet_reader import ParquetImages
from unicl_cli.data.sources.lists.record import BAD_LINE, Columns, Line, ListOptions, Reader, Record, is_blank
from unicl_cli.data.sources.lists.split_rule import SplitRule, describe_folders
from unicl_cli.data.sources.media_files import keep_existing
from unicl_cli.data.sources.splits import split_of
from unicl_cli.data.sources.text_file import is_length
from unicl_cli.errors import UniclError

MAX_BAD = 0.05
"""Share of unreadable lines above which a list is rejected as another format."""
SAMPLE = 100
"""Images whose files are looked for before a list is accepted."""


class Table:
    """Rows of one list; images are paths relative to it, URLs, or bytes inside a Parquet file."""

    templates = "clip80"

    def __init__(self, path: Path, kind: str, options: ListOptions, names: NameList | None) -> None:
        self.path, self.kind, self.options, self.names = path, kind, options, names
        self.media = options.media
        self.paths = ImagePaths(path, options)
        self.notes: list[str] = []
        self._whole: Mapping[str, str] = {}
        """Label as a float in the list -> as the integer that it is."""

    @cached_property
    def reader(self) -> Reader:
        return open_reader(self.path, self.options)

    @cached_property
    def roles(self) -> Roles:
        return resolve_roles(self.path, self.reader, self.options, self.kind)

    @property
    def columns(self) -> Columns:
        return self.roles.columns

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The names given by ``classes``, of the column or beside it, else the distinct labels (numbers by value)."""
        return self._labelled.classes if self._labelled else ()

    @cached_property
    def _labelled(self) -> ListClasses | None:
        if self.kind != "labels":
            return None
        lines, names = self._lines, self.names
        labelled = ListClasses(self.path, self.reader, self.roles, self.options, names, lines, self._whole)
        self.notes += labelled.notes
        return labelled

    @cached_property
    def splits(self) -> Sequence[str]:
        met = {self._split(line) for line in self._lines}
        return [s for s in ("train", "val", "test") if s in met] + sorted(met - {"train", "val", "test"})

    def rows(self, split: str) -> Sequence[Row]:
        return self._rows.get(split, [])

    def read(self, row: Row) -> dict[str, bytes]:
        if row.ref.startswith(BAD_LINE):
            raise ImageError("bad_line", row.ref.removeprefix(BAD_LINE))
        if self.url(row) is not None:
            raise ImageError("url", "the image is a URL: `unicl prepare` downloads it")
        image = self._read_image(row.ref)
        read = {kind: self._read_medium(kind, place) for kind, place in row.media}
        media = {kind: data for kind, data in read.items() if data is not None}
        check_media(media, dict(row.media), image)
        return {"image": image, **media}

    def _read_image(self, ref: str) -> bytes:
        if not ref.startswith("row:"):
            return self.paths.read(ref)
        stored = self._images.read(int(ref[4:]))
        return self.paths.read(stored) if isinstance(stored, str) else stored

    def _read_medium(self, kind: str, place: str) -> bytes | None:
        """Return the bytes of an item of media; None for an empty cell of a Parquet file."""
        if not place.startswith("row:"):
            return read_medium(kind, self.paths.file(place), place)
        try:
            stored = self._stored_media[kind].read(int(place[4:]))
        except ImageError:
            return None
        return read_medium(kind, self.paths.file(stored), stored) if isinstance(stored, str) else stored

    def url(self, row: Row) -> str | None:
        """Return the address of the row's image; None for a file or bytes of the list."""
        return row.ref if is_web_url(row.ref) else None

    def extent(self, row: Row) -> Extent | None:
        has_file = not row.ref.startswith((BAD_LINE, "row:")) and self.url(row) is None
        return self.paths.extent(row.ref) if has_file else None

    def stamp(self, row: Row) -> int:
        """Return the size of the image's file; -1 if it is missing, 0 for a URL. Media change it."""
        if row.ref.startswith("row:") or self.url(row) is not None:
            return 0  # rows and sample images put the list's own bytes into the fingerprint
        if row.ref.startswith(BAD_LINE):
            return -1
        media = [self.paths.file(place) for _, place in row.media if not place.startswith("row:")]
        return self.paths.stamp(row.ref, media)

    @cached_property
    def _images(self) -> ParquetImages:
        return ParquetImages(self.path, self.columns.image or "")

    @cached_property
    def _stored_media(self) -> dict[str, ParquetImages]:
        return {kind: ParquetImages(self.path, column) for kind, column in self.columns.media}

    @cached_property
    def _lines(self) -> LineSpool:
        self._fit_paths()
        builder = LineBuilder(self.path, self.roles, self.paths)
        lines = LineSpool().extend(builder.lines(self._records()))
        builder.check_choices(len(lines))
        labels = self._read_whole_numbers(lines)
        if not lines:
            blank = builder.counts["blank"]
            what = f"no rows, only {blank:,} lines without a filled cell" if blank else "no rows, only a header"
            raise UniclError(f"{self.path}: {what}", "add ?header=false if the first line is a row")
        self._check_sides(lines)
        self._check_faults(lines)
        files = sum(map(_is_file, lines))
        self.paths.check([line.ref for line in islice(filter(_is_file, lines), 0, None, max(1, files // SAMPLE))])
        if self.kind == "labels":
            builder.labels.check()
        if self.kind == "labels" and not (self.names or builder.labels.sets.separator or self.roles.is_onehot):
            self.notes += check_single_labels(self.path, lines, self.columns.label, self.options)
            self.notes += check_repeats(self.path, labels, self.columns.label[0], self.options)
        self.notes += [*self.roles.notes, *builder.notes(), *self._note_folders(lines)]
        return lines

    def _note_folders(self, lines: LineSpool) -> list[str]:
        """Return a note on images whose folders are named like splits, if nothing gives the lines their split."""
        is_given = self.columns.split is not None or self.roles.splits != SplitRule()
        found = "" if is_given else describe_folders(line.ref for line in lines if _is_file(line))
        what = f"{self.path.name}: images in folders named like splits ({found}) are all in train"
        return [f"{what}: add ?split=folder if the folders are the splits"] if found else []

    def _read_whole_numbers(self, lines: LineSpool) -> Counter[str]:
        """Write whole labels as integers where all are whole and some are floats; a name given for one keeps it.

        Returns how often each label is written.
        """
        counts = Counter(label.text for line in lines for label in line.found.labels)
        named = {entry.written for entry in self.names.entries} if self.names else set[str]()
        self._whole = read_whole_numbers(counts.keys() - named) if self.kind == "labels" else {}
        self.notes += [f"{self.path.name}: {note}" for note in describe_whole_numbers(self._whole, counts)]
        lines.map_labels(self._whole)
        return counts

    def _records(self) -> Iterator[Record]:
        last = self.reader.columns[-1]
        splits_labels = read_separator(str(self.path), self.options.sets) == self.reader.delimiter
        spills = self.columns.caption == (last,) or (splits_labels and self.columns.label == (last,))
        return self.reader.records(self._used_columns(), last if spills else None)

    def _used_columns(self) -> list[str]:
        return used_columns(self.columns, self.reader.columns)

    def _fit_paths(self) -> None:
        """Let absolute paths of another machine find their files below ``root``."""
        image = self.columns.image or ""
        if self.options.root is not None:
            filled = (record for record in self._records() if not is_blank(record))
            sample = [look_up(record.cells, image) for record in islice(filled, SAMPLE)]
            self.paths.fit([cell for cell in sample if isinstance(cell, str)])

    def _check_faults(self, lines: Sequence[Line]) -> None:
        """Raise UniclError if too many lines cannot be read; long ones do not count, nor URLs with ``skip_urls``."""
        if all(line.fault == URL_FAULT for line in lines):
            raise UniclError(f"{self.path}: all its images are URLs", "leave out skip_urls=true to download them")
        bad = (line for line in lines if line.fault and line.fault != URL_FAULT and not is_length(line.fault))
        first = next(bad, None)
        count = sum(1 for _ in bad) + 1
        if first and count > MAX_BAD * len(lines):
            raise UniclError(
                f"{self.path}: {count} of {len(lines)} lines cannot be read; {first.place}: {first.fault}",
                first.hint or self.reader.hint,
            )

    def _check_sides(self, lines: Sequence[Line]) -> None:
        """Raise UniclError if the image and caption columns are swapped."""
        texts = sum(any(map(looks_like_image, line.texts)) for line in lines)
        paths = sum(looks_like_image(line.ref) for line in lines) if 2 * texts > len(lines) else 0
        if 2 * texts > len(lines) > 2 * paths:
            image, caption = self.columns.image, ",".join(self.columns.caption)
            raise UniclError(
                f"{self.path}: column '{image}' holds texts and column '{caption}' holds images",
                f"swap them: {self.options.src(self.path, image=caption, caption=image or '')}",
            )

    @cached_property
    def _rows(self) -> Mapping[str, Sequence[Row]]:
        """Rows by split, made once after ``classes`` and ``splits``; then the lines are freed."""
        _ = self.splits
        hint = "mark the classes of an image alike in all its lines"
        if not self.roles.is_onehot:
            hint = label_set_hint(self.path, self.options, LISTS_ONLY, self.columns.label)
        read = LineReading(self._image, self._split, self._labelled, hint)
        joined = join_lines(self._lines, read, path=self.path.name, id_column=self.columns.key)
        self.notes += joined.notes
        del self._lines
        if not self.media:
            return joined.rows
        kept = keep_existing(joined.rows, self.media, self.paths.file, self.path)
        self.notes += [f"{self.path.name}: {note}" for note in kept.notes]
        return kept.rows

    def _image(self, line: Line) -> str:
        """Return the identity of a line's image: its path or URL, or its bytes in a Parquet list of captions."""
        if is_web_url(line.ref):
            return plain_url(line.ref)
        if not line.ref.startswith("row:"):
            windows = "\\" in line.ref
            return os.path.normpath(self.paths.file(line.ref) if windows else os.path.join(self._folder, line.ref))  # noqa: PTH118
        if self.kind != "captions" and not (self.kind == "labels" and self.roles.has_sets(self.options)):
            return line.ref  # data sets of labels repeat an image now and then, also with another label
        return self._digests[int(line.ref[4:])]

    @cached_property
    def _folder(self) -> str:
        return str(self.paths.folder)

    @cached_property
    def _digests(self) -> Sequence[str]:
        return self._images.digests()

    def _split(self, line: Line) -> str:
        return (split_of(line.split) or line.split) if line.split else "train"


def _is_file(line: Line) -> bool:
    return not (line.fault or line.ref.startswith("row:") or is_web_url(line.ref))


def table(  # noqa: PLR0913 - a factory's signature is its options
    *,
    kind: str,
    path: str,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    split: str | None = None,
    where: str | None = None,
    key: str | None = None,
    header: bool | None = None,
    classes: str | None = None,
    first: int | None = None,
    sep: str | None = None,
    encoding: str | None = None,
    root: str | None = None,
    suffix: str = "",
    skip_urls: bool = False,
    join: str | None = None,
    missing: str = "",
    keep: str = "",
    sets: str | None = None,
    onehot: str | None = None,
    negative: str | None = None,
    group: str | None = None,
    audio: str | None = None,
    depth: str | None = None,
    thermal: str | None = None,
    imu: str | None = None,
) -> Table:
    """A list of images: CSV, TSV, text, JSON, JSONL or Parquet, with columns given by name or by number from 0.

    ``caption`` takes several columns (``caption_0,caption_1``, ``caption_*``) and a path into objects
    (``captions.raw``); ``label=folder`` is the image's folder. ``split`` is a column, a split for all lines, files
    that list the images of each split, or ``folder``: the first of the image's folders that is named like a split.
    ``where=COLUMN:VALUE`` keeps the lines with this value.
    ``root`` is the folder or zip of the images, ``suffix`` is added to their names.
    ``join`` is the metadata file of YFCC100M, of which the list selects photos. ``classes`` is a file of class names:
    lines, or ids with names. If labels are positions in it, ``first`` is the number of the first name (0 or 1).
    ``missing`` are labels that mean no label, such as `NA,nan`; ``keep`` are such words that are classes.

    An image has several labels with ``sets``, the separator of labels in a cell (`;`, `comma`), or `true` for lists in
    cells and for images with several lines. Several columns in ``label`` are groups of classes, named by the columns
    unless ``group`` names one for all; an empty cell means that the image is not annotated for the group. ``onehot``
    are columns that are a class each: 1, 0 or ``negative`` for no, empty or else for unknown.

    ``audio``, ``depth``, ``thermal`` and ``imu`` are columns with a file of this kind beside the image; a cell may be
    empty.
    """
    list_path = Path(path)
    if not list_path.is_file():
        raise UniclError(f"{path}: no such list", f"check the path of the list ({', '.join(LISTS)})")
    options = ListOptions(
        image=image,
        caption=caption,
        label=label,
        split=split,
        where=where,
        key=key,
        header=header,
        sep=sep,
        encoding=encoding,
        root=root,
        suffix=suffix,
        skip_urls=skip_urls,
        join=join,
        classes=classes,
        first=first,
        missing=missing,
        keep=keep,
        sets=sets,
        onehot=onehot,
        negative=negative,
        group=group,
        audio=audio,
        depth=depth,
        thermal=thermal,
        imu=imu,
    )
    return Table(list_path, kind, options, read_names(classes, first))
