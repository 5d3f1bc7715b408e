"""What a user can mend, as one line and a hint."""

import difflib
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


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the option nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(options), 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
