"""The classes of a corpus placed in a taxonomy: their ranks and parents, and what a row labelled above a leaf knows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.class_entry import as_id
from unicl_cli.data.class_numbers import speak_names
from unicl_cli.data.taxonomy import Node, Taxonomy, build_taxonomy, nodes_of_paths
from unicl_cli.data.taxonomy_file import parse_spec, read_taxonomy
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of, list_first
from unicl_cli.jobs.prepare.plan.classes import FoldedName, fold_name
from unicl_cli.jobs.prepare.plan.rows import NO_UNKNOWN_RANKS, RowMapping, Rows, UnknownRanks

FOLDERS = "folders"
"""The value of `--taxonomy` by which the keys of classes are paths in it."""
_SHOWN = 5


class PlacedClasses(NamedTuple):
    """The classes of a corpus: those of its sources in their order, then the nodes above them.

    ``is_placed`` says for each class of the sources if it is in the taxonomy; ``sha256`` is that of the taxonomy, None
    if the command names none.
    """

    classes: tuple[ClassName, ...]
    is_placed: tuple[bool, ...]
    ranks: tuple[str, ...]
    unknown_ranks: UnknownRanks
    sha256: str | None = None

    def mapping_of(self, name: str, kind: str, own: Sequence[ClassName], numbers: Sequence[int]) -> RowMapping:
        """Return how a source's rows map to the corpus: ``own`` are its classes, ``numbers`` theirs in the corpus."""
        groups: dict[str, dict[str, None]] = {}
        for c, number in zip(own, numbers, strict=True):
            known = self.ranks if self.is_placed[number] else (self.classes[number].group,)
            groups.setdefault(c.group, {}).update(dict.fromkeys(known))
        mapped = {group: tuple(names) for group, names in groups.items()}
        return RowMapping(name, kind, tuple(numbers), mapped, self.unknown_ranks)


def place_in_taxonomy(classes: tuple[ClassName, ...], spec: str | None, notes: list[str]) -> PlacedClasses:
    """Place the merged classes in the taxonomy ``spec`` of `--taxonomy`, or in that of their own parents.

    UniclError for a faulty taxonomy, and for classes that it lacks or that fit several of its nodes.
    """
    has_parents = any(c.parent for c in classes)
    if spec is None:
        if not has_parents:
            return PlacedClasses(classes, (False,) * len(classes), (), NO_UNKNOWN_RANKS)
        nodes = {c.key: Node(c.key, c.parent, c.group, c.names) for c in _classes_in_trees(classes)}
        taxonomy = build_taxonomy("classes", nodes, is_below_root=True)
        return _place(classes, taxonomy, {key: key for key in nodes})
    if has_parents:
        raise UniclError("--taxonomy: the classes of the sources have parents of their own", "remove --taxonomy")
    if not classes:
        raise UniclError("--taxonomy: no source has classes", "add --labels SRC")
    if spec == FOLDERS:
        taxonomy, keep_others = _read_folders(classes), False
    else:
        path, options = parse_spec(spec)
        taxonomy, keep_others = read_taxonomy(path, options, notes), options.keep_others
    homes = _find_nodes(classes, taxonomy, keep_others=keep_others)
    placed = _place(classes, taxonomy, homes)
    notes += _describe_placement(taxonomy, placed, len(classes), homes)
    return placed._replace(sha256=taxonomy.digest())


def _classes_in_trees(classes: Sequence[ClassName]) -> list[ClassName]:
    """Return the classes that have a parent, or are one."""
    parents = {c.parent for c in classes}
    return [c for c in classes if c.parent or c.key in parents]


