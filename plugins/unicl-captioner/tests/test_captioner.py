"""Caption prediction against open_clip and golden values: masks, causality, scores of classes and their savings."""

import itertools
import math
from typing import Any

import pytest
import torch
from open_clip.loss import CoCaLoss
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_captioner import build_captioner, prompts
from unicl_captioner.loss import Captioner, hide_images, real_targets, word_losses
from unicl_captioner.search import write_captions

from unicl_cli.api import NO_TEXT, Batch, Drawn, UniclError

PAD, START, END = 0, 1, 2
TOKENS = torch.tensor([[1, 5, 3, 2, 0], [1, 4, 2, 0, 0], [1, 6, 3, 7, 2]])
IMAGES = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)


def golden_rows(n: int, d: int, k: float) -> Tensor:
    i = torch.arange(n * d).view(n, d).double()
    return F.normalize(torch.sin(i * 0.7 * k + k) + 0.3 * torch.cos(i * i * 0.013 * k), dim=-1)


class Grid(nn.Module):
    """A model whose tokens of images are known, (b, N, width); it counts how often it is asked."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens, self.calls = nn.Parameter(tokens), 0

    def image_tokens(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.tokens[: len(images)]


def captioner(**options: Any) -> Captioner:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "vocab_size": 9, "context_length": 8}
    known = {"token_width": 6, "start_id": START, "eot_id": END, "chunks": 1}
    loss = build_captioner(**{**known, **sizes, **options}).double().eval()
    assert isinstance(loss, Captioner)
    with torch.no_grad():
        loss.decoder.tok.weight.mul_(20)  # as far apart as after training
    return loss


def grid(rows: int = 3) -> Grid:
    return Grid(3 * golden_rows(rows * 4, 6, 3).view(rows, 4, 6))


def batch_of_tokens(tokens: Tensor, index: list[int], **extra: Tensor) -> Batch:
    rows = torch.arange(len(index))
    return Batch(IMAGES[:1].expand(len(index), -1, -1, -1), tokens, torch.tensor(index), rows, rows, rows, extra)


def test_golden_values_and_open_clip() -> None:
    logits = (3 * golden_rows(12, 8, 4)).view(3, 4, 8)
    each, real = word_losses(logits, TOKENS), real_targets(TOKENS, END)
    assert each[real].mean().item() == pytest.approx(3.160248247605109, abs=1e-12)
    sums = -each.masked_fill(~real, 0).sum(1)
    assert sums.tolist() == pytest.approx([-9.986573573590562, -5.470555640016788, -12.985105014838638], abs=1e-12)
    means = sums / real.sum(1)
    assert means.tolist() == pytest.approx([-3.3288578578635204, -2.735277820008394, -3.2462762537096594], abs=1e-12)
    oracle = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0, pad_id=PAD)
    v, u = golden_rows(3, 8, 1), golden_rows(3, 8, 2)
    found = oracle(v, u, logits, TOKENS[:, 1:], torch.tensor(10.0, dtype=torch.float64), output_dict=True)
    assert each[real].mean().item() == pytest.approx(found["caption_loss"].item(), abs=1e-12)


def test_targets_are_real_by_place_not_by_id() -> None:
    """CLIP pads with 0, which is also "!"; and one token may both begin and end texts."""
    exclaimed = torch.tensor([[1, 5, 0, 2, 0, 0], [1, 0, 0, 0, 0, 2]])
    assert real_targets(exclaimed, END).tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert real_targets(torch.tensor([[9, 5, 9, 9]]), 9).tolist() == [[True, True, False]]
    assert real_targets(torch.tensor([[1, 2]]), END).tolist() == [[True]]


def test_no_state_depends_on_later_words_bit_by_bit() -> None:
    loss, image = captioner(), grid().tokens
    states = loss.decoder(TOKENS[:, :-1], image)
    for place in range(1, 4):
        other = TOKENS[:, :-1].clone()
        other[:, place] = 8
        changed = loss.decoder(other, image)
        assert torch.equal(changed[:, :place], states[:, :place])
        assert not (changed[:, place:] == states[:, place:]).all(2).any()


def test_padding_rows_without_text_and_micro_batches_change_no_loss_and_no_gradient() -> None:
    def outcome(tokens: Tensor, index: list[int], chunks: int = 1) -> tuple[float, Tensor]:
        loss, model = captioner(chunks=chunks), grid(len(index))
        out = loss(model, batch_of_tokens(tokens, index))["loss"]
        out.backward()
        assert model.tokens.grad is not None
        assert all(parameter.grad is not None for parameter in loss.parameters())
        return out.item(), model.tokens.grad[:3]

    value, gradient = outcome(TOKENS, [0, 1, 2])
    wide = F.pad(TOKENS, (0, 3))
    for others in ((wide, [0, 1, 2]), (TOKENS, [0, 1, 2, NO_TEXT]), (TOKENS, [0, 1, 2], 2), (TOKENS, [0, 1, 2], 5)):
        same, its = outcome(*others)
        assert same == pytest.approx(value, abs=1e-12)
        torch.testing.assert_close(its, gradient, rtol=0, atol=1e-12)
    assert outcome(TOKENS, [NO_TEXT, NO_TEXT, NO_TEXT])[0] == 0


def direct_scores(loss: Captioner, image: Tensor, tokens: Tensor) -> Tensor:
    """log p(prompt | image) by one pass for each pair."""
    scores = torch.empty(len(image), len(tokens), dtype=torch.float64)
    for row, column in itertools.product(range(len(image)), range(len(tokens))):
        text = tokens[column : column + 1]
        each = word_losses(loss.decoder.logits(loss.decoder(text[:, :-1], image[row : row + 1])), text)
        scores[row, column] = -each[real_targets(text, END)].sum()
    return scores


PROMPTS = torch.tensor(
    [
        [1, 5, 3, 2, 0],
        [1, 5, 3, 4, 2],
        [1, 5, 2, 0, 0],
        [1, 6, 3, 2, 0],
        [1, 5, 3, 2, 0],
        [1, 7, 7, 7, 2],
        [1, 2, 0, 0, 0],
    ]
)


@pytest.mark.parametrize(("nodes", "logits"), [(256, 1 << 25), (3, 1 << 25), (5, 60), (1, 1)])
def test_shared_beginnings_and_pieces_change_no_score(nodes: int, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_NODES", nodes)
    monkeypatch.setattr(prompts, "MOST_LOGITS", logits)
    loss, model = captioner(), grid()
    expected = direct_scores(loss, model.tokens, PROMPTS)
    torch.testing.assert_close(loss.pair_scores(model, IMAGES, PROMPTS), expected, rtol=0, atol=1e-12)
    assert model.calls == 1, "each image is encoded once"
    few = loss.pair_scores(model, IMAGES, PROMPTS[:2])
    torch.testing.assert_close(few, expected[:, :2], rtol=0, atol=1e-12)
    lengths = torch.tensor([3, 4, 2, 3, 3, 4, 1])
    mean = captioner(length="mean").pair_scores(model, IMAGES, PROMPTS)
    torch.testing.assert_close(mean, expected / lengths, rtol=0, atol=1e-12)


def test_a_tree_has_each_beginning_once_and_no_image_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    (tree,) = prompts.build_trees(PROMPTS, END)
    assert tree.tokens.tolist() == [[1, 5, 3, 4, 6, 3, 7, 7, 7]]
    assert tree.places.tolist() == [0, 1, 2, 3, 1, 2, 1, 2, 3]
    assert tree.ways.sum(0).tolist() == [1, 2, 3, 3, 4, 3, 4], "in alphabetical order: the end is a small id"
    monkeypatch.setattr(prompts, "MOST_NODES", 3)
    assert len(prompts.build_trees(PROMPTS, END)) > 1
    loss, seen = captioner(), list[int]()
    for block in loss.decoder.blocks:
        block.kv.register_forward_hook(lambda *_: seen.append(1))
    loss.pair_scores(grid(), IMAGES, PROMPTS)
    assert len(seen) == len(loss.decoder.blocks)


def test_the_prior_is_the_score_of_a_hidden_image() -> None:
    loss, model = captioner(drop_image=0.5, prior=0.25), grid()
    hidden = loss.nothing.expand(1, 1, 6)  # equal tokens are read like one
    expected = direct_scores(loss, model.tokens, PROMPTS) - 0.25 * direct_scores(loss, hidden, PROMPTS)
    torch.testing.assert_close(loss.pair_scores(model, IMAGES, PROMPTS), expected, rtol=0, atol=1e-12)
    with pytest.raises(UniclError, match=r"loss\.prior: 1 needs"):
        captioner(prior=1.0)
    with pytest.raises(UniclError, match="width 15 is not a multiple of heads 2"):
        captioner(width=15)


def test_hidden_images_are_drawn_by_seed_and_draw_and_reach_no_word() -> None:
    drawn = [Drawn(0, draw, 3, torch.zeros(3, 2, 2), 0, "a", 0, {}) for draw in range(2000)]
    column = hide_images(drawn, TOKENS, torch.zeros(2000), share=0.1)["image_hidden"]
    assert 160 < int(column.sum()) < 240
    again = hide_images(drawn[7:9], TOKENS, torch.zeros(2), share=0.1)["image_hidden"]
    assert torch.equal(again, column[7:9])
    loss, model = captioner(drop_image=0.1), grid()
    hide = torch.tensor([True, False, True])
    loss(model, batch_of_tokens(TOKENS, [0, 1, 2], image_hidden=hide))["loss"].backward()
    assert model.tokens.grad is not None
    assert model.tokens.grad.flatten(1).any(1).tolist() == (~hide).tolist()
    assert loss.nothing.grad is not None


def every_text(length: int) -> list[list[int]]:
    words = [word for word in range(5) if word != END]
    return [[START, *text, END] for count in range(length) for text in itertools.product(words, repeat=count)]


def test_beams_that_hold_everything_find_the_likeliest_caption_and_one_beam_is_greedy() -> None:
    loss = captioner(vocab_size=5, context_length=5)
    image = grid().tokens
    texts = every_text(4)
    padded = torch.tensor([text + [PAD] * (5 - len(text)) for text in texts])
    scores = direct_scores(loss, image, padded)
    for row, found in enumerate(write_captions(loss.decoder, image, (START, END), beams=400)):
        best = int(scores[row].argmax())
        assert found.complete
        assert found.words == texts[best][1:-1]
        assert found.log_prob == pytest.approx(scores[row, best].item(), abs=1e-9)
    for row, found in enumerate(write_captions(loss.decoder, image, (START, END), beams=1)):
        text = [START]
        while text[-1] != END and len(text) < 5:
            states = loss.decoder(torch.tensor([text]), image[row : row + 1])
            text.append(int(loss.decoder.logits(states[0, -1]).argmax()))
        assert found.complete == (text[-1] == END)
        assert found.words == (text[1:-1] if found.complete else text[1:])
        whole = direct_scores(loss, image, torch.tensor([[*text, *[PAD] * (5 - len(text))]]))[row]
        if found.complete:
            assert found.log_prob == pytest.approx(whole.item(), abs=1e-9)


def test_a_caption_that_does_not_end_is_cut_and_marked() -> None:
    loss = captioner(vocab_size=5, context_length=4)
    with torch.no_grad():
        loss.decoder.norm.weight.zero_()
        loss.decoder.norm.bias.fill_(1.0)
        loss.decoder.tok.weight[END] = -1e3  # no text ends
    for beams in (1, 3):
        (found,) = write_captions(loss.decoder, grid(1).tokens, (START, END), beams)
        assert (found.complete, len(found.words)) == (False, 3)
        assert math.isfinite(found.log_prob)


def test_a_trained_captioner_needs_its_own_image() -> None:
    loss, model = captioner().train(), grid()
    batch = batch_of_tokens(TOKENS, [0, 1, 2])
    optimizer = torch.optim.AdamW(loss.parameters(), 1e-2)
    first = loss(model, batch)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, batch)["loss"].backward()
        optimizer.step()
    trained = loss(model, batch)["loss"].item()
    with torch.no_grad():
        model.tokens.copy_(model.tokens.roll(1, 0))
    assert trained < 0.2 * first
    assert loss(model, batch)["loss"].item() > 5 * trained
    captions = [found.words for found in loss.eval().write(model, IMAGES)]
    assert captions == [[6, 3, 7], [5, 3], [4]], "those of the images before them"
