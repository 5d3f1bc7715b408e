"""Class names of folders: their own, or those that a file gives them."""

from collections.abc import Collection, Mapping, Sequence

from unicl_cli.contracts import ClassName
from unicl_cli.data.class_entry import ClassEntry, NameList
from unicl_cli.data.class_numbers import (
    LabelledClasses,
    describe_changed_names,
    match_labels,
    speak_name,
    speak_names,
)
from unicl_cli.data.number_spellings import is_integer
from unicl_cli.errors import UniclError


def name_folders(folders: Sequence[str], names: str | None, notes: list[str]) -> LabelledClasses:
    """Return a class for each folder, a path of class folders; prompts say its last part, or all of it (`path`)."""
    spaced = [folder.replace("-", " ") for folder in folders]
    if names == "path":
        spoken = [(speak_name(folder.replace("/", " ")),) for folder in spaced]
    elif names == "leaf":
        spoken = [(speak_name(_leaf(folder)),) for folder in spaced]
    else:
        spoken = speak_names([_leaf(folder) for folder in spaced])
    classes = tuple(ClassName(folder, said) for folder, said in zip(folders, spoken, strict=True))
    notes += describe_changed_names(classes, "names=leaf keeps them, classes=FILE gives others")
    return LabelledClasses(classes, {folder: number for number, folder in enumerate(folders)})


def match_folders(given: NameList, folders: Sequence[str], first: int | None, notes: list[str]) -> LabelledClasses:
    """Return the folders with the names of a file, found by path, by last part or by number.

    A folder that is a number takes the name as its key, so that sources are merged by name. UniclError if no folder
    is found.
    """
    notes += given.notes
    leaves = {folder: _leaf(folder) for folder in folders}
    if not given.has_ids and all(map(is_integer, leaves.values())):
        matched = match_labels(given, set(leaves.values()), first)
        numbers = matched.numbers
        found = {folder: matched.classes[numbers[leaf]] for folder, leaf in leaves.items() if leaf in numbers}
    elif first is not None:
        raise UniclError(f"{given.origin}: first={first}: the folders are not numbers", "remove first")
    else:
        by_id = {name: entry for entry in given.entries for name in _ids_of(entry)}
        found = {folder: named for folder, leaf in leaves.items() if (named := _find_entry(by_id, folder, leaf))}
    _check_found(given, folders, found, notes)
    own = name_folders([folder for folder in folders if folder not in found], None, [])
    classes = {c.key: c for c in own.classes}
    keys = {folder: folder for folder in classes}
    for folder, named in found.items():
        keys[folder] = named.key if is_integer(leaves[folder]) else folder
        classes.setdefault(keys[folder], ClassName(keys[folder], named.names))
    at = {key: number for number, key in enumerate(classes)}
    return LabelledClasses(tuple(classes.values()), {folder: at[key] for folder, key in keys.items()})


def list_some(names: Sequence[str], most: int = 5) -> str:
    """Return the first names with commas between them, and "…" if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _find_entry(by_id: Mapping[str, ClassEntry], folder: str, leaf: str) -> ClassName | None:
    number = str(int(leaf)) if is_integer(leaf) else leaf
    entry = by_id.get(folder) or by_id.get(leaf) or by_id.get(number)
    return ClassName(entry.names[0], tuple(dict.fromkeys(map(speak_name, entry.names)))) if entry else None


def _check_found(given: NameList, folders: Sequence[str], found: Collection[str], notes: list[str]) -> None:
    missing = [folder for folder in folders if folder not in found]
    if missing and (not found or (not given.has_ids and all(is_integer(_leaf(folder)) for folder in folders))):
        raise UniclError(
            f"{given.origin}: no name for folder {missing[0]} ({len(missing):,} of {len(folders):,} folders)",
            "write folder<TAB>name lines",
        )
    if missing:
        shown = list_some(missing)
        notes.append(f"folders without a name in {given.origin} keep theirs ({len(missing):,}): {shown}")
    if (unused := len(given.entries) - len(found)) > 0:
        notes.append(f"names without a folder in {given.origin} are not classes ({unused:,})")


def _ids_of(entry: ClassEntry) -> tuple[str, ...]:
    return (entry.id,) if entry.id is not None else (entry.names[0], entry.written)


def _leaf(folder: str) -> str:
    return folder.rpartition("/")[2]
