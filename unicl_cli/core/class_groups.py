"""Groups of classes, and the classes above one in a taxonomy."""

from collections.abc import Mapping, Sequence

from unicl_cli.contracts import MOST_GROUPS, ClassName, LabelSets

NO_PARENT = -1


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


def find_parents(classes: Sequence[ClassName]) -> list[int]:
    """Return the number of the class above each class, NO_PARENT without one."""
    numbers = {item.key: number for number, item in enumerate(classes)}
    return [numbers[item.parent] if item.parent else NO_PARENT for item in classes]


def find_depths(parents: Sequence[int]) -> list[int]:
    """Return the number of classes above each class."""
    depths = [-1] * len(parents)
    for first in range(len(parents)):
        path: list[int] = []
        label = first
        while label != NO_PARENT and depths[label] < 0:
            path.append(label)
            label = parents[label]
        depth = -1 if label == NO_PARENT else depths[label]
        for label in reversed(path):
            depth += 1
            depths[label] = depth
    return depths


def find_hierarchy_fault(classes: Sequence[tuple[str, str, str]]) -> str | None:
    """Return what is wrong with the groups and parents of classes, (key, group, parent) each; None if they are sound.

    There are at most 63 groups, every parent is a class, and a class has another group than each class above it.
    """
    groups = {key: group for key, group, _ in classes}
    if (count := len(set(groups.values()))) > MOST_GROUPS:
        return f"has {count} groups of classes; the limit is {MOST_GROUPS}"
    parents = {key: parent for key, _, parent in classes}
    sound = {""}
    for first in parents:
        path: dict[str, None] = {}  # in order, and quick to search: a chain may be as long as the list
        key = first
        while key not in sound:
            if key not in parents:
                return f"class '{key}' is a parent, but not a class"
            if key in path:
                return f"class '{key}' is above itself"
            path[key] = None
            key = parents[key]
        sound.update(path)
    return next((fault for key in parents if (fault := _find_repeated_rank(key, groups, parents))), None)


def _find_repeated_rank(key: str, groups: Mapping[str, str], parents: Mapping[str, str]) -> str | None:
    """Return the fault of a class in the group of one above it; at most 63 groups bound the way up."""
    met = {groups[key]}
    upper = parents[key]
    while upper:
        if groups[upper] in met:
            return f"class '{upper}' and a class below it have the same group, '{groups[upper]}'"
        met.add(groups[upper])
        upper = parents[upper]
    return None


def ancestors_of(classes: Sequence[ClassName]) -> tuple[tuple[int, ...], ...]:
    """Return for each class its own number and those of the classes above it.

    A root that all classes share is left out, also for itself: it distinguishes nothing.
    """
    parents = find_parents(classes)
    roots = [number for number, parent in enumerate(parents) if parent == NO_PARENT]
    shared = roots[0] if len(roots) == 1 and len(classes) > 1 else NO_PARENT
    found: dict[int, tuple[int, ...]] = {NO_PARENT: ()}
    for first in range(len(classes)):
        path: list[int] = []
        number = first
        while number not in found:
            path.append(number)
            number = parents[number]
        above = found[number]
        for number in reversed(path):
            above = above if number == shared else (number, *above)
            found[number] = above
    return tuple(found[number] for number in range(len(classes)))
