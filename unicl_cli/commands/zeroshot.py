"""`unicl zeroshot IMAGE...`: pictures of your own against classes of your own."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from unicl_cli.commands import Quiet

app = typer.Typer(add_completion=False)


@app.command()
def zeroshot(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, quoted globs.")],
    classes: Annotated[
        str | None,
        typer.Option(help='a,b,"c, d" or @file with one a line; name=alias|alias too. Default: the model\'s own.'),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A run or checkpoint; default: the run that finished last.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt like 'a photo of a {}.', a list's name (clip80, none) or a file.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes shown of each picture.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that each process encodes at once.")] = 32,
    devices: Annotated[str, typer.Option(help="auto, a number of GPUs, or cpu:N for N processes.")] = "auto",
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Not their moving average.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a picture.")] = False,
    quiet: Quiet = False,
) -> None:
    """Classify pictures by class names; probabilities are relative to the classes named, one alone has 1."""
    from unicl_cli.commands.measured import in_workers, load, warn

    def work(accelerator: Any) -> None:
        from unicl_cli.core.launch import is_peer
        from unicl_cli.errors import UniclError
        from unicl_cli.jobs.zeroshot import parse_classes, pictures_of, zeroshot, zeroshot_scorer

        asked = None if classes is None else parse_classes(classes)
        pictures = pictures_of(images)
        loaded = load(model, accelerator.device, template, raw_weights=raw_weights)
        names = loaded.classes if asked is None else asked.names
        scorer = zeroshot_scorer(loaded, None if asked is None else names, accelerator)
        for warning in () if is_peer() else (*(asked.warnings if asked else ()), *scorer.warnings):
            warn(warning)
        failed = 0
        shown = [each.names[0] for each in names]
        for rows in zeroshot(loaded, pictures, scorer, shown, top_k=top_k, batch=batch):
            failed += sum(row["error"] is not None for row in rows)
            if not is_peer():
                typer.echo("\n".join(json.dumps(row, ensure_ascii=False) if as_json else line(row) for row in rows))
        if failed:
            raise UniclError(f"{failed} of {len(pictures)} pictures could not be read", "their rows say why")

    in_workers(devices, work)


def line(row: Mapping[str, Any]) -> str:
    """``path<TAB>cat 93.1 %<TAB>dog 5.0 %``, or the path and why there is no answer."""
    if row["error"] is not None:
        return f"{row['path']}\terror: {row['error']}"
    return "\t".join([row["path"], *(f"{item['label']} {100 * item['prob']:.1f} %" for item in row["top"])])
