"""User-facing errors (one line and a hint), and helpers for safe terminal output.

The tree of exceptions, with exit codes::

    Exception
    └── UniclError            a mistake that the user can fix (2, or the code of the case)
        ├── Stopped           stopped on request, state saved (75)
        ├── Diverged          training whose loss is not finite, in core/guard.py (3)
        └── PartError         options that a part does not accept, in problems.py (2)

Every other exception is a bug: it keeps its traceback (1).
"""

import difflib
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from functools import partial

READER_GONE = 141
"""Exit status after the reader of standard output has left (`| head`): 128 + SIGPIPE, as other programs have it."""


class UniclError(Exception):
    """A mistake that the user can fix, printed as one line without a traceback.

    ``message`` is `thing: what is wrong`; ``hint`` tells the user what to do and starts with a verb.
    ``exit_code`` is 2 unless the case has its own code.
    """

    def __init__(self, message: str, hint: str | None = None, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class Stopped(UniclError):  # noqa: N818 - not a failure: the user asked for it
    """A stop on request (Ctrl-C, SIGTERM) after the state was saved. Exit code 75; the same command continues."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint, exit_code=75)


def escape_control(text: str) -> str:
    """Escape control characters in ``text`` (``\\x1b``), and line breaks unless a space follows.

    Names of files, classes and keys come from other people and could steer a terminal.
    A line break of the program's own is followed by a space.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\n(?=\S)", _visible, text)


def _visible(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def is_quiet() -> bool:
    """Return True if --quiet was given, before the command or after it."""
    return not logging.getLogger("unicl_cli").isEnabledFor(logging.INFO)


def is_live() -> bool:
    """Return True if stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def wrap_note(text: str) -> str:
    """Return a note or warning for stderr: on a terminal broken between words, elsewhere one line as it is.

    Errors and hints are not broken: people copy commands from them.
    """
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    wrap = partial(textwrap.fill, width=width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrap, text.split("\n")))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the option nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(options), 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
