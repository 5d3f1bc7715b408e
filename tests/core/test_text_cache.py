"""Texts of a frozen tower are encoded once: the loss and gradients of a step that encodes them anew."""

import pytest
import torch
from torch import nn

from unicl_cli.contracts import Batch, LogitScale
from unicl_cli.core.loop import Step
from unicl_cli.core.text_cache import ROWS, TextCache
from unicl_cli.core.towers import change_traits
from unicl_cli.encoders.cbow import Cbow
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.linear import LabelEmbedding
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.losses.unicl import UniCL
from unicl_cli.model import TwoTower

EOT, LENGTH = 19, 8


def texts(seed=0, rows=6):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(rows, LENGTH, dtype=torch.int64)
    for row in range(rows):
        count = int(torch.randint(2, LENGTH + 1, (), generator=random))
        tokens[row, : count - 1] = torch.randint(1, 5, (count - 1,), generator=random)
        tokens[row, count - 1] = EOT
    return tokens[:, : int((tokens != 0).sum(1).max())]


def text_tower(kind="transformer"):
    torch.manual_seed(1)
    if kind == "transformer":
        return TextTransformer(20, LENGTH, EOT, width=16, layers=2, heads=2, quick_gelu=False, eps=1e-5)
    return Cbow(20, 0, 16) if kind == "cbow" else LabelEmbedding(20, 8, bias=True)


def model(kind="transformer", *, learns=(), chunks=1, image=None):
    torch.manual_seed(0)
    made = TwoTower(
        image or Cnn(8, 2), text_tower(kind), embed_dim=8, normalize=True, logit_scale=LogitScale(), chunks=chunks
    )
    made.text.requires_grad_(requires_grad=False)
    for part in learns:
        getattr(made.text, part).requires_grad_(requires_grad=True)
    return Step(made.double(), UniCL()).train()


def batch_of(tokens, seed=0, rows=10):
    random = torch.Generator().manual_seed(seed)
    index = torch.randint(0, len(tokens), (rows,), generator=random)
    images = torch.randint(0, 256, (rows, 3, 8, 8), generator=random).to(torch.uint8)
    return Batch(images, tokens, index, index, index, torch.arange(rows), {})


def trained(step, *, remembers, steps=5):
    """Losses and the weights after some updates, on batches that share texts."""
    assert step.model.remember_texts() or not remembers
    if not remembers:
        step.model.bank = None
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for number in range(steps):
        out = step(batch_of(texts(number % 3), number))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].detach())
    return torch.stack(losses), step.state_dict()


@pytest.mark.parametrize(
    ("kind", "learns", "chunks"),
    [("transformer", (), 1), ("transformer", ("proj",), 1), ("transformer", ("proj",), 3), ("cbow", ("proj",), 1),
     ("label", (), 1)],
)  # fmt: skip
def test_texts_that_are_looked_up_train_as_texts_that_are_encoded(kind, learns, chunks):
    results = [trained(model(kind, learns=learns, chunks=chunks), remembers=each) for each in (True, False)]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], rtol=0, atol=1e-12)
    assert results[0][1].keys() == results[1][1].keys(), "what is remembered is no part of the weights"


def test_a_text_is_encoded_once_however_it_is_padded():
    step, seen = model(), []
    step.model.remember_texts()
    step.model.text.trunk.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].tolist()))
    tokens = texts()
    wide = nn.functional.pad(tokens, (0, LENGTH - tokens.shape[1]))
    for given in (tokens, wide, tokens.flip(0), torch.cat([tokens, tokens])):
        step.model.encode_text(given)
    assert len(seen) == len({tuple(row) for row in wide.tolist()})
    assert all(len(rows) == 1 for rows in seen), "on a CPU each by itself: a row's rounding depends on its place"


def test_a_vector_does_not_depend_on_who_came_along():
    """Bit for bit, or a resumed run would go another way."""
    first, second = model().float(), model().float()
    for step in (first, second):
        step.model.remember_texts()
    tokens = texts(rows=40)
    whole = first.model.encode_text(tokens).embed
    second.model.encode_text(texts(3, 30))
    backwards = second.model.encode_text(tokens.flip(0)).embed.flip(0)
    assert torch.equal(whole, backwards)


@pytest.mark.parametrize("pad_id", [0, EOT])
def test_a_bank_hands_over_whole_texts_in_whole_batches(pad_id):
    """As on a GPU: one shape for each length; the pad may be the token that ends a text."""
    seen = []

    def encode(tokens):
        seen.append(tuple(tokens.shape))
        return torch.stack([(tokens == EOT).int().argmax(1), tokens.sum(1)], 1).double()

    bank = TextCache(encode, pad_id, 12)
    tokens = torch.full((70, 5), pad_id)
    tokens[:, 0] = torch.arange(70) + 30
    tokens[:, 1:3], tokens[:, 3] = 5, EOT
    waiting = bank.unseen(
        tokens.numpy(), torch.full((70,), 4 if pad_id == 0 else 3).numpy(), [bytes([n]) for n in range(70)], ROWS
    )
    assert [len(new.names) for new in waiting] == [64, 6]
    assert {new.tokens.shape for new in waiting} == {(ROWS, 8)}
    assert bank(tokens)[:, 0].tolist() == [3.0] * 70, "the end of each text is there"
    long = torch.full((2, 12), 7)
    long[:, -1] = EOT
    assert bank(long)[:, 0].tolist() == [11.0] * 2, "a text that fills the context has no room for a pad"


@pytest.mark.parametrize("why", ["learns", "training", "unsafe"])
def test_a_tower_whose_vectors_may_change_is_not_remembered(why):
    step = model(learns=("trunk",) if why == "learns" else ())
    if why == "training":
        step.model.text.trunk.train()
    if why == "unsafe":
        change_traits(step.model.text.trunk, trim_safe=False)
    assert not step.model.remember_texts()


def test_evaluation_does_not_fill_the_bank():
    step = model()
    step.model.remember_texts()
    step.eval()
    with torch.no_grad():
        step.model.encode_text(texts())
    assert not step.model.bank.places
