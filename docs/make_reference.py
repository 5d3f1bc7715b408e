"""Generator of docs/recipes.md (keys, parts, shipped recipes) and docs/commands.md (commands, options)."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from unicl_cli import binding, registry
from unicl_cli.cli import BUILTIN, app
from unicl_cli.recipe.layers import DEFAULT_PARTS, builtin_folder, builtin_names
from unicl_cli.recipe.text import recipe_json_schema

DOCS = Path(__file__).parent
INTRO = """# Recipes

A recipe is a YAML file with everything that the results of a run depend on. `python docs/make_reference.py` writes this
page from the schema; `unicl recipes schema` prints the schema itself, for editors.

- **Layers.** `extends: NAME or FILE` starts from another recipe, and the keys below it change that recipe. Mappings
  merge key by key, lists and values replace, and a part with another name replaces the whole part.
- **On the command line** `KEY=VALUE` does the same, with dots: `unicl train quickstart optim.lr=1e-3 loss=clip`.
  `train` has short forms of four keys: `--data CORPUS`, `--size N`, `--epochs N`, `--batch N`.
- **A VALUE is YAML**, as in a file. Quote what YAML would read otherwise: `model.init='"exp #2"'`. Options take a
  path as it is: `--init "exp #2"`.
- **Parts** (`model`, its towers, `loss`, `augment`) are a name with its options: `{name: timm, model: resnet50}`. A
  name alone is a part without options.
- **Values** are what they look like: `3e-4` and `1e5` are numbers, `no` and `on` are words, `012` is 12. A duplicate
  key is an error. All mistakes are reported at once, each with its line, before anything is built.

```sh
unicl recipes ls                          # list the shipped recipes
unicl recipes cp quickstart mine.yaml     # copy one with every common key, to change it
unicl recipes validate mine.yaml          # show every mistake with its line
unicl recipes show mine.yaml --resolved   # print it with every default
unicl recipes diff quickstart digits-ce   # show the keys that differ
```

## Keys
"""


TOWER = (
    "| key | value | default | meaning |",
    "|---|---|---|---|",
    "| `freeze` | true \\| false \\| `all` \\| `{unlock: N}` | `false` | What does not learn. true: the tower; all: "
    "the projection too; unlock: all but the last N blocks. |",
    "| `lr_scale` | number ≥ 0 | `1.0` | Factor of the learning rate. |",
    "| `layer_decay` | number > 0, ≤ 1 | `1.0` | Factor of the learning rate per block below the top. |",
    "| `lora` | `{rank: 8, alpha: 16.0, dropout: 0.0, targets: auto}` | `null` | Adapters that learn while the tower "
    "is frozen. targets: names of layers; auto: every Linear layer of the blocks. |",
)


def kind_of(item: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Write a JSON schema node as people do: `int > 0`, `a | b`, `list of int`."""
    if "$ref" in item:
        return kind_of(resolved(item, whole), whole)
    if "anyOf" in item:
        return " \\| ".join(dict.fromkeys(kind_of(each, whole) for each in item["anyOf"]))
    if "enum" in item or "const" in item:
        return " \\| ".join(f"`{value}`" for value in item.get("enum", [item.get("const")]))
    name = {"integer": "int", "number": "number", "string": "text", "boolean": "true \\| false", "null": "null"}
    if item.get("type") == "array":
        inner = item.get("items") or next(iter(item.get("prefixItems", [])), {})
        return f"list of {kind_of(inner, whole)}" if inner else "list"
    limits = [
        f"{sign} {item[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("gt", ">"), ("maximum", "≤"), ("lt", "<"))
        if key in item and abs(item[key]) < 1e9
    ]
    return " ".join([name.get(str(item.get("type")), "mapping"), *limits])


