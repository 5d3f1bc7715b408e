"""The loss modules: the rows, keys and features they take from a batch, and what they return."""

import pytest
import torch
from open_clip.loss import ClipLoss
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor, nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, NO_TEXT, Batch, Drawn, Features
from unicl_cli.core.batch_columns import HASH_KEYS, OWN_TEXT, PROMPT, PROMPTED
from unicl_cli.errors import UniclError
from unicl_cli.kernels.targets import Target
from unicl_cli.losses.classify import CrossEntropy, MultiTask
from unicl_cli.losses.clip import Clip
from unicl_cli.losses.contrast import both_ways
from unicl_cli.losses.supcon import SupCon
from unicl_cli.losses.unicl import UniCL, target_columns

WIDTH = 6
LABELS = [0, -1, 2, 0, -1, 2, 1, -1]


class Table(nn.Module):
    """A model whose features are rows of tables: the first pixel of an image and the first token name the row."""

    embed_dim = image_width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.images, self.texts = (nn.Parameter(torch.randn(32, WIDTH, generator=draw)) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))
        self.double()

    def encode_image(self, images: Tensor) -> Features:
        pooled = self.images[images.flatten(1)[:, 0].long()]
        return Features(pooled, F.normalize(pooled, dim=-1))

    def encode_text(self, tokens: Tensor) -> Features:
        pooled = self.texts[tokens[:, 0]]
        return Features(pooled, F.normalize(pooled, dim=-1))

    def scale(self, name: str = "text") -> Tensor:
        return self.logit_scale.exp()[0]


def batch_of(labels: list[int], *, textless: tuple[int, ...] = (), views: int = 1) -> Batch:
    rows, y = torch.arange(len(labels)), torch.tensor(labels)
    pixels = torch.arange(len(labels) * views, dtype=torch.uint8).view(-1, views, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    index = rows.clone()
    index[list(textless)] = NO_TEXT
    keys = torch.where(y == NO_LABEL, 2**40 + rows, y)
    return Batch(pixels if views > 1 else pixels[:, 0], rows[:, None] + 1, index, y, keys, rows + 800, {})


def modules() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    made = {
        "unicl": UniCL(),
        "image": UniCL(["image"]),
        "clip": Clip(tile=3),
        "supcon": SupCon(WIDTH, dim=4),
        "ce": CrossEntropy(WIDTH, 3),
        "multitask": MultiTask(WIDTH, 3),
    }
    return {name: module.double() for name, module in made.items()}


@pytest.mark.parametrize("labels", [LABELS, [-1] * 6, [0] * 6, [0, 1, 2, 0, 1, 2], [2], [-1]])
@pytest.mark.parametrize("name", modules())
def test_any_mix_gives_a_finite_loss_a_gradient_for_every_used_parameter_and_leaves_the_batch_alone(name, labels):
    model, loss, views = Table(), modules()[name], 2 if name == "supcon" else 1
    batch, before = batch_of(labels, views=views), batch_of(labels, views=views)
    out = loss(model, batch)
    out["loss"].backward()
    used = [*loss.parameters(), model.images, *([] if name in {"ce", "supcon"} else [model.texts, model.logit_scale])]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used)
    assert all(value.shape == () and value.isfinite() for value in out.values())
    assert [x for x, value in out.items() if value.requires_grad] == ["loss"], "the others are only logged"
    assert all(torch.equal(x, y) for x, y in zip(batch[:-1], before[:-1], strict=True))
    assert loss.activation == "softmax"
    assert loss.score == {"ce": "head", "supcon": "none"}.get(name, "text")


def test_contrastive_modules_log_both_directions_the_scale_and_the_excess():
    for loss in (UniCL(["text"]), Clip(), MultiTask(WIDTH, 3).double()):
        out = loss(Table(), batch_of(LABELS))
        assert {"loss", "loss_per_image", "loss_per_text", "logit_scale", "excess_loss"} <= out.keys()
        assert out["logit_scale"].item() == pytest.approx(torch.tensor(2.0).exp().item())


def test_unicl_takes_the_keys_and_class_0_is_a_class_like_any_other():
    model, batch = Table(), batch_of(LABELS)
    u, v = F.normalize(model.images[:8], dim=-1), F.normalize(model.texts[1:9], dim=-1)
    whole = UniCL()(model, batch)
    assert whole["loss"].item() == both_ways(u, v, batch.keys, model.scale())["loss"].item()
    renamed = batch_of([{0: 7}.get(label, label) for label in LABELS])
    assert UniCL()(model, renamed)["loss"].item() == pytest.approx(whole["loss"].item(), abs=1e-12)
    captions = batch_of([{0: -1}.get(label, label) for label in LABELS])
    assert abs(UniCL()(model, captions)["loss"] - whole["loss"]) > 1e-3


