"""Bag-of-words prediction against torch and golden values, its words by place, scores, counts, and a training."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_bow import build_bow
from unicl_bow.loss import BagOfWords, word_loss, words_of

from unicl_cli.api import NO_TEXT, Batch, Features, UniclError
from unicl_cli.testing import SMALL_IMAGE, recipe_of

PAD, START, END = 0, 1, 2
TOKENS = torch.tensor([[1, 5, 3, 2, 0], [1, 4, 2, 0, 0], [1, 6, 3, 7, 2]])
SPECIALS = torch.tensor([START, END, PAD])


def golden_rows(n: int, d: int, k: float, *, unit: bool = True) -> Tensor:
    i = torch.arange(n * d).view(n, d).double()
    rows = torch.sin(i * 0.7 * k + k) + 0.3 * torch.cos(i * i * 0.013 * k)
    return F.normalize(rows, dim=-1) if unit else rows


class Given(nn.Module):
    """A model whose pooled output is known; `log_probabilities` of an identity head are then those of golden rows."""

    image_width = embed_dim = 8

    def __init__(self, pooled: Tensor) -> None:
        super().__init__()
        self.pooled = nn.Parameter(pooled)

    def encode_image(self, images: Tensor) -> Features:
        return Features(self.pooled[: len(images)], self.pooled[: len(images)])


def loss_of(**options: object) -> BagOfWords:
    loss = build_bow(image_width=8, vocab_size=8, start_id=START, eot_id=END, pad_id=PAD, **options).double()
    assert isinstance(loss, BagOfWords)
    with torch.no_grad():
        loss.head.weight.copy_(torch.eye(8))
        loss.head.bias.zero_()
    return loss


def batch_of_tokens(tokens: Tensor, index: list[int]) -> Batch:
    rows = torch.arange(len(index))
    images = torch.zeros(len(index), 3, 2, 2, dtype=torch.uint8)
    return Batch(images, tokens, torch.tensor(index), rows, rows, rows, {})


LOGITS = 3 * golden_rows(3, 8, 5)


def test_golden_values_and_torch() -> None:
    words = words_of(TOKENS, 8, SPECIALS)[:, 3:]
    logits = LOGITS[:, 3:]
    shares = words.double() / words.sum(1, keepdim=True)
    softmax = word_loss(logits, words, "softmax").mean().item()
    assert softmax == pytest.approx(1.9115714113178883, abs=1e-12)
    assert softmax == pytest.approx(F.cross_entropy(logits, shares).item(), abs=1e-12)
    hot = words.double()
    summed = word_loss(logits, words, "sigmoid").mean().item()
    assert summed == pytest.approx(3.720697584254859, abs=1e-12)
    assert summed / 5 == pytest.approx(nn.MultiLabelSoftMarginLoss()(logits, hot).item(), abs=1e-12)
    weighed = word_loss(logits, words, "sigmoid", 2.0).mean().item() / 5
    assert weighed == pytest.approx(1.0484610591374564, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "value"), [({}, 1.9115714113178883), ({"activation": "sigmoid"}, 3.720697584254859)]
)
def test_the_loss_of_a_batch_is_the_golden_value_with_finite_gradients(options: dict[str, str], value: float) -> None:
    model, loss = Given(LOGITS.clone()), loss_of(**options)
    out = loss(model, batch_of_tokens(TOKENS, [0, 1, 2]))
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(value, abs=1e-12)
    assert model.pooled.grad is not None
    assert bool(model.pooled.grad.isfinite().all())
    assert not model.pooled.grad[:, :3].any(), "special words are left out before the softmax"


def test_words_are_found_by_place() -> None:
    """Padding may have the id of a word (CLIP's is "!"), and what is behind the first end is padding."""
    padded = torch.tensor([[1, 5, 2, 7, 7], [1, 5, 6, 5, 2]])
    assert [row.nonzero()[:, 0].tolist() for row in words_of(padded, 8, SPECIALS)] == [[5], [5, 6]]
    same = torch.tensor([[9, 5, 9, 0], [9, 6, 4, 9]])  # one token begins and ends texts
    assert [row.nonzero()[:, 0].tolist() for row in words_of(same, 10, torch.tensor([9, 9, 0]))] == [[5], [4, 6]]


def test_rows_without_text_or_without_words_are_left_out_of_the_mean() -> None:
    empty = torch.cat([TOKENS, torch.tensor([[1, 2, 0, 0, 0]])])
    logits = torch.cat([LOGITS, LOGITS])
    model, loss = Given(logits), loss_of()
    whole = loss(model, batch_of_tokens(TOKENS, [0, 1, 2]))["loss"]
    more = loss(model, batch_of_tokens(empty, [0, 1, 2, 3, NO_TEXT]))["loss"]
    assert more.item() == pytest.approx(whole.item(), abs=1e-12)
    nothing = loss(model, batch_of_tokens(TOKENS, [NO_TEXT, NO_TEXT]))["loss"]
    nothing.backward()
    assert nothing == 0
    assert all(parameter.grad is not None for parameter in [*model.parameters(), *loss.parameters()])


def test_scores_of_classes_are_golden_and_the_mean_forgives_long_names() -> None:
    prompts, images = torch.tensor([[1, 3, 5, 2], [1, 4, 2, 0]]), torch.zeros(1, 3, 2, 2)
    model = Given(LOGITS)
    sums = loss_of(length="sum").pair_scores(model, images, prompts)[0]
    assert sums.tolist() == pytest.approx([-3.7932833001072686, -1.4148478324525326], abs=1e-12)
    means = loss_of().pair_scores(model, images, prompts)[0]
    assert means.tolist() == pytest.approx([sums[0].item() / 2, sums[1].item()], abs=1e-12)
    single = loss_of(length="sum", activation="sigmoid").pair_scores(model, images, prompts)[0]
    assert single[1].item() == pytest.approx(F.logsigmoid(LOGITS[0, 4]).item(), abs=1e-12)


def test_the_prior_takes_off_what_is_frequent_and_counts_are_those_of_training_alone() -> None:
    model, loss = Given(torch.zeros(3, 8, dtype=torch.float64)), loss_of(prior=1.0)
    loss.train()(model, batch_of_tokens(TOKENS, [0, 1, 2, 0, NO_TEXT][:3]))
    assert loss.counts.tolist() == [0, 0, 0, 2, 1, 1, 1, 1]
    loss.eval()(model, batch_of_tokens(TOKENS, [0, 1, 2]))
    assert loss.counts.sum() == 6
    shares = (loss.counts[3:] + 1) / (loss.counts[3:] + 1).sum()
    scores = loss.pair_scores(model, torch.zeros(1, 3, 2, 2), torch.tensor([[1, 3, 2], [1, 4, 2]]))[0]
    assert scores.tolist() == pytest.approx((torch.tensor(0.2).log() - shares[:2].log()).tolist(), abs=1e-6)


def test_unseen_words_are_named_in_one_line_and_a_class_without_words_is_refused() -> None:
    class Names:
        def decode(self, rows: list[list[int]]) -> list[str]:
            return [f"word{row[0]}" for row in rows]

    loss = loss_of()
    loss.counts[3:6] = 1
    assert loss.check_prompts(torch.tensor([[1, 3, 4, 2]]), Names()) == []  # pyright: ignore[reportArgumentType]
    told = loss.check_prompts(torch.tensor([[1, 3, 7, 2], [1, 6, 2, 0]]), Names())  # pyright: ignore[reportArgumentType]
    assert told == ["2 words or pieces of words of the classes are in no training text: word6, word7"]
    with pytest.raises(UniclError, match="a class has no word"):
        loss.check_prompts(torch.tensor([[1, 3, 2], [1, 2, 0]]), Names())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UniclError, match=r"loss\.pos_weight: 2 has no effect"):
        loss_of(pos_weight=2.0)


