"""`unicl prepare`: sources into a corpus."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Quiet

app = typer.Typer(add_completion=False)


@app.command()
def prepare(
    labels: Annotated[list[str] | None, typer.Option(metavar="SRC", help="Source of labelled pictures.")] = None,
    captions: Annotated[list[str] | None, typer.Option(metavar="SRC", help="Source of captioned pictures.")] = None,
    images: Annotated[list[str] | None, typer.Option(metavar="SRC", help="Source of pictures only.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Directory of the corpus.")] = Path("corpus"),
    templates: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Prompt templates: clip80, clip7, none, or a text file.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Shrink to this short side, in pixels (default: as found).")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, metavar="F", help="Share that a source with only 'train' gives to 'val' (default: 0.05)."
        ),
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, metavar="N", help="Size of a shard, in MB.")] = 256,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes (default: one for each core).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N rows of each source and split.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="clean|raw", help="Clean captions, or take them as they are.")] = "clean",
    allow_version_mix: Annotated[
        bool, typer.Option("--allow-version-mix", help="Go on with other library versions than at the start.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
    quiet: Quiet = False,
) -> None:
    """Check, clean and pack pictures with labels and captions into a corpus.

    SRC is a folder, a CSV, TSV, JSONL or Parquet list, or a named source (digits, shapes), with options as in
    'cap.tsv?image=file&caption=title'. Stopped or killed, the same command goes on.
    """
    from unicl_cli.jobs.prepare import Wanted, run

    wanted = Wanted(
        labels=tuple(labels or ()),
        captions=tuple(captions or ()),
        images=tuple(images or ()),
        out=out,
        templates=templates,
        size=size,
        holdout=holdout,
        shard_mb=shard_mb,
        limit=limit,
        text=text,
    )
    run(
        wanted,
        workers=workers,
        allow_version_mix=allow_version_mix,
        as_json=json,
        again=shlex.join(["unicl", *sys.argv[1:]]),
    )
