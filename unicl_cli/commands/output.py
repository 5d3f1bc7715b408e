"""Common steps of commands that measure: check the inputs, load the model, print the document."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from unicl_cli.errors import UniclError, escape_control, is_quiet, print_line, write_line, write_note
from unicl_cli.storage.json_output import print_json, report_write_error, write_document

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded


def check_before_loading(models: Iterable[str | None], corpora: Iterable[str], *files: tuple[str, Path | None]) -> None:
    """Raise UniclError for a missing model or corpus, and for a file (with its option) that cannot be written.

    Called first, because importing torch takes seconds and an evaluation may take hours. A ``models`` of None is the
    default, which is checked as the named ones are.
    """
    from unicl_cli.data.corpus import open_corpus
    from unicl_cli.runs.folder import locate_model

    check_outputs(*files)
    for corpus in corpora:
        open_corpus(corpus)
    for model in models:
        locate_model(model)


def check_splits(model: str | None, data: Sequence[str], split: str | None) -> None:
    """Raise UniclError unless a corpus of ``data``, or else of the model's recipe, has the split to evaluate on."""
    from unicl_cli.data.corpus import open_corpus
    from unicl_cli.runs.folder import choose_model, corpora_of, no_corpus_error

    name = choose_model(model)
    opened = [open_corpus(path) for path in data or corpora_of(name)]
    if not opened:
        raise no_corpus_error(name)
    for corpus in opened if data or split is not None or len(opened) == 1 else ():
        corpus.eval_split(split)  # of several corpora in a recipe, those without one are left out


def check_outputs(*files: tuple[str, Path | None]) -> None:
    """Raise UniclError for a file (with its option) that cannot be written, or must not be.

    No output replaces a file of a corpus, a run or a checkpoint, and no two options write the same file.
    """
    from unicl_cli.runs.owned import find_owner
    from unicl_cli.storage.files import is_written_through

    seen: dict[Path, str] = {}
    for option, file in files:
        if file is None:
            continue
        with report_write_error(option, file):
            through = is_written_through(file)
        target = Path(os.path.realpath(file))
        near = next(folder for folder in target.parents if folder.exists())  # folders below it will be created
        if not through and (not near.is_dir() or not os.access(near, os.W_OK)):
            raise UniclError(f"{option} {file}: cannot be written", "use another file")
        if owner := find_owner(file):
            raise UniclError(f"{option} {file}: is part of {owner}", "use another file")
        if not through and target in seen:
            raise UniclError(f"{option} {file}: is the file of {seen[target]} too", "use another file")
        seen[target] = option


def check_encoding(**given: Sequence[str | None] | None) -> None:
    """Raise UniclError for a path that is not UTF-8, by option: recipes and Parquet files could not be named by it."""
    for option, values in given.items():
        for value in values or ():
            if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise UniclError(f"{option} {value!a}: is not UTF-8", "rename the file or folder")


def pick_model(argument: str | None, option: str | None) -> str | None:
    """Return the model that is named as the first argument or as --model."""
    if argument is not None and option is not None and argument != option:
        raise UniclError(f"two models given: {argument} and --model {option}", "leave one of them out")
    return argument if option is None else option


def load_with_templates(
    model: str | None, device: Any, templates: Sequence[str] | None = None, *, raw_weights: bool = False
) -> Loaded:
    """Load a model for evaluation on ``device``; ``templates`` of the command line replace its own."""
    from unicl_cli.build.load import load_model
    from unicl_cli.core.prompts import load_templates
    from unicl_cli.runs.folder import choose_model

    # an item with a place for the class is a template, any other is a list by name or file
    lists = [[item] if "{" in item else load_templates(item) for item in templates or ()]
    if model is None:
        _name_default_model()
    name = choose_model(model)
    agreed = _agree_on_checkpoint(name)
    loaded = load_model(model if agreed == name else agreed, device=device, raw_weights=raw_weights)
    if agreed != name:
        loaded = loaded._replace(name=str(Path(name)))
    chosen = [template for items in lists for template in items]
    return loaded._replace(templates=load_templates(chosen)) if chosen else loaded


def _agree_on_checkpoint(name: str) -> str:
    """Return the model ``name``; of a run that is still trained, the newest checkpoint that any process has seen.

    Each process would otherwise measure its share of the rows with the weights that are newest when it looks.
    """
    from unicl_cli.core.checkpoint_files import folder_of, step_of
    from unicl_cli.core.dist import largest_over_ranks, world_size
    from unicl_cli.runs.folder import CHECKPOINTS, find_run, is_checkpoint
    from unicl_cli.storage.hub import has_form

    if world_size() == 1 or has_form(name) or is_checkpoint(Path(name)):
        return name
    step = largest_over_ranks(step_of(find_run(name)[1]))  # 0: the run is finished
    return str(folder_of(Path(name) / CHECKPOINTS, step)) if step else name


def _name_default_model() -> None:
    """Say on stderr which model is used: without --model it changes with every training that ends."""
    from unicl_cli.launch.process import is_peer
    from unicl_cli.runs.folder import MODEL_VARIABLE, RUNS, choose_model

    if is_quiet() or is_peer():
        return
    name = choose_model(None)
    reason = f"{RUNS} has no finished run"
    if os.environ.get(MODEL_VARIABLE):
        reason = MODEL_VARIABLE
    elif Path(name).parent == RUNS:
        reason = "the run that finished last"
    write_line(f"model: {name} ({reason}; --model takes another)")


def print_document(
    document: Mapping[str, Any],
    tables: Callable[[Mapping[str, Any]], Iterable[Any]],
    *,
    as_json: bool,
    out: Path | None = None,
) -> None:
    """Print tables or JSON on stdout and warnings on stderr; write the JSON to ``out``. Only the first process does."""
    from unicl_cli.launch.process import is_peer

    if is_peer():
        return
    for warning in collect_warnings(document):
        print_warning(warning)
    if as_json:
        print_json(document, 2)
    else:
        from rich.console import Console

        console = Console(markup=False, emoji=False, highlight=False)  # class names are data
        for table in tables(_escape_texts(document)):
            console.print(table)
    if out is not None:
        write_document(out, document)


def _escape_texts(value: Any) -> Any:
    """Escape control characters in all texts of ``value``: class names could otherwise steer a terminal."""
    if isinstance(value, str):
        return escape_control(value)
    if isinstance(value, Mapping):
        whole = cast("Mapping[str, Any]", value)
        return {_escape_texts(key): _escape_texts(item) for key, item in whole.items()}
    if isinstance(value, list | tuple):
        return [_escape_texts(item) for item in cast("Sequence[Any]", value)]
    return value


def collect_warnings(document: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a document and of each data set in it."""
    named = [
        f"{entry['name']} {entry['split']}: {warning}"
        for entry in document.get("data", [])
        if isinstance(entry, dict)
        for warning in entry.get("warnings", [])
    ]
    return [*document.get("warnings", []), *named]


def print_path(path: Path) -> None:
    """Write a path on standard output: byte for byte for programs, its control characters escaped on a terminal."""
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        print_line(str(path))
    else:
        typer.echo(os.fsencode(path))


def print_note(message: str) -> None:
    """Print a note on stderr, from the first process only and not under --quiet."""
    from unicl_cli.launch.process import is_peer

    if not is_peer() and not is_quiet():
        write_note(message)


def print_warning(message: str) -> None:
    """Print one line on stderr."""
    write_note(f"warning: {message}")
