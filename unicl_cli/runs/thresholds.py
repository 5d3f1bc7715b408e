"""The thresholds of a run: the probability from which on each class is an answer, fitted by `unicl eval`."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from unicl_cli.core import hub
from unicl_cli.core.documents import Document, Natural, read_document
from unicl_cli.core.files import write_output_data
from unicl_cli.core.json_output import format_json
from unicl_cli.errors import UniclError
from unicl_cli.runs.folder import THRESHOLDS, choose_model, is_checkpoint

SCHEMA = "unicl/thresholds/1"
HINT = "fit them again: unicl eval MODEL --fit-thresholds"
Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Document):
    """The probability of class c is sigmoid(``scale`` x score + ``bias``); c is answered from ``thresholds[c]`` on.

    The score is that of evaluation: the cosine with the class's prompts, or the logit of a classifier. They were fitted
    on ``n`` rows of split ``split`` of the corpus ``data``; ``classes`` are the keys of its classes.
    """

    schema_: Literal["unicl/thresholds/1"] = Field(alias="schema", default=SCHEMA)
    data: str
    split: str
    n: Natural
    classes: Annotated[list[str], Field(min_length=1)]
    scale: float
    bias: float
    thresholds: list[Share]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.thresholds) != len(self.classes):
            raise ValueError(f"has {len(self.thresholds)} thresholds for {len(self.classes)} classes")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("has a class twice")
        return self


class FoundThresholds(NamedTuple):
    """Thresholds of a file. ``is_named``: by the user for this evaluation; otherwise they are those of the run."""

    document: Thresholds
    file: Path
    is_named: bool

    def describe(self) -> dict[str, Any]:
        """Return their file and the rows on which they were fitted."""
        return {"file": str(self.file), **self.document.model_dump(include={"data", "split", "n"})}


def thresholds_place(model: str) -> Path | None:
    """Return the file with the thresholds of a run; None for a checkpoint or a published model, which have none.

    Those of a run are for its own weights and templates.
    """
    folder = Path(model)
    return folder / THRESHOLDS if not hub.has_form(model) and folder.is_dir() and not is_checkpoint(folder) else None


def find_thresholds(model: str | None, file: Path | None, *, is_plain: bool) -> FoundThresholds | None:
    """Return the thresholds of ``file``, or those of the run if there are any.

    Those of the run are for its own weights and templates (``is_plain``).
    """
    if file is not None:
        return FoundThresholds(load_thresholds(file), file, is_named=True)
    place = thresholds_place(choose_model(model)) if is_plain else None
    if place is None or not place.exists():
        return None
    return FoundThresholds(load_thresholds(place), place, is_named=False)


def load_thresholds(file: Path) -> Thresholds:
    """Read a file of thresholds. Raises UniclError if it is missing or damaged."""
    try:
        return read_document(file, Thresholds, HINT)
    except FileNotFoundError as error:
        raise UniclError(f"{file}: no such file of thresholds", HINT) from error


def write_thresholds(file: Path, thresholds: Thresholds) -> None:
    """Write a file of thresholds, the whole or none."""
    write_output_data(file, format_json(thresholds.model_dump(mode="json", by_alias=True), 1) + "\n")
