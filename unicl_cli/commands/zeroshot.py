"""`unicl zeroshot IMAGE...`: classification of images by class names."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, OUTPUT, Batch, Devices, Quiet, RawWeights, Template, examples
from unicl_cli.commands.completion import complete_runs
from unicl_cli.errors import UniclError
from unicl_cli.inference.image_names import check_any_exists, check_form, check_inputs

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded
    from unicl_cli.inference.answer_stream import Format
    from unicl_cli.jobs.zeroshot.answers import AnswerOptions, Judge
    from unicl_cli.jobs.zeroshot.classes import Classes
    from unicl_cli.jobs.zeroshot.label_sets import SetJudge
    from unicl_cli.runs.thresholds import FoundThresholds

app = typer.Typer(add_completion=False)
ANSWERS, INPUT = "Answers", "Input"


class Scores(StrEnum):
    """Scale of the scores: probabilities or cosines."""

    prob = "prob"
    cosine = "cosine"


@app.command(
    epilog=examples(
        'unicl zeroshot photo.jpg --classes "cat,dog,red fox" --none',
        'unicl zeroshot "photos/*/*.jpg" --classes-from corpus --csv > labels.csv',
        "unicl zeroshot photos --model runs/tags --multi",
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
        typer.Option(
            "--model",
            metavar="MODEL",
            help=f"{MODEL_FORMS}. Default: the run that finished last.",
            autocompletion=complete_runs,
        ),
    ] = None,
    template: Template = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            "--probe",
            metavar="FILE",
            help="Classify with a probe instead of class names: FILE is from unicl probe --save.",
        ),
    ] = None,
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
            help="Give no label if the best class scores below this; with --multi, the threshold of all classes.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    multi: Annotated[
        bool,
        typer.Option(
            "--multi",
            help="Give every label above its threshold: several, one or none. Thresholds are those of the run.",
            rich_help_panel=ANSWERS,
        ),
    ] = False,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Thresholds for --multi, from unicl eval --fit-thresholds. Default: those of the run.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Answer for this group of classes only; may be repeated. Default: one answer for each group.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Choose among the classes of this rank of a taxonomy; each sums up the leaves below it.",
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
    from unicl_cli.commands.output import check_before_loading, print_note
    from unicl_cli.jobs.zeroshot.classes import choose_classes
    from unicl_cli.launch.workers import limit_to_one_process, run_on_devices

    inputs, by_cosine = images or [], scores is Scores.cosine
    check_inputs(inputs, stdin_image=stdin_image)
    single = {"--none": none, "--independent": independent, "--scores cosine": by_cosine}
    by_name = {"--classes": classes, "--classes-from": classes_from, "--template": template, "--thresholds": thresholds}
    check_probe(probe, [option for option, given in (by_name | single).items() if given])
    check_threshold(threshold, is_multi=multi)
    check_multi(thresholds, single, is_on=multi)
    check_form(as_json=as_json, as_csv=as_csv)
    asked = choose_classes(classes, classes_from)
    reads = stdin_image or "-" in inputs
    if reads and devices != "auto":
        devices = limit_to_one_process(devices)
    check_before_loading([model] if probe is None or model is not None else (), ())
    check_any_exists(inputs, has_rows=as_json or as_csv)
    ask_run = multi and probe is None
    cuts = choose_thresholds(model, thresholds, threshold, template, raw_weights=raw_weights) if ask_run else None

    def work(accelerator: Any) -> None:
        from unicl_cli.data.fetch import Fetcher
        from unicl_cli.inference.answer_stream import write_answers
        from unicl_cli.inference.image_inputs import open_inputs
        from unicl_cli.jobs.zeroshot.answers import AnswerOptions
        from unicl_cli.jobs.zeroshot.questions import Wanted
        from unicl_cli.jobs.zeroshot.table import TerminalTable
        from unicl_cli.jobs.zeroshot.zeroshot import zeroshot
        from unicl_cli.launch.process import is_peer

        wanted = Wanted(tuple(dict.fromkeys(group or ())), rank)
        options = AnswerOptions(top_k, none, independent, threshold, by_cosine, multi, wanted)
        loaded, judge = load_judge(model, probe or asked, options, cuts, template, accelerator, raw_weights=raw_weights)
        found, total = open_inputs(
            inputs, stdin_image=stdin_image, separator=b"\0" if null else b"\n", media=judge.scorer.media
        )
        fetch = Fetcher(allow_private=allow_private, robots=False) if allow_url else None
        form = choose_form(judge, as_json=as_json, as_csv=as_csv)
        rows = zeroshot(loaded, found, judge, batch=batch, fetch=fetch)
        write_answers(rows, lambda data: None if is_peer() else typer.echo(data, nl=False), form, total)
        if isinstance(form, TerminalTable) and (note := form.note()):
            print_note(f"note: {note}")

    run_on_devices(limit_to_one_process(devices) if reads else devices, work)


def load_judge(
    model: str | None,
    classes: "Path | Classes | None",
    options: "AnswerOptions",
    thresholds: "FoundThresholds | None",
    template: list[str] | None,
    accelerator: Any,
    *,
    raw_weights: bool,
) -> "tuple[Loaded, Judge | SetJudge]":
    """Load the model, and make what judges its scores of ``classes``, by default its own; a path is that of a probe."""
    from unicl_cli.commands.output import load_with_templates, print_warning
    from unicl_cli.inference.linear_probe import LinearProbe, load_probe
    from unicl_cli.jobs.zeroshot.judge import make_judge
    from unicl_cli.launch.process import is_peer

    asked = load_probe(classes) if isinstance(classes, Path) else classes
    named = model if model is not None or not isinstance(asked, LinearProbe) else asked.model
    loaded = load_with_templates(named, accelerator.device, template, raw_weights=raw_weights)
    judge = make_judge(loaded, asked, options, accelerator, thresholds)
    for warning in () if is_peer() else judge.warnings:
        print_warning(warning)
    return loaded, judge


def choose_form(judge: "Judge | SetJudge", *, as_json: bool, as_csv: bool) -> "Format":
    """Return the form of the answers: JSON lines, CSV, a table on a terminal, else lines with tabs."""
    from unicl_cli.inference.answer_stream import json_lines
    from unicl_cli.jobs.zeroshot.output import choose_layout, csv_rows, text_lines
    from unicl_cli.jobs.zeroshot.table import TerminalTable
    from unicl_cli.pages.text import terminal_width

    if as_json:
        return json_lines
    layout = choose_layout(judge)
    if as_csv:
        return csv_rows(layout)
    width = terminal_width()
    return text_lines(layout) if width is None else TerminalTable(layout, width=width)


def check_threshold(threshold: float | None, *, is_multi: bool) -> None:
    """Raise UniclError for a threshold that no score has."""
    if threshold is not None and not math.isfinite(threshold):
        raise UniclError(f"--threshold: {threshold} is not a finite number", "give a score, such as 0.5")
    if is_multi and threshold is not None and not 0 <= threshold <= 1:
        raise UniclError(f"--threshold: {threshold:g} is not a probability", "give one from 0 to 1, such as 0.5")


def check_multi(thresholds: Path | None, single: dict[str, bool], *, is_on: bool) -> None:
    """Raise UniclError for single-answer options given with --multi, and for its own options without it."""
    refused = [option for option, is_given in single.items() if is_given]
    if is_on and refused:
        raise UniclError(
            f"--multi: cannot be combined with {', '.join(refused)}",
            "leave them out: each class has a probability of its own, and no label is an answer",
        )
    if thresholds is not None and not is_on:
        raise UniclError("--thresholds: works only with --multi", "add --multi, or remove --thresholds")


def choose_thresholds(
    model: str | None, file: Path | None, threshold: float | None, template: list[str] | None, *, raw_weights: bool
) -> "FoundThresholds | None":
    """Return the thresholds of ``file`` or of the run; None if there are none, but one is given for all classes.

    Raises UniclError if there are none, or if those of the run are for its own templates and weights.
    """
    from unicl_cli.runs.folder import choose_model
    from unicl_cli.runs.thresholds import find_thresholds, thresholds_place

    found = find_thresholds(model, file, is_plain=True, raw_weights=raw_weights)
    changed = [option for option, is_given in (("--template", template), ("--raw-weights", raw_weights)) if is_given]
    is_fit = found is None or found.is_named or not changed
    name = choose_model(model)
    if found is not None and is_fit and found.is_stale and not found.is_named:
        raise UniclError(found.describe_stale(), f"fit them again: unicl eval {name} --fit-thresholds")
    if threshold is not None or (found is not None and is_fit):
        return found if is_fit else None
    fit = f"unicl eval {name} --fit-thresholds"
    if changed or thresholds_place(name) is None:
        fit += " -o FILE, then --thresholds FILE"
    if found is not None:
        raise UniclError(f"{found.file}: was fitted without {' and '.join(changed)}", f"fit with it: {fit}")
    raise UniclError(f"--multi: {name} has no thresholds", f"fit them: {fit}; or give --threshold P")


def check_probe(file: Path | None, refused: list[str]) -> None:
    """Raise UniclError if the file of --probe is missing, or ``refused`` options, of class names, are given too."""
    if file is not None and refused:
        raise UniclError(
            f"--probe: cannot be combined with {', '.join(refused)}",
            "leave them out: a probe has classes of its own and reads no text",
        )
    if file is not None and not file.is_file():
        raise UniclError(f"--probe {file}: no such file", "write it first: unicl probe --save FILE")
