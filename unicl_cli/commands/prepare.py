"""`unicl prepare`: a corpus made from sources of images, labels and captions."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import COMPUTE, Json, Quiet, corpus_folder, examples
from unicl_cli.commands.completion import complete_sources, one_of
from unicl_cli.commands.output import check_encoding
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)
ROWS, CHOICE, DOWNLOAD, TASKS = "Rows and images", "Choice of rows", "Download", "Other tasks"


@app.command(
    epilog=examples(
        "unicl prepare --labels photos --captions captions.tsv -o corpus",
        "unicl prepare --labels birds --taxonomy tree.csv -o birds-corpus",
        "unicl prepare --list",
    )
)
def prepare(
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC", help="Source of labelled images; may be repeated.", autocompletion=complete_sources
        ),
    ] = None,
    captions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC", help="Source of captioned images; may be repeated.", autocompletion=complete_sources
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SRC",
            help="Source of images without labels or captions; may be repeated.",
            autocompletion=complete_sources,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", parser=corpus_folder, help="Directory of the corpus, or an address (s3://…)."
        ),
    ] = Path("corpus"),
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Folder of downloaded data sets (also UNICL_DATA)."),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|folders",
            help="Taxonomy of the classes: a table 'name,parent' or of ranks, or nested class folders.",
            rich_help_panel=ROWS,
            autocompletion=one_of("folders"),
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Prompt templates of the corpus: clip80, clip7, unicl81, none, or a text file.",
            autocompletion=one_of("clip80", "clip7", "unicl81", "none"),
            rich_help_panel=ROWS,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=8,
            metavar="N",
            help="Shrink images to this shorter side, in pixels. Default: keep the size.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    min_side: Annotated[
        int,
        typer.Option(
            "--min-side",
            min=0,
            metavar="N",
            help="Leave out images with a shorter side below N pixels.",
            rich_help_panel=ROWS,
        ),
    ] = 0,
    holdout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            metavar="F",
            help="Share of images moved to 'val', in sources with only 'train'. Default: 0.05.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    query_list: Annotated[
        Path | None,
        typer.Option(
            "--query-list",
            metavar="FILE",
            help="Keep only training captions that contain a query of FILE, one per line.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    max_per_query: Annotated[
        int | None,
        typer.Option(
            "--max-per-query",
            min=1,
            metavar="N",
            help="Keep at most N captions for each query of --query-list.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    balance: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep at most N training rows of each class, and N captions that name it.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    dedup: Annotated[
        str,
        typer.Option(
            metavar="off|exact|near",
            help="Keep only one row of images that are equal byte for byte, or nearly equal.",
            rich_help_panel=CHOICE,
            autocompletion=one_of("off", "exact", "near"),
        ),
    ] = "off",
    not_in: Annotated[
        list[str] | None,
        typer.Option(
            "--not-in",
            metavar="CORPUS",
            help="Leave out images that are in this corpus, exactly or nearly; may be repeated.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    keep_order: Annotated[
        bool,
        typer.Option(
            "--keep-order",
            help="Do not shuffle the rows: for evaluation only, never for training.",
            rich_help_panel=ROWS,
        ),
    ] = False,
    shard_mb: Annotated[
        int, typer.Option(min=1, metavar="N", help="Size of a shard, in MB.", rich_help_panel=COMPUTE)
    ] = 256,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes. Default: one per core.", rich_help_panel=COMPUTE),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="Run in processes of this machine, or on Ray (one machine or a cluster).",
            rich_help_panel=COMPUTE,
            autocompletion=one_of("local", "ray"),
        ),
    ] = "local",
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of a running Ray cluster, HOST:PORT or auto. Default: start one here.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Download from private addresses too.", rich_help_panel=DOWNLOAD),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Request again the URLs of a finished corpus that failed for a temporary reason.",
            rich_help_panel=DOWNLOAD,
        ),
    ] = False,
    ignore_robots: Annotated[
        bool,
        typer.Option(
            "--ignore-robots",
            help="Keep images whose server asks not to train on them (X-Robots-Tag).",
            rich_help_panel=DOWNLOAD,
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Take at most N rows per source and split.", rich_help_panel=CHOICE),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="clean|raw",
            help="Clean captions, or keep them as they are.",
            rich_help_panel=ROWS,
            autocompletion=one_of("clean", "raw"),
        ),
    ] = "clean",
    allow_version_mix: Annotated[
        bool,
        typer.Option(
            "--allow-version-mix",
            help="Continue even if library versions have changed since the start.",
            rich_help_panel=COMPUTE,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing; estimate rows, bytes, time and memory from a sample.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write nothing; check every byte of the corpus in DIR (without SRC).",
            rich_help_panel=TASKS,
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Rebuild the damaged shards of the corpus in DIR (without SRC).", rich_help_panel=TASKS
        ),
    ] = False,
    list_known: Annotated[
        bool,
        typer.Option("--list", help="Write nothing; list the data sets that are known by name.", rich_help_panel=TASKS),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check, clean and pack images with labels and captions into a corpus.

    SRC is a folder; a CSV, TSV, JSONL or Parquet list of files or URLs; a data
    set of the hub (hf:org/name); or a name that --list shows (imagenet, gcc3m).
    Options follow a question mark: 'captions.tsv?image=file&caption=title'.
    After an interruption, run the same command again to continue.
    """
    if list_known:
        from unicl_cli.jobs.prepare.dataset_list import list_datasets

        list_datasets([*(labels or ()), *(captions or ()), *(images or ())], as_json=json)
        return
    check_encoding(**{"-o": [str(out)]})
    if engine != "local" and (dry_run or verify or repair):
        raise UniclError("--engine: is for writing a corpus", "leave it out with --dry-run, --verify and --repair")
    if dry_run + verify + repair + retry_failed > 1:
        raise UniclError("--dry-run, --verify, --repair and --retry-failed: cannot be combined", "use one of them")
    from unicl_cli.jobs.prepare.lock import catch_stop_signals

    command = shlex.join(["unicl", *sys.argv[1:]])
    writes = not (dry_run or verify)
    with catch_stop_signals(out, command, writes=writes) as stop:  # before the libraries, which take a second
        from unicl_cli.data.sources.data_dirs import add_data_dir
        from unicl_cli.data.sources.resolve import KINDS, check_known

        if data_dir:
            add_data_dir(data_dir)
        sources = (tuple(labels or ()), tuple(captions or ()), tuple(images or ()))
        check_known([(kind, src) for kind, of in zip(KINDS, sources, strict=True) for src in of])
        from unicl_cli.data.fetch import Fetcher
        from unicl_cli.jobs.prepare import estimate
        from unicl_cli.jobs.prepare import prepare as job
        from unicl_cli.jobs.prepare.engines.choice import EngineChoice
        from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest
        from unicl_cli.jobs.prepare.repair import run_repair, run_verify
        from unicl_cli.jobs.prepare.shards.download import Downloads

        options = PrepareOptions(
            templates=templates,
            size=size,
            min_side=min_side,
            holdout=holdout,
            shard_mb=shard_mb,
            limit=limit,
            text=text,
            dedup=dedup,
            keep_order=keep_order,
            taxonomy=taxonomy,
            query_list=str(query_list) if query_list else None,
            max_per_query=max_per_query,
            balance=balance,
            not_in=tuple(not_in or ()),
        )
        downloads = Downloads(Fetcher(allow_private=allow_private, robots=not ignore_robots))
        request = PrepareRequest(*sources, out, options, downloads, retry_failed)
        if verify:
            run_verify(out, as_json=json)
        elif dry_run:
            estimate.run(request, workers=workers, as_json=json)
        elif repair:
            run_repair(request, workers=workers, allow_version_mix=allow_version_mix, as_json=json, stop=stop)
        else:
            chosen, mixed = EngineChoice(engine, cluster), allow_version_mix
            job.run(request, chosen, workers=workers, allow_version_mix=mixed, as_json=json, stop=stop)
