"""`unicl zeroshot IMAGE...`: classification of images by class names."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, OUTPUT, Batch, Devices, Quiet, RawWeights, Template, examples
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)
ANSWERS, INPUT = "Answers", "Input"


class Scores(StrEnum):
    """Scale of the scores: probabilities or cosines."""

    prob = "prob"
    cosine = "cosine"


@app.command(
    epilog=examples(
        'unicl zeroshot photo.jpg --classes "cat,dog,red fox"',
        'unicl zeroshot "photos/*/*.jpg" --classes-from corpus --csv > labels.csv',
        "unicl zeroshot photo.jpg --classes @names.txt --model runs/first --none",
    )
)
def zeroshot(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE", help="Files, folders, quoted globs, URLs, or - to read a list from standard input."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|@FILE",
            help='Classes: a,b,"c, d", JSON, or a file of lines, ids with names, or JSON with prompts; '
            "name=alias|alias adds other names. Default: the model's own.",
        ),
    ] = None,
    classes_from: Annotated[str | None, typer.Option(metavar="CORPUS", help="Take the classes of a corpus.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help=f"{MODEL_FORMS}. Default: the run that finished last."),
    ] = None,
    template: Template = None,
    top_k: Annotated[
        int, typer.Option(min=1, metavar="N", help="Best classes shown per image.", rich_help_panel=ANSWERS)
    ] = 5,
    none: Annotated[
        bool,
        typer.Option(
            "--none",
            help="Allow the answer 'none of these' (the label is then null).",
            rich_help_panel=ANSWERS,
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Give no label if the best class scores below this.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    independent: Annotated[
        bool,
        typer.Option(
            "--independent",
            help="Score each class by itself; the probabilities need not add up to 1.",
            rich_help_panel=ANSWERS,
        ),
    ] = False,
    scores: Annotated[
        Scores,
        typer.Option(help="Show and threshold probabilities or cosines.", rich_help_panel=ANSWERS),
    ] = Scores.prob,
    null: Annotated[
        bool,
        typer.Option("-0", "--null", help="The list on standard input is separated by NUL.", rich_help_panel=INPUT),
    ] = False,
    stdin_image: Annotated[
        bool,
        typer.Option("--stdin-image", help="Read one image from standard input.", rich_help_panel=INPUT),
    ] = False,
    allow_url: Annotated[
        bool,
        typer.Option("--allow-url", help="Download http and https URLs.", rich_help_panel=INPUT),
    ] = False,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private",
            help="Allow URLs of this machine and of private networks.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    batch: Batch = 32,
    devices: Devices = "auto",
    raw_weights: RawWeights = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line per image.", rich_help_panel=OUTPUT),
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="Print one CSV row per image, after a header.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Classify images by class names. Probabilities are relative to the classes named; a single class gets 1."""
    from unicl_cli.commands.output import check_before_loading, load_with_templates, print_warning
    from unicl_cli.commands.workers import limit_to_one_process, run_on_devices

    inputs, by_cosine = images or [], scores is Scores.cosine
    check_inputs(inputs, stdin_image=stdin_image)
    if as_json and as_csv:
        raise UniclError("--json: cannot be combined with --csv", "use one of them")
    check_before_loading([model], ())
    if stdin_image or "-" in inputs:
        devices = limit_to_one_process(devices)

    def work(accelerator: Any) -> None:
        from unicl_cli.data.fetch import Fetcher
        from unicl_cli.jobs.zeroshot.classes import choose_classes
        from unicl_cli.jobs.zeroshot.inputs import open_inputs
        from unicl_cli.jobs.zeroshot.output import csv_rows, json_lines, text_lines, write_answers
        from unicl_cli.jobs.zeroshot.zeroshot import AnswerOptions, make_judge, zeroshot
        from unicl_cli.launch.process import is_peer

        asked = choose_classes(classes, classes_from)
        found, total = open_inputs(inputs, stdin_image=stdin_image, separator=b"\0" if null else b"\n")
        loaded = load_with_templates(model, accelerator.device, template, raw_weights=raw_weights)
        judge = make_judge(loaded, asked, AnswerOptions(top_k, none, independent, threshold, by_cosine), accelerator)
        for warning in () if is_peer() else judge.warnings:
            print_warning(warning)
        fetch = Fetcher(allow_private=allow_private, robots=False) if allow_url else None
        form = json_lines if as_json else text_lines(by_cosine=by_cosine)
        if as_csv:
            form = csv_rows(min(top_k, len(judge.names)))
        rows = zeroshot(loaded, found, judge, batch=batch, fetch=fetch)
        write_answers(rows, lambda data: None if is_peer() else typer.echo(data, nl=False), form, total)

    run_on_devices(devices, work)


def check_inputs(inputs: list[str], *, stdin_image: bool) -> None:
    """Raise UniclError unless images are named and standard input is read at most once."""
    if stdin_image and inputs:
        raise UniclError("--stdin-image: cannot be combined with other inputs", "leave the other inputs out")
    if not stdin_image and not inputs:
        raise UniclError(
            "no images given",
            "name files, folders or quoted globs, or use - for a list on standard input, or --stdin-image",
        )
    if inputs.count("-") > 1:
        raise UniclError("-: standard input can be read only once", "use - once")
