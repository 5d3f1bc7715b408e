"""`unicl inspect PATH`: what is in a corpus, a batch, a checkpoint or a run."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Quiet
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.recipe.layers import builtin_names

app = typer.Typer(add_completion=False)
LOOKED_AT = 2000
"""Neighbours of a path that is not there, among which one may be meant."""


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A corpus, a run or a checkpoint; with --batch also a recipe.")
    ],
    split: Annotated[str | None, typer.Option(help="Of a corpus; default: train, else the first.")] = None,
    tokenizer: Annotated[
        str, typer.Option(metavar="corpus|clip|PATH", help="What counts the tokens of captions and prompts.")
    ] = "corpus",
    batch: Annotated[
        bool, typer.Option("--batch", help="Draw the targets of one batch, as CLIP and as UniCL see it.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="B", min=1, help="Rows of a batch; default: the recipe's; 256 of a corpus."),
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="The batch after this many steps of training.")] = 0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with images: one file, for any browser.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=0, help="Images of each source on the page.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say what is in a corpus, a batch, a checkpoint or a run. A damaged checkpoint ends in exit status 1."""
    del quiet  # its callback has seen it
    check_exists(Path(path))
    from unicl_cli.commands.output import check_before_loading, print_document

    check_before_loading((), (), ("-o", out), ("--html", html))
    from unicl_cli.jobs.inspect.inspect import Wanted, look
    from unicl_cli.jobs.inspect.tables import tables

    wanted = Wanted(split, tokenizer, batch, batch_size, step, html, samples)
    document = look(path, wanted)
    print_document(document, tables, as_json=as_json, out=out)
    if not document.get("whole", True):
        raise typer.Exit(1)


def check_exists(path: Path) -> None:
    """A path that leads nowhere is told before torch is imported."""
    if path.exists() or str(path) in builtin_names():
        return
    beside = islice(path.parent.iterdir(), LOOKED_AT) if path.parent.is_dir() else ()
    near = did_you_mean(path.name, [item.name for item in beside])
    raise UniclError(f"{path}: no such file or directory{near}", "give a corpus, a run or a checkpoint directory")
