"""What the shell offers for a half-typed word; nothing here imports torch."""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unicl_cli import registry

PARTS = {"loss": "losses", "model": "encoders", "model.image": "encoders", "model.text": "encoders"}
"""Keys of a recipe whose value is the name of a part."""


def begins(words: Iterable[str], incomplete: str) -> list[str]:
    return sorted(word for word in set(words) if word.startswith(incomplete))


def recipes(incomplete: str) -> list[str]:
    """The shipped recipes, and YAML files and folders where the word points to."""
    from unicl_cli.recipe.layers import builtin_names

    return begins([*builtin_names(), *_files(incomplete, (".yaml", ".yml"))], incomplete)


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield f"{path}/"
            elif path.suffix in suffixes:
                yield str(path)


def sources(incomplete: str) -> list[str]:
    """Data sources by name; with none that fits, the shell offers files."""
    return begins(registry.names("datasets"), incomplete)


def kinds(incomplete: str) -> list[str]:
    return begins(registry.KINDS, incomplete)


def runs(incomplete: str) -> list[str]:
    from unicl_cli.runs.folder import RUNS, STATUS

    return begins((str(path.parent) for path in RUNS.glob(f"*/{STATUS}")), incomplete)


def overrides(incomplete: str) -> list[str]:
    """`KEY=`, and behind it what the key can be."""
    known = choices()
    before, cut = _cut_by_bash()
    if cut:  # bash takes `loss=cl` for three words, and completes the last one
        return begins(known.get(before, ()), incomplete)
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={word}" for word in begins(known.get(key, ()), value)]
    return begins((f"{name}=" for name in known), incomplete)


def _cut_by_bash() -> tuple[str, bool]:
    """(the key, True) where bash has cut the word at its `=`."""
    try:
        words = shlex.split(os.environ["COMP_WORDS"])[: int(os.environ["COMP_CWORD"]) + 1]
    except (KeyError, ValueError):
        return "", False
    at = len(words) - 1 if words[-1:] == ["="] else len(words) - 2
    return (words[at - 1], True) if at > 0 and words[at] == "=" else ("", False)


def choices() -> dict[str, list[str]]:
    """Each key of a recipe by its dotted name, with the words that it can be."""
    from unicl_cli.recipe.text import schema

    whole = schema()
    found = dict(_keys(whole, whole, ""))
    return found | {key: registry.names(kind) for key, kind in PARTS.items()}


def _keys(place: Mapping[str, Any], whole: Mapping[str, Any], at: str) -> Iterator[tuple[str, list[str]]]:
    for name, entry in place.get("properties", {}).items():
        key = f"{at}.{name}".lstrip(".")
        forms = list(_forms(entry, whole))
        inner = [form for form in forms if "properties" in form]
        words = [str(word) for form in forms for word in form.get("enum", [form["const"]] if "const" in form else ())]
        words += ["true", "false"] if any(form.get("type") == "boolean" for form in forms) else []
        if words or not inner:
            yield key, words
        for form in inner:
            yield from _keys(form, whole, key)


def _forms(entry: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in entry:
        entry = whole["$defs"][entry["$ref"].rpartition("/")[2]]
    yield entry
    for form in entry.get("anyOf", ()):
        yield from _forms(form, whole)
