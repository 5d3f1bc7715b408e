"""The job `export-corpus`: each file is whole or absent, and what an interrupted command finished is kept."""

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import pyarrow as pa

from unicl_cli import __version__
from unicl_cli.core.class_groups import groups_of
from unicl_cli.core.prompts import load_templates
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.errors import Stopped, UniclError, did_you_mean
from unicl_cli.formats import byte_size, count_of
from unicl_cli.jobs.export_corpus.hub import HubFormat
from unicl_cli.jobs.export_corpus.plan import ExportPlan, Format, Piece, Written, plan_pieces, read_tables
from unicl_cli.jobs.export_corpus.samples import ClassTexts
from unicl_cli.jobs.export_corpus.webdataset import WebDatasetFormat
from unicl_cli.jobs.prepare.shards.progress import Progress, note
from unicl_cli.storage.documents import Document, read_document
from unicl_cli.storage.files import discard, remove_leftovers, replace_durably, temporary_beside, write_atomic
from unicl_cli.storage.hub import check_licence
from unicl_cli.storage.json_output import format_json
from unicl_cli.storage.lock import check_unused, lock_folder

SCHEMA = "unicl/export-corpus/1"
DONE = "export.json"
"""The last file of an export."""
STATE, PLAN, LOCK = ".unicl-export", "plan.json", ".lock"
"""The folder of an unfinished export, with its plan and a document for each finished file; and the lock."""
MEGA = 1_000_000
AGAIN = "run the same command again to continue"
ANOTHER = "choose another directory with -o"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NOTES = {
    "several_texts": "with several captions: the text of the sample is the first, and its JSON has all",
    "prompts": "with a label and no caption: the text of the sample is a prompt of its class",
    "several_labels": "with several labels: they are in the JSON, and there is no .cls",
    "converted": "in formats that open_clip does not read: a PNG is added to the original",
    "turned": "with an EXIF orientation, which open_clip does not apply: it sees them rotated",
}
"""Counts of rows that a note reports, after `N images `."""


class Finished(Document):
    """The facts of a finished export that a second command needs; its file has more."""

    plan: ExportPlan
    files: list[Written]


class ExportRequest(NamedTuple):
    """The options of one command."""

    corpus: str
    out: Path
    format: str
    splits: tuple[str, ...] = ()
    shard_mb: int = 256
    licence: str | None = None


class Export(NamedTuple):
    """An export that is being carried out."""

    corpus: Corpus
    out: Path
    plan: ExportPlan
    layout: Format
    pieces: list[Piece]


