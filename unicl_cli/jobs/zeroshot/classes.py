"""Class names from the command line, a file or a corpus, with aliases and prompts of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from unicl_cli.contracts import ClassName
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.class_entry import ClassEntry
from unicl_cli.data.class_names import read_classes
from unicl_cli.data.class_numbers import describe_doubtful_names
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


def parse_classes(spec: str) -> Classes:
    """Parse ``a,b,"c, d"``, JSON, or ``@file``; ``name=alias1|alias2`` gives a class several names.

    A file has any form of class names, or ``name<TAB>prompt`` lines. Of equal classes, the first is kept.
    """
    listed = read_classes(spec)
    found: dict[str, ClassEntry] = {}
    repeated: dict[str, None] = {}
    for entry in listed.entries:
        name = entry.names[0]
        before = found.setdefault(name, entry)
        if before is not entry and entry.prompts:
            found[name] = before._replace(prompts=before.prompts + entry.prompts)
        elif before is not entry:
            repeated[name] = None
    names = tuple(ClassName(name, entry.names) for name, entry in found.items())
    warnings = [*listed.notes, *describe_doubtful_names(names, only=("are numbers", "are WordNet ids"))]
    if repeated:
        warnings.append(f"--classes names {', '.join(repeated)} more than once")
    return Classes(names, tuple(warnings), {name: entry.prompts for name, entry in found.items() if entry.prompts})


def choose_classes(classes: str | None, corpus: str | None) -> Classes | None:
    """Return the classes of ``--classes`` or ``--classes-from``; None if neither is given: the model's own."""
    if classes is not None and corpus is not None:
        raise UniclError("both --classes and --classes-from are given", "give one of them")
    if classes is not None:
        return parse_classes(classes)
    if corpus is None:
        return None
    opened = open_corpus(corpus)
    if not opened.classes:
        raise UniclError(
            f"--classes-from {corpus}: this corpus has no classes", "name a corpus with labels, or use --classes"
        )
    return Classes(tuple(each._replace(names=each.names[:1]) for each in opened.classes))
