"""Aligned text tables for the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

LEAST = 20
"""Smallest width of a last column that is wrapped."""


def terminal_width() -> int | None:
    """Return the columns of the terminal that standard output goes to; None if it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def align_columns(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return one line per row, its cells padded to the width of their column and two spaces apart.

    With a ``width``, the last column is wrapped between words to fit: its rows may take several lines.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    room = None if width is None else max(LEAST, width - before)
    lines: list[str] = []
    for row in rows:
        padded = [cell.ljust(size) for cell, size in zip(row[:-1], widths, strict=False)]
        wrapped = [row[-1]] if room is None else textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        lines.append("  ".join([*padded, wrapped[0]]).rstrip())
        lines += [" " * before + rest for rest in wrapped[1:]]
    return lines


def shorten(cell: str, width: int) -> str:
    """Return the text, its middle replaced by ``…`` if it has more than ``width`` characters."""
    if len(cell) <= width:
        return cell
    end = (width - 1) // 2
    return f"{cell[: width - 1 - end]}…{cell[len(cell) - end :]}"
