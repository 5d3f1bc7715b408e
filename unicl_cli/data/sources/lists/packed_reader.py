"""The reader of SBU's archive: two line-aligned text files, of URLs and of captions, in a `.tar.gz`."""

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, cast

from unicl_cli.data.sources.lists.record import Record
from unicl_cli.data.sources.tar_members import iter_members
from unicl_cli.data.sources.text_file import MAX_LINE, UTF8, describe_length
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import open_regular

URLS, CAPTIONS = "_urls.txt", "_captions.txt"
"""Ends of the names of the two files."""
MOST_BYTES = 10_000_000_000
"""Limit for the unpacked archive; the official one has less than 1 GB."""


class PackedReader:
    """Records of the two files side by side; nothing is unpacked to disk, and no more than a line of each is kept."""

    has_header = True
    delimiter: str | None = None
    repeated: Mapping[str, Sequence[int]] = {}
    hint = "check that the archive is the official one, or download it again"
    columns = ("url", "caption")

    def __init__(self, path: Path) -> None:
        self.path = path

    def class_names(self, _column: str, /) -> Sequence[str]:
        return ()

    def class_groups(self, _key: str, /) -> Mapping[str, str]:
        return {}

    def records(self, columns: Collection[str], spill: str | None = None, /) -> Iterator[Record]:
        """Yield a record per line. UniclError if the archive is damaged, or one file has more lines than the other."""
        try:
            pairs = zip_longest(self._lines(URLS), self._lines(CAPTIONS))
            for number, (url, caption) in enumerate(pairs, 1):
                if url is None or caption is None:
                    ends = URLS if url is None else CAPTIONS
                    raise UniclError(
                        f"{self.path}: *{ends} ends before line {number:,}, which the other file has", self.hint
                    )
                yield _record(number, url, caption)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UniclError(f"{self.path}: incomplete or not a .tar.gz: {error}", "download it again") from error

    def _lines(self, ending: str) -> Iterator[bytes]:
        """Yield the lines of the file whose name ends so, without their ends."""
        with open_regular(self.path) as packed, gzip.open(packed) as unpacked:
            content = cast("IO[bytes]", unpacked)
            for member in iter_members(content, 0, MOST_BYTES):
                if member.isreg() and member.name.endswith(ending):
                    content.seek(member.offset_data)
                    left = member.size
                    while left > 0:
                        line = content.readline(min(left, MAX_LINE + 1))
                        if not line:
                            raise EOFError(f"{member.name} is cut off")
                        left -= len(line)
                        yield line
                    return
        raise UniclError(f"{self.path}: has no file *{ending}", self.hint)


def is_packed(path: Path) -> bool:
    """Return whether a file's name is that of a packed tar."""
    return path.name.lower().endswith((".tar.gz", ".tgz"))


def _record(number: int, url: bytes, caption: bytes) -> Record:
    if len(url) > MAX_LINE or len(caption) > MAX_LINE:
        return Record(f"line {number}", {}, describe_length("the line", max(len(url), len(caption)), MAX_LINE))
    try:
        cells = {"url": url.decode(UTF8).strip(), "caption": caption.decode(UTF8).strip()}
    except UnicodeDecodeError as error:
        return Record(f"line {number}", {}, f"byte {error.start + 1} is not UTF-8")
    return Record(f"line {number}", cells)
