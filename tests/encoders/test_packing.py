"""Packed texts: the results of padded texts from fewer states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unicl_cli.contracts import Batch, LogitScale
from unicl_cli.core.host_copy import host_copy, split_rows, to_device
from unicl_cli.core.towers import change_traits
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.packing import LEAST, layout_of
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.losses.unicl import UniCL
from unicl_cli.model import TwoTower

VOCABULARY, LENGTH, EOT, WIDTH = 40, 16, 39, 16


def tower_of(layers=3):
    torch.manual_seed(0)
    tower = TextTransformer(VOCABULARY, LENGTH, EOT, width=WIDTH, layers=layers, heads=2, quick_gelu=False, eps=1e-5)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower.double()


def texts(rows=60, words=3, seed=1):
    """(rows, L): few ``words``, so that many texts begin alike; the first is the longest, the last one is empty."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(rows, LENGTH, dtype=torch.int64)
    for row in range(rows):
        count = LENGTH if row == 0 else int(torch.randint(2, LENGTH, (), generator=random))
        tokens[row, : count - 1] = torch.randint(1, 1 + words, (count - 1,), generator=random)
        tokens[row, count - 1] = EOT
    tokens[-1] = 0
    tokens[-1, 0] = EOT
    return tokens


def gradients(tower, tokens, run=None):
    tower.zero_grad()
    out = (run or tower)(tokens)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    return [out.detach(), *(p.grad.clone() for p in tower.parameters())]


@pytest.mark.parametrize("words", [1, 3, 30])
@pytest.mark.parametrize("layers", [1, 3])
def test_packed_texts_have_the_value_and_gradients_of_padded_ones(words, layers):
    tower, tokens = tower_of(layers), texts(words=words)
    layout = layout_of(tokens, EOT)
    assert layout.nodes is not None
    assert len(layout.nodes.tokens) < 0.9 * tokens.numel()

    def states(given):  # every state of the rectangle, then the one that is read
        return tower.tokens(given)[torch.arange(len(given)), (given == EOT).int().argmax(1)]

    expected = gradients(tower, tokens, states)
    assert all(bool(x.any()) for x in expected)
    change_traits(tower, packs=False)
    for got in (gradients(tower_of(layers), tokens), gradients(tower, tokens)):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_beginning_that_texts_share_is_one_node():
    tokens = torch.full((40, 10), 5)
    tokens[:, 6] = torch.arange(40) % 20 + 6  # forty texts, twenty distinct ones, of one beginning of six tokens
    tokens[:, 7] = EOT
    layout = layout_of(tokens, EOT)
    assert len(layout.nodes.tokens) == 6 + 20 + 20
    assert layout.nodes.places.max() == 7


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(40, 90), words=st.integers(1, 38))
def test_any_texts_come_back_in_their_order(seed, rows, words):
    tower, tokens = tower_of(2), texts(rows, words, seed)
    with torch.no_grad():
        got = tower(tokens)
        change_traits(tower, packs=False)
        torch.testing.assert_close(got, tower(tokens), rtol=0, atol=1e-12)


def test_few_or_full_texts_stay_as_they_are():
    assert layout_of(texts(rows=10), EOT).nodes is None, f"fewer than {LEAST} cells would be saved"
    random = torch.Generator().manual_seed(0)
    full = torch.randint(1, EOT, (200, LENGTH), generator=random)
    full[:, -1] = EOT
    assert layout_of(full, EOT).nodes is None


def test_many_texts_of_one_beginning_learn_in_bf16_as_in_float32():
    """A node's gradient is the sum over its texts: in bf16 a sum of 4,000 equal terms would stop at 256 of them."""
    from unicl_cli.encoders.packing import _CellsOfNodes

    x = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    _CellsOfNodes.apply(x, torch.zeros(4000, dtype=torch.int64)).sum().backward()
    assert x.grad.tolist() == [[4000.0] * 3, [0.0] * 3]


def test_parts_of_a_batch_are_packed_each_by_itself():
    results = []
    for chunks, packs in ((1, False), (1, True), (2, True)):
        torch.manual_seed(3)
        tower = tower_of()
        change_traits(tower, packs=packs)
        model = TwoTower(Cnn(8, 2), tower, embed_dim=8, normalize=True, logit_scale=LogitScale(), chunks=chunks)
        rows = torch.arange(60)
        batch = Batch(torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8), texts(), rows, rows, rows, rows, {})
        loss = UniCL()(model.double(), batch)["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_tokens_on_a_device_know_their_copy_on_the_host():
    tokens = texts()
    batch = Batch(*[tokens] * 6, {})
    assert host_copy(tokens) is tokens
    assert host_copy(to_device(batch, torch.device("cpu")).tokens) is tokens
    moved = to_device(batch, torch.device("meta"))
    assert moved.tokens.device.type == "meta"
    assert host_copy(moved.tokens) is tokens
    assert host_copy(moved.keys) is None
    assert host_copy(torch.zeros(3, 4, device="meta")) is None


def test_parts_of_a_batch_know_their_copies_too():
    tokens = texts(rows=5)
    moved = to_device(Batch(*[tokens] * 6, {}), torch.device("meta")).tokens
    for count in (2, 8):
        parts = split_rows(moved, count)
        assert len(parts) == count
        assert torch.equal(torch.cat([host_copy(part) for part in parts])[:5], tokens)
        assert all(host_copy(part).shape == part.shape for part in parts)


def test_without_the_tokens_at_hand_the_rectangle_is_taken():
    tower = tower_of().to("meta")
    assert tower(texts().to("meta")).shape == (60, WIDTH)
    assert isinstance(tower.blocks, nn.ModuleList)
