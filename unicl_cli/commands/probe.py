"""`unicl probe [MODEL]`: accuracy of a simple classifier on a model's frozen image features."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from unicl_cli.commands import Batch, Devices, Json, ModelArgument, Out, Quiet, RawWeights, SameModel, examples

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


@app.command(epilog=examples("unicl probe", "unicl probe runs/first --shots 1 --shots 5 --method knn"))
def probe(
    model_argument: ModelArgument = None,
    model: SameModel = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="CORPUS", help="Corpus to fit and test on. Default: that of the recipe."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to test on. Default: test, or val without one.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="Classifier: logistic regression, or k nearest neighbours.", rich_help_panel=CLASSIFIER),
    ] = Method.logreg,
    features: Annotated[
        FeaturePoint,
        typer.Option(
            help="Features: output of the image tower (pre), or after the projection (post).",
            rich_help_panel=CLASSIFIER,
        ),
    ] = FeaturePoint.pre,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Scale features to unit length; post always does.", rich_help_panel=CLASSIFIER
        ),
    ] = False,
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
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a simple classifier on frozen features. Its one setting is chosen on validation data alone."""
    from unicl_cli.commands.output import check_before_loading, load_with_templates, pick_model, print_document
    from unicl_cli.commands.workers import run_on_devices

    named = pick_model(model_argument, model)
    check_before_loading([named], [data] if data else (), ("-o", out))

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import probe_tables
        from unicl_cli.jobs.evaluators.options import ProbeOptions
        from unicl_cli.jobs.probe import probe as job

        options = ProbeOptions(features.value, method.value, normalize, tuple(dict.fromkeys(shots or ())), seeds)
        loaded = load_with_templates(named, accelerator.device, raw_weights=raw_weights)
        document = job(loaded, data=data, split=split, options=options, batch=batch, accelerator=accelerator)
        print_document(document, probe_tables, as_json=as_json, out=out)

    run_on_devices(devices, work)
