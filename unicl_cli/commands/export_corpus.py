"""`unicl export-corpus`: a corpus in the layouts of other tools."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unicl_cli.commands import Json, Quiet, examples, output_folder
from unicl_cli.commands.completion import one_of
from unicl_cli.commands.output import check_encoding
from unicl_cli.errors import print_line, write_note

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "unicl export-corpus corpus -o shards",
        "unicl export-corpus corpus --format hf --license cc-by-4.0 -o repository",
    )
)
def export_corpus(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Directory of a finished corpus.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", parser=output_folder, help="Directory to write."),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="webdataset|hf",
            help="Tars that open_clip trains from, or a repository of the `datasets` library.",
            autocompletion=one_of("webdataset", "hf"),
        ),
    ] = "webdataset",
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="NAME", help="Split to export; may be repeated. Default: all."),
    ] = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, metavar="N", help="Size of a file, in MB.")] = 256,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence on the card (hf), as the hub spells it: cc-by-4.0."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a corpus in the layout of another tool.

    webdataset: tars of images, texts, labels and JSON, with the command that
    trains open_clip on them. hf: Parquet files and a card, for load_dataset
    and for the hub. After an interruption, run the same command again to
    continue.
    """
    del quiet
    check_encoding(CORPUS=[corpus], **{"-o": [str(out)]})
    from unicl_cli.launch.stopping import StopFlag

    stop = StopFlag()
    stop.install()  # before the libraries, which take a second
    from unicl_cli.jobs.export_corpus.export import ExportRequest
    from unicl_cli.jobs.export_corpus.export import export_corpus as job
    from unicl_cli.storage.json_output import print_json

    request = ExportRequest(corpus, out, form, tuple(split or ()), shard_mb, licence)
    document = job(request, stop)
    if json:
        print_json(document, 2)
    else:
        show(document)


def show(document: Mapping[str, Any]) -> None:
    """Print the closing table, and the command of open_clip or the lines that load the data."""
    from rich.console import Console
    from rich.table import Table

    from unicl_cli.errors import escape_control
    from unicl_cli.formats import byte_size

    for line in document["notes"]:
        write_note(f"note: {line}")
    table = Table("split", "files", "rows", "size", title=escape_control(f"{document['out']} ({document['format']})"))
    for item in document["splits"]:
        numbers = (f"{item['files']:,}", f"{item['rows']:,}", byte_size(item["bytes"]))
        table.add_row(escape_control(item["split"]), *numbers)
    Console(markup=False, emoji=False, highlight=False).print(table)
    if command := document.get("train_command"):
        print_line("train from it with open_clip:")
        print_line(f"  {command}")
    if command := document.get("upload_command"):
        print_line(f"read it with datasets.load_dataset({document['out']!r}), publish it with:")
        print_line(f"  {command}")
