"""What people are told: what they can fix, as one line and a hint; plainly; nothing more if they want quiet."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Iterable


class UniclError(Exception):
    """A mistake of the user's: printed as one line without a traceback.

    ``hint`` says what to do next; ``exit_code`` is 2 unless the case has its own code.
    """

    def __init__(self, message: str, hint: str | None = None, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class Stopped(UniclError):  # noqa: N818 - no error: what was asked for
    """Stopped on request (Ctrl-C, SIGTERM) with the state written: the same command continues. Exit code 75."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint, exit_code=75)


def escape_control(text: str) -> str:
    """``text`` with what could command a terminal made visible (``\\x1b``); a break of its own line too.

    Names of files, classes and keys are other people's. Lines that are meant to follow begin with a blank.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\n(?=\S)", _visible, text)


def _visible(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def is_quiet() -> bool:
    """Was --quiet given, before the command or after it?"""
    return not logging.getLogger("unicl_cli").isEnabledFor(logging.INFO)


def is_live() -> bool:
    """Is stderr a terminal that can redraw a line?"""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the option nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(options), 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
