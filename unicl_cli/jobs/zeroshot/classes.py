"""What the user calls classes: a line, a file, a corpus; names, other names, prompts of their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli.contracts import ClassName
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError


class Classes(NamedTuple):
    """Classes with all their names, prompts of their own by class key, and what to tell the user about it."""

    names: tuple[ClassName, ...]
    warnings: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = {}

    def filled(self, templates: Iterable[str]) -> list[list[str]]:
        """The prompts of each class: its own, else all its names in all ``templates``."""
        listed = list(templates)
        return [
            [fill_template(prompt, each.names[0]) for prompt in self.prompts[each.key]]
            if each.key in self.prompts
            else [fill_template(template, name) for name in each.names for template in listed]
            for each in self.names
        ]


class Entry(NamedTuple):
    """One mention of a class."""

    name: str
    aliases: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def parse_classes(spec: str) -> Classes:
    """``a,b,"c, d"``, or ``@file``; ``name=alias1|alias2`` gives a class several names.

    A file has a class a line, or ``name<TAB>prompt`` lines, or is JSON: a list of names, or names with their prompts.
    Blanks around names are dropped, of equal classes all but the first.
    """
    entries = from_file(spec) if spec.startswith("@") else from_line(spec)
    found: dict[str, Entry] = {}
    repeated: dict[str, None] = {}
    for entry in entries:
        before = found.setdefault(entry.name, entry)
        if before is not entry and entry.prompts:
            found[entry.name] = before._replace(prompts=before.prompts + entry.prompts)
        elif before is not entry:
            repeated[entry.name] = None
    if not found:
        raise UniclError(
            f"--classes {spec}: names no class", "for example --classes 'cat,dog', or --classes @names.txt"
        )
    return Classes(
        tuple(ClassName(each.name, (each.name, *each.aliases)) for each in found.values()),
        (f"--classes names {', '.join(repeated)} more than once",) if repeated else (),
        {each.name: each.prompts for each in found.values() if each.prompts},
    )


def from_line(spec: str) -> Iterator[Entry]:
    if spec.count('"') % 2:  # the reader would take the rest for one name
        raise UniclError(f"--classes {spec}: a quote has no partner", 'write a,b,"c, d"')
    for row in csv.reader(spec.splitlines(), skipinitialspace=True):
        yield from named(row)


def from_file(spec: str) -> Iterator[Entry]:
    try:
        text = Path(spec[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UniclError(f"--classes {spec}: {why}", "give a text file with one class a line") from error
    if text.lstrip().startswith(("{", "[")):
        yield from from_json(spec, text)
        return
    for line in text.split("\n"):
        name, tab, prompt = line.partition("\t")
        if tab and name.strip() and prompt.strip():
            yield Entry(name.strip(), prompts=(prompt.strip(),))
        else:
            yield from named([name])


def named(cells: Iterable[str]) -> Iterator[Entry]:
    for cell in cells:
        name, _, aliases = (part.strip() for part in cell.partition("="))
        if name:
            yield Entry(name, tuple(alias.strip() for alias in aliases.split("|") if alias.strip()))


def from_json(spec: str, text: str) -> Iterator[Entry]:
    hint = 'write ["cat", "dog"], or {"cat": ["a photo of a cat.", …], "dog": […]}'
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise UniclError(f"--classes {spec}: is not JSON: {error}", hint) from error
    items = document.items() if isinstance(document, dict) else ((name, ["{}"]) for name in document)
    for name, prompts in items:
        own = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(name, str) or not name.strip() or not good_prompts(own):
            raise UniclError(f"--classes {spec}: class {name!r} has no name or no prompts that are text", hint)
        yield Entry(name.strip(), prompts=tuple(own) if isinstance(document, dict) else ())


def good_prompts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)


def classes_of(classes: str | None, corpus: str | None) -> Classes | None:
    """What ``--classes`` or ``--classes-from`` names; None where neither is given: the model's own."""
    if classes is not None and corpus is not None:
        raise UniclError("both --classes and --classes-from are given", "give one of them")
    if classes is not None:
        return parse_classes(classes)
    if corpus is None:
        return None
    opened = open_corpus(Path(corpus))
    if not opened.classes:
        raise UniclError(f"--classes-from {corpus}: a corpus without classes", "it holds captions or images alone")
    return Classes(tuple(each._replace(names=each.names[:1]) for each in opened.classes))
