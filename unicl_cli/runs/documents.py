"""The JSON files of a run directory: each with the model that all its readers use."""

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from unicl_cli.core.class_groups import find_hierarchy_fault
from unicl_cli.errors import UniclError
from unicl_cli.recipe.schema import MAX_CONTEXT
from unicl_cli.storage.documents import Document, Natural, StepCount, check_progress, read_document
from unicl_cli.storage.json_lines import Line

Shown = Annotated[float, Field(ge=0, le=1e12)] | None
Name = Annotated[str, Field(min_length=1)]


class Status(Document):
    """``status.json``: the progress of a run."""

    state: Annotated[str, Field(max_length=40)]
    step: StepCount
    steps: StepCount
    updated: Annotated[float, Field(ge=0, le=1e12)]
    world: Annotated[int, Field(ge=1, le=2**20)] | None = None
    host: str | None = None
    pid: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    last_loss: float | None = None
    img_s: Shown = None
    eta_s: Shown = None

    @model_validator(mode="after")
    def _check_progress(self) -> Self:
        check_progress(self.step, self.steps)
        return self


class NamedClass(Document):
    """A class: its key, its names, its group and its parent."""

    key: str
    names: Annotated[list[str], Field(min_length=1)]
    group: str = ""
    parent: str = ""


def _check_template(template: str) -> str:
    if "{}" not in template and "{c}" not in template:
        raise ValueError("has no {}, the place of the class name")
    return template


class Words(Document):
    """``classes.json``: classes, templates, and how the tokenizer is used."""

    classes: list[NamedClass]
    templates: Annotated[list[Annotated[str, AfterValidator(_check_template)]], Field(min_length=1)]
    context_length: Annotated[int, Field(ge=0, le=MAX_CONTEXT)]
    clean: bool | None = None
    most_labels: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of labels of a row of the mix; None if each had one."""

    @model_validator(mode="after")
    def _check_hierarchy(self) -> Self:
        if problem := find_hierarchy_fault([(item.key, item.group, item.parent) for item in self.classes]):
            raise ValueError(problem)
        return self


class Plugin(Document):
    """A part of the recipe that is not unicl's own: where it was when the run began."""

    kind: str
    name: str
    file: str | None = None
    dist: str | None = None
    version: str | None = None


class Environment(Document):
    """``env.json``: the machine and the command of a run. Runs of earlier versions lack some keys."""

    command: Annotated[list[str], Field(min_length=1)] | None = None
    cwd: str | None = None
    plugins: Annotated[list[Plugin], Field(default_factory=list)]


class Mixed(Document):
    """The two models that `unicl mix` made a model from."""

    old: Name
    new: Name


class Meta(Document):
    """``meta.json`` of a finished run, or of a folder that `unicl mix` or `unicl onnx` wrote."""

    step: Natural | None = None
    mixed: Mixed | None = None


class ValidationLine(Line):
    """A line of ``eval.jsonl``: the metrics of one entry of the recipe at one step."""

    entry: Natural | None = None
    corpus: str | None = None
    split: str | None = None
    trained_split: bool = False
    weights: str | None = None


R = TypeVar("R", bound=Document)


def read_if_sound(path: Path, model: type[R]) -> R | None:
    """Return a document that only adds to what is shown; None if it is missing or damaged."""
    try:
        return read_document(path, model, "")
    except (FileNotFoundError, UniclError):
        return None


def drop_unset(document: Document) -> dict[str, Any]:
    """Return a document as a mapping with the keys that its file has."""
    return document.model_dump(mode="json", exclude_unset=True)
