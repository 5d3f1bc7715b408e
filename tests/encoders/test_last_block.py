"""The last block of a ViT computes the class token alone with unchanged results, for timm's and open_clip's."""

import pytest
import torch
from open_clip import CLIP, CustomTextCLIP
from timm.models.vision_transformer import Block, VisionTransformer

from unicl_cli.core.towers import change_traits
from unicl_cli.encoders.open_clip import ImageBlock, ImageTower, Net, TextBlock, TextTower
from unicl_cli.encoders.timm import LastBlock, TimmTower

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 3}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


class Ids:
    pad_id = 0


def gradients(module, out):
    module.zero_grad()
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return {"out": out.detach(), **found}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def timm_tower(model="vit_tiny_patch16_224", size=32, **args):
    torch.manual_seed(0)
    args = {**VIT, **args}
    return TimmTower(model, pretrained=False, drop_path=0.0, image_size=size, args=args, small_stem=False).double()


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "vit_base_patch32_clip_224", "vit_small_patch14_reg4_dinov2"]
)
def test_timms_vit_gives_its_own_class_token(model):
    tower = timm_tower(model)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    assert tower.reads_class_token
    assert isinstance(tower.units[-1], LastBlock)
    assert_same(gradients(tower, tower(x)), gradients(tower, tower.model(x)))
    assert tower.tokens(x).shape[1] >= 16, "all states are there for those who ask"


def test_a_last_block_of_a_vit_computes_one_token():
    tower, seen = timm_tower(), []
    tower.units[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tower(x)
    tower.tokens(x)
    assert seen == [1, 17]


@pytest.mark.parametrize("args", [{"global_pool": "avg"}, {"proj_drop_rate": 0.1}])
def test_a_vit_that_reads_more_is_left_alone(args):
    tower = timm_tower(**args)
    assert not tower.reads_class_token
    assert type(tower.units[-1]) is Block
    assert isinstance(tower.model, VisionTransformer)


def whole(**changes):
    torch.manual_seed(0)
    vision, text = {**VISION, **changes.pop("vision", {})}, {**TEXT, **changes.pop("text", {})}
    return CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, **changes).double()


def net_of(model, **config):
    config = {"embed_dim": 16, "text_cfg": TEXT, **config}
    return Net(model.visual, model.text, model.logit_scale.detach(), None, config, {"size": 32})


@pytest.mark.parametrize(("quick_gelu", "changes"), [(False, {}), (True, {}), (False, {"ls_init_value": 0.1})])
def test_open_clips_towers_give_their_own_numbers(quick_gelu, changes):
    model = whole(quick_gelu=quick_gelu, vision=changes, text=changes)
    peer = whole(quick_gelu=quick_gelu, vision=changes, text=changes)
    image, text = ImageTower(net_of(model), 16), TextTower(net_of(model), 12, Ids())
    assert image.reads_class_token
    assert text.reads_ends
    assert {type(u) for u in (*image.units, *text.units)} == {ImageBlock, TextBlock}
    assert list(model.state_dict()) == list(peer.state_dict()), "names of weights are open_clip's"
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    assert_same(gradients(model.visual, image(x)[1]), gradients(peer.visual, peer.visual(x)))
    tokens = torch.zeros(40, 12, dtype=torch.int64)
    tokens[:, :4] = torch.randint(1, 9, (40, 4))
    tokens[:, 4] = 49
    expected = gradients(peer.text, peer.text(tokens))
    for cut, packs in ((12, True), (5, False), (7, True)):
        change_traits(text, packs=packs)
        assert_same(gradients(model.text, text(tokens[:, :cut])[1]), expected)


@pytest.mark.parametrize("changes", [{"vision": {"pool_type": "avg"}}, {"vision": {"attentional_pool": True}}])
def test_other_pooling_of_open_clips_is_left_alone(changes):
    model, peer = whole(**changes), whole(**changes)
    image = ImageTower(net_of(model), 16)
    assert not image.reads_class_token
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(image(x)[1], peer.visual(x), rtol=0, atol=1e-12)


def test_open_clips_own_calls_still_work():
    """Who holds open_clip's module calls it as before: the blocks take its mask."""
    model = whole()
    TextTower(net_of(model), 12, Ids())
    ImageTower(net_of(model), 16)
    tokens = torch.randint(1, 50, (3, 12))
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    peer = whole()
    torch.testing.assert_close(model.text(tokens), peer.text(tokens), rtol=0, atol=0)
    torch.testing.assert_close(model.visual(x), peer.visual(x), rtol=0, atol=0)
    assert isinstance(CLIP(16, VISION, TEXT).visual, type(peer.visual))