def _read_folders(classes: Sequence[ClassName]) -> Taxonomy:
    """Return the taxonomy of classes whose keys are paths; those of a group, such as attributes, are left out."""
    classes = [c for c in classes if not c.group]
    if not any("/" in c.key for c in classes):
        raise UniclError(
            "--taxonomy folders: no class lies in the folder of another",
            "nest the class folders (animal/cat/siamese), or name a file: --taxonomy tree.csv",
        )
    if odd := next((c.key for c in classes if not all(part.strip() for part in c.key.split("/"))), None):
        raise UniclError(f"--taxonomy folders: class '{odd}' has an empty folder in its path", "name each folder")
    own = {c.key: c.names for c in classes}
    paths = dict.fromkeys(path for key in own for path in _ends_of(key))
    spoken = speak_names([path.rpartition("/")[2].replace("-", " ") for path in paths])
    names = {path: own.get(path, said) for path, said in zip(paths, spoken, strict=True)}
    return build_taxonomy("--taxonomy folders", nodes_of_paths(own, names), is_below_root=True)


def _ends_of(path: str) -> list[str]:
    """Return a path and those above it, `a/b/c` to `a`."""
    found = [path]
    while "/" in found[-1]:
        found.append(found[-1].rpartition("/")[0])
    return found


def _find_nodes(classes: Sequence[ClassName], taxonomy: Taxonomy, *, keep_others: bool) -> dict[str, str]:
    """Return class key -> node key. A class of a group that is not a rank, such as an attribute, has no node."""
    finder = _Finder(taxonomy)
    asked = [c for c in classes if not c.group or c.group in taxonomy.deeper]
    found = {c.key: finder.find(c) for c in asked}
    if several := [(key, keys) for key, keys in found.items() if len(keys) > 1]:
        key, keys = several[0]
        raise UniclError(
            f"{taxonomy.origin}: class '{key}' fits {len(keys)} nodes: {list_first(keys, _SHOWN)}"
            + (f" (and {count_of(len(several) - 1, 'more class')})" if len(several) > 1 else ""),
            "label it with the whole path of its node, or name the classes with ?classes=FILE",
        )
    missing = [key for key, keys in found.items() if not keys]
    if missing and not keep_others:
        raise UniclError(
            f"{taxonomy.origin}: {len(missing):,} of {count_of(len(asked), 'class')} are not in it: "
            f"{list_first(missing, _SHOWN)}",
            "add them, name them as it does with ?classes=FILE, or keep them outside of it: "
            f"--taxonomy '{taxonomy.origin}?others=keep'",
        )
    homes = {key: keys[0] for key, keys in found.items() if keys}
    _check_homes(classes, homes, taxonomy)
    return homes


def _check_homes(classes: Sequence[ClassName], homes: Mapping[str, str], taxonomy: Taxonomy) -> None:
    """Raise UniclError for two classes at one node, and for a class that is outside but has the key of a node."""
    tenants: dict[str, str] = {}
    for key, node in homes.items():
        if tenants.setdefault(node, key) != key:
            raise UniclError(
                f"{taxonomy.origin}: the classes '{tenants[node]}' and '{key}' are one node, '{node}'",
                "give them one name, with ?classes=FILE",
            )
    above = {upper for node in tenants for upper in taxonomy.above(node)} - tenants.keys()
    if twin := next((c for c in classes if c.key in above), None):
        raise UniclError(
            f"{taxonomy.origin}: '{twin.key}' is a node, and also a class outside of it", "rename one of the two"
        )


