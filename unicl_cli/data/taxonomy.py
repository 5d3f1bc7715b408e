"""A taxonomy of classes: its nodes, and its ranks from the top down."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from unicl_cli.contracts import MOST_GROUPS
from unicl_cli.errors import UniclError
from unicl_cli.formats import list_first


class Node(NamedTuple):
    """A node: prompts say ``names[0]``, data may also call it as it is ``written``.

    ``parent`` is the key of the node above it, "" for a root; ``is_named`` is True if its names are not made of its
    key.
    """

    key: str
    parent: str
    rank: str
    names: tuple[str, ...]
    written: tuple[str, ...] = ()
    is_named: bool = False


class Taxonomy(NamedTuple):
    """Sound nodes by key: one tree, or several; the ranks along each path are different and in one order."""

    origin: str
    nodes: Mapping[str, Node]
    deeper: Mapping[str, frozenset[str]]
    """Rank -> the ranks below it, in the order of the ranks from the top down."""
    inner: frozenset[str]
    """The keys of nodes above others."""

    @property
    def ranks(self) -> tuple[str, ...]:
        return tuple(self.deeper)

    def above(self, key: str) -> list[str]:
        """Return the keys of the nodes above a node, the nearest first."""
        found: list[str] = []
        while key := self.nodes[key].parent:
            found.append(key)
        return found

    def digest(self) -> str:
        """Return the sha256 of all nodes, whatever their order and the form of their file."""
        nodes = sorted((n.key, n.parent, n.rank, *n.names) for n in self.nodes.values())
        return hashlib.sha256(json.dumps(nodes).encode()).hexdigest()


def build_taxonomy(origin: str, nodes: Mapping[str, Node], *, is_below_root: bool = False) -> Taxonomy:
    """Return the taxonomy of nodes by key. A node without a rank has that of its depth: `level 1` is below the root.

    With ``is_below_root`` the top nodes lie below a root that is not among the nodes. UniclError for a parent that is
    not a node, a cycle, several roots, ranks in two orders, and more than 63 ranks.
    """
    depths = _measure_depths(origin, nodes)
    roots = [key for key, node in nodes.items() if not node.parent]
    if len(roots) > 1 and not is_below_root:
        raise UniclError(
            f"{origin}: has {len(roots):,} roots: {list_first(roots, 5)}",
            "put them below one root, or allow several trees: --taxonomy 'FILE?roots=many'",
        )
    shift = int(is_below_root)
    ranked = {
        key: node if node.rank else node._replace(rank=f"level {depths[key] + shift}") for key, node in nodes.items()
    }
    inner = frozenset(node.parent for node in nodes.values() if node.parent)
    return Taxonomy(origin, ranked, _order_ranks(origin, ranked, depths), inner)


def _measure_depths(origin: str, nodes: Mapping[str, Node]) -> dict[str, int]:
    """Return the number of nodes above each node."""
    depths: dict[str, int] = {"": -1}
    for first in nodes:
        path: dict[str, None] = {}  # in order, and quick to search
        key = first
        while key not in depths:
            if key not in nodes:
                child = next(reversed(path))
                raise UniclError(
                    f"{origin}: '{child}' is below '{key}', which is not a node",
                    f"add a line for '{key}', or leave the parent of a root empty",
                )
            if key in path:
                loop = [*list(path)[list(path).index(key) :], key]
                raise UniclError(
                    f"{origin}: '{key}' is above itself: {list_first([*reversed(loop)], 6)}",
                    "correct a parent; that of a root is empty",
                )
            path[key] = None
            key = nodes[key].parent
        depths |= {each: number for number, each in enumerate(reversed(path), depths[key] + 1)}
    return depths


def _order_ranks(origin: str, nodes: Mapping[str, Node], depths: Mapping[str, int]) -> dict[str, frozenset[str]]:
    """Return each rank with those below it, from the top down."""
    first: dict[str, int] = {}
    below: dict[str, dict[str, str]] = {}  # rank -> rank below it -> a node of that rank
    for key, node in nodes.items():
        first[node.rank] = min(depths[key], first.get(node.rank, depths[key]))
        if node.parent:
            below.setdefault(nodes[node.parent].rank, {}).setdefault(node.rank, key)
    hint = "give each level a rank of its own, or leave the ranks out"
    if twice := next((rank for rank, of in below.items() if rank in of), None):
        child = below[twice][twice]
        raise UniclError(
            f"{origin}: '{child}' and '{nodes[child].parent}' above it have the same rank, '{twice}'", hint
        )
    if len(first) > MOST_GROUPS:
        raise UniclError(f"{origin}: has {len(first):,} ranks; the limit is {MOST_GROUPS}", "leave some levels out")
    try:  # the deepest ranks come first: a rank follows all that are below it
        upward = list(TopologicalSorter({rank: sorted(below.get(rank, ())) for rank in first}).static_order())
    except CycleError as error:
        loop: list[str] = error.args[1]
        raise UniclError(f"{origin}: the ranks {list_first(loop)} are each above the other", hint) from error
    deeper: dict[str, frozenset[str]] = {}
    for rank in upward:
        own = below.get(rank, {})
        deeper[rank] = frozenset(own).union(*(deeper[lower] for lower in own))
    order = sorted(upward, key=lambda rank: (first[rank], -len(deeper[rank])))
    return {rank: deeper[rank] for rank in order}


def nodes_of_paths(paths: Iterable[str], names: Mapping[str, tuple[str, ...]]) -> dict[str, Node]:
    """Return the nodes of paths such as `animal/cat/siamese`, whose ranks are their depths; ``names`` are by path."""
    nodes: dict[str, Node] = {}
    for path in paths:
        key = path
        while key and key not in nodes:
            parent = key.rpartition("/")[0]
            nodes[key] = Node(key, parent, "", names[key])
            key = parent
    return nodes
