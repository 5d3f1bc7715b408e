"""`unicl search QUERY`: the items of a corpus that are nearest to texts, images, other media, or sums of them."""

from typing import Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, Batch, Devices, Json, Out, Quiet, RawWeights, examples
from unicl_cli.commands.completion import complete_runs

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        'unicl search "a photo of a red fox" --data corpus',
        'unicl search photo.jpg + "at night" --data corpus --top-k 10',
        "unicl search photo.jpg --data corpus --of text",
    )
)
def search(
    query: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY",
            help="Texts, and files of images or other media that the model reads; + between two adds them.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help=f"{MODEL_FORMS}. Default: the run that finished last.",
            autocompletion=complete_runs,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="CORPUS", help="Corpus to search. Default: the recipe's first.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split to search. Default: test, else val.")] = None,
    of: Annotated[
        str, typer.Option("--of", metavar="KIND", help="Items to find: image, text, or a kind of media, such as audio.")
    ] = "image",
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Best items shown per query.")] = 5,
    batch: Batch = 128,
    devices: Devices = "auto",
    raw_weights: RawWeights = False,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the items of a corpus that are nearest to texts, images and other media, or to sums of them."""
    from unicl_cli.commands.output import check_before_loading, check_encoding, load_with_templates, print_document
    from unicl_cli.launch.workers import run_on_devices

    check_encoding(QUERY=query)
    check_before_loading([model], [data] if data else (), ("-o", out))
    from unicl_cli.jobs.search import Wanted, split_queries  # brings torch

    queries = split_queries(query)

    def work(accelerator: Any) -> None:
        from unicl_cli.evaluate.tables import search_tables
        from unicl_cli.inference.encoder import Encoder
        from unicl_cli.jobs.search import search as job

        loaded = load_with_templates(model, accelerator.device, raw_weights=raw_weights)
        document = job(Encoder(loaded, accelerator.autocast), queries, Wanted(data, split, of, top_k), batch=batch)
        print_document(document, search_tables, as_json=as_json, out=out)

    run_on_devices(devices, work)
