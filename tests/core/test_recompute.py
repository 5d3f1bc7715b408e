"""Recomputed blocks and parts: the same numbers to the last bit, one part alive at a time."""

import pytest
import torch
from open_clip import ClipLoss
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from unicl_cli.contracts import Batch, LogitScale
from unicl_cli.core.loop import Step
from unicl_cli.core.recompute import recomputable_units, recompute_blocks
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.timm import TimmTower
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.losses.clip import Clip
from unicl_cli.model import TwoTower, chunked

VIT = "test_vit"


def timm_tower(name, size=160):
    torch.manual_seed(0)
    return TimmTower(name, pretrained=False, drop_path=0.3, image_size=size, args={}, small_stem=False).train()


def kept(forward):
    """Bytes that ``forward`` keeps for backward, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    return out, sum(storage.nbytes() for storage in seen.values())


def outcome(tower, size=160):
    """Value, gradients, buffers after a forward and a backward, and what was kept between them."""
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    out, size = kept(lambda: tower(x))
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters()}
    return {"value": out.detach(), **gradients, **dict(tower.named_buffers())}, size


@pytest.mark.parametrize(
    ("name", "size", "share"),
    [
        (VIT, 160, 0.5),
        ("test_resnet", 160, 0.9),
        ("test_convnext", 160, 0.5),
        pytest.param("mobilenetv3_small_050", 64, 0.7, marks=pytest.mark.slow),
        pytest.param("test_byobnet", 160, 0.9, marks=pytest.mark.slow),
        pytest.param("test_nfnet", 160, 0.95, marks=pytest.mark.slow),
        pytest.param("focalnet_tiny_srf", 64, 0.3, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", 224, 0.3, marks=pytest.mark.slow),
        pytest.param("maxvit_pico_rw_256", 256, 0.3, marks=pytest.mark.slow),
        pytest.param("regnetx_002", 64, 0.7, marks=pytest.mark.slow),
        pytest.param("resnetv2_50", 64, 0.7, marks=pytest.mark.slow),
    ],
)
def test_recomputed_blocks_change_no_bit_and_keep_less(name, size, share):
    """Drop path draws the same numbers again, and BatchNorm's averages are moved once."""
    plain, recomputed = timm_tower(name, size), timm_tower(name, size)
    assert recompute_blocks(recomputed) >= 3
    (whole, all_bytes), (again, bytes_) = outcome(plain, size), outcome(recomputed, size)
    assert whole.keys() == again.keys()
    assert [key for key, value in whole.items() if not same(value, again[key])] == []
    assert bytes_ < share * all_bytes


def same(a, b):
    return a is b is None or torch.equal(a, b)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x, *, twice):
        return self.inner(x) * (2 if twice else 1), "word"


def test_blocks_inside_blocks_are_recomputed_once_and_take_what_they_took():
    module = nn.Module()
    module.block = Nested()
    module.units = [module.block, module.block.inner, module.block]
    assert recomputable_units(module) == [module.block, module.block.inner]
    assert recompute_blocks(module) == 1
    x = torch.ones(2, 3, requires_grad=True)
    out, word = module.block(x, twice=True)
    assert word == "word"
    assert torch.equal(out, module.block.inner(x) * 2)
    with torch.no_grad():
        assert not module.block(x, twice=True)[0].requires_grad


def step_of(chunks=1, dropout=0.0, blocks=False):
    torch.manual_seed(0)
    text = TextTransformer(20, 6, 19, width=16, layers=2, heads=2, quick_gelu=False, eps=1e-5)
    image = nn.Sequential(Cnn(8, 2), nn.Dropout(dropout))
    image.width = 16
    model = TwoTower(image, text, embed_dim=12, normalize=True, logit_scale=LogitScale(), chunks=chunks)
    if blocks:
        assert recompute_blocks(model) == 4
    return Step(model, Clip()).double().train()


def batch_of(rows=12):
    random = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 19, (rows, 6), generator=random)
    tokens[:, -1] = 19
    images = torch.randint(0, 256, (rows, 3, 16, 16), generator=random).to(torch.uint8)
    return Batch(images, tokens, *[torch.arange(rows)] * 4, {})


def gradients(step, **how):
    torch.manual_seed(3)
    out = step(batch_of(**how))
    out["loss"].backward()
    return out["loss"].detach(), {name: p.grad for name, p in step.named_parameters()}


