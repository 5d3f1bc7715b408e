"""The losses against golden values, the papers' sums, other people's code, and the identities of the method."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.losses.contrast import both_ways, contrast, supcon_loss

SCALE = 1 / 0.07
CAPTION = -1


def keys_of(labels: list[int]) -> Tensor:
    """Captions get a key of their own, as in the collate."""
    return torch.tensor([2**40 + row if label == CAPTION else label for row, label in enumerate(labels)])


def unit(rows: int, seed: int, width: int = 5) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def directions(u: Tensor, v: Tensor, labels: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Dense loss_per_image and loss_per_text."""
    keys = keys_of(labels)
    return contrast(u, v, keys, keys, scale).mean(), contrast(v, u, keys, keys, scale).mean()


# method.md 1.9: u_raw[i, j] = sin(1 + 3i + j), v_raw[i, j] = cos(2 + i + 5j), rows normalised, float64.
GOLDEN = [
    (1, [0, 0, 1, -1, -1, 1], 1.8748283171, 1.8695013521, 1.8721648346, 0.2489483136, 0.3285868113, 0.2482938768),
    (1, [-1] * 6, 1.9460799936, 1.9407530285, 1.9434165111, 0.3201999901, 0.4323586806, 0.4462860876),
    (1, [5, 2, 9, 0, 7, 1], 1.9460799936, 1.9407530285, 1.9434165111, 0.3201999901, 0.4323586806, 0.4462860876),
    (1, [3] * 6, 1.9843938795, 1.9790669145, 1.9817303970, 0.3585138761, 0.1592318551, 0.2133498182),
    (1, [0, 1, 1, 1, 0, 1], 1.7687846337, 1.7634576686, 1.7661211511, 0.1429046302, 0.1271841354, 0.2490428537),
    (SCALE, [0, 0, 1, -1, -1, 1], 10.8080153518, 9.3136145179, 10.0608149348, 0.6837282810, 7.2483421609, 5.7355770453),
    (SCALE, [-1] * 6, 11.8258964442, 10.3314956102, 11.0786960272, 0.7549799574, 8.0655790195, 8.3404386388),
    (SCALE, [3] * 6, 12.3732376721, 10.8788368382, 11.6260372551, 0.7932938434, 5.6640605506, 6.1997080379),
    (SCALE, [0, 1, 1, 1, 0, 1], 9.2931055882, 7.7987047543, 8.5459051713, 0.5776845975, 4.7348571986, 5.6210385873),
    (SCALE, [2, 7, 7, 4, 4, 4], 11.0990953170, 9.6046944831, 10.3518949000, 0.7041038785, 7.1107783678, 6.2887163994),
]


@pytest.mark.parametrize("tile", [None, 1, 4])
@pytest.mark.parametrize("row", GOLDEN)
def test_golden_values_and_gradient_norms_of_unicl(row, tile):
    scale, labels, *expected = row
    i, j = torch.arange(6.0).double()[:, None], torch.arange(4.0).double()
    u = F.normalize(torch.sin(1 + 3 * i + j), dim=-1).requires_grad_()
    v = F.normalize(torch.cos(2 + i + 5 * j), dim=-1).requires_grad_()
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    out = both_ways(u, v, keys_of(labels), s, tile=tile)
    du, dv, ds = torch.autograd.grad(out["loss"], (u, v, s))
    seen = [out["loss_per_image"], out["loss_per_text"], out["loss"], ds, du.norm(), dv.norm()]
    assert torch.stack(seen).tolist() == pytest.approx(expected, abs=2e-9)
    assert torch.stack(directions(u, v, labels, scale)).tolist() == pytest.approx(expected[:2], abs=2e-9)
    for index, term in enumerate(("image", "text")):
        assert both_ways(u, v, keys_of(labels), s, terms=[term], tile=tile)["loss"].item() == pytest.approx(
            expected[index]
        )


def wave(n: int, d: int, k: float) -> Tensor:
    """The inputs of systems.md, section 0."""
    i = torch.arange(n * d).view(n, d).double()
    return F.normalize(torch.sin(i * 0.7 * k + k) + 0.3 * torch.cos(i * i * 0.013 * k), dim=-1)


V, U, Y = wave(6, 8, 1), wave(6, 8, 2), torch.tensor([0, 1, 0, 2, 2, 2])


def test_the_golden_inputs_are_the_reference_s():
    assert V[0, :3].tolist() == pytest.approx([0.5096702851, 0.5767209690, 0.4353662321], abs=1e-9)
    assert U[5, -2:].tolist() == pytest.approx([-0.1872285873, -0.3618734301], abs=1e-9)


