"""What a path is, and the document of it; the page is written on the way."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from unicl_cli.core.checkpoint_files import MODEL, TRAINER, list_folders, newest
from unicl_cli.data.corpus import MANIFEST, PLAN, Corpus, open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.inspect.batch import Shown, default_recipe, inspect_batch
from unicl_cli.jobs.inspect.checkpoint import inspect_checkpoint
from unicl_cli.jobs.inspect.corpus import inspect_corpus, learned_split
from unicl_cli.jobs.inspect.pages import batch_page, corpus_page
from unicl_cli.jobs.inspect.run import inspect_run
from unicl_cli.jobs.inspect.run_tables import checkpoint_page, run_page
from unicl_cli.pages.html import write_page
from unicl_cli.recipe.layers import builtin_names
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.folder import RESOLVED, STATUS, run_of
from unicl_cli.runs.status import is_run

BATCH = 256
"""Rows of a corpus's batch where nothing says how many."""
LOOKED_AT = 2000
"""Files of an unknown folder that are looked at for images."""
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"))
LISTS = frozenset((".csv", ".tsv", ".jsonl", ".parquet"))


class Wanted(NamedTuple):
    """The options of the command line."""

    split: str | None
    tokenizer: str
    batch: bool
    batch_size: int | None
    step: int
    html: Path | None
    samples: int


def look(path: str, wanted: Wanted) -> dict[str, Any]:
    """The document of `unicl inspect`."""
    kind = kind_of(path)
    if wanted.batch:
        return batch_of(path, kind, wanted)
    if kind == "recipe":
        raise UniclError(
            f"{path}: is a recipe", f"unicl recipes show {path}; its first batch: unicl inspect {path} --batch"
        )
    if kind == "corpus":
        return corpus_of(path, wanted)
    document = inspect_run(Path(path)) if kind == "run" else inspect_checkpoint(Path(path))
    if wanted.html is not None:
        write_page(wanted.html, run_page(document) if kind == "run" else checkpoint_page(document))
    return document


def corpus_of(path: str, wanted: Wanted) -> dict[str, Any]:
    corpus = open_corpus(path)
    size = wanted.batch_size or BATCH
    document = inspect_corpus(corpus, split=wanted.split, tokenizer=wanted.tokenizer, batch_size=size)
    if wanted.html is not None:
        write_page(wanted.html, corpus_page(document, corpus, wanted.samples, drawn(corpus, document, wanted)))
    return document


def drawn(corpus: Corpus, document: Mapping[str, Any], wanted: Wanted) -> Shown | None:
    """A batch for the page of a corpus; none where no row has a text."""
    if "captions" not in document and not document.get("per_class", {}).get("n"):
        return None
    recipe = default_recipe(corpus, document["split"], wanted.batch_size or BATCH)
    return inspect_batch(recipe, str(corpus.path), wanted.step, pictures=True)


def batch_of(path: str, kind: str, wanted: Wanted) -> dict[str, Any]:
    shown = inspect_batch(recipe_of(path, kind, wanted), path, wanted.step, pictures=wanted.html is not None)
    if wanted.html is not None:
        write_page(wanted.html, batch_page(shown))
    return shown.document


def recipe_of(path: str, kind: str, wanted: Wanted) -> Recipe:
    """The recipe whose batch is drawn."""
    if kind == "corpus":
        corpus = open_corpus(path)
        return default_recipe(corpus, learned_split(corpus, wanted.split), wanted.batch_size or BATCH)
    changes = [] if wanted.batch_size is None else [f"batch.size={wanted.batch_size}"]
    if kind == "recipe":
        return load(path, changes)
    run = Path(path) if kind == "run" else run_of(Path(path))
    if not (run / RESOLVED).is_file():
        raise UniclError(f"{run}: has no resolved.yaml, so its batches are not known", "give the recipe instead")
    return load(str(run / RESOLVED), changes)


def kind_of(path: str) -> str:
    """``corpus | run | checkpoint | recipe``; anything else is a UniclError that says what it is."""
    folder = Path(path)
    if folder.is_dir():
        return _kind_of_folder(folder)
    if path in builtin_names() or (folder.suffix in (".yaml", ".yml") and folder.is_file()):
        return "recipe"
    raise _no_folder(folder)


def _kind_of_folder(folder: Path) -> str:
    if (folder / MANIFEST).is_file() or (folder / PLAN).is_file():
        return "corpus"
    if (folder / TRAINER).is_file() or (folder.name.startswith("step-") and (folder / MODEL).is_file()):
        return "checkpoint"
    if is_run(folder):
        return "run"
    if (folder / MODEL).is_file():
        return "checkpoint"
    raise _other_folder(folder)


def _no_folder(path: Path) -> UniclError:
    if path.suffix.lower() in PICTURES:
        return UniclError(f"{path}: is an image", f"ask a model: unicl zeroshot {quote(str(path))} --classes a,b")
    if path.suffix.lower() in LISTS:
        return UniclError(f"{path}: is a list", f"make a corpus: unicl prepare --captions {quote(str(path))} -o corpus")
    if path.name in (MODEL, TRAINER, MANIFEST, PLAN, STATUS, RESOLVED):
        return UniclError(
            f"{path}: is one file of several", f"give its directory: unicl inspect {quote(str(path.parent))}"
        )
    return UniclError(f"{path}: is neither a corpus, a run nor a checkpoint", "give a directory that unicl wrote")


def _other_folder(folder: Path) -> UniclError:
    if list_folders(folder) and (found := newest(folder)):
        return UniclError(f"{folder}: holds checkpoints", f"give one: unicl inspect {quote(str(found))}")
    if any(path.is_dir() and is_run(path) for path in islice(folder.iterdir(), LOOKED_AT)):
        return UniclError(f"{folder}: holds runs", f"unicl runs ls {quote(str(folder))}, or give one of them")
    suffixes = {path.suffix.lower() for path in islice(folder.rglob("*"), LOOKED_AT)}
    if suffixes & PICTURES:
        return UniclError(
            f"{folder}: is a folder of images, no corpus",
            f"make one: unicl prepare --labels {quote(str(folder))} -o corpus",
        )
    if not suffixes:
        return UniclError(f"{folder}: is empty", "give a corpus, a run or a checkpoint directory")
    return UniclError(f"{folder}: is neither a corpus, a run nor a checkpoint", "give a directory that unicl wrote")
