"""The first-party commands, one module each, and the option that the long ones share."""

import logging
from typing import Annotated

import typer


def is_quiet() -> bool:
    """Was --quiet given, before the command or after it?"""
    return not logging.getLogger("unicl_cli").isEnabledFor(logging.INFO)


def _quieten(wanted: bool) -> bool:
    if wanted:
        logging.getLogger("unicl_cli").setLevel(logging.WARNING)
    return wanted


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_quieten, help="No progress.")]
