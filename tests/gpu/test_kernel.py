"""The loss kernels on a card against the dense float64 loss; without one, in Triton's interpreter at toy size.

`TRITON_INTERPRET=1 pytest -m gpu tests/gpu/test_kernel.py` runs them without a card.
"""

import pytest
import torch
from dense_losses import TERMS, both_gap, dense, keys_of, rows_gap, unit
from on_device import CARD, DEVICE, at, needs_card

from unicl_cli.contracts import NO_KEY
from unicl_cli.kernels.tiles import in_kernel
from unicl_cli.losses.contrast import both_ways, contrast_tiled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not in_kernel(torch.empty(0, device=DEVICE), None), reason="needs a GPU, or TRITON_INTERPRET=1 with Triton"
    ),
]
KEYS = {
    "labels": lambda n: torch.arange(n) % 11,
    "captions": lambda n: 2**40 + torch.arange(n),
    "mixed": lambda n: torch.where(torch.arange(n) % 2 == 0, torch.arange(n) % 7, 2**40 + torch.arange(n)),
    "hidden rows": lambda n: keys_of(n, 3),
    "all hidden but one": lambda n: torch.full((n,), NO_KEY).index_fill(0, torch.tensor([n // 2]), 4),
}


@pytest.mark.parametrize("folded", [False, True], ids=["each", "folded"])
@pytest.mark.parametrize("kind", at(list(KEYS), ["mixed"]))
@pytest.mark.parametrize("terms", TERMS, ids=" and ".join)
def test_float32_gives_the_value_and_all_gradients_of_the_dense_float64_loss(kind, terms, folded, record_property):
    sizes = [(333, 130), (2049, 512)] if len(terms) == 2 else [(333, 130)]  # each takes seconds to compile
    for n, width in at(sizes, [(21, 40)]):
        found = both_gap(n, width, terms, folded=folded, device=DEVICE.type, keys=KEYS[kind](n))
        record_property(f"gap {n} x {width}", found)
        assert found <= 1e-5


@pytest.mark.parametrize(("n", "width"), at([(1, 8), (127, 64), (4096, 768), (5000, 1024)], [(1, 8), (70, 130)]))
def test_any_number_of_rows_and_any_width_will_do(n, width, record_property):
    found = both_gap(n, width, TERMS[0], folded=True, scale=100.0, device=DEVICE.type)
    record_property("gap", found)
    assert found <= at(2e-5, 1e-5), "at a scale of 100 a logit has an ulp of 8e-6"


@pytest.mark.parametrize("excluded", [False, True])
def test_one_way_with_excluded_pairs_is_the_dense_one(excluded):
    n, m, width = at((1500, 3001, 256), (5, 33, 24))
    assert rows_gap(n, m, width, excluded=excluded, device=DEVICE.type) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype, record_property):
    n, width = at((1500, 512), (40, 32))
    u, v = (unit(n, width, seed).to(DEVICE, dtype).requires_grad_() for seed in (0, 1))
    wide = [x.detach().double().requires_grad_() for x in (u, v)]
    keys = keys_of(n, 2).to(DEVICE)
    s, t = (torch.tensor(14.3, device=DEVICE, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64))
    loss, exact = both_ways(u, v, keys, s)["loss"], dense(*wide, keys, t, (0.5, 0.5))
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-4
    grads, exact_grads = torch.autograd.grad(loss, (u, v, s)), torch.autograd.grad(exact, (*wide, t))
    gaps = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(grads, exact_grads, strict=True)]
    record_property("gaps", gaps)
    assert max(gaps) < 2e-2


def test_the_same_input_gives_the_same_bits_twice():
    n, width = at((3000, 512), (40, 32))
    u, v = unit(n, width, 0).to(DEVICE).requires_grad_(), unit(n, width, 1).to(DEVICE)
    keys = torch.arange(n, device=DEVICE) % 70
    torch.use_deterministic_algorithms(True)  # the sums of positives are torch's
    try:
        one, two = (torch.autograd.grad(both_ways(u, v, keys, 14.3)["loss"], u)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(one, two)


def test_the_loss_is_the_same_inside_and_outside_autocast():
    n, width = at((800, 256), (12, 16))
    u, v = (unit(n, width, seed).to(DEVICE).requires_grad_() for seed in (0, 1))
    keys = torch.arange(n, device=DEVICE) % 9
    plain = torch.autograd.grad(both_ways(u, v, keys, 14.3)["loss"], (u, v))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = both_ways(u, v, keys, 14.3)["loss"]
        inside = torch.autograd.grad(loss, (u, v))
    assert loss.dtype == torch.float32
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, inside, strict=True))


@needs_card
def test_more_numbers_than_an_int32_counts_are_addressed_right():
    columns, width, rows = 2**22 + 100_000, 512, 64  # 2.2e9 numbers: beyond 2^31
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    k = torch.randn(columns, width, device="cuda", dtype=torch.bfloat16).mul_(width**-0.5).requires_grad_()
    q = k.detach()[-rows:].clone().requires_grad_()  # the last columns are their positives
    keys = torch.arange(columns, device="cuda")
    each = contrast_tiled(q, k, keys[-rows:], keys, 10.0)
    each.sum().backward()
    logits = 10 * (q.detach().float() @ k.detach().float().T)
    exact = logits.logsumexp(1) - 10 * (q.detach().float() * k.detach()[-rows:].float()).sum(1)
    assert torch.allclose(each, exact, atol=2e-3)
    assert float(k.grad[-rows:].float().norm(dim=1).min()) > 10 * float(k.grad[:rows].float().norm(dim=1).max())


@needs_card
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_card_than_the_current_one_are_computed_there():
    assert torch.cuda.current_device() == 0
    assert both_gap(300, 64, TERMS[0], folded=True, device="cuda:1") <= 1e-5


def test_the_card_is_the_one_that_the_kernel_was_compiled_for():
    if CARD:
        assert torch.cuda.get_device_capability() >= (8, 0)
    assert in_kernel(torch.empty(0, device=DEVICE), None)
    assert not in_kernel(torch.empty(0, device=DEVICE), 256)
    assert not in_kernel(torch.empty(0, device=DEVICE).double(), None)
