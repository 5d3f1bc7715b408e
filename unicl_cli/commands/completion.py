"""Shell completion of arguments; nothing here imports torch."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import typer._completion_classes as typer_classes
import typer._completion_shared as typer_shared

from unicl_cli import registry

BASH = typer_shared.COMPLETION_SCRIPT_BASH.replace(
    "    return 0\n",
    "    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace\n    return 0\n",
)
ZSH = """
#compdef %(prog_name)s

%(complete_func)s() {
  local reply="$(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" %(autocomplete_var)s=complete_zsh %(prog_name)s)"
  if [[ $reply == *'="'* ]]; then
    local -a keys=( ${${(f)reply}#*\\"} )
    keys=( ${keys%%%%\\"*} )
    compadd -S '' -- $keys
  else
    eval $reply
  fi
}

compdef %(complete_func)s %(prog_name)s
"""
"""The scripts of typer, but with the cursor right behind `KEY=` and `folder/`; fish does so by itself."""
PARTS = {"loss": "losses", "model": "encoders", "model.image": "encoders", "model.text": "encoders"}
"""Recipe key -> kind of part that its value names."""


def use_scripts_without_space() -> None:
    """Let `--show-completion` and `--install-completion` write ``BASH`` and ``ZSH``; typer has no setting for it."""
    scripts: dict[str, str] = vars(typer_shared)["_completion_scripts"]
    for shell, script, known in (("bash", BASH, typer_classes.BashComplete), ("zsh", ZSH, typer_classes.ZshComplete)):
        scripts[shell] = known.source_template = script


def starting_with(words: Iterable[str], incomplete: str) -> list[str]:
    """Return the words that begin with ``incomplete``, sorted, each once."""
    return sorted(word for word in set(words) if word.startswith(incomplete))


def complete_recipes(incomplete: str) -> list[str]:
    """Return the shipped recipes, and the YAML files and folders that ``incomplete`` leads to."""
    from unicl_cli.recipe.layers import shipped_recipes

    return starting_with([*shipped_recipes(), *_files(incomplete, (".yaml", ".yml"))], incomplete)


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield f"{path}/"
            elif path.suffix in suffixes:
                yield str(path)


def complete_sources(incomplete: str) -> list[str]:
    """Return the names of data sources and known data sets; if none fits, the shell offers files."""
    from unicl_cli.data.sources.catalogue import known_datasets

    return starting_with([*registry.names("datasets"), *known_datasets()], incomplete)


def complete_kinds(incomplete: str) -> list[str]:
    """Return the kinds of parts."""
    return starting_with(registry.KINDS, incomplete)


def complete_parts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the parts of the preceding kind."""
    kind = str(ctx.params.get("kind"))
    return starting_with(registry.names(kind) if kind in registry.KINDS else (), incomplete)


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Return a completion that offers these words."""

    def complete(incomplete: str) -> list[str]:
        return starting_with(words, incomplete)

    return complete


def complete_runs(incomplete: str) -> list[str]:
    """Return the run directories in `runs`."""
    from unicl_cli.runs.folder import RUNS, STATUS

    return starting_with((str(path.parent) for path in RUNS.glob(f"*/{STATUS}")), incomplete)


def complete_overrides(incomplete: str) -> list[str]:
    """Return `KEY=` for each recipe key, or the values of a key that is already typed."""
    known = key_choices()
    before, cut = _key_cut_by_bash()
    if cut:  # bash takes `loss=cl` for three words, and completes the last one
        return starting_with(known.get(before, ()), incomplete)
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={word}" for word in starting_with(known.get(key, ()), value)]
    return starting_with((f"{name}=" for name in known), incomplete)


def _key_cut_by_bash() -> tuple[str, bool]:
    """Return (key, True) if bash has split `KEY=VALUE` at its `=`, else ("", False)."""
    try:
        words = shlex.split(os.environ["COMP_WORDS"])[: int(os.environ["COMP_CWORD"]) + 1]
    except (KeyError, ValueError):
        return "", False
    at = len(words) - 1 if words[-1:] == ["="] else len(words) - 2
    return (words[at - 1], True) if at > 0 and words[at] == "=" else ("", False)


def key_choices() -> dict[str, list[str]]:
    """Return dotted recipe key -> the words that are valid as its value."""
    from unicl_cli.recipe.text import recipe_json_schema

    whole = recipe_json_schema()
    found = dict(_choices_below(whole, whole, ""))
    return found | {key: registry.names(kind) for key, kind in PARTS.items()}


def _choices_below(place: Mapping[str, Any], whole: Mapping[str, Any], at: str) -> Iterator[tuple[str, list[str]]]:
    for name, entry in place.get("properties", {}).items():
        key = f"{at}.{name}".lstrip(".")
        forms = list(_union_members(entry, whole))
        inner = [form for form in forms if "properties" in form]
        words = [str(word) for form in forms for word in form.get("enum", [form["const"]] if "const" in form else ())]
        words += ["true", "false"] if any(form.get("type") == "boolean" for form in forms) else []
        if words or not inner:
            yield key, words
        for form in inner:
            yield from _choices_below(form, whole, key)


def _union_members(entry: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in entry:
        entry = whole["$defs"][entry["$ref"].rpartition("/")[2]]
    yield entry
    for form in entry.get("anyOf", ()):
        yield from _union_members(form, whole)
