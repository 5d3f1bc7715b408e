"""Options of the command `unicl onnx`; nothing heavy is imported before it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def onnx(
    model: Annotated[
        str | None, typer.Argument(help="A run, a checkpoint, or open_clip:NAME/TAG; default: the last run.")
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same as the argument MODEL.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder; replaces an earlier export.")] = Path("onnx"),
    classes: Annotated[
        str | None, typer.Option(help="Also export a graph to these classes: a,b,c, JSON or @FILE.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt such as 'a photo of a {}.'; default: the model's own prompts.")
    ] = None,
    opset: Annotated[int, typer.Option(min=18, help="Version of the ONNX operator set.")] = 18,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the trained weights.")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,  # noqa: FBT002
) -> None:
    """Export a model's towers to ONNX and compare them with the model in onnxruntime."""
    from unicl_cli.api import UniclError, load_model
    from unicl_onnx.export import check_folder, export

    check_folder(out)
    if model is not None and model_option is not None and model != model_option:
        raise UniclError(f"--model: {model_option} differs from the argument {model}", "give the model once")
    loaded = load_model(model or model_option, raw_weights=raw_weights)
    if template:
        loaded = loaded._replace(templates=tuple(template))
    facts = export(loaded, out, read_class_names(classes), opset=opset)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, graph in facts["graphs"].items():
        typer.echo(f"{out / name}: {graph['bytes'] / 1e6:.1f} MB, at most {graph['max_difference']:.1e} from the model")
    typer.echo(f"{out / 'meta.json'}: sizes, scale, preprocessing, classes")
    if len({item["group"] for item in facts["class_groups"]}) > 1:
        typer.echo("note: --classes are of several groups: apply the softmax within each (class_groups in meta.json)")


def read_class_names(classes: str | None) -> tuple[str, ...]:
    """Read ``--classes`` into names, None into (). UniclError for aliases, prompts and repeated names."""
    from unicl_cli.api import UniclError, read_classes

    if classes is None:
        return ()
    entries = read_classes(classes).entries
    if odd := next((each for each in entries if each.prompts or len(each.names) > 1), None):
        raise UniclError(f"--classes: '{odd.names[0]}' has other names or prompts", "give each class one name")
    names = tuple(each.names[0] for each in entries)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UniclError(f"--classes: duplicate class '{twice[0]}'", "name each class once")
    return names
