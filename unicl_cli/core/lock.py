"""A folder that one process at a time writes into."""

import os
import platform
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unicl_cli.core.files import make_folder
from unicl_cli.errors import UniclError


@contextmanager
def lock_folder(folder: Path, name: str, hint: str) -> Generator[None]:
    """Make ``folder`` and hold the lock file ``name`` in it; do not wait for another process.

    UniclError if another process holds it, or if the folder cannot be written; ``hint`` says how to choose another one.
    The file stays unless the caller removes it while the lock is held. Folders made here go if they are empty then.
    """
    path = folder / name
    with ExitStack() as at_end:
        try:
            at_end.enter_context(make_folder(folder))
            at_end.enter_context(FileLock(path).acquire(timeout=0))
        except Timeout as error:
            raise UniclError(f"{folder}: locked by {_holder(path)}", f"wait for it, or {hint}") from error
        except OSError as error:
            raise UniclError(f"{folder}: cannot be written: {error.strerror}", hint) from error
        with suppress(OSError):  # for the message above only: the lock itself is the operating system's
            path.write_text(f"pid {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        if line := path.read_text(encoding="utf-8").strip():
            return line
    return "another process"
