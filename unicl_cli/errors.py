"""User-facing errors (one line and a hint), and helpers for safe terminal output.

The tree of exceptions, with exit codes::

    Exception
    └── UniclError             a mistake that the user can fix (2, or the code of the case)
        ├── Stopped            stopped on request, state saved (75)
        ├── Diverged           training whose loss is not finite, in core/guard.py (3)
        ├── MissingFilesError  files of a known data set that are not there, in data/sources/catalogue.py (2)
        └── PartError          options that a part does not accept, in problems.py (2)

Every other exception is a bug: it keeps its traceback (1).
"""

import difflib
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

READER_GONE = 141
"""Exit status after the reader of standard output has closed the pipe (`| head`): 128 + SIGPIPE, as is usual."""
LINE_SECONDS = 30
"""Seconds between two lines of progress where no bar can be drawn."""


class UniclError(Exception):
    """A mistake that the user can fix, printed as one line without a traceback.

    ``message`` is `thing: what is wrong`; ``hint`` says what the user can do and starts with a verb. ``details`` are
    further lines of the message. ``exit_code`` is 2 unless the case has its own code.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, details: Sequence[str] = (), exit_code: int = 2
    ) -> None:
        self.lines = (message, *details)
        self.message = "\n  ".join(self.lines)
        super().__init__(self.message)
        self.hint = hint
        self.exit_code = exit_code

    def visible(self) -> str:
        """Return the message for a terminal: no line break but those between its lines."""
        return "\n  ".join(map(escape_control, self.lines))


class Stopped(UniclError):  # noqa: N818 - not a failure: the user asked for it
    """A stop on request (Ctrl-C, SIGTERM) after the state was saved. Exit code 75; the same command continues."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint, exit_code=75)


class Remark(str):
    """A note that does not hint at a fault in the data: `prepare --quiet` leaves out only these."""

    __slots__ = ()


UNSAFE = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff"
"""The characters, as a regex class, that steer a terminal or the direction of text, hide, or that UTF-8 cannot hold.

U+2060 and U+FEFF are invisible and belong to no word: with them, two names look alike. U+200B, U+200C and U+200D stay,
since Khmer, Thai, Persian and emoji are written with them. JSON and YAML themselves escape those below the blank.
"""


def escape_control(text: str) -> str:
    """Escape what steers a terminal, or ends the line or cell of ``text``: ``\\x1b``, ``\\n``, ``\\u202e``.

    Names of files, classes and keys, and answers of servers, come from other people. They could look like a row or a
    line of the program's own.
    """
    return re.sub(rf"[\x00-\x1f{UNSAFE}]", _visible, text)


def _visible(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def write_line(text: str) -> None:
    """Write one line on standard error, its control characters escaped."""
    sys.stderr.write(f"{escape_control(text)}\n")
    sys.stderr.flush()


def write_note(text: str) -> None:
    """Write a note or warning on standard error: on a terminal broken between words, elsewhere one line.

    Errors, hints and commands are not broken, since people copy from them: `write_line`.
    """
    text = escape_control(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_line(text: str) -> None:
    """Write one line on standard output, its control characters escaped."""
    sys.stdout.write(f"{escape_control(text)}\n")


def csv_cell(value: object) -> object:
    """Return a value for a cell of a CSV file: a number as it is, text in one visible line that is not a formula.

    Spreadsheets run a cell that begins with ``= + - @``: an apostrophe before it makes it text.
    """
    if not isinstance(value, str):
        return value
    text = escape_control(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def is_quiet() -> bool:
    """Return True if --quiet was given, before the command or after it."""
    return not logging.getLogger("unicl_cli").isEnabledFor(logging.INFO)


def is_live() -> bool:
    """Return True if stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the option nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(options), 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
