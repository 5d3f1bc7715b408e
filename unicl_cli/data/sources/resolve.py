"""What a SRC on the command line means: a registered source, a folder or a list, each with its options."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import unquote

from unicl_cli import registry
from unicl_cli.contracts import DatasetSource
from unicl_cli.errors import UniclError, did_you_mean

KINDS = ("labels", "captions", "images")
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Named(NamedTuple):
    """One SRC: its ``name`` is unique in the corpus and prefixes its keys."""

    name: str
    kind: str
    src: str


def open_source(src: str, kind: str) -> DatasetSource:
    """The source that ``src`` names, made anew: workers rebuild it from the same two strings. UniclError if unknown."""
    name, written = resolve(src)
    factory = registry.get("datasets", name)
    options = _typed(factory, written)
    if "kind" in registry.arguments("datasets", name):  # a parameter with a default is an option, not context
        options.setdefault("kind", kind)
    try:
        part = registry.bind("datasets", {"name": name, **options})
    except UniclError as error:
        raise UniclError(f"{src}: {error.message}", error.hint) from error
    return registry.make("datasets", part, {"kind": lambda: kind})


def resolve(src: str) -> tuple[str, dict[str, str]]:
    """``src`` -> registered name and options; a path becomes ``folder`` or ``table`` with the option ``path``."""
    base, options = split_options(src)
    if not base:
        raise UniclError(f"'{src}': no source is named", "give a folder, a list or a named source")
    if base.startswith(("hf:", "http://", "https://")):
        raise UniclError(f"{base}: only local data can be read", "download it and give its folder or list")
    known = registry.names("datasets")
    if base in known:
        return base, options
    path = Path(base).expanduser()
    if path.is_dir():
        return "folder", {"path": str(path), **options}
    if path.is_file() and path.suffix.lower() in LISTS:
        return "table", {"path": str(path), **options}
    if path.is_file():
        raise UniclError(f"{base}: not a kind of list that can be read", f"lists end in {', '.join(LISTS)}")
    hint = f"sources with a name: {', '.join(known)}"
    raise UniclError(f"{base}: no such folder, list or source{did_you_mean(base, known)}", hint)


def split_options(src: str) -> tuple[str, dict[str, str]]:
    """``"cap.tsv?image=file&caption=title"`` -> base and options; a path that exists is never cut."""
    if Path(src).expanduser().exists() or "?" not in src:
        return src, {}
    base, _, query = src.rpartition("?")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UniclError(f"{src}: option '{pair}' has no value", "options are written ?key=value&key=value")
        options[key] = unquote(value)
    return base, options


def _typed(factory: Callable[..., Any], written: Mapping[str, str]) -> dict[str, Any]:
    """Options as the factory types them; what cannot be read as that type stays text, for ``bind`` to refuse."""
    from pydantic import TypeAdapter, ValidationError

    try:
        hints = get_type_hints(factory)
    except NameError:  # types that are imported for checking only
        hints = {}
    options: dict[str, Any] = dict(written)
    for key in options.keys() & hints.keys():
        with suppress(ValidationError):
            options[key] = TypeAdapter(hints[key]).validate_python(options[key])
    return options


def named_sources(labels: Sequence[str], captions: Sequence[str], images: Sequence[str]) -> list[Named]:
    """Every SRC with its kind and a name made of its stem; a name met twice gets ``-2``, ``-3``, ..."""
    taken: set[str] = set()
    named: list[Named] = []
    for kind, sources in zip(KINDS, (labels, captions, images), strict=True):
        for src in sources:
            name = _unique(_stem(src), taken)
            taken.add(name)
            named.append(Named(name, kind, src))
    return named


def _stem(src: str) -> str:
    base, _ = split_options(src)
    path = Path(base).expanduser()
    stem = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^\w.]+", "-", stem).strip("-.") or "source"


def _unique(stem: str, taken: set[str]) -> str:
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name
