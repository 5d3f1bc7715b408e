"""The two-tower model: unit embeddings, recomputed parts, the cap on the scale, frozen towers, cross-entropy."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unicl_cli.contracts import NO_LABEL, Batch, LogitScale, Model
from unicl_cli.core.loop import Step
from unicl_cli.core.prompt_marks import mark_prompts
from unicl_cli.core.towers import change_traits
from unicl_cli.encoders.cbow import Cbow
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.linear import LabelEmbedding
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.errors import UniclError
from unicl_cli.losses.classify import CrossEntropy
from unicl_cli.losses.unicl import UniCL
from unicl_cli.model import TwoTower, at_least_float32, chunked
from unicl_cli.tower_contracts import TowerTraits

CLASSES = 5


def text_tower(**changes):
    return TextTransformer(
        20, 6, 19, **({"width": 16, "layers": 2, "heads": 2, "quick_gelu": False, "eps": 1e-5} | changes)
    )


def model(*, text="transformer", embed_dim=12, normalize=True, chunks=1, scale=None, image=None, heads=False):
    torch.manual_seed(0)
    towers = {"transformer": text_tower, "cbow": lambda: Cbow(20, 0, 16), "none": lambda: None}
    return TwoTower(
        image or Cnn(8, 2), towers[text](), embed_dim=embed_dim, normalize=normalize,
        logit_scale=scale or LogitScale(), chunks=chunks, heads=heads,
    )  # fmt: skip


def random_images(count=7):
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=random).to(torch.uint8)


def tokens(count=4):
    random = torch.Generator().manual_seed(6)
    ids = torch.randint(1, 19, (count, 6), generator=random)
    ids[:, -1] = 19
    return ids


def batch_of(labels, **changes):
    count = len(labels)
    given = {
        "images": random_images(count), "tokens": tokens(), "text_index": torch.arange(count) % 4,
        "labels": torch.tensor(labels), "draws": torch.arange(count), "extra": {},
        "keys": torch.tensor([label if label != NO_LABEL else 2**40 + n for n, label in enumerate(labels)]),
    }  # fmt: skip
    return Batch(**(given | changes))


def test_embeddings_have_unit_norm_and_pooled_features_do_not():
    m = model()
    image, text = m.encode_image(random_images()), m.encode_text(tokens())
    assert isinstance(m, Model)
    assert image.pooled.shape == (7, m.image_width)
    assert text.pooled.shape == (4, 16)
    for features in (image, text):
        assert features.embed.shape == (len(features.pooled), 12)
        assert torch.allclose(features.embed.norm(dim=1), torch.ones(len(features.embed)), atol=1e-6)
        assert (features.pooled.norm(dim=1) - 1).abs().max() > 1e-3


def test_without_normalisation_the_projection_is_given_as_it_is():
    m = model(normalize=False)
    features = m.encode_image(random_images())
    assert torch.allclose(features.embed, m.image.proj(features.pooled))


@pytest.mark.parametrize("chunks", [2, 3, 7, 11])
def test_parts_give_the_value_and_gradients_of_the_whole(chunks):
    """11 parts of 7 images and 4 texts: a rank may have fewer rows than parts."""
    results = []
    for count in (1, chunks):
        step = model(chunks=count).double()
        out = UniCL()(step, batch_of([0, 1, 0, -1, -1, 2, 1]))
        out["loss"].backward()
        results.append((out["loss"].item(), {name: p.grad for name, p in step.named_parameters()}))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-12)
    for name, gradient in results[0][1].items():
        assert (gradient - results[1][1][name]).abs().max() < 1e-12, name
    assert results[0][1]["logit_scale"].abs() > 1e-4


def test_every_part_is_run_whatever_the_rows():
    seen = []
    for rows in (1, 3, 8):
        x = torch.ones(rows, 2, requires_grad=True)
        (out,) = chunked(lambda part: (seen.append(len(part)), (part * 2,))[1], x, 4)
        assert torch.equal(out, x * 2)
        assert len(seen) == 4
        assert min(seen) >= 1
        seen.clear()


def test_without_gradients_nothing_is_cut():
    seen = []
    with torch.no_grad():
        chunked(lambda part: (seen.append(len(part)), (part,))[1], torch.ones(8, 2), 4)
    assert seen == [8]


def test_the_scale_starts_as_asked_and_is_capped_after_a_step_only():
    m = model(scale=LogitScale(init=20.0, max=50.0))
    assert m.scale().shape == ()
    assert m.scale().item() == pytest.approx(20)
    assert m.logit_scale.shape == (1,)
    m.logit_scale.data.fill_(math.log(80))
    assert m.scale().item() == pytest.approx(80), "no clamp in the forward pass"
    m.after_step()
    assert m.scale().item() == pytest.approx(50)


def test_a_capped_scale_comes_back():
    m = model(scale=LogitScale(init=50.0, max=50.0))
    optimizer = torch.optim.SGD([m.logit_scale], lr=0.1)
    for factor in (-1, 1):  # one step over the cap, one back
        optimizer.zero_grad()
        (factor * m.scale() / 50).backward()
        assert m.logit_scale.grad.abs() > 0.5
        optimizer.step()
        m.after_step()
    assert m.scale().item() < 46


def test_a_fixed_scale_is_no_trained_parameter():
    m = model(scale=LogitScale(init=1.0, learn=False))
    assert not m.logit_scale.requires_grad
    assert m.scale().item() == 1.0


def test_a_frozen_tower_stays_in_evaluation():
    tower = nn.Sequential(Cnn(8, 2), nn.BatchNorm1d(16), nn.Dropout(0.5))
    tower.width = 16
    m = model(image=tower)
    step = Step(m, UniCL())
    assert step.train().model.image.trunk.training
    tower.requires_grad_(requires_grad=False)
    step.train()
    before = tower[1].running_mean.clone()
    a, b = m.encode_image(random_images()).pooled, m.encode_image(random_images()).pooled
    assert not tower.training
    assert torch.equal(a, b)
    assert torch.equal(tower[1].running_mean, before)
    assert m.text.trunk.training
    assert m.image.proj.training


def test_pixels_are_normalised_with_the_towers_own_numbers():
    tower = Cnn(8, 2)
    tower.traits = TowerTraits(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    m = model(image=tower)
    x = random_images()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (tower.traits.mean, tower.traits.std))
    assert torch.allclose(m.pixels(x), (x / 255 - mean) / std, atol=1e-5)
    assert torch.equal(m.encode_image(x).embed, m.encode_image(x.float()).embed)
    assert (model().pixels(torch.tensor([[0], [255]]).view(2, 1, 1, 1)).flatten(1)[:, 0]).tolist() == [-1, 1]
    assert not [name for name in m.state_dict() if "pixel" in name], "not part of the weights"


def test_under_autocast_towers_see_bf16_and_embeddings_are_float32():
    m, seen = model(), []
    m.image.trunk.stages[0].conv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    m.text.trunk.blocks[0].qkv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = [*m.encode_image(random_images()), *m.encode_text(tokens())]
        loss = UniCL()(m, batch_of([0, 1, 0, -1]))["loss"]
    assert seen[:2] == [torch.bfloat16] * 2
    assert {f.dtype for f in features} == {torch.float32}
    assert loss.dtype == torch.float32
    assert torch.allclose(features[1].norm(dim=1), torch.ones(7), atol=1e-5)
    assert {f.dtype for f in (*model().double().encode_image(random_images()),)} == {torch.float64}
    assert at_least_float32(torch.ones(1, dtype=torch.float16)).dtype == torch.float32


def test_states_of_towers_that_have_them():
    m = model()
    assert m.image_tokens(random_images()).shape == (7, 16, 16)
    assert m.text_tokens(tokens()).shape == (4, 6, 16)


def test_a_model_without_text_says_so():
    m = model(text="none")
    assert m.encode_image(random_images()).embed.shape == (7, 12)
    with pytest.raises(UniclError, match="no text tower"):
        m.encode_text(tokens())
    with pytest.raises(UniclError, match="no text tower"):
        m.text_tokens(tokens())


@pytest.mark.parametrize("bias", [True, False])
def test_free_vectors_without_normalisation_at_scale_one_are_cross_entropy(bias):
    """`method.md` I2: each class equally often, one free vector a class; the image term is CE plus log of the count."""
    count = 4
    labels = [c for c in range(CLASSES) for _ in range(count)]
    torch.manual_seed(0)
    scale = LogitScale(init=1.0, learn=False)
    text = LabelEmbedding(CLASSES, 16, bias=bias)
    with torch.no_grad():
        text.rows.weight.normal_()
    m = TwoTower(Cnn(8, 2), text, embed_dim=16, normalize=False, logit_scale=scale).double()
    batch = batch_of(labels, tokens=torch.arange(CLASSES)[:, None], text_index=torch.tensor(labels))
    UniCL(["image"])(m, batch)["loss"].backward()
    got = {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}
    loss = UniCL(["image"])(m, batch)["loss"]

    m.zero_grad()
    rows = text.rows.weight
    head = F.linear(m.encode_image(batch.images).embed[:, :16], rows[:, :16], rows[:, 16] if bias else None)
    expected = F.cross_entropy(head, batch.labels)
    expected.backward()
    assert loss.item() - math.log(count) == pytest.approx(expected.item(), abs=1e-12)
    for name, parameter in m.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - got[name]).abs().max() < 1e-12, name
    assert got["text.trunk.rows.weight"].abs().max() > 1e-3


def test_the_linear_text_tower_is_the_head_of_the_cross_entropy_loss():
    """Through the loss module itself: the same weights in the head give the same value."""
    labels = torch.arange(CLASSES).repeat(3)
    torch.manual_seed(0)
    m = TwoTower(
        Cnn(8, 2), LabelEmbedding(CLASSES, 16, bias=True), embed_dim=16, normalize=False,
        logit_scale=LogitScale(init=1.0, learn=False),
    ).double()  # fmt: skip
    with torch.no_grad():
        m.text.trunk.rows.weight.normal_()
        m.image.proj.weight.copy_(torch.eye(16))
    ce = CrossEntropy(16, CLASSES).double()
    with torch.no_grad():
        ce.head.weight.copy_(m.text.trunk.rows.weight[:, :16])
        ce.head.bias.copy_(m.text.trunk.rows.weight[:, 16])
    batch = batch_of(labels.tolist(), tokens=torch.arange(CLASSES)[:, None], text_index=labels)
    unicl = UniCL(["image"])(m, batch)["loss"] - math.log(3)
    assert unicl.item() == pytest.approx(ce(m, batch)["loss"].item(), abs=1e-12)


def test_image_tokens_are_computed_in_parts_and_a_tower_without_any_has_its_pooled_output():
    m, images = model(chunks=3).double(), random_images()
    whole, parts = model().double(), m.image_tokens(images)
    torch.testing.assert_close(parts, whole.image_tokens(images))
    parts.square().sum().backward()
    whole.image_tokens(images).square().sum().backward()
    for one, other in zip(m.image.parameters(), whole.image.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
    plain = model(image=Pooled())
    assert torch.equal(plain.image_tokens(images), plain.encode_image(images).pooled[:, None])
    with pytest.raises(UniclError, match=r"data\.views: the loss takes one view"):
        m.image_tokens(images[:, None])


class Pooled(nn.Module):
    """An image tower without tokens."""

    units = ()
    width = 16

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(3, 16)

    def forward(self, x):
        return self.read(x.mean((2, 3)))


def test_heads_compare_each_text_with_the_projection_for_its_kind():
    """Value and gradients equal those of two image embeddings, with and without recomputed chunks."""
    for normalize, chunks in ((True, 1), (True, 3), (False, 1)):
        m = model(text="cbow", normalize=normalize, chunks=chunks, heads=True).double().train()
        ids, prompts = tokens(), torch.tensor([True, False, True, False])
        marked = ids.clone()
        mark_prompts(marked, prompts)
        u, v = m.encode_image(random_images()), m.encode_text(marked)
        assert m.embed_dim == u.embed.shape[1] == v.embed.shape[1] == 24
        pooled = m.image.trunk(m.pixels(random_images()))
        halves = [pooled @ part.T for part in m.image.proj.weight.split(12)]
        words = m.text.proj(m.text.trunk(ids))
        if normalize:
            halves, words = [F.normalize(x, dim=1) * 0.5**0.5 for x in halves], F.normalize(words, dim=1)
            assert torch.allclose(u.embed.norm(dim=1), torch.ones(7).double())
        exact = torch.where(prompts, halves[0] @ words.T, halves[1] @ words.T)
        weights = torch.rand(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = [(x * weights).sum() for x in (exact, u.embed @ v.embed.T)]
        used = [p for name, p in m.named_parameters() if name != "logit_scale"]
        first, second = (torch.autograd.grad(x, used) for x in found)
        assert abs(found[0] - found[1]) < 1e-12
        assert max((a - b).abs().max() for a, b in zip(first, second, strict=True)) < 1e-12


def test_heads_serve_frozen_texts_and_tokens_and_need_a_projection():
    m = model(text="transformer", heads=True).eval()
    marked = tokens()
    mark_prompts(marked)
    assert torch.equal(m.text_tokens(marked), m.text_tokens(tokens()))
    for p in m.text.trunk.parameters():
        p.requires_grad_(False)
    plain = m.train().encode_text(marked).embed
    m.text.trunk.eval()
    assert m.remember_texts()
    assert torch.allclose(m.encode_text(marked).embed, plain, atol=1e-6)
    with pytest.raises(UniclError, match=r"model.heads: the model has no text tower"):
        model(text="none", heads=True)
    joint = Cnn(8, 2)
    change_traits(joint, joint=True)
    with pytest.raises(UniclError, match="bring the projection of images"):
        model(heads=True, image=joint)
