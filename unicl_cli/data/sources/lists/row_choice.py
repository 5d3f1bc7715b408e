"""The lines of a list that ``where=COLUMN:VALUE`` keeps, and a list whose lines say what an image does not show."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.data.number_spellings import number_of
from unicl_cli.data.sources.lists.cells import look_up_cell, text_of
from unicl_cli.data.sources.lists.column_names import squeeze
from unicl_cli.data.sources.lists.record import ListOptions
from unicl_cli.errors import UniclError, did_you_mean

_CONFIDENCE = "confidence"
"""Name of the column in which Open Images writes 1 for a label that is shown, and 0 for one that is not."""


class RowChoice(NamedTuple):
    """Lines are kept whose ``column`` has the ``value``; without a column, all of them.

    With ``is_doubt``, nobody asked: a line that is not kept is an error.
    """

    column: str | None = None
    value: str = ""
    is_doubt: bool = False

    def keeps(self, cells: Mapping[str, Any]) -> bool:
        """Return whether a line is kept; numbers are compared by value, texts without case."""
        if self.column is None:
            return True
        cell = text_of(look_up_cell(cells, self.column)).strip()
        if self.is_doubt:
            return number_of(cell) != 0
        number = number_of(self.value)
        return cell.casefold() == self.value.casefold() or (number is not None and number_of(cell) == number)

    def check(self, path: Path, options: ListOptions, kept: int, left_out: int) -> None:
        """Raise UniclError if no line is kept, or if some say that their label is not shown."""
        if self.is_doubt and left_out:
            raise UniclError(
                f"{path}: column '{self.column}' is 0 in {left_out:,} lines: their images do not show the label",
                f"keep the lines with 1: {options.src(path, where=f'{self.column}:1')}",
            )
        if left_out and not kept:
            raise UniclError(f"{path}: no line has '{self.value}' in column '{self.column}'", "check where=")


def read_choice(path: Path, options: ListOptions, columns: Collection[str], kind: str) -> RowChoice:
    """Return the choice that ``where=`` spells, or the doubt in a list of labels. UniclError for no column or value."""
    if options.where is None:
        found = next((name for name in columns if squeeze(name) == _CONFIDENCE), None) if kind == "labels" else None
        return RowChoice(found, is_doubt=found is not None)
    parts = options.where.split(":")
    cuts = ((":".join(parts[:at]), ":".join(parts[at:])) for at in range(1, len(parts)))
    name, value = next(((name, value) for name, value in cuts if name in columns), (parts[0], ""))
    if name not in columns or not value.strip():
        what = (
            f"no value for column '{name}'" if name in columns else f"no column '{name}'{did_you_mean(name, columns)}"
        )
        raise UniclError(f"{path}: where={options.where}: {what}", "write where=COLUMN:VALUE")
    return RowChoice(name, value.strip())