class _Finder:
    """The look-up of nodes: by key, by an id or the last part of the key, then by a name."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self.written: dict[str, list[str]] = {}
        for key, node in taxonomy.nodes.items():
            for word in {*node.written, key.rpartition("/")[2]}:
                self.written.setdefault(word, []).append(key)

    @cached_property
    def spoken(self) -> dict[FoldedName, list[str]]:
        """The nodes by name as it is spoken; made only if a class is not found as it is written."""
        found: dict[FoldedName, list[str]] = {}
        for key, node in self.taxonomy.nodes.items():
            for name in {_fold(name) for name in (*node.names, *node.written)}:
                found.setdefault(name, []).append(key)
        return found

    def find(self, c: ClassName) -> Sequence[str]:
        """Return the keys of the nodes that a class fits."""
        if c.key in self.taxonomy.nodes:
            return (c.key,)
        for word in (as_id(c.key), as_id(c.key.rpartition("/")[2])):
            if word in self.written:
                return _narrow(self.written[word], c.key)
        named = (self.spoken[_fold(name)] for name in c.names if _fold(name) in self.spoken)
        return _narrow(next(named, ()), c.key)


def _fold(name: str) -> FoldedName:
    return fold_name(name.replace("-", " "))


def _narrow(keys: Sequence[str], path: str) -> Sequence[str]:
    """Return of several nodes those whose path ends as that of the class."""
    ending = [key for key in keys if f"/{key}".endswith(f"/{path}")] if "/" in path else []
    return ending or keys


def _place(classes: tuple[ClassName, ...], taxonomy: Taxonomy, homes: Mapping[str, str]) -> PlacedClasses:
    """Return the classes with ranks and parents, and after them the nodes above them that no class is."""
    tenants = {node: key for key, node in homes.items()}
    whole: list[ClassName] = []
    for c in classes:
        if c.key in homes:
            node = taxonomy.nodes[homes[c.key]]
            names = node.names if node.is_named else c.names
            parent = tenants.get(node.parent, node.parent)
            whole.append(c._replace(names=names, group=node.rank, parent=parent))
        else:
            whole.append(c)
    added = dict.fromkeys(upper for node in tenants for upper in reversed(taxonomy.above(node)))
    for key in added:
        if key not in tenants:
            node = taxonomy.nodes[key]
            whole.append(ClassName(key, node.names, node.rank, tenants.get(node.parent, node.parent)))
    numbers = {c.key: number for number, c in enumerate(whole)}
    parents = {number: numbers[c.parent] for number, c in enumerate(whole) if c.parent}
    deeper = {
        numbers[key]: taxonomy.deeper[taxonomy.nodes[node].rank]
        for key, node in homes.items()
        if node in taxonomy.inner
    }
    unknown_ranks = UnknownRanks(deeper, parents, tuple(c.group for c in whole))
    met = {c.group for c in whole}
    ranks = tuple(rank for rank in taxonomy.ranks if rank in met)
    return PlacedClasses(tuple(whole), tuple(c.key in homes for c in classes), ranks, unknown_ranks)


def _describe_placement(
    taxonomy: Taxonomy, placed: PlacedClasses, count: int, homes: Mapping[str, str]
) -> Iterator[str]:
    """Yield notes on what the taxonomy gave, and on what it has besides or lacks."""
    origin, added = taxonomy.origin, len(placed.classes) - count
    levels = f"{count_of(len(placed.ranks), 'rank')} ({list_first(placed.ranks, 8)})"
    yield f"{origin}: {count_of(len(homes), 'class')} placed in {levels}; nodes above them are classes too ({added:,})"
    if unused := len(taxonomy.nodes) - len(homes) - added:
        yield f"{origin}: nodes that are not above a class are left out ({unused:,})"
    if len(homes) < count:
        others = [c.key for c, inside in zip(placed.classes, placed.is_placed, strict=False) if not inside]
        yield f"{origin}: classes outside of it ({len(others):,}): {list_first(others, _SHOWN)}"


def describe_inner_rows(placed: PlacedClasses, rows: Iterable[Rows]) -> list[str]:
    """Return a note on rows whose label is above others, for each source that has such rows."""
    if not placed.unknown_ranks.deeper:
        return []
    notes: list[str] = []
    for of in rows:
        inner, mixed = _count_inner_rows(placed.unknown_ranks, of.mapping, of.raw)
        if inner:
            notes.append(
                f"{of.mapping.source}: rows labelled above a leaf ({inner:,}): prompts of deeper ranks are neither "
                "right nor wrong for them"
            )
        if mixed:
            notes.append(
                f"{of.mapping.source}: rows with labels of several depths in different branches ({mixed:,}): they "
                "count as annotated for the deepest"
            )
    return notes


def _count_inner_rows(unknown_ranks: UnknownRanks, mapping: RowMapping, rows: Sequence[Row]) -> tuple[int, int]:
    """Return the rows that lack a rank because of a label, and those that would if they had no deeper label."""
    inner = mixed = 0
    for row in rows:
        labels = mapping.labels(row)
        if unknown := unknown_ranks.of(labels):
            own = {unknown_ranks.groups[label] for label in labels}
            inner += not unknown <= own
            mixed += bool(unknown & own)
    return inner, mixed
