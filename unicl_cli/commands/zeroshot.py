"""`unicl zeroshot IMAGE...`: images of your own against classes of your own."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, Batch, Devices, Quiet, RawWeights, Template
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)


class Scores(StrEnum):
    """What is shown of a class."""

    prob = "prob"
    cosine = "cosine"


@app.command()
def zeroshot(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Files, folders, quoted globs, URLs, or - for a list on stdin."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help='a,b,"c, d", or @file: one a line, or JSON with prompts; name=alias|alias. Default: the model\'s own.'
        ),
    ] = None,
    classes_from: Annotated[str | None, typer.Option(metavar="CORPUS", help="The classes of a corpus.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help=f"{MODEL_FORMS}; default: the run that finished last.")
    ] = None,
    template: Template = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes shown of each image.")] = 5,
    none: Annotated[bool, typer.Option("--none", help="'None of these' may win: then there is no label.")] = False,
    threshold: Annotated[float | None, typer.Option(help="No label below this score of the best class.")] = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="A probability of each class by itself; they need not add up to 1.")
    ] = False,
    scores: Annotated[Scores, typer.Option(help="What is shown and compared with the threshold.")] = Scores.prob,
    null: Annotated[bool, typer.Option("-0", "--null", help="The list on stdin is separated by NUL.")] = False,
    stdin_image: Annotated[bool, typer.Option("--stdin-image", help="Standard input is one image.")] = False,
    allow_url: Annotated[bool, typer.Option("--allow-url", help="Download http and https URLs.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="URLs may lead to this machine and this network.")
    ] = False,
    batch: Batch = 32,
    devices: Devices = "auto",
    raw_weights: RawWeights = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One CSV row an image, with a header.")] = False,
    quiet: Quiet = False,
) -> None:
    """Classify images by class names; probabilities are relative to the classes named, one alone has 1."""
    from unicl_cli.commands.output import check_before_loading, load_with_templates, print_warning
    from unicl_cli.commands.workers import limit_to_one_process, run_in_workers

    inputs, by_cosine = images or [], scores is Scores.cosine
    check_inputs(inputs, stdin_image=stdin_image)
    if as_json and as_csv:
        raise UniclError("both --json and --csv are given", "give one of them")
    check_before_loading([model], ())
    if stdin_image or "-" in inputs:
        devices = limit_to_one_process(devices)

    def work(accelerator: Any) -> None:
        from unicl_cli.data.fetch import Fetcher
        from unicl_cli.jobs.zeroshot.classes import classes_of
        from unicl_cli.jobs.zeroshot.inputs import inputs_of
        from unicl_cli.jobs.zeroshot.output import json_lines, lines, table, tell
        from unicl_cli.jobs.zeroshot.zeroshot import Wanted, judge_for, zeroshot
        from unicl_cli.launch.process import is_peer

        asked = classes_of(classes, classes_from)
        pictures, total = inputs_of(inputs, stdin_image=stdin_image, separator=b"\0" if null else b"\n")
        loaded = load_with_templates(model, accelerator.device, template, raw_weights=raw_weights)
        judge = judge_for(loaded, asked, Wanted(top_k, none, independent, threshold, by_cosine), accelerator)
        for warning in () if is_peer() else judge.warnings:
            print_warning(warning)
        fetch = Fetcher(allow_private=allow_private, robots=False) if allow_url else None
        form = json_lines if as_json else lines(by_cosine=by_cosine)
        if as_csv:
            form = table(min(top_k, len(judge.names)))
        rows = zeroshot(loaded, pictures, judge, batch=batch, fetch=fetch)
        tell(rows, lambda data: None if is_peer() else typer.echo(data, nl=False), form, total)

    run_in_workers(devices, work)


def check_inputs(inputs: list[str], *, stdin_image: bool) -> None:
    """Some way to name images, and standard input once."""
    if stdin_image and inputs:
        raise UniclError("--stdin-image reads the one image itself", "leave the other inputs out")
    if not stdin_image and not inputs:
        raise UniclError(
            "no images named", "give files, folders, quoted globs, - for a list on standard input, or --stdin-image"
        )
    if inputs.count("-") > 1:
        raise UniclError("- stands for standard input, which can be read once", "give - once")