def test_bag_of_words_contrast_is_golden() -> None:
    """CLIP with the core's text tower ``cbow``: order and padding change nothing, a repeated word does."""
    from unicl_cli.encoders.cbow import Cbow
    from unicl_cli.losses.contrast import both_ways

    tower = Cbow(8, PAD, 8).double()
    with torch.no_grad():
        tower.bag.weight.copy_(golden_rows(8, 8, 6))
        tower.bag.weight[PAD] = 0
    v, scale = golden_rows(3, 8, 1), torch.tensor(1 / 0.07, dtype=torch.float64)
    u = F.normalize(tower(TOKENS) @ golden_rows(8, 8, 7).T, dim=-1)
    out = both_ways(v, u, torch.arange(3), scale)
    assert out["loss_per_image"].item() == pytest.approx(2.7570447321780005, abs=1e-12)
    assert out["loss_per_text"].item() == pytest.approx(1.885277537016993, abs=1e-12)
    assert out["loss"].item() == pytest.approx(2.3211611345974967, abs=1e-12)
    assert out["loss"].item() == pytest.approx(ClipLoss()(v, u, scale).item(), abs=1e-12)
    mixed = torch.tensor([[1, 3, 5, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 7, 3, 6, 2, 0]])
    torch.testing.assert_close(tower(mixed), tower(TOKENS))
    assert not torch.allclose(tower(torch.tensor([[1, 5, 5, 3, 2]])), tower(TOKENS[:1]))


