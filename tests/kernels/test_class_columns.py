"""Prompts of all classes beside the texts of a batch, for images alone, against the matrix of targets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import TERMS, both_ways

CLASSES, TEXTS = 6, 9
GROUP_OF = torch.tensor([0, 0, 1, 1, 2, 2])


def unit(rows: int, seed: int) -> Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def dense(u: Tensor, v: Tensor, prompts: Tensor, t: Target, scale: Tensor) -> dict[str, Tensor]:
    """The definition: images choose among the rows' texts and one prompt of each class, texts among the images."""
    n, count = len(u), len(prompts)
    has = torch.zeros(n, count, dtype=torch.float64)
    for row, labels in enumerate(t.labels.tolist()):
        has[row, [label for label in labels if label != NO_LABEL]] = 1
    shown = t.shown if t.shown is not None else torch.full((n,), NO_LABEL)
    says = torch.where(shown[:, None] == NO_LABEL, has, F.one_hot(shown.clamp(min=0), count).double())
    says = torch.cat([says, torch.eye(count, dtype=torch.float64)])  # (n + C, C)
    named = torch.cat([shown, torch.arange(count)])
    hidden = torch.zeros(n, n + count, dtype=torch.bool)
    if t.known is not None:
        bits = (1 << GROUP_OF[named.clamp(min=0)]).masked_fill(named == NO_LABEL, 0)
        hidden = ((~t.known[:, None] & bits) != 0) & (t.known[:, None] != 0)
    weights = torch.ones(count, dtype=torch.float64) if t.weights is None else t.weights
    hidden[:, n:] |= weights == 0
    same = ((t.texts[:, None] == t.texts) & (t.texts != NO_KEY)).double()
    w = (has * weights) @ says.T
    logits = (scale * u @ torch.cat([v, prompts]).T).masked_fill(hidden, -torch.inf)
    found = {}
    nobody = torch.zeros(n, count, dtype=torch.float64)
    cases = {"image": (logits, torch.cat([same, nobody], 1), w), "text": (logits[:, :n].T, same, w[:, :n].T)}
    for name, (x, fine, coarse) in cases.items():
        q = t.share[:, None] * fine / fine.sum(1, keepdim=True).clamp(min=1)
        q = q + (1 - t.share)[:, None] * coarse / coarse.sum(1, keepdim=True).clamp(min=1e-300)
        found[name] = (x.logsumexp(1) - (q * x.masked_fill(q == 0, 0)).sum(1)).mean()
        found[f"entropy_{name}"] = -torch.xlogy(q, q).sum() / n
    return found


ROWS = st.tuples(st.sets(st.integers(0, CLASSES - 1), max_size=3), st.booleans(), st.floats(0, 1), st.integers(0, 9))


@settings(max_examples=60)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=20),
    kind=st.sampled_from(["one label", "sets", "groups", "weights", "weights of 0"]),
    tile=st.one_of(st.none(), st.integers(1, 30)),
    terms=st.sampled_from([TERMS, ("image",)]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_class_columns_equal_the_matrix_of_targets(rows, kind, tile, terms, scale, seed):
    """Sets of 0 to 3 labels, prompts and captions that rows share, groups that rows do not know."""
    width = 1 if kind == "one label" else 3
    n, labels = len(rows), torch.full((len(rows), width), NO_LABEL)
    texts, share, known, shown, index = [], [], [], [], []
    for row, (found, caption, part, text) in enumerate(rows):
        mine = sorted(found)[:width]
        labels[row, : len(mine)] = torch.tensor(mine, dtype=torch.int64)
        is_prompt = bool(mine) and not caption
        shown.append(mine[0] if is_prompt else NO_LABEL)
        index.append(mine[0] if is_prompt else CLASSES + text)
        texts.append(NO_KEY if is_prompt else 50 + text)
        share.append(0.0 if is_prompt else part if mine else 1.0)
        known.append(text | sum(1 << group for group in {int(GROUP_OF[label]) for label in mine}))
    rest = {"shown": torch.tensor(shown)} if kind != "one label" else {}
    rest |= {"known": torch.tensor(known), "groups": GROUP_OF} if kind == "groups" else {}
    if "weights" in kind:
        values = [1, 2, 0.5, 1, 3, 0.25] if kind == "weights" else [1, 2, 0, 1, 0, 0.25]
        rest["weights"] = torch.tensor(values, dtype=torch.float64)
    u, v, prompts = unit(n, seed), unit(CLASSES + 10, seed + 1), unit(CLASSES, seed + 2)
    s, index = torch.tensor(scale, dtype=torch.float64, requires_grad=True), torch.tensor(index)
    target = Target(torch.tensor(texts), torch.tensor(share, dtype=torch.float64), labels, **rest)
    exact = dense(u, v[index], prompts, target, s)
    wanted = torch.stack([exact[term] for term in terms]).mean()
    floor = torch.stack([exact[f"entropy_{term}"] for term in terms]).mean()
    options = {"index": index, "terms": terms, "tile": tile, "target": target._replace(classes=prompts)}
    found = both_ways(u, v, torch.arange(n), s, **options)
    for name in TERMS:
        assert abs(found[f"loss_per_{name}"] - exact[name]) < 1e-12 * (1 + scale), name
    assert abs(found["excess_loss"] - (wanted - floor)) < 1e-12 * (1 + scale)
    grads = [torch.autograd.grad(3 * x, (u, v, prompts, s)) for x in (wanted, found["loss"])]
    assert max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) < 1e-12 * (1 + scale)


def test_more_rows_than_are_copied_at_once():
    """Sums over candidates go in slices of 1,024 rows: class columns may not fall into the slice of the rows."""
    n = 1030
    u, v, prompts = unit(n, 0), unit(n, 1), unit(CLASSES, 2)
    labels, share = torch.arange(n)[:, None] % CLASSES, torch.full((n,), 0.5, dtype=torch.float64)
    target = Target(torch.arange(n) + 50, share, labels)
    exact = dense(u, v, prompts, target, torch.tensor(9.0))
    found = both_ways(u, v, torch.arange(n), 9.0, target=target._replace(classes=prompts))
    assert [found[f"loss_per_{name}"].item() for name in TERMS] == pytest.approx(
        [exact[name].item() for name in TERMS], abs=1e-11
    )
