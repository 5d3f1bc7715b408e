"""`unicl export [MODEL]`: a model in the layout of open_clip, ready for the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import Json, ModelArgument, Quiet, RawWeights, SameModel, examples, output_folder
from unicl_cli.errors import print_line

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "unicl export runs/photos -o exported",
        "unicl export runs/photos --repo my-org/my-model --license mit -o my-model",
    )
)
def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", parser=output_folder, help="Folder to write, new or empty.")
    ],
    model_argument: ModelArgument = None,
    model: SameModel = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="Name that the model will have on the hub.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence on its card, as the hub spells it: mit.")
    ] = None,
    raw_weights: RawWeights = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model in open_clip's layout: weights, configuration, tokenizer and card.

    open_clip then loads the folder, and its vectors of four images and four
    texts are compared with those of the model. Nothing is written if they
    differ.
    """
    del quiet
    from unicl_cli.commands.output import check_before_loading, pick_model
    from unicl_cli.storage.hub import check_licence, check_repo
    from unicl_cli.storage.json_output import print_json
    from unicl_cli.storage.lock import check_unused

    named = pick_model(model_argument, model)
    check_unused(out, "choose another directory with -o")
    check_before_loading([named], ())
    if repo is not None:
        check_repo(repo)
    if licence is not None:
        check_licence(licence)
    from unicl_cli.build.load import load_model
    from unicl_cli.jobs.export.export import ExportRequest, export_model

    document = export_model(load_model(named, raw_weights=raw_weights), ExportRequest(out, repo, licence))
    if as_json:
        print_json(document, 2)
    else:
        show(document)


def show(document: Mapping[str, Any]) -> None:
    """Print what was written, how near open_clip's vectors are, and the commands that use and publish the folder."""
    from unicl_cli.formats import byte_size

    for name, size in document["files"].items():
        print_line(f"{document['out']}/{name}  {byte_size(size)}")
    furthest = max(document["max_difference"].values())
    print_line(f"open_clip loads it; its vectors differ by at most {furthest:.0e}")
    print_line("use it, and publish it:")
    print_line(f"  {document['use_command']}")
    print_line(f"  {document['upload_command'] or '(to publish it, export it with --repo ORG/NAME)'}")
