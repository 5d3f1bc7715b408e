"""The log-probabilities of many prompts given images, with each beginning that prompts share computed once.

Under the causal mask the state of a word depends on the words before it alone. So the prompts are one tree: a node is
a beginning of prompts, an edge the word that follows it, and log p(prompt) the sum of the edges on its way.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unicl_captioner.decoder import Cache, Decoder

MOST_NODES = 256
"""Nodes of a tree, unless one prompt has more: each reads its ancestors through a mask of nodes × nodes."""
MOST_LOGITS = 1 << 25
"""Logits that are held at once."""


class Tree(NamedTuple):
    """The prompts of one pass: M nodes, E edges, p prompts."""

    prompts: Tensor
    """int64 (p,): their numbers among all prompts."""
    tokens: Tensor
    """int64 (1, M): the last token of each node."""
    places: Tensor
    """int64 (M,): its place in the text."""
    mask: Tensor
    """bool (M, M): the nodes that a node reads, itself and its ancestors."""
    sources: Tensor
    """int64 (E,): the node from which each edge leads, in rising order."""
    targets: Tensor
    """int64 (E,): the token to which it leads."""
    ways: Tensor
    """float32 (E, p): 1 where an edge is on the way of a prompt."""


def cut_texts(tokens: Tensor, end: int) -> list[list[int]]:
    """Return the tokens of each text up to its first end token after the start."""
    rows = tokens.tolist()
    return [row[: row.index(end, 1) + 1] if end in row[1:] else row for row in rows]


def build_trees(tokens: Tensor, end: int) -> list[Tree]:
    """Build the trees of the prompts, int64 (P, L), in alphabetical order: neighbours share their beginnings."""
    rows = cut_texts(tokens, end)
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    trees: list[Tree] = []
    part: list[int] = []
    nodes: set[tuple[int, ...]] = set()
    for number in order:
        more = {tuple(rows[number][:stop]) for stop in range(1, len(rows[number]))}
        if part and len(nodes | more) > MOST_NODES:
            trees.append(build_tree(part, rows, tokens.device))
            part, nodes = [], set()
        part.append(number)
        nodes |= more
    return [*trees, build_tree(part, rows, tokens.device)]


def build_tree(numbers: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device) -> Tree:
    """Build the tree of the prompts of these numbers."""
    nodes: dict[tuple[int, ...], int] = {}
    edges: dict[tuple[int, int], list[int]] = {}
    for column, number in enumerate(numbers):
        text = tuple(rows[number])
        for stop in range(1, len(text)):
            node = nodes.setdefault(text[:stop], len(nodes))
            edges.setdefault((node, text[stop]), []).append(column)
    mask = torch.eye(len(nodes), dtype=torch.bool)
    for node, place in nodes.items():
        if len(node) > 1:
            mask[place] |= mask[nodes[node[:-1]]]
    found = sorted(edges)
    ways = torch.zeros(len(found), len(numbers))
    for row, edge in enumerate(found):
        ways[row, edges[edge]] = 1
    tree = Tree(
        prompts=torch.tensor(numbers),
        tokens=torch.tensor([[node[-1] for node in nodes]]),
        places=torch.tensor([len(node) - 1 for node in nodes]),
        mask=mask,
        sources=torch.tensor([source for source, _ in found]),
        targets=torch.tensor([target for _, target in found]),
        ways=ways,
    )
    return Tree(*(x.to(device) for x in tree))


def score_tree(decoder: Decoder, image: Tensor, tree: Tree, caches: Sequence[Cache]) -> Tensor:
    """Return log p(prompt | image), (b, p), end token included; the caches keep the keys and values of the images."""
    tokens = tree.tokens.expand(len(image), -1)
    states = decoder(tokens, image, places=tree.places, caches=caches, mask=tree.mask)  # (b, M, width)
    step = max(1, MOST_LOGITS // (len(image) * decoder.tok.num_embeddings))
    cuts = [*range(0, states.shape[1], step), states.shape[1]]
    bounds = torch.searchsorted(tree.sources, torch.tensor(cuts, device=tree.sources.device)).tolist()
    parts: list[Tensor] = []
    for (start, stop), (first, last) in zip(pairwise(cuts), pairwise(bounds), strict=True):
        logits = decoder.logits(states[:, start:stop])
        source = tree.sources[first:last] - start
        parts.append(logits[:, source, tree.targets[first:last]] - logits.logsumexp(2)[:, source])
    edges = torch.cat(parts, 1)  # (b, E)
    with torch.autocast(edges.device.type, enabled=False):
        return edges @ tree.ways.to(edges.dtype)
