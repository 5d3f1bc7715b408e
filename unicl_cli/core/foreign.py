"""One line for whatever a constructor of another library raises when values from outside do not suit it."""

from collections.abc import Generator
from contextlib import contextmanager

from unicl_cli.errors import UniclError


@contextmanager
def explain_foreign(what: str, hint: str) -> Generator[None]:
    """Turn every exception of the calls inside into UniclError `WHAT: REASON` with ``hint``.

    Only calls of another library with values from outside belong inside: an error of our own would lose its traceback.
    """
    try:
        yield
    except UniclError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        name = type(error).__name__
        reason = lines[0][:300] if lines and not isinstance(error, KeyError) else " ".join([name, *lines[:1]])
        raise UniclError(f"{what}: {reason}", hint) from error
