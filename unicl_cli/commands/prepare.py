"""`unicl prepare`: sources into a corpus."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Json, Quiet
from unicl_cli.commands.completion import complete_sources
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)


@app.command()
def prepare(
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="SRC", help="Source of labelled images.", autocompletion=complete_sources),
    ] = None,
    captions: Annotated[
        list[str] | None,
        typer.Option(metavar="SRC", help="Source of captioned images.", autocompletion=complete_sources),
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(metavar="SRC", help="Source of images only.", autocompletion=complete_sources)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Directory of the corpus.")] = Path("corpus"),
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Where named data sets lie (also UNICL_DATA).")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Prompt templates: clip80, clip7, none, or a text file.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, metavar="N", help="Shrink to this short side, in pixels (default: as found).")
    ] = None,
    min_side: Annotated[
        int, typer.Option("--min-side", min=0, metavar="N", help="Leave out images with a shorter side than this.")
    ] = 0,
    holdout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, metavar="F", help="Share that a source with only 'train' gives to 'val' (default: 0.05)."
        ),
    ] = None,
    dedup: Annotated[
        str, typer.Option(metavar="off|exact", help="Keep one row of each image, compared byte for byte.")
    ] = "off",
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Do not mix the rows: for evaluation only, never to train on.")
    ] = False,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: estimate rows, bytes, time and memory from a sample.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: check every byte of the corpus in DIR (needs no SRC).")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged shards of the corpus in DIR again (needs no SRC).")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check, clean and pack images with labels and captions into a corpus.

    SRC is a folder, a CSV, TSV, JSONL or Parquet list, a data set of the hub
    (hf:org/name) or a name (digits, cifar10, imagenet), with options as in
    'cap.tsv?image=file&caption=title'. Stopped or killed, the same command
    goes on.
    """
    if dry_run + verify + repair > 1:
        raise UniclError("--dry-run, --verify, --repair: each is a task of its own", "give one of them")
    from unicl_cli.jobs.prepare.lock import stoppable

    with stoppable(out, shlex.join(["unicl", *sys.argv[1:]])) as stop:  # before the libraries, which take a second
        from unicl_cli.data.sources.data_dirs import add_data_dir
        from unicl_cli.jobs.prepare import estimate
        from unicl_cli.jobs.prepare import prepare as job
        from unicl_cli.jobs.prepare.repair import run_repair, run_verify

        if data_dir:
            add_data_dir(data_dir)
        options = job.Options(
            templates=templates,
            size=size,
            min_side=min_side,
            holdout=holdout,
            shard_mb=shard_mb,
            limit=limit,
            text=text,
            dedup=dedup,
            keep_order=keep_order,
        )
        wanted = job.Wanted(tuple(labels or ()), tuple(captions or ()), tuple(images or ()), out, options)
        if verify:
            run_verify(out, as_json=json)
        elif dry_run:
            estimate.run(wanted, workers=workers, as_json=json)
        else:
            run = run_repair if repair else job.run
            run(wanted, workers=workers, allow_version_mix=allow_version_mix, as_json=json, stop=stop)
