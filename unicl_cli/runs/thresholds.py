"""The thresholds of a run: the probability from which on each class is an answer, fitted by `unicl eval`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from unicl_cli.core.checkpoint_files import fingerprint
from unicl_cli.errors import UniclError
from unicl_cli.runs.folder import THRESHOLDS, choose_model, is_checkpoint, weights_file
from unicl_cli.storage import hub
from unicl_cli.storage.documents import Document, Natural, read_document
from unicl_cli.storage.files import write_output_data
from unicl_cli.storage.json_output import format_json

SCHEMA = "unicl/thresholds/1"
HINT = "fit them again: unicl eval MODEL --fit-thresholds"
Share = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Document):
    """The probability of class c is sigmoid(``scale`` x score + ``bias``); c is answered from ``thresholds[c]`` on.

    The score is that of evaluation: the cosine with the class's prompts, or the logit of a classifier. They were fitted
    on ``n`` rows of split ``split`` of the corpus ``data``; ``classes`` are the keys of its classes. ``weights`` is the
    sha256 of the file with the weights of the run or checkpoint; None for a published model.
    """

    schema_: Literal["unicl/thresholds/1"] = Field(alias="schema", default=SCHEMA)
    data: str
    split: str
    n: Natural
    weights: str | None = None
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
    """Thresholds of a file. ``is_named``: by the user for this evaluation; otherwise they are those of the run.

    ``is_stale``: they were fitted for other weights than the model has now.
    """

    document: Thresholds
    file: Path
    is_named: bool
    is_stale: bool = False

    def describe_stale(self) -> str:
        """Return what is wrong with thresholds of other weights."""
        return f"{self.file}: the thresholds were fitted for other weights than the model has now"

    def describe(self) -> dict[str, Any]:
        """Return their file and the rows on which they were fitted."""
        return {"file": str(self.file), **self.document.model_dump(include={"data", "split", "n"})}


def thresholds_place(model: str) -> Path | None:
    """Return the file with the thresholds of a run; None for a checkpoint or a published model, which have none.

    Those of a run are for its own weights and templates.
    """
    folder = Path(model)
    return folder / THRESHOLDS if not hub.has_form(model) and folder.is_dir() and not is_checkpoint(folder) else None


def find_thresholds(
    model: str | None, file: Path | None, *, is_plain: bool, raw_weights: bool = False
) -> FoundThresholds | None:
    """Return the thresholds of ``file``, or those of the run if there are any.

    Those of the run are for its own weights and templates (``is_plain``).
    """
    name = choose_model(model)
    place = file or (thresholds_place(name) if is_plain else None)
    if place is None or (file is None and not place.exists()):
        return None
    found = load_thresholds(place)
    is_stale = found.weights is not None and found.weights != hash_weights(name, raw_weights=raw_weights)
    return FoundThresholds(found, place, file is not None, is_stale)


def hash_weights(model: str, *, raw_weights: bool) -> str | None:
    """Return the sha256 of the weights of a run or checkpoint; None for a published model, or if they are missing."""
    if hub.has_form(model):
        return None
    with suppress(OSError):
        return str(fingerprint(weights_file(model, raw_weights=raw_weights))[1])
    return None


def load_thresholds(file: Path) -> Thresholds:
    """Read a file of thresholds. Raises UniclError if it is missing or damaged."""
    try:
        return read_document(file, Thresholds, HINT)
    except FileNotFoundError as error:
        raise UniclError(f"{file}: no such file of thresholds", HINT) from error


def write_thresholds(file: Path, thresholds: Thresholds) -> None:
    """Write a file of thresholds, the whole or none."""
    write_output_data(file, format_json(thresholds.model_dump(mode="json", by_alias=True), 1) + "\n")
