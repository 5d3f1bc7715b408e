"""The command `unicl vilbert`."""

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def vilbert() -> None:
    """ViLBERT."""
