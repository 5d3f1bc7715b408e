"""Rows of a source on disk instead of in memory."""

from collections.abc import Iterable

from unicl_cli.contracts import Row
from unicl_cli.storage.spool import Spool


def spool_rows(rows: Iterable[Row] = ()) -> Spool[Row]:
    """Return rows in a temporary file. UniclError if the disk is full."""
    return Spool[Row](tuple, Row._make).extend(rows)
