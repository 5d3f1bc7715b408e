"""`unicl compare MODEL MODEL`: metrics of models on the same rows, with intervals and paired tests."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import (
    MODEL_FORMS,
    OUTPUT,
    Batch,
    Candidates,
    Data,
    Devices,
    Json,
    Out,
    Quiet,
    RawWeights,
    Split,
    Template,
    examples,
    output_file,
)
from unicl_cli.commands.completion import complete_runs
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "unicl compare runs/first runs/tuned",
        "unicl compare runs/first runs/tuned --data corpus --html compared.html",
    )
)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help=f"Two or more models; the others are compared with the first. {MODEL_FORMS}.",
            autocompletion=complete_runs,
        ),
    ],
    data: Data = None,
    split: Split = None,
    candidates: Candidates = "all",
    batch: Batch = 128,
    devices: Devices = "auto",
    template: Template = None,
    raw_weights: RawWeights = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=output_file,
            help="Also write a page with images on which the models disagree: one file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure models on the same rows: a table with intervals, paired tests, classes and recipes that differ."""
    del quiet  # its callback has acted
    from unicl_cli.commands.output import check_before_loading, load_with_templates, print_document
    from unicl_cli.jobs.evaluators.options import parse_candidates
    from unicl_cli.launch.workers import run_on_devices

    check_models(models)
    answerable = parse_candidates(candidates)
    check_before_loading(models, data or (), ("--html", html), ("-o", out))

    def work(accelerator: Any) -> None:
        from unicl_cli.jobs.compare.compare import compare as job
        from unicl_cli.jobs.compare.tables import compare_tables
        from unicl_cli.launch.process import is_peer

        compared = job(
            models,
            lambda model: load_with_templates(model, accelerator.device, template, raw_weights=raw_weights),
            data=data or None,
            split=split,
            batch=batch,
            accelerator=accelerator,
            candidates=answerable,
        )
        if html is not None and not is_peer():
            from unicl_cli.jobs.compare.page import comparison_page
            from unicl_cli.pages.html import write_page

            write_page(html, comparison_page(compared))
        print_document(compared.document, compare_tables, as_json=as_json, out=out)

    run_on_devices(devices, work)


def check_models(models: list[str]) -> None:
    """Raise UniclError for fewer than two models, for one that is named twice, and for too many."""
    from unicl_cli.jobs.compare.names import MOST

    if len(models) < 2:
        raise UniclError(f"compare: needs two models or more, got {models[0]} alone", "name the other models too")
    if len(models) > MOST:
        raise UniclError(f"compare: takes at most {MOST} models, got {len(models)}", "compare fewer at once")
    seen: dict[str, str] = {}
    for model in models:
        place = str(Path(model).resolve()) if Path(model).exists() else model
        if place in seen:
            raise UniclError(f"compare: {seen[place]} and {model} are the same model", "name each model once")
        seen[place] = model