def test_golden_values_of_clip_and_unicl_with_free_and_with_class_texts():
    rows = [
        (U, torch.arange(6), 3.620586819873728, 3.199813910314047, 3.4102003650938872),
        (U, Y, 3.0538235757030865, 2.633050666143405, 2.843437120923246),
        (wave(3, 8, 2)[Y], Y, 3.928897801932471, 3.303940676586590, (3.928897801932471 + 3.303940676586590) / 2),
        (wave(3, 8, 2)[Y], torch.arange(6), 3.928897801932471, 3.303940676586590, 3.6164192392595305),
    ]
    for texts, keys, *expected in rows:
        out = both_ways(V, texts, keys, SCALE, tile=2)
        assert [out[name].item() for name in ("loss_per_image", "loss_per_text", "loss")] == pytest.approx(
            expected, abs=1e-12
        )
    assert ClipLoss()(V, U, torch.tensor(SCALE, dtype=torch.float64)).item() == pytest.approx(
        3.4102003650938872, abs=1e-12
    )


def test_golden_value_of_bag_of_words_contrast():
    words = wave(8, 8, 6)
    words[0] = 0
    tokens = torch.tensor([[1, 5, 3, 2, 0], [1, 4, 2, 0, 0], [1, 6, 3, 7, 2]])
    bags = words[tokens].sum(1) / (tokens != 0).sum(1, keepdim=True)
    out = both_ways(wave(3, 8, 1), F.normalize(bags @ wave(8, 8, 7).T, dim=-1), torch.arange(3), SCALE)
    assert out["loss_per_image"].item() == pytest.approx(2.7570447321780005, abs=1e-12)
    assert out["loss_per_text"].item() == pytest.approx(1.885277537016993, abs=1e-12)


def test_golden_values_of_info_nce_in_both_directions():
    keys = torch.arange(6)
    one, two = contrast(V, U, keys, keys, 20).mean().item(), contrast(U, V, keys, keys, 20).mean().item()
    assert one == pytest.approx(4.664697745074791, abs=1e-12)
    assert one + two == pytest.approx(8.697410205570668, abs=1e-12)


def supcon(labels: Tensor, temperature: float, tile: int | None) -> Tensor:
    return supcon_loss(torch.cat([V, U]), labels, torch.arange(12), temperature, tile=tile)["loss"]


@pytest.mark.parametrize("tile", [None, 1, 2, 5])
def test_golden_values_of_supcon_and_nt_xent(tile):
    classes, image_ids = torch.cat([Y, Y]), torch.arange(6).repeat(2)
    assert supcon(classes, 0.1, tile).item() == pytest.approx(7.115083100980353, abs=1e-12)
    assert supcon(classes, 0.1, tile).item() * 0.1 / 0.07 == pytest.approx(10.164404429971933, abs=1e-12)
    assert supcon(classes, 0.07, tile).item() == pytest.approx(9.997610831966032, abs=1e-12)
    assert supcon(image_ids, 0.5, tile).item() == pytest.approx(2.736653434706906, abs=1e-12)
    assert supcon(image_ids, 0.1, tile).item() == pytest.approx(7.545057614254575, abs=1e-12)
    lonely = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0, 7, 8, 9, 10])
    assert supcon(lonely, 0.1, tile).item() == pytest.approx(1.6634918625240225, abs=1e-12), "the lonely are counted"


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.floats(0.05, 2), st.integers(0, 99))
def test_supcon_and_nt_xent_equal_pytorch_metric_learning_with_gradients(labels, temperature, seed):
    assume(len(set(labels)) > 1)  # without any negative theirs returns 0
    a, b = unit(len(labels), seed), unit(len(labels), seed + 1)
    z, ids = F.normalize(torch.cat([a, b]), dim=-1), torch.arange(2 * len(labels))  # they normalise too
    image_ids = torch.arange(len(labels)).repeat(2)
    for keys, oracle in ((torch.tensor(labels * 2), SupConLoss), (image_ids, NTXentLoss)):
        ours, theirs = supcon_loss(z, keys, ids, temperature)["loss"], oracle(temperature=temperature)(z, keys)
        grads = [torch.autograd.grad(x, (a, b), retain_graph=True) for x in (ours, theirs)]
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
        assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(*grads, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=9), st.floats(0.5, 30), st.integers(0, 999))
