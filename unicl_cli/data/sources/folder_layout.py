"""Layout of a folder of images: which of its folders are splits, and which are classes."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from unicl_cli.data.sources.splits import find_splits
from unicl_cli.errors import UniclError


class Layout(NamedTuple):
    """The level of the split folders, counted from 0; None without splits. ``splits``: folder name -> split.

    Above the splits are folders of classes, unless all images share one wrapping folder there (``wrapped``).
    ``doubled`` are split folders that hold nothing but a folder of the same name.
    """

    level: int | None = None
    splits: Mapping[str, str] = {}
    wrapped: bool = False
    doubled: frozenset[str] = frozenset()

    def split_of(self, folders: tuple[str, ...]) -> str | None:
        """Return the split of what lies in ``folders``; None outside of the split folders."""
        if self.level is None:
            return "train"
        return self.splits.get(folders[self.level]) if len(folders) > self.level else None

    def class_parts(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        """Return the folders that name the class of what lies in ``folders``: all but the split and its wrapping."""
        if self.level is None:
            return folders
        above, below = folders[: self.level], folders[self.level + 1 :]
        if folders[self.level : self.level + 1] and folders[self.level] in self.doubled:
            below = below[1:]
        return below if self.wrapped else above + below


def find_layout(path: str, folders: Collection[tuple[str, ...]]) -> Layout:
    """Find the split folders among the ``folders`` that hold images, through a wrapping folder or below the classes.

    UniclError if only some of the first folders are splits.
    """
    level = 0
    while inside := {parts for parts in folders if len(parts) > level}:
        names = {parts[level] for parts in inside}
        wrapped = len({parts[:level] for parts in inside}) == 1
        found = find_splits(names)
        if others := names - found.keys() if found else set():
            if wrapped or len(set(found.values())) > 1:
                raise _mixed_error(path, found, others)
        elif found and (wrapped or len(inside) == len(folders)):
            return Layout(level, found, wrapped, _find_doubled(found, level, inside))
        level += 1
    return Layout()


def _find_doubled(splits: Collection[str], level: int, inside: Collection[tuple[str, ...]]) -> frozenset[str]:
    next_names = {name: {parts[level + 1 : level + 2] for parts in inside if parts[level] == name} for name in splits}
    return frozenset(name for name, below in next_names.items() if below == {(name,)})


def _mixed_error(path: str, found: dict[str, str], others: Collection[str]) -> UniclError:
    beside, shown = sorted(others), ", ".join(sorted(found))
    named = ", ".join(beside[:3]) + (", …" if len(beside) > 3 else "")
    return UniclError(
        f"{path}: some folders are named like splits ({shown}), others are not ({named})",
        f"add ?exclude={beside[0]} to leave a folder out, or ?splits=false if all of them are classes",
    )
