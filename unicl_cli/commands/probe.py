"""`unicl probe [MODEL]`: a simple classifier on a model's image features."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from unicl_cli.commands import Batch, Devices, Json, ModelArgument, Out, Quiet, RawWeights, SameModel

app = typer.Typer(add_completion=False)


class FeaturePoint(StrEnum):
    """Before or after the projection into the joint space."""

    pre = "pre"
    post = "post"


class Method(StrEnum):
    """What is trained on the features."""

    logreg = "logreg"
    knn = "knn"


@app.command()
def probe(
    model_argument: ModelArgument = None,
    model: SameModel = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="CORPUS", help="Default: the corpus of the model's recipe.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The tested split; default: test, else val.")] = None,
    method: Annotated[
        Method, typer.Option(help="logreg: logistic regression; knn: nearest neighbours.")
    ] = Method.logreg,
    features: Annotated[
        FeaturePoint, typer.Option(help="pre: the image tower's output; post: after the projection.")
    ] = FeaturePoint.pre,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Features of unit length; post has it anyway.")
    ] = False,
    shots: Annotated[
        list[int] | None, typer.Option(min=1, metavar="K", help="Train on K images of each class; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often shots are drawn.")] = 3,
    batch: Batch = 128,
    devices: Devices = "auto",
    raw_weights: RawWeights = False,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a simple classifier on frozen features; its one setting is chosen on validation data alone."""
    from unicl_cli.commands.output import check_before_loading, load_with_templates, pick_model, print_document
    from unicl_cli.commands.workers import run_in_workers

    named = pick_model(model_argument, model)
    check_before_loading([named], [data] if data else (), ("-o", out))

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import probe_tables
        from unicl_cli.jobs.probe import Asked
        from unicl_cli.jobs.probe import probe as job

        asked = Asked(features.value, method.value, normalize, tuple(dict.fromkeys(shots or ())), seeds)
        loaded = load_with_templates(named, accelerator.device, raw_weights=raw_weights)
        document = job(loaded, data=data, split=split, asked=asked, batch=batch, accelerator=accelerator)
        print_document(document, probe_tables, as_json=as_json, out=out)

    run_in_workers(devices, work)
