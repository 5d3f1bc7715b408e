"""Groups of classes, and the classes above one in a taxonomy."""

from collections.abc import Sequence

from unicl_cli.contracts import ClassName, LabelSets


def groups_of(classes: Sequence[ClassName]) -> tuple[str, ...]:
    """Return the names of the groups of classes, in the order of their first classes."""
    return tuple(dict.fromkeys(item.group for item in classes))


def describe_place(c: ClassName) -> str:
    """Return the group of a class and the class above it, in words."""
    group = f"group '{c.group}'" if c.group else "no group"
    return f"{group} under '{c.parent}'" if c.parent else group


def label_sets_of(classes: Sequence[ClassName], width: int) -> LabelSets:
    """Return the label sets of a mix with these classes, whose rows have at most ``width`` labels."""
    names = groups_of(classes)
    numbers = {name: number for number, name in enumerate(names)}
    return LabelSets(width, tuple(numbers[item.group] for item in classes), names)


def ancestors_of(classes: Sequence[ClassName]) -> tuple[tuple[int, ...], ...]:
    """Return for each class its own number and those of the classes above it, without a root that all would share."""
    numbers = {item.key: number for number, item in enumerate(classes)}
    found: dict[int, tuple[int, ...]] = {}
    roots = [number for number, item in enumerate(classes) if not item.parent]
    shared = set(roots) if len(roots) == 1 else set[int]()
    for first in range(len(classes)):
        path: list[int] = []
        number: int | None = first
        while number is not None and number not in found:
            path.append(number)
            number = numbers[classes[number].parent] if classes[number].parent else None
        above = () if number is None else found[number]
        for number in reversed(path):
            above = above if number in shared else (number, *above)
            found[number] = above
    return tuple(found[number] or (number,) for number in range(len(classes)))