@pytest.mark.parametrize("blocks", [False, True])
def test_parts_and_blocks_together_give_the_gradients_of_the_whole(blocks):
    whole, parts = gradients(step_of()), gradients(step_of(4, blocks=blocks))
    assert (whole[0] - parts[0]).abs() < 1e-12
    assert max((g - parts[1][name]).abs().max() for name, g in whole[1].items()) < 1e-12


def test_the_gradient_of_the_scale_is_that_of_one_pass_not_a_multiple():
    """open_clip's --accum-freq evaluates the loss once a part, so that its scale gets the gradient that many times."""
    step, parts = step_of(), 4
    _, ours = gradients(step_of(parts))
    model, batch = step.model, batch_of()
    scale = model.logit_scale.detach().clone().requires_grad_()
    with torch.no_grad():
        features = model.encode_image(batch.images).embed, model.encode_text(batch.tokens).embed
    loss = ClipLoss()
    loss(*features, scale.exp().squeeze(0)).backward()
    assert torch.allclose(ours["model.logit_scale"], scale.grad, atol=1e-12)
    for _ in range(parts - 1):  # as train_one_epoch does: the loss of all features, again for each part
        loss(*features, scale.exp().squeeze(0)).backward()
    assert torch.allclose(parts * ours["model.logit_scale"], scale.grad, atol=1e-12)


def test_parts_have_the_gradients_that_cached_features_give():
    """GradCache (RepL4NLP 2021): features without graph, the loss's gradient of them, then part by part with graph."""
    _, ours = gradients(step_of(3))
    step, batch = step_of(), batch_of()
    model, loss = step.model, ClipLoss()
    with torch.no_grad():
        u, v = model.encode_image(batch.images).embed, model.encode_text(batch.tokens).embed
    u, v = u.requires_grad_(), v.requires_grad_()
    loss(u, v, model.scale()).backward()
    for n in range(0, 12, 4):
        model.encode_image(batch.images[n : n + 4]).embed.backward(u.grad[n : n + 4])
        model.encode_text(batch.tokens[n : n + 4]).embed.backward(v.grad[n : n + 4])
    theirs = {name: p.grad for name, p in step.named_parameters()}
    assert max((g - theirs[name]).abs().max() for name, g in ours.items()) < 1e-12


def test_dropout_draws_the_same_numbers_again():
    """Beside the same parts without recomputation: the gradient belongs to the value."""
    step, batch = step_of(3, dropout=0.4), batch_of()
    torch.manual_seed(3)
    ours = step.model.encode_image(batch.images).embed
    ours[:, 0].sum().backward()
    other = step_of(1, dropout=0.4)
    torch.manual_seed(3)
    parts = [other.model.encode_image(part).embed for part in batch.images.tensor_split(3)]
    torch.cat(parts)[:, 0].sum().backward()
    assert torch.equal(ours, torch.cat(parts))
    mine = dict(step.model.image.named_parameters())
    for name, p in other.model.image.named_parameters():
        assert torch.allclose(p.grad, mine[name].grad, atol=1e-12), name


def test_only_features_and_one_part_are_alive():
    """Kept after the forward: less than one part's activations; while a part is computed again: one part's."""
    towers, bytes_ = {c: step_of(c).model for c in (1, 6)}, {}
    images = batch_of(48).images
    for chunks, model in towers.items():
        features, bytes_[chunks] = kept(lambda model=model: model.encode_image(images))
        del features
    part = kept(lambda: towers[1].encode_image(images[:8]))[1]
    features = 48 * (16 + 12) * 8
    assert bytes_[6] <= features + images.nbytes
    assert bytes_[6] + part < 0.5 * bytes_[1]


@pytest.mark.parametrize("rows", [5, 8])
def test_parts_are_views_unless_a_row_has_to_be_repeated(rows):
    x, seen = torch.ones(rows, 2, requires_grad=True), []
    chunked(lambda part: (seen.append(part.untyped_storage()._cdata), (part * 2,))[1], x, 8 if rows == 5 else 4)
    shared = [number == x.untyped_storage()._cdata for number in seen]
    assert all(shared) is (rows == 8)


def test_under_autocast_blocks_are_recomputed_in_the_same_type():
    results = []
    for blocks in (False, True):
        step = step_of(blocks=blocks).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = step(batch_of())
        out["loss"].backward()
        results.append([out["loss"].detach(), *(p.grad for p in step.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
