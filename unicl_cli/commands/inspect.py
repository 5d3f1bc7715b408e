"""`unicl inspect PATH`: contents of a corpus, a batch, a checkpoint or a run."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Json, Out, Quiet, examples, output_file
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.recipe.layers import shipped_recipes

app = typer.Typer(add_completion=False)
BATCH, PAGE, NEAR = "Targets of a batch", "HTML page", "Near duplicates"
MAX_NEIGHBOURS = 2000
"""Files beside a missing path that are searched for a similar name."""


@app.command(
    epilog=examples(
        "unicl inspect corpus", "unicl inspect corpus --html corpus.html", "unicl inspect recipe.yaml --batch"
    )
)
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A corpus, a run or a checkpoint; with --batch also a recipe.")
    ],
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of a corpus. Default: train, else the first.")
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(metavar="corpus|clip|PATH", help="Tokenizer that counts the tokens of captions and prompts."),
    ] = "corpus",
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Draw the target matrix of one batch, for CLIP and for UniCL.", rich_help_panel=BATCH
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Rows of the batch. Default: the recipe's, or 256 for a corpus.",
            rich_help_panel=BATCH,
        ),
    ] = None,
    step: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Draw the batch that follows this many training steps.", rich_help_panel=BATCH
        ),
    ] = 0,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=output_file,
            help="Also write a page with images: one file, for any browser.",
            rich_help_panel=PAGE,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images of each source on the page.", rich_help_panel=PAGE)
    ] = 8,
    near: Annotated[
        bool,
        typer.Option("--near", help="Find images of a corpus that are nearly equal.", rich_help_panel=NEAR),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="Find images that are in this corpus too, exactly or nearly; may be repeated.",
            rich_help_panel=NEAR,
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what is in a corpus, a batch, a checkpoint or a run. A damaged checkpoint ends with exit status 1."""
    del quiet  # its callback has acted
    from unicl_cli.storage.remote import place_of

    check_exists(place_of(path))
    from unicl_cli.commands.output import check_before_loading, print_document

    check_before_loading((), (), ("-o", out), ("--html", html))
    from unicl_cli.jobs.inspect.inspect import InspectOptions, inspect_path
    from unicl_cli.jobs.inspect.tables import tables

    options = InspectOptions(split, tokenizer, batch, batch_size, step, html, samples, near, tuple(against or ()))
    document = inspect_path(path, options)
    print_document(document, tables, as_json=as_json, out=out)
    if not document.get("whole", True):
        raise typer.Exit(1)


def check_exists(path: Path) -> None:
    """Raise UniclError for a missing path before torch is imported, which takes seconds."""
    if path.exists() or str(path) in shipped_recipes():
        return
    beside = islice(path.parent.iterdir(), MAX_NEIGHBOURS) if path.parent.is_dir() else ()
    near = did_you_mean(path.name, [item.name for item in beside])
    raise UniclError(f"{path}: no such file or directory{near}", "give a corpus, a run or a checkpoint directory")
