"""Options of the command `unicl caption`; nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)
EXAMPLES = """
Examples:
  unicl caption photo.jpg --model runs/captioner
  unicl caption "photos/*.jpg" --beam 4 --csv > captions.csv
"""


@app.command(epilog=EXAMPLES)
def caption(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE", help="Files, folders, quoted globs, URLs, or - to read a list from standard input."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="A run or checkpoint of the loss captioner; default: last run."),
    ] = None,
    beam: Annotated[
        int, typer.Option(min=1, metavar="K", help="Beam width: prefixes kept at each word; 1 is greedy.")
    ] = 1,
    null: Annotated[bool, typer.Option("-0", "--null", help="The list on standard input is separated by NUL.")] = False,
    stdin_image: Annotated[bool, typer.Option("--stdin-image", help="Read one image from standard input.")] = False,
    allow_url: Annotated[bool, typer.Option("--allow-url", help="Download http and https URLs.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Allow URLs of this machine and of private networks.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images that are captioned at once.")] = 32,
    raw_weights: Annotated[
        bool, typer.Option("--raw-weights", help="Use the trained weights, not their moving average (ema).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV row per image, after a header.")] = False,
) -> None:
    """Write a caption for each image, word by word."""
    from unicl_cli.api import check_any_exists, check_form, check_inputs

    inputs = images or []
    check_inputs(inputs, stdin_image=stdin_image)
    check_form(as_json=as_json, as_csv=as_csv)
    check_any_exists(inputs, has_rows=as_json or as_csv)

    from unicl_captioner.caption import FIELDS, caption_images, load_captioner, text_lines
    from unicl_cli.api import Fetcher, csv_lines, json_lines, open_inputs, write_answers

    loaded = load_captioner(model, raw_weights=raw_weights)
    found, total = open_inputs(inputs, stdin_image=stdin_image, separator=b"\0" if null else b"\n")
    fetch = Fetcher(allow_private=allow_private, robots=False) if allow_url else None
    header = ("path", *FIELDS, "error")
    table = csv_lines(header, lambda row: [row[name] for name in header])
    form = json_lines if as_json else table if as_csv else text_lines
    rows = caption_images(loaded, found, beams=beam, batch=batch, fetch=fetch)
    write_answers(rows, lambda data: typer.echo(data, nl=False), form, total)
