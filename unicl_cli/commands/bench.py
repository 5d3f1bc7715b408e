"""`unicl bench KIND`: how fast, in how much memory, and how much faster than open_clip."""

import sys
from typing import Annotated

import typer

from unicl_cli.commands import Json, Out, Quiet
from unicl_cli.commands.completion import complete_overrides, complete_recipes, starting_with

app = typer.Typer(add_completion=False)


def complete_kind(incomplete: str) -> list[str]:
    from unicl_cli.jobs.bench.kinds import KINDS

    return starting_with(KINDS, incomplete)


@app.command()
def bench(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="loader, step, text, loss, switches, eval, sampler, probe or start; none: what each one measures.",
            autocompletion=complete_kind,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="loader, step: a recipe's own data and model.", autocompletion=complete_recipes
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change.", autocompletion=complete_overrides),
    ] = None,
    vs: Annotated[str | None, typer.Option(metavar="PEER", help="open_clip: on the same weights and data.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each one runs; default: 3 to 7.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a process.")] = 1,
    devices: Annotated[str, typer.Option(help="auto (the first GPU, if there is one) or cpu.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; default: bf16 on a GPU.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows of a batch; default: 64.")] = None,
    model: Annotated[
        str | None, typer.Option(help="step, text, switches, eval: tiny, text, small, ViT-B-32, ViT-B-16 or Swin-T.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="N,N", help="loss: rows of a batch (64k is 65536); sampler: rows of a corpus.")
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="N,N", help="text, eval: numbers of classes.")] = None,
    processes: Annotated[str | None, typer.Option(metavar="N,N", help="loss: numbers of processes.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="ROW", help="This row; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every row of the kind, which may take minutes.")] = False,
    peak: Annotated[bool, typer.Option(help="The peak memory of a fresh process too.")] = True,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure: what is compared takes turns in one process, after a check that it computes the same."""
    from unicl_cli.jobs.bench.kinds import Asked, checked, numbers

    if kind is None:
        _show_kinds(as_json=as_json)
        return
    asked = checked(
        Asked(
            kind=kind,
            recipe=recipe,
            overrides=tuple(changes or ()),
            vs=vs,
            rounds=rounds,
            threads=threads,
            devices=devices,
            precision=precision,
            batch=batch,
            model=model,
            sizes=numbers("sizes", sizes),
            classes=numbers("classes", classes),
            processes=numbers("processes", processes),
            only=tuple(only or ()),
            every=every,
            peak=peak,
        )
    )
    from unicl_cli.commands.output import check_before_loading, print_document

    check_before_loading((), (), ("-o", out))
    from unicl_cli.jobs.bench.bench import bench as job
    from unicl_cli.jobs.bench.tables import tables

    document = job(asked, sys.argv[1:])
    print_document(document, tables, as_json=as_json, out=out)
    if not document["complete"]:
        raise typer.Exit(130)


def _show_kinds(*, as_json: bool) -> None:
    import json

    from unicl_cli.jobs.bench.kinds import KINDS

    if as_json:
        kinds = [{"kind": name, "measures": kind.line, "vs": kind.peer} for name, kind in KINDS.items()]
        typer.echo(json.dumps({"schema": "unicl/bench-kinds/1", "kinds": kinds}, indent=2))
        return
    from rich.console import Console

    from unicl_cli.jobs.bench.tables import kinds_table

    Console().print(kinds_table())
