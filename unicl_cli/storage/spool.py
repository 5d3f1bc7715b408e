"""Lists of any length on disk: values in a temporary file, of which one block at a time is in memory."""

import marshal
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, TypeVar

from unicl_cli.errors import UniclError
from unicl_cli.storage.derived import Derived

T = TypeVar("T")
BLOCK = 32
"""Values of a block: a reader of one value reads them all."""
MAX_MEMORY = 1 << 20
"""Bytes up to which the file itself stays in memory."""


def full_disk_error(error: OSError) -> UniclError:
    """Return the error for a temporary file that cannot be written."""
    return UniclError(
        f"{tempfile.gettempdir()}: cannot be written: {error.strerror}",
        "free some space, or set TMPDIR to a folder on a larger disk",
    )


class Spool(Derived[T]):
    """Values that are appended once and read in any order, by any thread; a quarter of a byte per value in memory.

    ``pack`` turns a value into plain tuples, texts and numbers, and ``unpack`` turns these into an equal value. The
    file has no name: it disappears with the process.
    """

    def __init__(self, pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> None:
        self.pack, self.unpack = pack, unpack
        self._file = tempfile.SpooledTemporaryFile(MAX_MEMORY)  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])  # of each block in the file
        self._last: list[Any] = []  # the block that is not yet full
        self._read: tuple[int, list[Any]] = (-1, [])  # the block that was read last
        self._lock = threading.Lock()

    def append(self, value: T) -> None:
        """Add a value. UniclError if the disk is full."""
        self._last.append(self.pack(value))
        if len(self._last) == BLOCK:
            data = marshal.dumps(self._last)
            try:
                self._file.seek(self._ends[-1])
                self._file.write(data)
            except OSError as error:
                raise full_disk_error(error) from error
            self._ends.append(self._ends[-1] + len(data))
            self._last = []

    def extend(self, values: Iterable[T]) -> Self:
        """Add values, and return the list itself."""
        for value in values:
            self.append(value)
        return self

    def __len__(self) -> int:
        return (len(self._ends) - 1) * BLOCK + len(self._last)

    def derive(self, at: int) -> T:
        """Return the value at a place from 0 to before the length."""
        return self.unpack(self._block(at // BLOCK)[at % BLOCK])

    def __iter__(self) -> Iterator[T]:
        blocks = (self._block(number) for number in range(len(self._ends)))
        return map(self.unpack, chain.from_iterable(blocks))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same values."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as that of a list

    def _block(self, number: int) -> list[Any]:
        if number == len(self._ends) - 1:
            return self._last
        with self._lock:
            known, block = self._read
            if known != number:
                start = self._ends[number]
                self._file.seek(start)
                block = marshal.loads(self._file.read(self._ends[number + 1] - start))
                self._read = number, block
            return block
