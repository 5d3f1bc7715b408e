"""Captions that are hidden from the rows of the classes that they name, against a matrix of hidden pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import both_ways


def unit(rows: int, seed: int) -> Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def padded(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([[*row, *[NO_LABEL] * (width - len(row))] for row in rows])


def dense(u: Tensor, v: Tensor, labels: list[list[int]], said: list[list[int]], named: list[list[int]], scale: Tensor):
    """The definition: each row without labels is its own positive; image i and text j share labels, or are hidden."""
    rows = range(len(u))
    shared = torch.tensor([[float(len({*labels[i]} & {*said[j]})) for j in rows] for i in rows], dtype=torch.float64)
    shared += torch.diag(torch.tensor([float(not own) for own in labels], dtype=torch.float64))
    hidden = torch.tensor([
        [bool({*labels[i]} & {*named[j]}) or bool({*named[i]} & {*said[j]}) for j in rows] for i in rows
    ])  # fmt: skip
    assert not (hidden & (shared > 0)).any()
    logits = (scale * u @ v.T).masked_fill(hidden, -torch.inf)
    terms = []
    for x, w in ((logits, shared), (logits.T, shared.T)):
        q = w / w.sum(1, keepdim=True)
        terms.append((x.logsumexp(1) - (q * x.masked_fill(q == 0, 0)).sum(1)).mean())
    return torch.stack(terms).mean(), hidden


def check(
    labels: list[list[int]], prompts: list[bool], named: list[list[int]], scale: float, seed: int, tile: int | None
) -> Tensor:
    n = len(labels)
    u, v, s = unit(n, seed), unit(n, seed + 1), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    shown = [own[0] if own and prompt else NO_LABEL for own, prompt in zip(labels, prompts, strict=True)]
    said = [own if one == NO_LABEL else [one] for own, one in zip(labels, shown, strict=True)]
    exact, hidden = dense(u, v, labels, said, named, s)
    alone = torch.tensor([not own for own in labels])
    texts = torch.where(alone, torch.arange(n) + 900, NO_KEY)
    target = Target(texts, alone.double(), padded(labels, 3), shown=torch.tensor(shown), named=padded(named, 4))
    found = both_ways(u, v, torch.arange(n), s, target=target, tile=tile)["loss"]
    assert abs(found - exact) < 1e-12 * (1 + scale)
    grads = [torch.autograd.grad(3 * x, (u, v, s)) for x in (exact, found)]
    assert max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) < 1e-12 * (1 + scale)
    return hidden


SETS = st.sets(st.integers(0, 7), max_size=3)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(SETS, st.booleans(), SETS), min_size=1, max_size=20),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
    tile=st.one_of(st.none(), st.integers(1, 30)),
)
def test_hidden_captions_equal_the_matrix_of_hidden_pairs(rows, scale, seed, tile):
    """Rows with 0 to 3 labels that show prompts or captions, and captions that name 0 to 3 classes."""
    labels, named = [sorted(own) for own, _, _ in rows], [[] if own else sorted(words) for own, _, words in rows]
    check(labels, [prompt for _, prompt, _ in rows], named, scale, seed, tile)


@pytest.mark.parametrize("classes", [61, 62, 63, 130])
def test_any_number_of_classes_may_be_named_in_a_batch(classes):
    """A word of bits has 62: several words are needed, and no class may fall between them."""
    every = list(range(classes))
    labels, named = [[c] for c in every] + [[] for _ in every], [[] for _ in every] + [[c] for c in every]
    hidden = check(labels, [c % 2 == 0 for c in every] * 2, named, 9.0, 0, 50)
    assert hidden.sum() == 2 * classes
