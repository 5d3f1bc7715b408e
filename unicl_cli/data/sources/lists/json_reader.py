"""The reader of lists in JSON: an object per line, or one document such as an array or COCO's annotations."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unicl_cli.data.sources.lists.json_documents import records_of
from unicl_cli.data.sources.lists.record import ListOptions, Record
from unicl_cli.data.sources.text_file import UTF8, read_lines
from unicl_cli.errors import UniclError


class JsonReader:
    """Records of a JSON list, whose columns are the keys of all its objects."""

    has_header = True
    delimiter: str | None = None
    class_names: Mapping[str, Sequence[str]] = {}

    def __init__(self, path: Path, options: ListOptions) -> None:
        self.path, self.encoding = path, options.encoding or UTF8
        self.document = self._load_document()
        each = "each line" if self.document is None else "each item"
        self.hint = f"check that {each} is a JSON object, and the columns (?image=…&caption=…)"
        met: dict[str, None] = {}
        for record in self.records(()):
            met.update(dict.fromkeys(record.cells))
        self.columns: tuple[str, ...] = tuple(met)
        if not met:
            first = next(self.records(()), None)
            fault = (
                "the list is empty" if first is None else f"{first.place}: {first.fault or 'an object without keys'}"
            )
            raise UniclError(f"{path}: {fault}", "write one JSON object per line")

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        return self._lines() if self.document is None else iter(self.document)

    def _load_document(self) -> list[Record] | None:
        """Return the records of a single document; None if every line is a document."""
        filled = [line for line in islice(self._text(), 100) if line.strip()]
        head = "".join(filled).lstrip()
        if not head or head[0] not in "[{":
            return None
        is_lines = head[0] == "{" and _is_object(filled[0]) and (len(filled) > 1 or self.path.suffix != ".json")
        if is_lines:
            return None
        try:
            return records_of(self.path, json.loads("".join(self._text())))
        except (ValueError, RecursionError) as error:
            if self.path.suffix != ".json":
                return None  # its lines say what is wrong with each
            raise UniclError(
                f"{self.path}: not JSON: {error}", "fix the file, or write one JSON object per line"
            ) from error

    def _lines(self) -> Iterator[Record]:
        for number, line in enumerate(self._text(), 1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Record(f"line {number}", {}, f"not JSON: {error}")
                continue
            is_object = isinstance(record, dict)
            yield Record(f"line {number}", record if is_object else {}, "" if is_object else "not a JSON object")

    def _text(self) -> Iterator[str]:
        return read_lines(self.path, self.encoding, str(self.path))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
