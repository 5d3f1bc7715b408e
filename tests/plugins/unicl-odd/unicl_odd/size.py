"""The command `unicl odd-size MODEL`: the number of parameters of a model."""

import typer

from unicl_cli.api import UniclError

app = typer.Typer(add_completion=False)


@app.command()
def size(model: str, at_least: int = 0) -> None:
    """Count a model's parameters."""
    from unicl_cli.api import load_model  # brings torch, which `--help` does not wait for

    count = sum(parameter.numel() for parameter in load_model(model).step.parameters())
    if count < at_least:
        raise UniclError(f"{model} has {count} parameters, fewer than {at_least}", "take a larger model")
    typer.echo(count)