def test_a_training_without_a_text_tower_scores_classes_and_names_what_it_never_read(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from unicl_cli.cli import main

    run, image = tmp_path / "run", tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_of(digits, image=SMALL_IMAGE, text="null", loss="bow", steps=2), encoding="utf-8")
    assert main(["train", str(file), "--run-dir", str(run), "-q", "--devices", "cpu:1"]) == 0
    capfd.readouterr()
    words = ("zeroshot", str(image), "--model", str(run), "--json", "-q", "--devices", "cpu:1")
    assert main([*words, "--classes", "nine,zebra", "--template", "the digit {}."]) == 0
    out, err = capfd.readouterr()
    assert {item["label"] for item in json.loads(out)["top"]} == {"nine", "zebra"}
    assert "are in no training text" in err
    assert err.count("\n") == 1
    images = ["prepare", "--images", str(tmp_path), "-o", str(tmp_path / "images"), "-q", "--workers", "1"]
    assert main(images) == 0
    mixed = f"data.train=[{{corpus: {digits}}}, {{corpus: {tmp_path / 'images'}}}]"
    assert main(["train", str(file), mixed, "--run-dir", str(tmp_path / "other")]) == 2
    assert "but the loss bow reads texts" in capfd.readouterr().err


@pytest.mark.slow
def test_counts_are_those_of_all_processes(digits: Path, tmp_path: Path) -> None:
    from forked_ranks import on_ranks

    from unicl_cli.api import read_tensors
    from unicl_cli.cli import main
    from unicl_cli.testing import max_difference

    file, one, two = tmp_path / "r.yaml", tmp_path / "one", tmp_path / "two"
    file.write_text(recipe_of(digits, text="null", loss="{name: bow, activation: sigmoid}"))
    assert main(["train", str(file), "-q", "--devices", "cpu:1", "--run-dir", str(one)]) == 0
    on_ranks(2, "train", file, "-q", "--run-dir", two)
    assert max_difference(one, two) < 1e-4
    assert int(read_tensors(one / "model.safetensors")["loss.counts"].sum()) > 0


@pytest.mark.slow
def test_a_run_that_is_killed_continues_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    """With the counts of words, which are in the checkpoint."""
    from forked_ranks import on_ranks

    from unicl_cli.testing import max_difference

    file = tmp_path / "r.yaml"
    file.write_text(recipe_of(digits, text="null", loss="{name: bow, activation: sigmoid}", steps=6))
    command = ("train", file, "checkpoint.every=2", "-q", "--run-dir")
    on_ranks(1, *command, tmp_path / "whole")
    with pytest.raises(RuntimeError, match=r"exit (code )?9"):
        on_ranks(1, *command, tmp_path / "cut", UNICL_TEST_CRASH="before_latest:step-00000004")
    on_ranks(1, *command, tmp_path / "cut")
    assert max_difference(tmp_path / "whole", tmp_path / "cut") == 0
