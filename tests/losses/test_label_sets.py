"""The losses of rows with label sets equal their definitions, and today's losses where each row has one label."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import ALL_GROUPS, NO_KEY, NO_LABEL, LabelSets
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, OWN_TEXT, SHOWN
from unicl_cli.core.label_sets import set_columns
from unicl_cli.errors import UniclError
from unicl_cli.losses.classify import CrossEntropy, MultiTask, set_loss
from unicl_cli.losses.contrast import supcon_loss
from unicl_cli.losses.supcon import SupCon
from unicl_cli.losses.unicl import UniCL
from unicl_cli.testing import FeatureTable, batch_of

WIDTH, CLASSES = 6, 5
GROUPS = (0, 0, 1, 1, 2)
SETS = LabelSets(3, GROUPS, ("colour", "shape", "texture"))
ROWS = st.lists(st.tuples(st.sets(st.integers(0, CLASSES - 1), max_size=3), st.integers(0, 7)), min_size=1, max_size=9)


def padded(sets: list[list[int]], width: int = 3) -> Tensor:
    return torch.tensor([[*labels, *[NO_LABEL] * (width - len(labels))] for labels in sets])


def with_sets(labels: list[list[int]], known: list[int], *, shown: list[int] | None = None, views: int = 1):
    """A batch of rows with these label sets, each with a key and, unless ``shown``, a caption of its own."""
    batch = batch_of([only[0] if len(only) == 1 else NO_LABEL for only in labels], views=views)
    prompts = torch.tensor(shown or [NO_LABEL] * len(labels))
    columns = {LABEL_SET: padded(labels), SHOWN: prompts, KNOWN: torch.tensor(known)}
    return batch._replace(extra={OWN_TEXT: torch.arange(len(labels)) + 90, **columns})


def grads(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [
        x if x is not None else torch.zeros(())
        for x in torch.autograd.grad(3 * value, inputs, allow_unused=True, retain_graph=True)
    ]


def close(ours: Tensor, exact: Tensor, inputs: list[Tensor]) -> None:
    assert ours.item() == pytest.approx(exact.item(), abs=1e-12)
    pairs = zip(grads(ours, inputs), grads(exact, inputs), strict=True)
    assert all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in pairs)


# -- classifiers ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_cross_entropy_of_sets_is_the_mean_over_classes_of_the_groups_that_a_row_knows(rows, seed):
    torch.manual_seed(seed)
    loss, model = CrossEntropy(WIDTH, CLASSES, label_sets=SETS).double(), FeatureTable(20, WIDTH)
    sets = [sorted(label for label in labels if known >> GROUPS[label] & 1) for labels, known in rows]
    batch = with_sets(sets, [known for _, known in rows])
    scores = loss.head(model.image[: len(rows)])
    terms = [
        -F.logsigmoid(scores[i, c] if c in sets[i] else -scores[i, c])
        for i, (_, known) in enumerate(rows)
        for c in range(CLASSES)
        if known >> GROUPS[c] & 1
    ]
    exact = torch.stack(terms).mean() if terms else scores.sum() * 0
    close(loss(model, batch)["loss"], exact, [*loss.parameters(), model.image])


def test_golden_value_of_cross_entropy_of_sets():
    """Logits 2, -1, 0.5 for each row; row 0 knows all, row 1 only group 0, row 2 nothing, row 3 has no label."""
    head = torch.nn.Linear(1, 3).double()
    head.load_state_dict({"weight": torch.zeros(3, 1), "bias": torch.tensor([2.0, -1.0, 0.5])})
    known = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    found = set_loss(head, torch.zeros(4, 1).double(), padded([[0, 2], [1], [], []]), known)
    assert found.item() == pytest.approx(0.9710904, abs=1e-7)


def test_what_a_caption_names_is_true_and_what_it_does_not_name_is_unknown():
    """Row 0 is annotated for group 0, the others for nothing: the caption of row 1 names class 2."""
    head = torch.nn.Linear(1, 3).double()
    head.load_state_dict({"weight": torch.zeros(3, 1), "bias": torch.tensor([2.0, -1.0, 0.5])})
    known = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    found = set_loss(head, torch.zeros(3, 1).double(), padded([[0], [2], []]), known)
    exact = [math.log1p(math.exp(x)) for x in (-2.0, -1.0, -0.5)]
    assert found.item() == pytest.approx(sum(exact) / 3, abs=1e-12)


def test_a_head_of_sets_is_a_sigmoid_and_refuses_smoothing():
    assert CrossEntropy(WIDTH, CLASSES, label_sets=SETS).activation == "sigmoid"
    assert CrossEntropy(WIDTH, CLASSES, 0.1).activation == "softmax"
    with pytest.raises(UniclError, match=r"loss\.label_smoothing: .* label sets") as caught:
        CrossEntropy(WIDTH, CLASSES, 0.1, label_sets=SETS)
    assert caught.value.hint == "set loss.label_smoothing=0"


def test_multitask_is_clip_on_rows_without_labels_plus_the_classifier_of_sets():
    torch.manual_seed(1)
    model, sets = FeatureTable(20, WIDTH), [[0, 2], [], [1], [], [3, 4], []]
    multi, ce = MultiTask(WIDTH, CLASSES, 0.3, label_sets=SETS).double(), CrossEntropy(WIDTH, CLASSES, label_sets=SETS)
    ce.double().head.load_state_dict(multi.head.state_dict())
    batch = with_sets(sets, [7, 0, 3, 0, 7, 4])
    rest = torch.tensor([1, 3, 5])
    logits = model.scale() * F.normalize(model.image[rest], dim=-1) @ F.normalize(model.text[rest], dim=-1).T
    clip = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.T, torch.arange(3))) / 2
    found = multi(model, batch)
    close(found["loss"], clip + 0.3 * ce(model, batch)["loss"] * 1, [model.image, model.text, model.logit_scale])
    assert found["loss_ce"].item() == pytest.approx(ce(model, batch)["loss"].item(), abs=1e-15)


# -- SupCon ---------------------------------------------------------------------------------------------------------


def dense_supcon(z: Tensor, keys: Tensor, labels: Tensor, weights: Tensor, temperature: float) -> dict[str, Tensor]:
    """The definition: cross-entropy against the matrix of shared weights, without the diagonal."""
    here = keys != NO_KEY
    z, keys, labels = z[here], keys[here], labels[here]
    has = torch.zeros(len(z), len(weights), dtype=torch.float64)
    for row, mine in enumerate(labels.tolist()):
        has[row, [label for label in mine if label != NO_LABEL]] = 1
    none = ~has.any(1)
    shared = has @ torch.diag(weights) @ has.T + (keys[:, None] == keys) * (none[:, None] & none)
    shared.fill_diagonal_(0)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    total = shared.sum(1, keepdim=True)
    q = shared / total.clamp(min=1e-300)
    each = logits.logsumexp(1) - (q * logits.masked_fill(q == 0, 0)).sum(1)
    count = max(1, len(z))
    floor = -torch.xlogy(q, q).sum() / count
    return {"loss": each.masked_fill(total[:, 0] == 0, 0).sum() / count + 0 * z.sum(), "floor": floor}


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.sets(st.integers(0, CLASSES - 1), max_size=3), st.integers(0, 9)), min_size=1, max_size=9
    ),
    views=st.sampled_from([1, 2, 3]),
    weighted=st.booleans(),
    tile=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_supcon_of_sets_equals_the_matrix_of_shared_weights(rows, views, weighted, tile, seed):
    draw = torch.Generator().manual_seed(seed)
    keys = torch.tensor([NO_KEY if hidden == 0 else 2**40 + row for row, (_, hidden) in enumerate(rows)])
    keys, labels = (x.repeat_interleave(views, 0) for x in (keys, padded([sorted(labels) for labels, _ in rows])))
    z = torch.randn(len(keys), 4, generator=draw, dtype=torch.float64).requires_grad_()
    weights = torch.tensor([1, 0.5, 2, 0.25, 3], dtype=torch.float64) if weighted else torch.ones(CLASSES).double()
    unit = F.normalize(z, dim=-1)
    exact = dense_supcon(unit, keys, labels, weights, 0.3)
    given_weights = weights if weighted else None
    ids = torch.arange(len(keys)) + 5
    found = supcon_loss(unit, keys, ids, 0.3, tile=tile, labels=labels, weights=given_weights)
    close(found["loss"], exact["loss"], [z])
    assert found["excess_loss"].item() == pytest.approx((exact["loss"] - exact["floor"]).item(), abs=1e-11)


def test_golden_value_of_supcon_of_sets():
    """Views (1,0), (0,1), (.6,.8), (.8,-.6) with {0,1}, {1}, {1,2}, none: only the first three have positives."""
    z = torch.tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    found = supcon_loss(z, torch.arange(4) + 50, torch.arange(4), 0.5, labels=padded([[0, 1], [1], [1, 2], []]))
    assert found["loss"].item() == pytest.approx(0.8718759, abs=1e-7)


@pytest.mark.parametrize("tile", [None, 3])
def test_supcon_with_one_label_a_row_is_todays(tile):
    torch.manual_seed(2)
    labels = [0, NO_LABEL, 2, 0, NO_LABEL, 2, 1]
    model, plain, sets = (
        FeatureTable(20, WIDTH),
        SupCon(WIDTH, 0.2, 4, tile).double(),
        SupCon(WIDTH, 0.2, 4, tile, label_sets=SETS),
    )
    sets.double().load_state_dict(plain.state_dict())
    batch = with_sets([[x] if x != NO_LABEL else [] for x in labels], [7] * 7, views=2)
    ours, today = sets(model, batch), plain(model, batch_of(labels, views=2))
    for name, value in today.items():
        assert ours[name].item() == pytest.approx(value.item(), abs=1e-12), name
    one, other = (
        grads(ours["loss"], [model.image, *sets.parameters()]),
        grads(today["loss"], [model.image, *plain.parameters()]),
    )
    assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(one, other, strict=True))


# -- groups without weight, and columns -------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [UniCL, partial(SupCon, WIDTH)])
def test_weights_of_unknown_groups_are_one_line(made):
    with pytest.raises(UniclError, match=r"loss\.weights: unknown group 'color'; did you mean 'colour'") as caught:
        made(label_sets=SETS, weights={"color": 2.0})
    assert caught.value.hint == "use one of colour, shape, texture"


def test_labels_of_weight_0_are_as_if_they_were_not_there():
    """A prompt that names such a class says nothing: its row is left out. Without this its target would be empty."""
    sets, shown = [[0, 2], [0], [2], [1, 2], [4]], [0, 0, 2, 1, 4]
    unicl = UniCL(label_sets=SETS, weights={"shape": 0.0})
    model, batch = FeatureTable(20, WIDTH), with_sets(sets, [7] * 5, shown=shown)
    batch = batch._replace(extra=batch.extra | {OWN_TEXT: torch.full((5,), NO_KEY)})
    less = with_sets([[0], [0], [1], [4]], [7] * 4, shown=[0, 0, 1, 4])
    rows = torch.tensor([0, 1, 3, 4])
    less = less._replace(
        images=batch.images[rows],
        text_index=rows,
        tokens=batch.tokens,
        extra=less.extra | {OWN_TEXT: torch.full((4,), NO_KEY)},
    )
    exact = UniCL(label_sets=SETS)(model, less)
    for name, value in unicl(model, batch).items():
        assert value.item() == pytest.approx(exact[name].item(), abs=1e-12), name
    views = [with_sets(x, [7] * 5, views=2) for x in (sets, [[0], [0], [], [1], [4]])]
    torch.manual_seed(0)
    supcon = SupCon(WIDTH, 0.2, 4, label_sets=SETS, weights={"shape": 0.0}).double()
    one, other = (supcon(model, batch)["loss"].item() for batch in views)
    assert one == pytest.approx(other, abs=1e-12)


def test_each_loss_of_sets_asks_the_loader_for_their_columns():
    for loss in (
        SupCon(WIDTH, label_sets=SETS),
        CrossEntropy(WIDTH, 5, label_sets=SETS),
        MultiTask(WIDTH, 5, label_sets=SETS),
    ):
        assert loss.extra.func is set_columns
    for loss in (SupCon(WIDTH), CrossEntropy(WIDTH, CLASSES), MultiTask(WIDTH, CLASSES)):
        assert not hasattr(loss, "extra")
    assert ALL_GROUPS >> 62 & 1
