"""The tiled sums equal the dense ones in value and every gradient, and never hold b x B."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unicl_cli.contracts import NO_KEY, NO_TEXT
from unicl_cli.core.dist import share_of_mean
from unicl_cli.losses.contrast import TERMS, both_ways, contrast, contrast_tiled

TILES = st.one_of(st.none(), st.integers(1, 40))
KEYS = st.lists(st.sampled_from([NO_KEY, 0, 1, 2, 2**40, 2**62 + 5]), min_size=1, max_size=33)


def unit(rows: int, seed: int, width: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).to(dtype).requires_grad_()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def dense_both_ways(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor, terms: tuple[str, ...]) -> dict[str, Tensor]:
    valid = keys != NO_KEY
    means = {
        "image": share_of_mean(contrast(u, v, keys, keys, scale), valid),
        "text": share_of_mean(contrast(v, u, keys, keys, scale), valid),
    }
    loss = torch.stack([means[term] for term in terms]).mean()
    return {"loss": loss, "loss_per_image": means["image"], "loss_per_text": means["text"]}


@settings(deadline=None, max_examples=50)
@given(q_keys=KEYS, k_keys=KEYS, tile=TILES, excluded=st.booleans(), scale=st.floats(0.5, 100), seed=st.integers(0, 99))
def test_rows_equal_the_dense_rows_for_any_keys_tile_and_exclusion(q_keys, k_keys, tile, excluded, scale, seed):
    q, k, s = unit(len(q_keys), seed), unit(len(k_keys), seed + 1), number(scale)
    rows, columns = torch.tensor(q_keys), torch.tensor(k_keys)
    draw = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(0, 5, (n,), generator=draw) for n in (len(q), len(k))) if excluded else None
    upstream = torch.randn(len(q), generator=draw, dtype=torch.float64)
    dense, tiled = contrast(q, k, rows, columns, s, ids), contrast_tiled(q, k, rows, columns, s, ids, tile=tile)
    grads = [torch.autograd.grad(x @ upstream, (q, k, s)) for x in (dense, tiled)]
    assert distance((dense,), (tiled,)) < 1e-11
    assert distance(*grads) < 1e-11 * scale


@settings(deadline=None, max_examples=50)
@given(
    keys=KEYS,
    tile=TILES,
    terms=st.sampled_from([TERMS, ("image",), ("text",), ("text", "image")]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_both_directions_equal_two_dense_ones_for_any_keys_tile_and_terms(keys, tile, terms, scale, seed):
    u, v, s = unit(len(keys), seed), unit(len(keys), seed + 1), number(scale)
    dense = dense_both_ways(u, v, torch.tensor(keys), s, terms)
    fused = both_ways(u, v, torch.tensor(keys), s, terms=terms, tile=tile)
    grads = [torch.autograd.grad(3 * out["loss"], (u, v, s)) for out in (dense, fused)]
    assert distance(tuple(dense.values()), tuple(fused[name] for name in dense)) < 1e-11
    assert distance(*grads) < 1e-11 * scale


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(st.sampled_from([NO_KEY, 0, 1, 2, 2**40, 2**62 + 5]), st.integers(0, 4)), min_size=1),
    texts=st.integers(5, 7),
    tile=TILES,
    terms=st.sampled_from([TERMS, ("image",), ("text",)]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_distinct_texts_give_the_numbers_of_a_text_for_each_row(rows, texts, tile, terms, scale, seed):
    """Whatever rows share a text: of one key, of several, hidden ones, none."""
    keys, index = torch.tensor(rows).T.contiguous()
    u, v, s = unit(len(rows), seed), unit(texts, seed + 1), number(scale)
    hidden = index.masked_fill(keys == NO_KEY, NO_TEXT)
    each = dense_both_ways(u, v[index], keys, s, terms)
    folded = both_ways(u, v, keys, s, terms=terms, tile=tile, index=hidden)
    grads = [torch.autograd.grad(out["loss"], (u, v, s)) for out in (each, folded)]
    assert distance(tuple(each.values()), tuple(folded[name] for name in each)) < 1e-12 * (1 + scale)
    assert distance(*grads) < 1e-12 * (1 + scale)
    assert folded["excess_loss"].item() == pytest.approx(
        both_ways(u, v[index], keys, s, terms=terms)["excess_loss"].item(), abs=1e-12 * (1 + scale)
    )


@pytest.mark.parametrize("tile", [1, 3, 64])
def test_gradcheck_of_rows_with_exclusion_and_of_both_directions(tile):
    q, k, s = unit(5, 0), unit(7, 1), number(3.0)
    keys, others, ids = torch.tensor([0, 1, 1, NO_KEY, 8]), torch.tensor([1, 0, 1, NO_KEY, 0, 2, 1]), torch.arange(7)
    assert torch.autograd.gradcheck(
        lambda q, k, s: contrast_tiled(q, k, keys, others, s, (ids[:5], ids), tile=tile), (q, k, s)
    )
    v = unit(5, 2)
    assert torch.autograd.gradcheck(lambda q, v, s: both_ways(q, v, keys, s, tile=tile)["loss"], (q, v, s))
    index, texts = torch.tensor([2, 0, 2, NO_TEXT, 0]), unit(3, 2)
    assert torch.autograd.gradcheck(
        lambda q, v, s: both_ways(q, v, keys, s, tile=tile, index=index)["loss"], (q, texts, s)
    )


def test_float32_stays_near_float64_at_the_largest_scale():
    keys = torch.arange(200) % 7
    outs = []
    for dtype in (torch.float64, torch.float32):
        u, v, s = unit(200, 0, 64, dtype), unit(200, 1, 64, dtype), torch.tensor(100.0, dtype=dtype, requires_grad=True)
        loss = both_ways(u, v, keys, s, tile=32)["loss"]
        outs.append((loss, *torch.autograd.grad(loss, (u, v, s))))
    for wide, narrow in zip(*outs, strict=True):
        assert (wide - narrow).abs().max() < 2e-6 * (1 + wide.abs().max())


def test_rows_far_below_their_neighbours_lose_nothing():
    """Gaps of 200 nats, where one shift for a whole tile would underflow to log 0."""
    u = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    v = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    keys = torch.tensor([0, 1])
    out, dense = both_ways(u, v, keys, 100.0), dense_both_ways(u, v, keys, torch.tensor(100.0), TERMS)
    assert out["loss"].item() == dense["loss"].item() == pytest.approx((math.log(2) + 100) / 2, rel=1e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out["loss"], (u, v)))


@pytest.mark.parametrize("keys", [[NO_KEY] * 4, [NO_KEY, 3, NO_KEY, NO_KEY]])
def test_nothing_to_compare_is_zero_with_a_zero_gradient(keys):
    u, v, s = unit(4, 0), unit(4, 1), number(5.0)
    for loss in (
        both_ways(u, v, torch.tensor(keys), s)["loss"],
        contrast_tiled(u, v, torch.tensor(keys), torch.tensor(keys), s).sum(),
        contrast(u, v, torch.tensor(keys), torch.tensor(keys), s).sum(),
    ):
        assert loss.item() == 0
        assert all((grad == 0).all() for grad in torch.autograd.grad(loss, (u, v, s)))


def test_half_precision_features_give_float32_values_under_autocast():
    u, v = unit(16, 0, 32, torch.float32), unit(16, 1, 32, torch.float32)
    keys = torch.arange(16) % 5
    low = u.detach().bfloat16().requires_grad_(), v.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = both_ways(*low, keys, torch.tensor(14.3))
        rows = contrast(*low, keys, keys, 14.3), contrast_tiled(*low, keys, keys, 14.3)
        out["loss"].backward()
    exact = both_ways(low[0].double(), low[1].double(), keys, 14.3)
    assert {out["loss"].dtype, rows[0].dtype, rows[1].dtype} == {torch.float32}
    assert abs(out["loss"] - exact["loss"]) < 1e-5
    assert low[0].grad.dtype == torch.bfloat16


def test_backward_inside_autocast_changes_no_gradient():
    keys, grads = torch.arange(64) % 9, []
    for inside in (False, True):
        u, v = unit(64, 0, 32, torch.float32), unit(64, 1, 32, torch.float32)
        s = torch.tensor(14.3, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss = both_ways(u, v, keys, s, tile=16)["loss"]
            grads.append(torch.autograd.grad(loss, (u, v, s)))
    assert distance(*grads) == 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes, views left out."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor) and not x._is_view()]
        self.elements = max([self.elements, *made])
        return out


@pytest.mark.parametrize("excluded", [True, False])
def test_no_operation_makes_a_matrix_of_all_pairs(excluded):
    rows, width, tile = 512, 8, 16
    u, v = unit(rows, 0, width), unit(rows, 1, width)
    keys, ids = torch.arange(rows) % 50, torch.arange(rows)
    with Largest() as seen:
        if excluded:
            contrast_tiled(u, v, keys, keys, 5.0, (ids, ids), tile=tile).sum().backward()
        else:
            both_ways(u, v, keys, 5.0, tile=tile)["loss"].backward()
    assert seen.elements <= 2 * tile * rows < rows * rows / 10
    with Largest() as seen:
        contrast(u, v, keys, keys, 5.0).sum().backward()
    assert seen.elements == rows * rows


def test_distinct_texts_are_copied_to_no_row_and_make_logits_of_their_number():
    rows, width, texts, tile = 4096, 16, 32, 128
    u, v, index = unit(rows, 0, width).detach(), unit(texts, 1, width), torch.arange(rows) % texts
    with Largest() as seen:
        both_ways(u, v, index, 5.0, tile=tile, index=index)["loss"].backward()
    assert seen.elements == (rows + 1) * width, "sums of groups, in which tiles of 2 * tile * texts fit"
