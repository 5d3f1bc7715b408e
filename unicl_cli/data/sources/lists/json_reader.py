"""The reader of lists in JSON: an object per line, or one document such as an array or COCO's annotations."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unicl_cli.data.sources.lists.json_documents import categories_of, groups_of_categories, records_of
from unicl_cli.data.sources.lists.json_values import parse_value
from unicl_cli.data.sources.lists.record import ListOptions, Record, check_columns, check_width
from unicl_cli.data.sources.text_file import UTF8, LongLine, read_lines, read_text
from unicl_cli.errors import UniclError

MAX_DOCUMENT = 2_000_000_000
"""Maximum number of bytes of a list that is one JSON document; LVIS, the largest that is common, has 1.1 GB."""


class JsonReader:
    """Records of a JSON list, whose columns are the keys of all its objects."""

    has_header = True
    delimiter: str | None = None
    repeated: Mapping[str, Sequence[int]] = {}

    def __init__(self, path: Path, options: ListOptions) -> None:
        self.path, self.encoding = path, options.encoding or UTF8
        self.categories: Sequence[Mapping[str, Any]] = ()
        self.document = self._load_document()
        each = "each line" if self.document is None else "each item"
        self.hint = f"check that {each} is a JSON object, and the columns (?image=…&caption=…)"
        met: dict[str, None] = {}
        for record in self.records(()):
            met.update(dict.fromkeys(record.cells))
            check_width(path, len(met))
        check_columns(path, met)
        self.columns: tuple[str, ...] = tuple(met)
        if not met:
            first = next(self.records(()), None)
            fault = (
                "the list is empty" if first is None else f"{first.place}: {first.fault or 'an object without keys'}"
            )
            raise UniclError(f"{path}: {fault}", "write one JSON object per line")

    def class_names(self, _column: str, /) -> Sequence[str]:
        return ()

    def class_groups(self, key: str, /) -> Mapping[str, str]:
        return groups_of_categories(self.path, self.categories, key)

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        return self._lines() if self.document is None else iter(self.document)

    def _load_document(self) -> list[Record] | None:
        """Return the records of a single document; None if every line is a document."""
        filled = list(islice((line for line in self._text() if line.strip() or isinstance(line, LongLine)), 2))
        if not filled:
            return None
        is_long = isinstance(filled[0], LongLine)
        if filled[0].lstrip()[:1] not in ("[", "{") and not is_long:
            return None
        is_lines = self.path.suffix in (".jsonl", ".ndjson") if is_long else _is_object(filled[0])
        if is_lines and (len(filled) > 1 or self.path.suffix != ".json"):
            return None
        try:
            document = parse_value(read_text(self.path, self.encoding, str(self.path), MAX_DOCUMENT))
            self.categories = categories_of(document)
            return records_of(self.path, document)
        except (OSError, ValueError) as error:
            if self.path.suffix != ".json":
                return None  # its lines say what is wrong with each
            what = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
            raise UniclError(f"{self.path}: {what}", "fix the file, or write one JSON object per line") from error

    def _lines(self) -> Iterator[Record]:
        for number, line in enumerate(self._text(), 1):
            if isinstance(line, LongLine):
                yield Record(f"line {number}", {}, line.fault)
                continue
            if not line.strip():
                continue
            try:
                record: Any = parse_value(line)
            except ValueError as error:
                yield Record(f"line {number}", {}, f"not JSON: {error}")
                continue
            is_object = isinstance(record, dict)
            yield Record(f"line {number}", record if is_object else {}, "" if is_object else "not a JSON object")

    def _text(self) -> Iterator[str]:
        return read_lines(self.path, self.encoding, str(self.path))


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_value(line), dict)
    except ValueError:
        return False
