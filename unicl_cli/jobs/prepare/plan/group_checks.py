"""Checks of the groups for which the rows of a source are annotated."""

from collections.abc import Mapping, Sequence

from unicl_cli.contracts import ClassName, Row
from unicl_cli.core.class_groups import groups_of
from unicl_cli.errors import UniclError


def check_groups(src: str, raw: Mapping[str, Sequence[Row]], classes: Sequence[ClassName]) -> None:
    """Raise UniclError if a row is annotated for a group that no class has, or no row for a group of classes.

    A taxonomy may have ranks below those that its rows are labelled at.
    """
    groups = groups_of(classes)
    known: set[str] = set()
    for row in (row for rows in raw.values() for row in rows if row.is_labelled()):
        if not classes:
            raise UniclError(f"{src}: rows are annotated, but there are no classes", "name the classes of the source")
        if row.known is None:
            known.update(groups)
        elif odd := [name for name in row.known if name not in groups]:
            raise UniclError(
                f"{src}: row '{row.key}' is annotated for group '{odd[0]}', and no class has it",
                f"use one of {', '.join(map(repr, groups))}",
            )
        else:
            known.update(row.known)
    if any(c.parent for c in classes):
        return
    if known and (lost := [name for name in groups if name not in known]):
        raise UniclError(
            f"{src}: no row is annotated for group '{lost[0]}'", "remove the classes of this group, or annotate rows"
        )
