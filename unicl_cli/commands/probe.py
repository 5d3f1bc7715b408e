"""`unicl probe [MODEL]`: accuracy of a simple classifier on a model's frozen image features."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import (
    OUTPUT,
    Batch,
    Devices,
    Json,
    ModelArgument,
    Out,
    Quiet,
    RawWeights,
    SameModel,
    examples,
    output_file,
)
from unicl_cli.errors import UniclError

app = typer.Typer(add_completion=False)
CLASSIFIER = "Classifier"


class FeaturePoint(StrEnum):
    """Place where features are taken: before or after the projection into the joint space."""

    pre = "pre"
    post = "post"


class Method(StrEnum):
    """Classifier that is fitted to the features."""

    logreg = "logreg"
    knn = "knn"


@app.command(
    epilog=examples(
        "unicl probe",
        "unicl probe runs/first --shots 1 --shots 5 --method knn",
        "unicl probe runs/first --c 0.1 --save probe.safetensors",
    )
)
def probe(
    model_argument: ModelArgument = None,
    model: SameModel = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="CORPUS", help="Corpus to fit and test on. Default: that of the recipe."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to test on. Default: test, else val.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="Classifier: logistic regression, or k nearest neighbours.", rich_help_panel=CLASSIFIER),
    ] = Method.logreg,
    features: Annotated[
        FeaturePoint,
        typer.Option(
            help="Features before (pre) or after (post) the projection.",
            rich_help_panel=CLASSIFIER,
        ),
    ] = FeaturePoint.pre,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Scale features to unit length; post always does.", rich_help_panel=CLASSIFIER
        ),
    ] = False,
    c: Annotated[
        float | None,
        typer.Option(
            "--c",
            metavar="C",
            help="Quick mode: one fit at this C (scikit-learn's: larger means less regularisation). "
            "Default: search for the best C.",
            rich_help_panel=CLASSIFIER,
        ),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="K", help="Train on K images of each class; may be repeated.", rich_help_panel=CLASSIFIER
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random draws of each --shots.", rich_help_panel=CLASSIFIER)
    ] = 3,
    batch: Batch = 128,
    devices: Devices = "auto",
    raw_weights: RawWeights = False,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=output_file,
            help="Write the classifier, for unicl zeroshot --probe FILE.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a simple classifier on frozen features. Its hyperparameter is chosen on validation data alone."""
    from unicl_cli.commands.output import (
        check_before_loading,
        check_splits,
        load_with_templates,
        pick_model,
        print_document,
        print_note,
    )
    from unicl_cli.jobs.evaluators.options import ProbeOptions, check_options
    from unicl_cli.launch.workers import run_on_devices

    if c is not None and not 0 < c < float("inf"):
        raise UniclError(f"--c {c:g}: not a positive number", "use for example --c 0.1")
    numbers = tuple(dict.fromkeys(shots or ()))
    options = check_options(ProbeOptions(features.value, method.value, normalize, numbers, seeds, c))
    if save is not None and (numbers or method is not Method.logreg):
        reason = "--shots makes several classifiers" if numbers else f"--method {method} has no weights"
        raise UniclError(f"--save: {reason}", "leave it out: one logistic regression can be saved")
    named = pick_model(model_argument, model)
    check_before_loading([named], [data] if data else (), ("--save", save), ("-o", out))
    check_splits(named, [data] if data else (), split)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import probe_tables
        from unicl_cli.jobs.probe import probe as job

        loaded = load_with_templates(named, accelerator.device, raw_weights=raw_weights)
        document = job(loaded, data=data, split=split, options=options, batch=batch, accelerator=accelerator, save=save)
        print_document(document, probe_tables, as_json=as_json, out=out)
        if save is not None:
            print_note(f"wrote {save}: unicl zeroshot IMAGE --probe {save} classifies with it")

    run_on_devices(devices, work)