def export_corpus(request: ExportRequest, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Write or finish an export and return the document of `--json`.

    UniclError for a corpus, options or a directory that do not fit; Stopped if ``stopped`` says so.
    """
    corpus = open_corpus(request.corpus)
    export = plan_export(corpus, request)
    out = export.out
    if out.resolve().is_relative_to(corpus.path.resolve()):
        raise UniclError(f"-o {out}: is inside the corpus", ANOTHER)
    if not is_export(out):
        check_unused(out, ANOTHER, lambda path: path.name in (STATE, LOCK))
    with explain_write_errors(out), lock_folder(out, LOCK, ANOTHER):
        try:
            written = agree_on_plan(export)
            write_pieces(export, written, stopped)
            return finish(export, [written[piece.file] for piece in export.pieces])
        finally:
            (out / LOCK).unlink(missing_ok=True)  # while it is held


def plan_export(corpus: Corpus, request: ExportRequest) -> Export:
    """Return the export that the options ask for; nothing is written."""
    for split in request.splits:
        corpus.eval_split(split)  # UniclError for a split that is not there
    splits = [split for split in corpus.splits if not request.splits or split in request.splits]
    lines = class_lines(corpus)
    licence = request.licence or str((corpus.manifest.model_extra or {}).get("license") or "unknown")
    check_licence(licence)
    if request.format == "webdataset":
        class_texts = ClassTexts(corpus.classes, groups_of(corpus.classes), load_templates(corpus.templates))
        layout: Format = WebDatasetFormat(corpus, request.out, class_texts, lines)
    elif request.format == "hf":
        layout = HubFormat(corpus, request.out, splits, lines, licence)
    else:
        nearest = did_you_mean(request.format, ("webdataset", "hf"))
        raise UniclError(f"--format {request.format}: unknown{nearest}", "use webdataset or hf")
    plan = ExportPlan(
        format=request.format,
        corpus_sha256=corpus.checksum,
        splits=splits,
        shard_mb=request.shard_mb,
        license=licence,
        versions={"unicl": __version__, "pyarrow": pa.__version__, "pillow": PIL.__version__},
    )
    pieces = plan_pieces(corpus, splits, request.shard_mb * MEGA, layout)
    return Export(corpus, request.out, plan, layout, pieces)


def class_lines(corpus: Corpus) -> list[str]:
    """Return a line for each class, no two alike: its prompt name, and its key where others have that name."""
    names = [" ".join(item.names[0].split()) for item in corpus.classes]
    times = Counter(names)
    full = [f"{name} ({item.key})" for name, item in zip(names, corpus.classes, strict=True)]
    lines = [name if times[name] == 1 else line for name, line in zip(names, full, strict=True)]
    return lines if len(set(lines)) == len(lines) else full


def is_export(out: Path) -> bool:
    """Return whether a folder has a finished or an unfinished export."""
    return (out / STATE / PLAN).is_file() or ((out / DONE).is_file() and _read_finished(out) is not None)


def _read_finished(out: Path) -> Finished | None:
    """Return the finished export in a folder; None for none, or another program's file of that name."""
    try:
        return read_document(out / DONE, Finished, ANOTHER)
    except (FileNotFoundError, UniclError):
        return None


def agree_on_plan(export: Export) -> dict[str, Written]:
    """Return the finished files that are as they should be; UniclError if the folder has another export."""
    out, state = export.out, export.out / STATE
    finished = _read_finished(out)
    if finished is not None:
        saved, found = finished.plan, finished.files
    elif (state / PLAN).is_file():
        saved = read_document(state / PLAN, ExportPlan, ANOTHER)
        files = [state / marker_name(number) for number in range(len(export.pieces))]
        found = [read_document(file, Written, f"remove {file}, then {AGAIN}") for file in files if file.is_file()]
    else:
        saved, found = export.plan, []
    if saved != export.plan:
        old, new = saved.model_dump(), export.plan.model_dump()
        key = next(key for key in new if old.get(key) != new[key])
        raise UniclError(f"{out}: an export with another {key}: {old.get(key)}, not {new[key]}", ANOTHER)
    state.mkdir(exist_ok=True)
    for folder in (out, state, *{(out / piece.file).parent for piece in export.pieces}):
        remove_leftovers(folder)
    if not (state / PLAN).is_file():
        write_atomic(state / PLAN, format_json(export.plan.model_dump(), 1) + "\n")
    return {item.file: item for item in found if is_whole(out / item.file, item.bytes)}


def is_whole(file: Path, size: int) -> bool:
    """Return whether a file has its size: it was renamed when it was complete."""
    return file.is_file() and file.stat().st_size == size


def marker_name(number: int) -> str:
    return f"{number:06}.json"


def write_pieces(export: Export, written: dict[str, Written], stopped: Callable[[], bool]) -> None:
    """Write the files that ``written`` lacks, and add them to it. Stopped if asked for."""
    out, pieces = export.out, export.pieces
    todo = [piece for piece in pieces if piece.file not in written]
    if not todo and (out / DONE).is_file():
        note(f"{out} is complete: nothing to do")
    elif written:
        note(f"continuing: {len(written):,} of {len(pieces):,} files are already written")
    if todo:
        (out / DONE).unlink(missing_ok=True)
    check_space(out, sum(piece.bytes for piece in todo))
    total = sum(piece.rows for piece in pieces)
    done = total - sum(piece.rows for piece in todo)
    with Progress("export", done=done, total=total, shards_done=len(written), shards=len(pieces)) as progress:
        for number, piece in enumerate(pieces):
            if piece.file in written:
                continue
            item = write_piece(export, piece, progress, stopped)
            if item is None:
                raise Stopped(f"{out}: stopped after {len(written):,} of {len(pieces):,} files", AGAIN)
            write_atomic(out / STATE / marker_name(number), format_json(item.model_dump(), 1) + "\n")
            written[piece.file] = item
            progress.shard_done()


def check_space(out: Path, needed: int) -> None:
    """Raise UniclError if the disk has clearly less than the ``needed`` bytes."""
    free = shutil.disk_usage(out).free
    if free < needed * 0.9:
        raise UniclError(
            f"{out}: needs {byte_size(needed)}, but {byte_size(free)} are free", f"free some space, or {ANOTHER}"
        )


def write_piece(export: Export, piece: Piece, progress: Progress, stopped: Callable[[], bool]) -> Written | None:
    """Write one file; None if stopped, and then nothing of it is left."""

    def tables() -> Iterator[Any]:
        for table in read_tables(export.corpus, piece):
            yield table
            progress.tick(len(table), table.nbytes, {})

    path = export.out / piece.file
    with temporary_beside(path) as part:
        with part.open("wb") as file:
            counts = export.layout.write(file, tables(), piece, stopped)
        if counts is None:
            return None
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = part.stat().st_size
        replace_durably(part, path)
    kept = {name: count for name, count in sorted(counts.items()) if count}
    return Written(file=piece.file, split=piece.split, rows=piece.rows, bytes=size, sha256=digest, counts=kept)


def finish(export: Export, written: Sequence[Written]) -> dict[str, Any]:
    """Write the small files, last the document of the export; return it."""
    out = export.out
    for name, text in export.layout.extras(written).items():
        write_atomic(out / name, text)
    document = describe(export, written)
    write_atomic(out / DONE, format_json(document, 1) + "\n")  # the same in every folder
    discard(out / STATE)
    return {"schema": document["schema"], "out": str(out), **document, **export.layout.commands(written)}


def describe(export: Export, written: Sequence[Written]) -> dict[str, Any]:
    """Return the document of a finished export."""
    counts: Counter[str] = Counter()
    for item in written:
        counts.update(item.counts)
    splits = [
        {"split": split, "files": len(of), "rows": sum(w.rows for w in of), "bytes": sum(w.bytes for w in of)}
        for split in export.plan.splits
        for of in [[item for item in written if item.split == split]]
    ]
    media = {name.partition(":")[2]: count for name, count in counts.items() if name.startswith("media:")}
    return {
        "schema": SCHEMA,
        "name": export.corpus.name,
        "format": export.plan.format,
        "rows": sum(item.rows for item in written),
        "bytes": sum(item.bytes for item in written),
        "splits": splits,
        **({"media": media} if media else {}),
        **export.layout.facts(),
        "notes": list_notes(export, counts, sum(item.rows for item in written)),
        "plan": export.plan.model_dump(),
        "classes": [item.model_dump() for item in export.corpus.manifest.classes],
        "files": [item.model_dump() for item in written],
    }


def list_notes(export: Export, counts: Counter[str], rows: int) -> list[str]:
    """Return lines on rows that other tools see otherwise than unicl does."""
    notes = [f"{count_of(counts[name], 'image')} {words}" for name, words in _NOTES.items() if counts[name]]
    if export.plan.format == "webdataset" and (without := rows - counts["texts"]):
        notes.append(f"{count_of(without, 'image')} without a text: open_clip leaves them out")
    if export.plan.format == "hf" and export.plan.license == "unknown":
        notes.append("the licence is unknown: name it with --license before you publish the data")
    return notes


@contextmanager
def explain_write_errors(out: Path) -> Generator[None]:
    """Turn an OSError of writing into one line with what to do."""
    try:
        yield
    except OSError as error:
        file = os.fsdecode(error.filename) if error.filename else out
        hint = f"free some space, then {AGAIN}" if error.errno in _FULL else f"fix it, then {AGAIN}"
        raise UniclError(f"{file}: {error.strerror or error}", hint) from error
