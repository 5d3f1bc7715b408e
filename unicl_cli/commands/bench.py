"""`unicl bench KIND`: speed and memory, alone or next to open_clip."""

import sys
from functools import partial
from typing import Annotated

import typer

from unicl_cli.commands import OUTPUT, Json, Out, Quiet, examples
from unicl_cli.commands.completion import complete_overrides, complete_recipes, one_of, starting_with
from unicl_cli.storage.json_output import print_json

app = typer.Typer(add_completion=False)
CASES = "Cases to measure"


def complete_kind(incomplete: str) -> list[str]:
    """Return the kinds of benchmark that begin with ``incomplete``."""
    from unicl_cli.jobs.bench.kinds import KINDS

    return starting_with(KINDS, incomplete)


@app.command(
    epilog=examples("unicl bench", "unicl bench loader recipe.yaml", "unicl bench sampler --sizes 64k,1e6 --rounds 3")
)
def bench(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="loader, step, text, loss, switches, eval, sampler, probe or start. Default: list what each measures.",
            autocompletion=complete_kind,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Recipe whose data and model are measured (loader, step).",
            autocompletion=complete_recipes,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change.", autocompletion=complete_overrides),
    ] = None,
    vs: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            help="Compare with open_clip on the same weights and data.",
            autocompletion=one_of("open_clip"),
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs of each row. Default: 3 to 7, by kind.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, metavar="N", help="CPU threads per process.", rich_help_panel=CASES)
    ] = 1,
    devices: Annotated[
        str,
        typer.Option(metavar="auto|cpu", help="The first GPU if there is one, or the CPU.", rich_help_panel=CASES),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16",
            help="Number format. Default: bf16 on a GPU, else fp32.",
            rich_help_panel=CASES,
            autocompletion=one_of("fp32", "bf16"),
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Rows of a batch. Default: 64.", rich_help_panel=CASES)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tiny, text, small, ViT-B-32, ViT-B-16 or Swin-T (step, text, switches, eval, loader's training).",
            rich_help_panel=CASES,
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Rows of a batch (loss) or of a corpus (sampler); 64k is 65536.",
            rich_help_panel=CASES,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Numbers of classes (text, eval).", rich_help_panel=CASES),
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Numbers of processes (loss).", rich_help_panel=CASES),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Measure only this row; may be repeated.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Measure every row of the kind, which may take minutes.")
    ] = False,
    peak: Annotated[
        bool, typer.Option(help="Also measure the peak memory of a fresh process.", rich_help_panel=OUTPUT)
    ] = True,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed and memory. Variants alternate in one process, after a check that their results agree."""
    from unicl_cli.jobs.bench.kinds import Request, check_request, parse_counts

    if kind is None:
        _show_kinds(as_json=as_json)
        return
    request = check_request(
        Request(
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
            sizes=parse_counts("sizes", sizes),
            classes=parse_counts("classes", classes),
            processes=parse_counts("processes", processes),
            only=tuple(only or ()),
            every=every,
            peak=peak,
        )
    )
    from unicl_cli.commands.output import check_before_loading, print_document
    from unicl_cli.storage.json_output import write_document

    check_before_loading((), (), ("-o", out))
    from unicl_cli.jobs.bench.bench import run_benchmark
    from unicl_cli.jobs.bench.tables import tables
    from unicl_cli.storage.files import is_written_through

    if out is None or is_written_through(out):  # one document goes there, at the end
        document = run_benchmark(request, sys.argv[1:])
    else:
        document = run_benchmark(request, sys.argv[1:], partial(write_document, out))
    print_document(document, tables, as_json=as_json, out=out)
    if not document["complete"]:
        raise typer.Exit(130)


def _show_kinds(*, as_json: bool) -> None:

    from unicl_cli.jobs.bench.kinds import KINDS

    if as_json:
        kinds = [{"kind": name, "measures": kind.line, "vs": kind.peer} for name, kind in KINDS.items()]
        print_json({"schema": "unicl/bench-kinds/1", "kinds": kinds}, 2)
        return
    from rich.console import Console

    from unicl_cli.jobs.bench.tables import kinds_table

    Console().print(kinds_table())
