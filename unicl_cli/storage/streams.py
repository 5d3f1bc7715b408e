"""The standard streams: a log that cannot be written ends nothing, an answer that cannot be written is an error."""

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import Any, BinaryIO, cast

STDOUT = "standard output"


class _Log(io.FileIO):
    """Standard error whose writes never fail: what a full disk, a lost reader or a closed terminal refuses is dropped.

    A training of days must not end because nobody can read its progress any more.
    """

    def write(self, data: Any, /) -> int:
        written: int | None = None  # None also comes from a pipe that is full and must not be waited for
        with contextlib.suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


class _Answer(io.FileIO):
    """Standard output whose failed writes name it in ``filename``."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


def protect_streams() -> None:
    """Replace this process's own standard error by a `_Log`, its standard output by an `_Answer`; a test's stay."""
    if os.name == "nt":  # a console there is not a file
        return
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrap(_Log(2, "wb", closefd=False), sys.stderr)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrap(_Answer(1, "wb", closefd=False), sys.stdout)


def _wrap(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    """Return a text stream on ``raw`` that is buffered as the ``old`` one of the same file (python -u is not)."""
    with contextlib.suppress(OSError):
        old.flush()
    buffer = raw if old.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        cast("BinaryIO", buffer),
        encoding=old.encoding,
        errors=old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def reopen_closed_streams() -> None:
    """Open closed standard streams (``>&-``) on /dev/null: the next opened file would otherwise get their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            handle = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `number`
            setattr(sys, name, os.fdopen(handle, "r" if name == "stdin" else "w", encoding="utf-8"))


def discard_stdout() -> None:
    """Send the rest of stdout to /dev/null: without a reader, Python would complain about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # stdout is not a real file, as in a test
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def hold_stderr() -> Generator[None]:
    """Hold back what is written to standard error inside: it is dropped if the block raises, else passed on.

    Rust prints a panic there by itself, before Python has the exception that says the same.
    """
    with _HOLDING, _open_memory() as kept:
        _flush_stderr()
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            _flush_stderr()
            os.dup2(shown, 2)
            os.close(shown)
        kept.seek(0)
        with contextlib.suppress(OSError):  # a full disk, or nobody who reads: no reason to end the command
            os.write(2, kept.read())


def _flush_stderr() -> None:
    with contextlib.suppress(OSError):
        sys.stderr.flush()


_HOLDING = threading.Lock()
"""Standard error is one for all threads of a process."""


def _open_memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # not on macOS
        return open(os.memfd_create("unicl"), "w+b")  # noqa: PTH123 - a handle
    return cast("BinaryIO", tempfile.TemporaryFile())
