"""Targets on two levels equal their definition with a matrix of targets, in value, every gradient and entropy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_TEXT
from unicl_cli.kernels.own_text import OwnText
from unicl_cli.losses import TERMS, both_ways

ROWS = st.lists(
    st.tuples(st.sampled_from([NO_KEY, 0, 1, 2, 2**40]), st.integers(0, 4), st.booleans(), st.floats(0, 1)),
    min_size=1,
    max_size=25,
)
TILES = st.one_of(st.none(), st.integers(1, 30))


def unit(rows: int, seed: int) -> Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def dense(u: Tensor, v: Tensor, keys: Tensor, own: OwnText, scale: Tensor) -> dict[str, Tensor]:
    """The definition: cross-entropy of both softmaxes against the matrix q of targets, over the rows that count."""
    valid = keys != NO_KEY
    u, v, keys, texts, share = u[valid], v[valid], keys[valid], own.keys[valid], own.share[valid]
    same_key = (keys[:, None] == keys).double()
    same_text = ((texts[:, None] == texts) & (texts != NO_KEY)).double()
    fine = share[:, None] * same_text / same_text.sum(1, keepdim=True).clamp(min=1)
    q = fine + (1 - share)[:, None] * same_key / same_key.sum(1, keepdim=True)
    logits = scale * u @ v.T
    image = -(q * logits.log_softmax(1)).sum() / max(1, len(keys))
    text = -(q * logits.T.log_softmax(1)).sum() / max(1, len(keys))
    entropy = -torch.xlogy(q, q).sum() / max(1, len(keys))
    return {"loss_per_image": image, "loss_per_text": text, "entropy": entropy}


@settings(deadline=None, max_examples=80)
@given(
    rows=ROWS,
    tile=TILES,
    terms=st.sampled_from([TERMS, ("image",), ("text",)]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_any_rows_and_shares_equal_the_matrix_of_targets(rows, tile, terms, scale, seed):
    """Rows with and without a text of their own, hidden ones, rows that share a text across and within keys."""
    keys, index = (torch.tensor(column) for column in list(zip(*rows, strict=True))[:2])
    shown = torch.tensor([row[2] for row in rows])
    share = torch.tensor([row[3] for row in rows], dtype=torch.float64) * shown
    own = OwnText((index + 50).masked_fill(~shown, NO_KEY), share)
    u, texts, s = unit(len(rows), seed), unit(5, seed + 1), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    exact = dense(u, texts[index], keys, own, s)
    wanted = torch.stack([exact[f"loss_per_{term}"] for term in terms]).mean()
    found = both_ways(
        u, texts, keys, s, terms=terms, tile=tile, index=index.masked_fill(keys == NO_KEY, NO_TEXT), own=own
    )
    for name in ("loss_per_image", "loss_per_text"):
        assert abs(found[name] - exact[name]) < 1e-12 * (1 + scale)
    assert abs(found["excess_loss"] - (wanted - exact["entropy"])) < 1e-12 * (1 + scale)
    grads = [torch.autograd.grad(3 * x, (u, texts, s)) for x in (wanted, found["loss"])]
    assert max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) < 1e-12 * (1 + scale)


def test_share_0_is_the_papers_target_and_share_1_is_clip_on_distinct_texts():
    u, v, keys = unit(9, 0), unit(9, 1), torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 2])
    captions = torch.arange(9) + 7
    for share, other in ((0.0, keys), (1.0, torch.arange(9))):
        found = both_ways(u, v, keys, 9.0, own=OwnText(captions, torch.full((9,), share, dtype=torch.float64)))
        plain = both_ways(u, v, other, 9.0)
        for name, value in plain.items():
            assert found[name].item() == pytest.approx(value.item(), abs=1e-12), name


def test_golden_values_of_two_levels():
    """targets.md: the mean terms and entropy of four images and three texts, with one label for each row."""
    u = torch.tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    texts = torch.tensor([[0.6, 0.8], [1, 0], [0, 1]], dtype=torch.float64)
    index, keys = torch.tensor([0, 1, 2, 1]), torch.arange(4) + 100
    found = both_ways(u, texts, keys, 2.0, index=index, own=OwnText(index, torch.ones(4, dtype=torch.float64)))
    seen = [found["loss_per_image"], found["loss_per_text"], found["loss"] - found["excess_loss"]]
    assert [x.item() for x in seen] == pytest.approx([1.643216, 1.663169, 0.346574], abs=1e-6)