def test_both_directions_equal_the_papers_sums_as_scalar_loops(labels, scale, seed):
    u, v = unit(len(labels), seed), unit(len(labels), seed + 1)
    keys, span = keys_of(labels).tolist(), range(len(labels))
    s = [[scale * (u[i] @ v[j]).item() for j in span] for i in span]

    def one_way(logit):
        total = 0.0
        for i in span:
            positives = [k for k in span if keys[k] == keys[i]]
            normaliser = sum(math.exp(logit(i, j)) for j in span)
            total -= sum(math.log(math.exp(logit(i, k)) / normaliser) for k in positives) / len(positives)
        return total / len(labels)

    per_image, per_text = one_way(lambda i, j: s[i][j]), one_way(lambda i, j: s[j][i])
    out = both_ways(u, v, keys_of(labels), scale)
    assert out["loss_per_image"].item() == pytest.approx(per_image, abs=1e-9)
    assert out["loss_per_text"].item() == pytest.approx(per_text, abs=1e-9)
    assert out["loss"].item() == pytest.approx((per_image + per_text) / 2, abs=1e-9)


@pytest.mark.parametrize("labels", [[-1] * 7, [4, 0, 2, 9, 1, 3, 7], [0, -1, 3, -1, -1, 1, -1]])
def test_distinct_keys_give_clip_exactly_with_gradients(labels):
    u, v, s = unit(7, 0), unit(7, 1), torch.tensor(9.0).double().requires_grad_()
    ours, theirs = both_ways(u, v, keys_of(labels), s)["loss"], ClipLoss()(u, v, s)
    grads = [torch.autograd.grad(loss, (u, v, s)) for loss in (ours, theirs)]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)
    assert all(torch.allclose(x, y, rtol=0, atol=1e-14) for x, y in zip(*grads, strict=True))


def image_term(u: Tensor, w: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    return both_ways(u, w[y], y, scale, terms=["image"], tile=4)["loss"]


def same(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...], *, constant: float = 0.0) -> bool:
    """Equal values up to ``constant`` and equal gradients."""
    grads = [torch.autograd.grad(loss, inputs) for loss in (ours, theirs)]
    gap = max((x - y).abs().max().item() for x, y in zip(*grads, strict=True))
    return abs(ours.item() - theirs.item() - constant) < 1e-12 and gap < 1e-12