def resolved(item: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the node behind a reference."""
    return whole["$defs"][item["$ref"].rsplit("/", 1)[-1]] if "$ref" in item else item


def section_of(item: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return `("", node)` for a nested mapping, `("[]", node)` for a list of mappings, None for a value."""
    for each in (item, *item.get("anyOf", ())):
        inner = resolved(each, whole)
        if inner.get("properties"):
            return "", inner
        listed = resolved(inner.get("items", {}), whole)
        if listed.get("properties"):
            return "[]", listed
    return None


def rows(node: Mapping[str, Any], whole: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield a table row for each key below ``at``."""
    required = node.get("required", ())
    for key, item in node["properties"].items():
        path, about = f"{at}{key}", str(item.get("description", "")).replace("\n", " ").replace("|", "\\|")
        plain = {"loss": "part", "data.train[].augment": "as `data.augment`"}.get(path)
        nested = None if plain else section_of(item, whole)
        if nested is None:
            value = DEFAULT_PARTS.get(path, item.get("default"))
            default = "**required**" if key in required else f"`{json.dumps(value, ensure_ascii=False)}`"
            kind = plain or kind_of(item, whole)
            yield f"| `{path}` | {kind} | {default} | {about} |"
            continue
        suffix, inner = nested
        about = about or str(inner.get("description", "")).splitlines()[0]
        state = " · **required**" if key in required else " · default: null" if item.get("default", 0) is None else ""
        yield f"| **`{path}{suffix}`** | {'list of mappings' if suffix else 'mapping'} | | {about}{state} |"
        yield from rows(inner, whole, f"{path}{suffix}.")


def parts(kind: str) -> Iterator[str]:
    """Yield a table row for each built-in part of a kind, with its options."""
    for entry in sorted(registry.table(kind), key=lambda entry: entry.name):
        if not entry.builtin:
            continue
        about = (inspect.getdoc(registry.get(kind, entry.name)) or "").splitlines()
        options = [
            f"`{option}: {written}`" + ("" if default is inspect.Parameter.empty else f" = `{shown(default)}`")
            for option, (written, default) in binding.arguments(kind, entry.name).items()
        ]
        yield f"| `{entry.name}` | {about[0] if about else ''} | {'<br>'.join(options).replace('|', chr(92) + '|')} |"


def shown(default: Any) -> str:
    return json.dumps(binding.as_plain_data(default), ensure_ascii=False)


def about(name: str) -> str:
    """Return the comment that a shipped recipe begins with."""
    lines = (builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ") and "$schema" not in line), "")


def recipes_page() -> str:
    """Return the text of docs/recipes.md."""
    whole = recipe_json_schema()
    lines = [INTRO, "| key | value | default | meaning |", "|---|---|---|---|", *rows(whole, whole)]
    for kind, title in (
        ("encoders", "Encoders: `model` and its towers"),
        ("losses", "Losses"),
        ("datasets", "Sources"),
    ):
        lines += ["", f"## {title}", "", "| name | what it is | options |", "|---|---|---|", *parts(kind)]
    lines += [
        "",
        "Every tower, built in or from a plugin, also takes these keys ([fine-tuning](finetuning.md)). More parts come "
        "from [plugins](plugins.md).",
        "",
        *TOWER,
    ]
    lines += ["", "## Shipped recipes", "", "| name | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {about(name)} |" for name in builtin_names()]
    return "\n".join(lines) + "\n"


COMMANDS = """# Commands

`python docs/make_reference.py` writes this page from the commands themselves; `unicl COMMAND --help` shows the same.
Results go to stdout, progress and errors to stderr. [Exit statuses](errors.md) are the same for every command.
"""


def commands_page() -> str:
    """Return the text of docs/commands.md."""
    group = typer.main.get_command(app)
    lines = [COMMANDS, "```", "unicl [OPTIONS] COMMAND …", "```", "", *options_of(group)]
    for name in BUILTIN:
        stub = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue] - a LazyGroup
        lines += command_of(stub.load(), f"unicl {name}", "##")
    return "\n".join(lines) + "\n"


def command_of(command: Any, path: str, level: str) -> Iterator[str]:
    """Yield a command with its arguments and options, then its subcommands."""
    inner = getattr(command, "commands", {})
    names = [argument(each) for each in command.params if each.param_type_name == "argument"]
    yield from ("", f"{level} `{' '.join([path, *names, *(['COMMAND'] if inner else [])])}`", "")
    yield (command.help or "").split("\f")[0].strip()
    yield from ("", *options_of(command))
    for name, each in inner.items():
        yield from command_of(each, f"{path} {name}", f"{level}#")


def argument(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def options_of(command: Any) -> list[str]:
    """Return a table of arguments and options; empty for a command without any."""
    rows = [
        f"| `{name}` | {(parameter.help or '').replace('|', chr(92) + '|')} | {default_of(parameter)} |"
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
        for name in [argument(parameter) if parameter.param_type_name == "argument" else ", ".join(parameter.opts)]
        if parameter.help
    ]
    return ["| | | default |", "|---|---|---|", *rows] if rows else []


def default_of(parameter: Any) -> str:
    plain = parameter.default not in (None, False) and not callable(parameter.default)
    return f"`{parameter.default}`" if plain else ""


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {"recipes.md": recipes_page(), "commands.md": commands_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