def drawn(label: int, text: str, text_hash: int) -> Drawn:
    return Drawn(0, 0, 0, torch.zeros(3, 2, 2), label, text, text_hash, {})


def test_own_text_is_the_caption_of_a_row_with_a_label():
    """Prompts (hash 0) and rows without a label keep the paper's target, whatever ``own_text`` is."""
    hashes = [71, 72, 0, 71, 0, 73, 0, 74]
    rows = [drawn(label, "words", number) for label, number in zip(LABELS, hashes, strict=True)]
    model, batch, loss = Table(), batch_of(LABELS), UniCL(own_text=0.4)
    batch = batch._replace(extra=loss.extra(rows, batch.tokens, batch.text_index))
    assert batch.extra[OWN_TEXT].tolist() == [HASH_KEYS | number if number else NO_KEY for number in hashes]
    u, v = F.normalize(model.images[:8], dim=-1), F.normalize(model.texts[1:9], dim=-1)
    share = torch.tensor([0.4, 1, 0, 0.4, 1, 0.4, 0, 1], dtype=torch.float64)
    texts = torch.where(batch.labels == NO_LABEL, batch.keys, batch.extra[OWN_TEXT])
    target = Target(texts, share, batch.labels[:, None])
    wanted = both_ways(u, v, batch.keys, model.scale(), target=target)["loss"]
    assert loss(model, batch)["loss"].item() == pytest.approx(wanted.item(), abs=1e-12)
    paper = UniCL()(model, batch)["loss"].item()
    assert abs(wanted.item() - paper) > 1e-3
    prompts = {OWN_TEXT: torch.full((8,), NO_KEY)}
    assert loss(model, batch._replace(extra=prompts))["loss"].item() == pytest.approx(paper, abs=1e-12)


@pytest.mark.parametrize("own_text", [0.0, 0.4])
def test_a_row_with_two_texts_counts_as_two_rows_with_the_same_image(own_text):
    """The definition: each such row stands twice, once with its caption and once with its prompt."""
    model, loss, batch = Table(), UniCL(own_text=own_text), batch_of(LABELS, textless=(6,))
    captions = torch.where(batch.labels == NO_LABEL, NO_KEY, torch.arange(8) + 70)
    both = torch.tensor([0, 2, 3])
    prompts = torch.full((8,), NO_TEXT).index_put((both,), batch.labels[both] + 1)  # rows 0 and 3 show one prompt
    batch = batch._replace(extra={OWN_TEXT: captions, PROMPT: prompts, PROMPTED: batch.labels})
    twice = torch.cat([torch.arange(8), both])
    index = torch.cat([batch.text_index, prompts[both]])
    own = {OWN_TEXT: torch.cat([captions, torch.full((3,), NO_KEY)])}
    wanted = loss(model, Batch(batch.images[twice], batch.tokens, index, *(x[twice] for x in batch[3:6]), own))
    found, calls = None, []
    encode, model.encode_image = model.encode_image, lambda images: calls.append(len(images)) or encode(images)
    found = loss(model, batch)
    assert calls == [8], "images are encoded once"
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value.item(), abs=1e-12), name
    grads = [torch.autograd.grad(out["loss"], [model.images, model.texts]) for out in (wanted, found)]
    assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(*grads, strict=True))


def test_only_a_share_of_own_text_asks_the_loader_for_captions():
    assert UniCL(own_text=0.1).extra.func is target_columns
    assert not hasattr(UniCL(), "extra")


def test_rows_without_a_text_are_as_if_they_were_not_there():
    model, textless = Table(), (2, 6)
    rest = torch.tensor([row for row in range(8) if row not in textless])
    for loss in (UniCL(), Clip()):
        hidden, batch = loss(model, batch_of(LABELS, textless=textless)), batch_of(LABELS)
        less = Batch(*(x if x is batch.tokens else x[rest] for x in batch[:-1]), {})
        assert hidden["loss"].item() == pytest.approx(loss(model, less)["loss"].item(), abs=1e-12)


@pytest.mark.parametrize("made", [UniCL, Clip, lambda **fold: MultiTask(WIDTH, 3, **fold).double()])
def test_texts_that_rows_share_are_one_column_or_one_a_row_with_the_same_numbers(made):
    batch = batch_of(LABELS, textless=(3,))
    batch = batch._replace(tokens=batch.tokens[:3], text_index=torch.tensor([0, 1, 2, NO_TEXT, 1, 2, 0, 0]))
    seen = []
    for fold in (True, False):
        torch.manual_seed(0)
        model, loss = Table(), made(fold=fold)
        out = loss(model, batch)
        out["loss"].backward()
        seen.append({**out, "images": model.images.grad, "texts": model.texts.grad, "scale": model.logit_scale.grad})
    for name, value in seen[0].items():
        assert torch.allclose(value, seen[1][name], rtol=0, atol=1e-12), name