def test_the_image_term_is_cross_entropy_under_the_three_conditions_in_value_and_gradient():
    """No normalisation, scale 1, a text linear in the label, classes equally often; break one and it is not."""
    draw = torch.Generator().manual_seed(5)
    u = torch.randn(12, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    y = torch.arange(12) % 4
    ce = F.cross_entropy(u @ w.T, y)
    assert same(image_term(u, w, y), F.cross_entropy(u @ w.T, y), (u, w), constant=math.log(3))
    normalised = image_term(F.normalize(u, dim=-1), F.normalize(w, dim=-1), y)
    assert abs(normalised.item() - math.log(3) - ce.item()) > 1e-2
    assert abs(image_term(u, w, y, 2.0).item() - math.log(3) - ce.item()) > 1e-2
    nonlinear = both_ways(u, w[y] + 0.3 * torch.sin(u.detach()), y, 1.0, terms=["image"])["loss"]
    assert abs(nonlinear.item() - math.log(3) - ce.item()) > 1e-2
    uneven = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    assert not same(image_term(u, w, uneven), F.cross_entropy(u @ w.T, uneven), (u, w), constant=math.log(3))


def test_uneven_classes_give_cross_entropy_with_the_log_prior_over_the_classes_present():
    u, w = unit(9, 0), unit(5, 1)
    y, counts = torch.tensor([0, 0, 0, 0, 2, 2, 2, 4, 4]), torch.tensor([4.0, 3.0, 2.0]).double()
    present, targets = torch.tensor([0, 2, 4]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    theirs = F.cross_entropy(7 * u @ w[present].T + counts.log(), targets)
    assert same(image_term(u, w, y, 7.0), theirs, (u, w), constant=counts[targets].log().mean().item())


def test_a_class_bias_is_a_text_that_reads_a_constant_one():
    draw = torch.Generator().manual_seed(1)
    u = torch.randn(8, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    y, extended = torch.arange(8) % 4, torch.cat([u, torch.ones(8, 1)], 1)
    theirs = F.cross_entropy(F.linear(u, w[:, :3], w[:, 3]), y)
    assert same(image_term(extended, w, y), theirs, (u, w), constant=math.log(2))


def test_one_text_per_class_makes_unicl_clip_in_value_and_gradient():
    u, w, y = unit(8, 3), unit(3, 4), torch.tensor([0, 0, 1, 2, 2, 2, 1, 0])
    ours, theirs = both_ways(u, w[y], y, 6.0)["loss"], ClipLoss()(u, w[y], torch.tensor(6.0).double())
    assert same(ours, theirs, (u, w))
    drawn = w[y] + 0.1 * unit(8, 9)  # several prompts per class: no longer
    assert abs(both_ways(u, drawn, y, 6.0)["loss"] - ClipLoss()(u, drawn, torch.tensor(6.0).double())) > 1e-3


def test_the_floor_is_the_mean_log_count_and_excess_loss_measures_from_it():
    labels = [0, 0, 0, 1, 1, -1]
    aligned, floor = torch.eye(6).double()[[0, 0, 0, 1, 1, 2]], (3 * math.log(3) + 2 * math.log(2)) / 6
    out = both_ways(aligned, aligned, keys_of(labels), 1e3)
    assert out["loss"].item() == out["loss_per_text"].item() == pytest.approx(floor)
    assert out["excess_loss"].item() == pytest.approx(0, abs=1e-12)
    for terms in (["image"], ["text"], ["image", "text"]):
        out = both_ways(unit(6, 0), unit(6, 1), keys_of(labels), 3, terms=terms)
        assert out["excess_loss"].item() == pytest.approx(out["loss"].item() - floor)
        assert out["excess_loss"] > 0


def test_a_batch_of_one_class_is_pure_uniformity():
    u, v = unit(6, 0), unit(6, 1)
    s = 4 * u @ v.T
    per_image, per_text = directions(u, v, [3] * 6, 4)
    assert per_image.item() == pytest.approx((s.logsumexp(1).mean() - s.mean()).item())
    assert per_text.item() == pytest.approx((s.logsumexp(0).mean() - s.mean()).item())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.floats(0.5, 50), st.randoms(use_true_random=False))
def test_order_names_of_labels_pairing_within_a_class_and_sides_do_not_matter(labels, scale, random):
    n = len(labels)
    u, v, keys = unit(n, 0), unit(n, 1), keys_of(labels)
    base = both_ways(u, v, keys, scale)
    order = torch.tensor(random.sample(range(n), n))
    within = torch.tensor(sorted(range(n), key=lambda i: (keys[i].item(), random.random())))
    paired = torch.empty_like(within)
    paired[torch.tensor(sorted(range(n), key=lambda i: keys[i].item()))] = within  # a shuffle inside each class
    same_loss = {
        "rows permuted": both_ways(u[order], v[order], keys[order], scale),
        "labels renamed": both_ways(u, v, 7 * keys + 3, scale),
        "texts swapped inside a class": both_ways(u, v[paired], keys, scale),
    }
    for name, out in same_loss.items():
        assert out["loss"].item() == pytest.approx(base["loss"].item(), abs=1e-9), name
    swapped = both_ways(v, u, keys, scale)
    assert swapped["loss_per_text"].item() == pytest.approx(base["loss_per_image"].item(), abs=1e-9)
    assert swapped["loss_per_image"].item() == pytest.approx(base["loss_per_text"].item(), abs=1e-9)


@given(st.lists(st.integers(-1, 3), min_size=5, max_size=5), st.lists(st.integers(-1, 3), min_size=5, max_size=5))
@settings(deadline=None, max_examples=25)
def test_the_difference_of_the_directions_does_not_know_the_labels(one, other):
    u, v = unit(5, 0), unit(5, 1)
    gaps = [
        out["loss_per_image"] - out["loss_per_text"] for out in (both_ways(u, v, keys_of(y), 8) for y in (one, other))
    ]
    assert gaps[0].item() == pytest.approx(gaps[1].item(), abs=1e-12)


def test_a_constant_added_to_all_logits_of_a_row_changes_nothing():
    q, k, keys, shift = unit(6, 0), unit(6, 1), keys_of([0, 0, 1, -1, 1, -1]), torch.randn(6, 1).double()
    longer, ones = torch.cat([q, shift], 1), torch.cat([k, torch.ones(6, 1)], 1)
    assert torch.allclose(contrast(longer, ones, keys, keys, 3), contrast(q, k, keys, keys, 3), atol=1e-12)


def test_against_a_second_view_the_image_term_is_supcon_across_views():
    one, two, y = unit(8, 0), unit(8, 1), torch.tensor([0, 0, 1, 2, 2, 2, 3, 1])
    theirs = SupConLoss(temperature=0.2)(one, y, ref_emb=two, ref_labels=y.clone())
    assert both_ways(one, two, y, 5, terms=["image"])["loss"].item() == pytest.approx(theirs.item(), abs=1e-12)
