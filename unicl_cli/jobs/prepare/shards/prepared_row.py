"""The result for one row: as it is stored, or left out with a reason."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.storage.documents import MAX_BYTES
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_output import format_json
from unicl_cli.storage.json_text import parse_json


class Rejected(NamedTuple):
    """A row that is left out, and the reason; ``url`` is the address that its image was requested from."""

    key: str
    ref: str
    reason: str
    detail: str
    url: str | None = None
    not_in: Mapping[str, str] | None = None
    """The numbers of the corpora of `--not-in` that have the image, with `same` or `near`."""

    def as_line(self) -> str:
        """Return the line of a file of rejects."""
        return format_json({name: value for name, value in self._asdict().items() if value is not None}) + "\n"


def read_rejects(file: Path) -> list[Rejected]:
    """Return the rows of a file of rejects, without lines that somebody has edited; none without the file."""
    found: list[Rejected] = []
    if not file.is_file():
        return found
    for line in read_regular(file, MAX_BYTES).decode("utf-8", "replace").splitlines():
        with suppress(ValueError, TypeError):
            found.append(Rejected(**parse_json(line)))
    return found


class PreparedRow(NamedTuple):
    """A row as it is stored, and its counts for the closing table."""

    record: dict[str, Any]
    animated: bool
    texts_dropped: int

    @property
    def media_bytes(self) -> int:
        return sum(len(item["bytes"]) for item in self.record["media"])

    @property
    def stored_bytes(self) -> int:
        """The bytes of the image and the media: nearly all that the row takes in its shard."""
        return len(self.record["image"]["bytes"]) + self.media_bytes