def test_clip_ignores_labels_and_repeated_rows():
    model, batch = Table(), batch_of(LABELS)
    u, v = F.normalize(model.images[:8], dim=-1), F.normalize(model.texts[1:9], dim=-1)
    theirs = ClipLoss()(u, v, model.scale())
    assert Clip()(model, batch)["loss"].item() == pytest.approx(theirs.item(), abs=1e-12)
    twice = batch._replace(keys=torch.full((8,), 2**40))
    assert Clip()(model, twice)["loss"].item() == pytest.approx(theirs.item(), abs=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_multitask_is_clip_on_captions_plus_cross_entropy_on_labels(weight):
    model, batch, loss = Table(), batch_of(LABELS, textless=(4,)), MultiTask(WIDTH, 3, weight).double()
    captions, labelled = torch.tensor([1, 7]), batch.labels != NO_LABEL
    u, v = F.normalize(model.images[captions], dim=-1), F.normalize(model.texts[captions + 1], dim=-1)
    clip = ClipLoss()(u, v, model.scale()).item()
    ce = F.cross_entropy(loss.head(model.images[:8][labelled]), batch.labels[labelled]).item()
    out = loss(model, batch)
    assert out["loss_clip"].item() == pytest.approx(clip, abs=1e-12)
    assert out["loss_ce"].item() == pytest.approx(ce, abs=1e-12)
    assert out["loss"].item() == pytest.approx(clip + weight * ce, abs=1e-12)


def golden_rows(n: int, k: float) -> Tensor:
    i = torch.arange(n * 8).view(n, 8).double()
    return F.normalize(torch.sin(i * 0.7 * k + k) + 0.3 * torch.cos(i * i * 0.013 * k), dim=-1)


@pytest.mark.parametrize(("smoothing", "golden"), [(0.0, 1.1289297846108919), (0.1, 1.12692491623385)])
def test_golden_values_of_cross_entropy_and_rows_without_a_label_are_not_counted(smoothing, golden):
    loss, model = CrossEntropy(8, 3, smoothing).double(), Table()
    loss.head.load_state_dict({"weight": golden_rows(3, 3), "bias": torch.zeros(3)})
    model.images = nn.Parameter(torch.cat([golden_rows(6, 1), torch.full((2, 8), 50.0)]).double())
    for labels in ([0, 1, 0, 2, 2, 2], [0, 1, 0, 2, 2, 2, -1, -1]):
        assert loss(model, batch_of(labels))["loss"].item() == pytest.approx(golden, abs=1e-12)
    assert loss(model, batch_of([-1, -1]))["loss"].item() == 0


def test_supcon_pairs_the_views_of_an_image_and_images_of_a_class_behind_its_own_head():
    model, loss, batch = Table(), SupCon(WIDTH, 0.2, dim=4).double(), batch_of(LABELS, views=2)
    z = loss.head(model.images[:16])  # pixel value = number of the view
    theirs = SupConLoss(temperature=0.2)(z, batch.keys.repeat_interleave(2))
    ours = loss(model, batch)["loss"]
    grads = [torch.autograd.grad(x, [*loss.parameters(), model.images]) for x in (ours, theirs)]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(*grads, strict=True))
    assert [layer.weight.shape for layer in loss.head if isinstance(layer, nn.Linear)] == [(WIDTH, WIDTH), (4, WIDTH)]


def test_supcon_refuses_single_views_in_one_line():
    with pytest.raises(UniclError, match="several views") as caught:
        SupCon(WIDTH)(Table(), batch_of(LABELS))
    assert caught.value.hint == "set data.views=2"


@pytest.mark.parametrize(
    ("terms", "message"),
    [(["imag"], "unknown term 'imag'; did you mean 'image'"), ([], "is empty"), (["text", "text"], "repeats a term")],
)
def test_unicl_refuses_terms_it_does_not_know_in_one_line(terms, message):
    with pytest.raises(UniclError) as caught:
        UniCL(terms)
    assert message in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["ce", "multitask"])
def test_a_head_computes_in_float32_under_autocast(name):
    model, loss, seen = Table().float(), modules()[name].float(), []
    loss.head.register_forward_hook(lambda _, __, logits: seen.append(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = loss(model, batch_of(LABELS))
    assert seen == [torch.float32]
    assert {value.dtype for value in out.values()} == {torch.float32}
