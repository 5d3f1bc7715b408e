"""Entry point of `unicl inspect`: finds out what a path is, builds its document and writes its page."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from unicl_cli.core.checkpoint_files import MODEL, TRAINER, newest
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.data.manifest import MANIFEST, PLAN
from unicl_cli.errors import UniclError
from unicl_cli.jobs.inspect.advice import write_notes
from unicl_cli.jobs.inspect.batch import InspectedBatch, default_recipe, inspect_batch
from unicl_cli.jobs.inspect.checkpoint import inspect_checkpoint
from unicl_cli.jobs.inspect.corpus import choose_split, inspect_corpus
from unicl_cli.jobs.inspect.near import NearPair, find_near
from unicl_cli.jobs.inspect.pages import batch_page, corpus_page
from unicl_cli.jobs.inspect.run import inspect_run
from unicl_cli.jobs.inspect.run_tables import checkpoint_page, run_page
from unicl_cli.jobs.prepare.shards.not_in import open_others
from unicl_cli.pages.html import write_page
from unicl_cli.recipe.layers import shipped_recipes
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Recipe
from unicl_cli.runs.folder import RESOLVED
from unicl_cli.runs.plugins import load_run_recipe
from unicl_cli.runs.status import is_run
from unicl_cli.storage.remote import RemotePath, place_of

DEFAULT_BATCH = 256
"""Rows of a batch of a corpus, unless --batch-size is given."""
MAX_FILES_CHECKED = 2000
"""Files of an unknown folder that are checked for images."""
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"))
LIST_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".parquet"))


class InspectOptions(NamedTuple):
    """The options of the command line."""

    split: str | None
    tokenizer: str
    batch: bool
    batch_size: int | None
    step: int
    html: Path | None
    samples: int
    near: bool = False
    against: tuple[str, ...] = ()


def inspect_path(path: str, options: InspectOptions) -> dict[str, Any]:
    """Return the document of `unicl inspect`, and write the page if one is asked for."""
    kind = kind_of(path)
    if (options.near or options.against) and (options.batch or kind != "corpus"):
        raise UniclError("--near, --against: compare the images of a corpus", "give a corpus, without --batch")
    if options.batch:
        return inspect_batch_path(path, kind, options)
    if kind == "recipe":
        raise UniclError(
            f"{path}: is a recipe", f"use unicl recipes show {path}, or add --batch to see its first batch"
        )
    if kind == "corpus":
        return inspect_corpus_path(path, options)
    document = inspect_run(Path(path)) if kind == "run" else inspect_checkpoint(Path(path))
    if options.html is not None:
        write_page(options.html, run_page(document) if kind == "run" else checkpoint_page(document))
    return document


def inspect_corpus_path(path: str, options: InspectOptions) -> dict[str, Any]:
    corpus = open_corpus(path)
    size = options.batch_size or DEFAULT_BATCH
    document = inspect_corpus(corpus, split=options.split, tokenizer=options.tokenizer, batch_size=size)
    pairs: list[NearPair] = []
    if options.near or options.against:
        others = open_others(options.against, Path(path), "--against")
        found = find_near(corpus, document["split"], others)
        document["near_duplicates"], pairs = found.facts, found.pairs
        document["notes"] = write_notes(document)
    if options.html is not None:
        batch = draw_page_batch(corpus, document, options)
        write_page(options.html, corpus_page(document, corpus, options.samples, batch, pairs))
    return document


def draw_page_batch(corpus: Corpus, document: Mapping[str, Any], options: InspectOptions) -> InspectedBatch | None:
    """Draw the batch for the page of a corpus; None if no row has a text."""
    if "captions" not in document and not document.get("per_class", {}).get("n"):
        return None
    recipe = default_recipe(corpus, document["split"], options.batch_size or DEFAULT_BATCH)
    return inspect_batch(recipe, str(corpus.path), options.step, with_images=True)


def inspect_batch_path(path: str, kind: str, options: InspectOptions) -> dict[str, Any]:
    shown = inspect_batch(recipe_of(path, kind, options), path, options.step, with_images=options.html is not None)
    if options.html is not None:
        write_page(options.html, batch_page(shown))
    return shown.document


def recipe_of(path: str, kind: str, options: InspectOptions) -> Recipe:
    """Return the recipe whose batch is drawn: the path's own, or the default for a corpus."""
    if kind == "corpus":
        corpus = open_corpus(path)
        return default_recipe(corpus, choose_split(corpus, options.split), options.batch_size or DEFAULT_BATCH)
    changes = [] if options.batch_size is None else [f"batch.size={options.batch_size}"]
    if kind == "recipe":
        return load(path, changes)
    run = Path(path) if kind == "run" else Path(path).resolve().parent.parent
    if not (run / RESOLVED).is_file():
        raise UniclError(f"{run}: has no resolved.yaml, so its batches are unknown", "give the recipe instead")
    return load_run_recipe(run, changes)


def kind_of(path: str) -> str:
    """Return ``corpus | run | checkpoint | recipe``. Raise UniclError for anything else and say what it is."""
    folder = place_of(path)
    if isinstance(folder, RemotePath):
        return "corpus"  # runs and checkpoints are on this machine
    if folder.is_dir():
        return _kind_of_folder(folder)
    if path in shipped_recipes() or (folder.suffix in (".yaml", ".yml") and folder.is_file()):
        return "recipe"
    raise _file_error(folder)


def _kind_of_folder(folder: Path) -> str:
    if (folder / MANIFEST).is_file() or (folder / PLAN).is_file():
        return "corpus"
    if (folder / TRAINER).is_file() or (folder.name.startswith("step-") and (folder / MODEL).is_file()):
        return "checkpoint"
    if is_run(folder):
        return "run"
    if (folder / MODEL).is_file():
        return "checkpoint"
    raise _folder_error(folder)


def _file_error(path: Path) -> UniclError:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return UniclError(f"{path}: is an image", f"classify it: unicl zeroshot {quote(str(path))} --classes a,b")
    if path.suffix.lower() in LIST_SUFFIXES:
        return UniclError(
            f"{path}: is a list of rows", f"make a corpus: unicl prepare --captions {quote(str(path))} -o corpus"
        )
    if path.name in (MODEL, TRAINER, MANIFEST, PLAN, "status.json", "resolved.yaml"):
        return UniclError(
            f"{path}: is a single file of a larger directory",
            f"give the directory: unicl inspect {quote(str(path.parent))}",
        )
    return UniclError(f"{path}: is neither a corpus, a run nor a checkpoint", "give a directory that unicl wrote")


def _folder_error(folder: Path) -> UniclError:
    if any(folder.glob("step-*")) and (found := newest(folder)):
        return UniclError(f"{folder}: holds checkpoints", f"choose one: unicl inspect {quote(str(found))}")
    if any(path.is_dir() and is_run(path) for path in islice(folder.iterdir(), MAX_FILES_CHECKED)):
        return UniclError(
            f"{folder}: holds runs", f"list them with unicl runs ls {quote(str(folder))}, or give one of them"
        )
    suffixes = {path.suffix.lower() for path in islice(folder.rglob("*"), MAX_FILES_CHECKED)}
    if suffixes & IMAGE_SUFFIXES:
        return UniclError(
            f"{folder}: is a folder of images, not a corpus",
            f"make a corpus: unicl prepare --labels {quote(str(folder))} -o corpus",
        )
    if not suffixes:
        return UniclError(f"{folder}: is empty", "give a corpus, a run or a checkpoint directory")
    return UniclError(f"{folder}: is neither a corpus, a run nor a checkpoint", "give a directory that unicl wrote")
