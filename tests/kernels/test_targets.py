"""Targets on two levels and of label sets equal their definition with a matrix of targets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, NO_TEXT
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.contrast import TERMS, both_ways

CLASSES = 6
GROUP_OF = torch.tensor([0, 0, 1, 1, 2, 2])
TILES = st.one_of(st.none(), st.integers(1, 30))


def unit(rows: int, seed: int) -> Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def dense(u: Tensor, v: Tensor, valid: Tensor, target: Target, scale: Tensor) -> dict[str, Tensor]:
    """The definition: cross-entropy of both softmaxes against the matrix q of targets, over the rows that count."""
    u, v, t = u[valid], v[valid], target.map_rows(lambda x: x[valid])
    n = max(1, len(u))
    has = torch.zeros(len(u), CLASSES, dtype=torch.float64)
    for row, labels in enumerate(t.labels.tolist()):
        has[row, [label for label in labels if label != NO_LABEL]] = 1
    hidden = torch.zeros(len(u), len(u), dtype=torch.bool)  # image i, text j
    says = has.clone()
    for j, shown in enumerate([] if t.shown is None else t.shown.tolist()):
        if shown != NO_LABEL:
            says[j] = F.one_hot(torch.tensor(shown), CLASSES)
            for i, known in enumerate([] if t.known is None else t.known.tolist()):
                hidden[i, j] = known and not known >> int(GROUP_OF[shown]) & 1
    weights = torch.ones(CLASSES, dtype=torch.float64) if t.weights is None else t.weights
    shared = has @ torch.diag(weights) @ says.T  # image i, text j
    same = ((t.texts[:, None] == t.texts) & (t.texts != NO_KEY)).double()
    logits = (scale * u @ v.T).masked_fill(hidden, -torch.inf)
    sums: dict[str, Tensor] = {}
    for name, x, w in (("image", logits, shared), ("text", logits.T, shared.T)):
        fine = t.share[:, None] * same / same.sum(1, keepdim=True).clamp(min=1)
        q = fine + (1 - t.share)[:, None] * w / w.sum(1, keepdim=True).clamp(min=1e-300)
        sums[f"loss_per_{name}"] = (x.logsumexp(1) - (q * x.masked_fill(q == 0, 0)).sum(1)).sum() / n
        sums[f"entropy_{name}"] = -torch.xlogy(q, q).sum() / n
    return sums


def check(rows: int, texts: Tensor, index: Tensor, valid: Tensor, target: Target, scale: float, seed: int, **options):
    u, s = unit(rows, seed), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    exact = dense(u, texts[index], valid, target, s)
    terms = options.get("terms", TERMS)
    wanted = torch.stack([exact[f"loss_per_{term}"] for term in terms]).mean()
    keys = torch.arange(rows).masked_fill(~valid, NO_KEY)
    found = both_ways(u, texts, keys, s, index=index.masked_fill(~valid, NO_TEXT), target=target, **options)
    for name in ("loss_per_image", "loss_per_text"):
        assert abs(found[name] - exact[name]) < 1e-12 * (1 + scale), name
    grads = [torch.autograd.grad(3 * x, (u, texts, s)) for x in (wanted, found["loss"])]
    assert max((a - b).abs().max().item() for a, b in zip(*grads, strict=True)) < 1e-12 * (1 + scale)
    return found, wanted - torch.stack([exact[f"entropy_{term}"] for term in terms]).mean()


LEVELS = st.tuples(st.sampled_from([NO_LABEL, 0, 1, 2]), st.integers(0, 4), st.booleans(), st.floats(0, 1))


@settings(max_examples=25)
@given(
    rows=st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=25),
    tile=TILES,
    terms=st.sampled_from([TERMS, ("image",), ("text",)]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_one_label_and_a_text_equal_the_matrix_of_targets(rows, tile, terms, scale, seed):
    """Rows with and without a label or a caption, hidden ones, rows that share a caption across and within classes."""
    labels, index, shown, share = (torch.tensor(column) for column in zip(*(row for row, _ in rows), strict=True))
    valid = torch.tensor([hidden is False for _, hidden in rows])
    labelled = labels != NO_LABEL
    captions = torch.where(labelled, (index + 50).masked_fill(~shown, NO_KEY), torch.arange(len(rows)) + 900)
    share = torch.where(labelled, share * shown, 1.0).double()
    target = Target(captions, share, labels[:, None])
    found, excess = check(len(rows), unit(5, seed + 1), index, valid, target, scale, seed, tile=tile, terms=terms)
    assert abs(found["excess_loss"] - excess) < 1e-12 * (1 + scale), "one label per row: the floor is exact"


SETS = st.tuples(
    st.sets(st.integers(0, CLASSES - 1), max_size=4),
    st.integers(0, 7),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 9),
)


@settings(max_examples=25)
@given(
    rows=st.lists(SETS, min_size=1, max_size=20),
    weighted=st.booleans(),
    grouped=st.booleans(),
    tile=TILES,
    terms=st.sampled_from([TERMS, ("image",), ("text",)]),
    scale=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_label_sets_equal_the_matrix_of_targets(rows, weighted, grouped, tile, terms, scale, seed):
    """Sets of 0 to 4 labels, with weights, prompts and captions, groups that a row does not know, hidden rows."""
    picks = torch.Generator().manual_seed(seed)
    labels = torch.full((len(rows), 4), NO_LABEL)
    texts, share, known, prompts, index = [], [], [], [], []
    for row, (found, bits, caption, part, text) in enumerate(rows):
        mine = [label for label in sorted(found) if not grouped or bits >> int(GROUP_OF[label]) & 1]
        labels[row, : len(mine)] = torch.tensor(mine, dtype=torch.int64)
        shows_prompt = bool(mine) and not caption
        shown = mine[int(torch.randint(len(mine), (), generator=picks))] if shows_prompt else -1
        index.append(shown if shows_prompt else CLASSES + text)
        prompts.append(shown if shows_prompt else NO_LABEL)
        texts.append(NO_KEY if shows_prompt else 50 + text)
        share.append(0.0 if shows_prompt else part if mine else 1.0)
        known.append(bits)
    groups = {"known": torch.tensor(known), "groups": GROUP_OF} if grouped else {}
    weights = torch.tensor([1, 2, 0.5, 1, 3, 0.25], dtype=torch.float64) if weighted else None
    target = Target(
        torch.tensor(texts), torch.tensor(share, dtype=torch.float64), labels, weights, torch.tensor(prompts), **groups
    )
    valid = torch.rand(len(rows), generator=picks) < 0.9
    found, excess = check(
        len(rows), unit(CLASSES + 10, seed + 1), torch.tensor(index), valid, target, scale, seed, tile=tile, terms=terms
    )
    assert abs(found["excess_loss"] - excess) < 1e-12 * (1 + scale), "fewer rows than are sampled: exact"


def test_share_0_is_the_papers_target_and_share_1_is_clip_on_distinct_texts():
    u, v, labels = unit(9, 0), unit(9, 1), torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 2])
    for share, keys in ((0.0, labels), (1.0, torch.arange(9))):
        target = Target(torch.arange(9) + 7, torch.full((9,), share, dtype=torch.float64), labels[:, None])
        found, plain = both_ways(u, v, keys, 9.0, target=target), both_ways(u, v, keys, 9.0)
        for name, value in plain.items():
            assert found[name].item() == pytest.approx(value.item(), abs=1e-12), name


@pytest.mark.parametrize(
    ("labels_part", "image", "text", "entropy"),
    [(1.0, 1.476549, 1.429836, 0.592346), (0.5, 1.559883, 1.546502, 0.683739), (0.0, 1.643216, 1.663169, 0.346574)],
)
def test_golden_values_of_label_sets_with_texts_of_their_own(labels_part, image, text, entropy):
    u = torch.tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    texts = torch.tensor([[0.6, 0.8], [1, 0], [0, 1]], dtype=torch.float64)
    index, labels = torch.tensor([0, 1, 2, 1]), torch.tensor([[0, 1], [1, -1], [-1, -1], [0, 2]])
    share = torch.tensor([1 - labels_part, 1 - labels_part, 1, 1 - labels_part], dtype=torch.float64)
    found = both_ways(u, texts, torch.arange(4), 2.0, index=index, target=Target(index + 9, share, labels))
    seen = [found["loss_per_image"], found["loss_per_text"], found["loss"] - found["excess_loss"]]
    assert [x.item() for x in seen] == pytest.approx([image, text, entropy], abs=1e-6)


def test_the_excess_of_label_sets_is_0_at_the_optimum_and_never_below():
    """Free logits of the image term reach the target itself; with a wrong floor this would end above or below 0."""
    labels = torch.tensor([[0, 1, -1], [1, -1, -1], [2, 3, 4], [0, 4, -1], [-1, -1, -1], [3, -1, -1]])
    target = Target(torch.arange(6) + 9, torch.tensor([0.3, 0, 0, 0.5, 1, 0], dtype=torch.float64), labels)
    u, texts = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True), torch.eye(6, dtype=torch.float64)
    optimizer = torch.optim.Adam([u], lr=0.3)
    for _ in range(400):
        out = both_ways(u, texts, torch.arange(6), 1.0, terms=("image",), target=target)
        assert out["excess_loss"] > -1e-12
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["excess_loss"] < 1e-3
