"""What `eval`, `probe` and `zeroshot` share: their workers, the model they load, the document they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from unicl_cli.errors import UniclError, plain

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded


def check_first(models: Iterable[str | None], corpora: Iterable[str], *files: tuple[str, Path | None]) -> None:
    """What would fail at its first use is told at once: models and corpora that are not there, files that cannot be
    written (each with its option). Torch takes seconds to import, an evaluation may take hours."""
    from unicl_cli.core.hub import check_model_name
    from unicl_cli.data.corpus import open_corpus

    for model in models:
        if model is not None:
            check_model_name(model)
    for corpus in corpora:
        open_corpus(corpus)
    for option, file in files:
        if file is None:
            continue
        near = next(folder for folder in file.absolute().parents if folder.exists())  # those below it will be made
        if file.is_dir() or not near.is_dir() or not os.access(near, os.W_OK):
            raise UniclError(f"{option} {file}: cannot be written", "give another file")


def one_model(argument: str | None, option: str | None) -> str | None:
    """The model named as the first argument or as --model."""
    if argument is not None and option is not None and argument != option:
        raise UniclError(f"two models: {argument} and --model {option}", "name one of them")
    return argument if option is None else option


def load(
    model: str | None, device: Any, templates: Sequence[str] | None = None, *, raw_weights: bool = False
) -> Loaded:
    """The model in evaluation on its device, with the templates of the command line where there are any."""
    from unicl_cli.build.load import load_model
    from unicl_cli.core.prompts import load_templates

    # a name or a file holds several, anything with a place for the class is one
    lists = [[item] if "{" in item else load_templates(item) for item in templates or ()]
    loaded = load_model(model, device=device, raw_weights=raw_weights)
    chosen = [template for items in lists for template in items]
    return loaded._replace(templates=load_templates(chosen)) if chosen else loaded


def show(
    document: Mapping[str, Any],
    tables: Callable[[Mapping[str, Any]], Iterable[Any]],
    *,
    as_json: bool,
    out: Path | None = None,
) -> None:
    """Tables or JSON on stdout, warnings on stderr, the JSON in ``out``; the first process alone speaks."""
    from unicl_cli.core.files import write_atomic
    from unicl_cli.launch.process import is_peer

    if is_peer():
        return
    for warning in warnings_of(document):
        warn(warning)
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    if as_json:
        typer.echo(text)
    else:
        from rich.console import Console

        console = Console(markup=False, emoji=False, highlight=False)  # class names are data
        for table in tables(_plain(document)):
            console.print(table)
    if out is not None:
        with writing("-o", out):
            write_atomic(out, text + "\n")


def _plain(value: Any) -> Any:
    """A document with all texts in it made plain: tables go to a terminal, which class names could command."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        whole = cast("Mapping[str, Any]", value)
        return {_plain(key): _plain(item) for key, item in whole.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return value


@contextmanager
def writing(option: str, file: Path) -> Generator[None]:
    """A file that the user named and that cannot be written is one line."""
    try:
        yield
    except OSError as error:
        raise UniclError(f"{option} {file}: cannot be written: {error.strerror}", "give another file") from error


def warnings_of(document: Mapping[str, Any]) -> list[str]:
    """Of the whole and of each data set."""
    named = [
        f"{entry['name']} {entry['split']}: {warning}"
        for entry in document.get("data", [])
        if isinstance(entry, dict)
        for warning in entry.get("warnings", [])
    ]
    return [*document.get("warnings", []), *named]


def warn(message: str) -> None:
    sys.stderr.write(f"warning: {plain(message)}\n")
