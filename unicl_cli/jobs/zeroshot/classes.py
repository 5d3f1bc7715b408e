"""Class names from the command line, a file or a corpus, with aliases and prompts of their own."""

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
    """Classes with all their names, their own prompts by class key, and warnings for the user."""

    names: tuple[ClassName, ...]
    warnings: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = {}

    def fill_prompts(self, templates: Iterable[str]) -> list[list[str]]:
        """Return the prompts of each class: its own, else all its names in all ``templates``."""
        listed = list(templates)
        return [
            [fill_template(prompt, each.names[0]) for prompt in self.prompts[each.key]]
            if each.key in self.prompts
            else [fill_template(template, name) for name in each.names for template in listed]
            for each in self.names
        ]


class ClassEntry(NamedTuple):
    """One mention of a class."""

    name: str
    aliases: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


def parse_classes(spec: str) -> Classes:
    """Parse ``a,b,"c, d"``, or ``@file``; ``name=alias1|alias2`` gives a class several names.

    A file has one class per line, or ``name<TAB>prompt`` lines, or is JSON: a list of names, or names with their
    prompts. Blanks around names are dropped; of equal classes, the first is kept.
    """
    entries = read_file(spec) if spec.startswith("@") else read_line(spec)
    found: dict[str, ClassEntry] = {}
    repeated: dict[str, None] = {}
    for entry in entries:
        before = found.setdefault(entry.name, entry)
        if before is not entry and entry.prompts:
            found[entry.name] = before._replace(prompts=before.prompts + entry.prompts)
        elif before is not entry:
            repeated[entry.name] = None
    if not found:
        raise UniclError(f"--classes {spec}: names no class", "write --classes 'cat,dog', or --classes @names.txt")
    return Classes(
        tuple(ClassName(each.name, (each.name, *each.aliases)) for each in found.values()),
        (f"--classes names {', '.join(repeated)} more than once",) if repeated else (),
        {each.name: each.prompts for each in found.values() if each.prompts},
    )


def read_line(spec: str) -> Iterator[ClassEntry]:
    if spec.count('"') % 2:  # the reader would take the rest for one name
        raise UniclError(f"--classes {spec}: a quote is not closed", 'write a,b,"c, d"')
    for row in csv.reader(spec.splitlines(), skipinitialspace=True):
        yield from parse_names(row)


def read_file(spec: str) -> Iterator[ClassEntry]:
    try:
        text = Path(spec[1:]).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UniclError(f"--classes {spec}: {why}", "give a text file with one class per line") from error
    if text.lstrip().startswith(("{", "[")):
        yield from read_json(spec, text)
        return
    for line in text.split("\n"):
        name, tab, prompt = line.partition("\t")
        if tab and name.strip() and prompt.strip():
            yield ClassEntry(name.strip(), prompts=(prompt.strip(),))
        else:
            yield from parse_names([name])


def parse_names(cells: Iterable[str]) -> Iterator[ClassEntry]:
    for cell in cells:
        name, _, aliases = (part.strip() for part in cell.partition("="))
        if name:
            yield ClassEntry(name, tuple(alias.strip() for alias in aliases.split("|") if alias.strip()))


def read_json(spec: str, text: str) -> Iterator[ClassEntry]:
    hint = 'write ["cat", "dog"], or {"cat": ["a photo of a cat.", …], "dog": […]}'
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise UniclError(f"--classes {spec}: is not valid JSON: {error}", hint) from error
    items = document.items() if isinstance(document, dict) else ((name, ["{}"]) for name in document)
    for name, prompts in items:
        own = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(name, str) or not name.strip() or not good_prompts(own):
            raise UniclError(f"--classes {spec}: class {name!r} needs a name, and prompts that are text", hint)
        yield ClassEntry(name.strip(), prompts=tuple(own) if isinstance(document, dict) else ())


def good_prompts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)


def choose_classes(classes: str | None, corpus: str | None) -> Classes | None:
    """Return the classes of ``--classes`` or ``--classes-from``; None if neither is given: the model's own."""
    if classes is not None and corpus is not None:
        raise UniclError("both --classes and --classes-from are given", "give one of them")
    if classes is not None:
        return parse_classes(classes)
    if corpus is None:
        return None
    opened = open_corpus(Path(corpus))
    if not opened.classes:
        raise UniclError(
            f"--classes-from {corpus}: this corpus has no classes", "name a corpus with labels, or use --classes"
        )
    return Classes(tuple(each._replace(names=each.names[:1]) for each in opened.classes))
