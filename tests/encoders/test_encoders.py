"""Towers compared with open_clip's and transformers' text towers of the same weights, and with timm's backbones."""

import pytest
import torch
from open_clip.transformer import QuickGELU
from open_clip.transformer import TextTransformer as Theirs
from torch import nn

from unicl_cli import factories
from unicl_cli.core.towers import traits_of
from unicl_cli.encoders.cbow import Cbow
from unicl_cli.encoders.cnn import Cnn
from unicl_cli.encoders.linear import LabelEmbedding
from unicl_cli.encoders.timm import TimmTower
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.errors import UniclError

VOCABULARY, LENGTH, EOT, WIDTH, LAYERS, HEADS = 60, 16, 59, 32, 3, 4
OWN = {"attn.in_proj_": "qkv.", "attn.out_proj.": "proj.", "mlp.c_fc.": "fc1.", "mlp.c_proj.": "fc2."}
TOWERS = {  # model -> (image size, substring of a unit's type)
    "resnet18": (64, "BasicBlock"),
    "vit_tiny_patch16_224": (64, "Block"),
    "swin_tiny_patch4_window7_224": (64, "SwinTransformerBlock"),
    "convnext_atto": (64, "ConvNeXtBlock"),
    "focalnet_tiny_srf": (64, "FocalNetBlock"),
}
UNNAMED = {"mobilenetv3_small_050": 64, "tinynet_e": 64, "mnasnet_050": 64, "efficientformer_l1": 224}
"""Whose blocks are called by no name of a block."""


def ours(*, quick_gelu=False, eps=1e-5, length=LENGTH):
    torch.manual_seed(0)
    return TextTransformer(
        VOCABULARY, length, EOT, width=WIDTH, layers=LAYERS, heads=HEADS, quick_gelu=quick_gelu, eps=eps
    )


def captions(rows=7, longest=12, length=LENGTH):
    """(rows, length) ids: start, words, EOT, zeros; the longest has ``longest`` tokens."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        count = longest if row == 0 else int(torch.randint(2, longest, (), generator=random))
        tokens[row, : count - 1] = torch.randint(1, EOT - 1, (count - 1,), generator=random)
        tokens[row, count - 1] = EOT
    return tokens


def randomised(module):
    """Every parameter away from its start: zeros and ones would hide a swapped bias or norm."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return module


def copy_from_open_clip(theirs, tower):
    state = {}
    for key, value in theirs.state_dict().items():
        if key.startswith("transformer.resblocks."):
            name = key.replace("transformer.resblocks.", "blocks.")
            for old, new in OWN.items():
                name = name.replace(old, new)
            state[name] = value
    own = theirs.state_dict()
    state |= {"tok.weight": own["token_embedding.weight"], "pos": own["positional_embedding"]}
    state |= {"ln.weight": own["ln_final.weight"], "ln.bias": own["ln_final.bias"]}
    tower.load_state_dict(state, strict=True)


@pytest.mark.parametrize(("quick_gelu", "eps"), [(False, 1e-5), (True, 1e-5), (False, 1e-12)])
def test_the_text_tower_is_open_clips(quick_gelu, eps):
    act = QuickGELU if quick_gelu else nn.GELU
    torch.manual_seed(3)
    theirs = Theirs(LENGTH, VOCABULARY, WIDTH, HEADS, LAYERS, output_dim=0, act_layer=act, proj_type="none")
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    randomised(theirs)
    theirs.text_projection = None
    tower = ours(quick_gelu=quick_gelu, eps=eps)
    copy_from_open_clip(theirs, tower)
    tokens = captions()
    expected, got = theirs(tokens), tower(tokens)
    assert got.shape == (7, WIDTH)
    assert (got - expected).abs().max() < 1e-5
    for other in (ours(quick_gelu=not quick_gelu, eps=eps), ours(quick_gelu=quick_gelu, eps=1e-2)):
        copy_from_open_clip(theirs, other)
        assert (other(tokens) - expected).abs().max() > 1e-4, "the oracle sees the difference"


@pytest.mark.parametrize(("act", "quick_gelu"), [("gelu", False), ("quick_gelu", True)])
def test_the_text_tower_is_transformers(act, quick_gelu):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=LENGTH, hidden_act=act, layer_norm_eps=1e-5,
        eos_token_id=EOT, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    theirs = randomised(CLIPTextModel(config).eval())
    tower = ours(quick_gelu=quick_gelu)
    own = {key.removeprefix("text_model."): value for key, value in theirs.state_dict().items()}
    names = {
        "self_attn.out_proj": "proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    state = {
        "tok.weight": own["embeddings.token_embedding.weight"],
        "pos": own["embeddings.position_embedding.weight"],
        "ln.weight": own["final_layer_norm.weight"],
        "ln.bias": own["final_layer_norm.bias"],
    }
    for n in range(LAYERS):
        for kind in ("weight", "bias"):
            parts = [own[f"encoder.layers.{n}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            state[f"blocks.{n}.qkv.{kind}"] = torch.cat(parts)
            state |= {f"blocks.{n}.{new}.{kind}": own[f"encoder.layers.{n}.{old}.{kind}"] for old, new in names.items()}
    tower.load_state_dict(state, strict=True)
    tokens = captions()
    expected = theirs(tokens).pooler_output
    assert (tower(tokens) - expected).abs().max() < 1e-5


def test_what_follows_the_end_of_a_text_may_be_cut():
    tower = randomised(ours().double())
    tokens, weight = captions(longest=9), torch.randn(7, WIDTH, dtype=torch.float64)
    results = []
    for given in (tokens, tokens[:, :9], tokens[:, :11]):
        tower.zero_grad()
        out = tower(given)
        (out * weight).sum().backward()
        results.append((out.detach(), [p.grad.clone() for p in tower.parameters()]))
    for out, gradients in results[1:]:
        assert (out - results[0][0]).abs().max() < 1e-12
        for a, b in zip(gradients, results[0][1], strict=True):
            assert (a - b).abs().max() < 1e-12
    assert (tower(tokens[:, :5]) - results[0][0]).abs().max() > 1e-3, "cutting words is another matter"


def test_the_first_end_token_is_read():
    tower = ours()
    tokens = captions()
    twice = tokens.clone()
    twice[:, -1] = EOT
    assert torch.equal(tower(twice), tower(tokens))


def test_the_text_tower_starts_as_clips_does():
    torch.manual_seed(0)
    tower = TextTransformer(400, 64, 399, width=256, layers=12, heads=4, quick_gelu=False, eps=1e-5)
    block = tower.blocks[3]
    stds = {
        0.02: tower.tok.weight,
        0.01: tower.pos,
        256**-0.5: block.qkv.weight,
        512**-0.5: block.fc1.weight,
        256**-0.5 * 24**-0.5: block.proj.weight,
    }
    for std, weight in stds.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not block.qkv.bias.any()


def test_each_state_of_the_text_tower_can_be_read():
    tower = ours()
    tokens = captions()
    states = tower.tokens(tokens)
    assert states.shape == (7, LENGTH, WIDTH)
    ends = states[torch.arange(7), (tokens == EOT).int().argmax(1)]
    assert torch.allclose(ends, tower(tokens), atol=1e-6)
    assert len(tower.units) == LAYERS


def test_a_bag_of_words_ignores_order_and_padding_and_counts_words():
    tower = Cbow(20, 0, 8)
    a = tower(torch.tensor([[3, 5, 5, 7]]))
    assert torch.allclose(a, tower(torch.tensor([[5, 7, 5, 3]])))
    assert torch.allclose(a, tower(torch.tensor([[3, 5, 5, 7, 0, 0]])))
    assert not torch.allclose(a, tower(torch.tensor([[3, 5, 7, 0]])))
    assert torch.allclose(a, tower.bag.weight[[3, 5, 5, 7]].mean(0, keepdim=True))
    assert not tower(torch.zeros(2, 3, dtype=torch.int64)).any(), "nothing but padding is the zero vector"
    tower(torch.tensor([[3, 0]])).sum().backward()
    assert not tower.bag.weight.grad[0].any(), "padding learns nothing"


@pytest.mark.parametrize("bias", [False, True])
def test_a_label_embedding_is_one_row_a_class(bias):
    tower = LabelEmbedding(5, 8, bias=bias)
    out = tower(torch.tensor([[4], [0]]))
    assert out.shape == (2, 8 + bias)
    assert torch.equal(out, tower.rows.weight[[4, 0]])
    assert tower.traits.joint
    assert tower.traits.biased is bias
    if bias:
        assert not out[:, -1].any(), "biases start at 0"


@pytest.mark.parametrize("name", TOWERS)
def test_timm_towers_give_their_own_features_at_the_size_asked_for(name):
    size, unit = TOWERS[name]
    torch.manual_seed(0)
    tower = TimmTower(name, pretrained=False, drop_path=0.0, image_size=size, args={}, small_stem=False).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out, tokens, theirs = tower(x), tower.tokens(x), tower.model(x)
    assert out.shape == (2, tower.width)
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == tower.width
    assert torch.allclose(out, theirs, atol=1e-6)
    assert all(type(u).__name__.removeprefix("Last") == unit for u in tower.units)
    assert len(tower.traits.mean) == len(tower.traits.std) == 3
    assert sum(p.numel() for p in tower.parameters()) == sum(p.numel() for p in tower.model.parameters())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "hgnetv2_b0", "ghostnet_050", "vgg11"])
def test_a_hidden_layer_in_the_head_and_no_stochastic_depth_are_fine(name):
    with torch.device("meta"):
        tower = TimmTower(name, pretrained=False, drop_path=0.0, image_size=224, args={}, small_stem=False).eval()
        x = torch.empty(2, 3, 224, 224)
        assert tower(x).shape == (2, tower.width)
        assert tower.tokens(x).shape[::2] == (2, tower.token_width)


def test_a_backbone_of_several_grids_has_no_tokens():
    with torch.device("meta"):
        tower = TimmTower(
            "crossvit_tiny_240", pretrained=False, drop_path=0.0, image_size=240, args={}, small_stem=False
        )
        assert tower(torch.empty(2, 3, 240, 240)).shape == (2, tower.width)
        with pytest.raises(UniclError, match="crossvit_tiny_240: has no single grid of features"):
            tower.tokens(torch.empty(2, 3, 240, 240))


def test_stochastic_depth_that_a_backbone_does_not_know_is_refused():
    with pytest.raises(UniclError, match=r"ghostnet_050: timm does not accept these args.*drop_path_rate"):
        TimmTower("ghostnet_050", pretrained=False, drop_path=0.1, image_size=64, args={}, small_stem=False)


def test_every_unit_of_a_timm_tower_is_called_through_its_own_forward():
    """FSDP2 shards units one by one: what goes around a unit's forward would meet shards."""
    seen = []
    sizes = {name: size for name, (size, _) in TOWERS.items()} | UNNAMED
    for name, size in sizes.items():
        tower = TimmTower(name, pretrained=False, drop_path=0.0, image_size=size, args={}, small_stem=False)
        for unit in tower.units:
            unit.register_forward_hook(lambda module, *_: seen.append(id(module)))
        with torch.no_grad():
            tower(torch.zeros(1, 3, size, size))
        assert sorted(seen) == sorted(id(u) for u in tower.units) != [], name
        seen.clear()


def test_blocks_that_no_name_tells_are_those_of_the_sequences_without_stem_and_head():
    tower = TimmTower("tinynet_e", pretrained=False, drop_path=0.0, image_size=64, args={}, small_stem=False)
    backbone = tower.model
    assert tower.units == [block for stage in backbone.blocks for block in stage]


def test_a_timm_name_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(UniclError, match="timm has no model 'resnet_18'; did you mean 'resnet"):
        TimmTower("resnet_18", pretrained=False, drop_path=0.0, image_size=64, args={}, small_stem=False)


def test_drop_path_reaches_the_backbone():
    tower = TimmTower(
        "convnext_atto", pretrained=False, drop_path=0.5, image_size=32, args={}, small_stem=False
    ).train()
    x = torch.randn(8, 3, 32, 32)
    assert any(getattr(m, "drop_prob", 0) for m in tower.modules())
    with torch.no_grad():
        for block in tower.units:
            block.gamma.fill_(1.0)
        assert not torch.equal(tower(x), tower(x))
        assert torch.equal(tower.eval()(x), tower(x))


@pytest.mark.parametrize("size", [8, 32, 64, 100])
def test_the_cnn_takes_any_size_and_does_not_mix_images(size):
    tower = Cnn(8, 3)
    x = torch.randn(4, 3, size, size)
    out = tower(x)
    assert out.shape == (4, 32)
    assert tower.tokens(x).shape == (4, 16, 32)
    assert torch.allclose(tower(x[2:3]), out[2:3], atol=1e-6)
    assert len(tower.units) == 3


def test_the_cnn_sees_where_a_stroke_lies():
    tower = Cnn(8, 3)
    left, right = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    left[..., 8:24, 4:8] = 1
    right[..., 8:24, 20:24] = 1
    assert (tower(left) - tower(right)).abs().max() > 1e-3


def test_a_small_stem_keeps_the_grid_of_small_images():
    plain, small = (
        TimmTower("resnet18", pretrained=False, drop_path=0.0, image_size=32, args={}, small_stem=small)
        for small in (False, True)
    )
    x = torch.zeros(2, 3, 32, 32)
    assert (plain.tokens(x).shape, small.tokens(x).shape) == ((2, 1, 512), (2, 16, 512))
    with pytest.raises(UniclError, match="no stem that small_stem could replace"):
        TimmTower("convnext_atto", pretrained=False, drop_path=0.0, image_size=32, args={}, small_stem=True)


def test_args_reach_the_backbone_but_load_nothing():
    name, args = "swin_tiny_patch4_window7_224", {"patch_size": 2, "window_size": 4}
    tower = TimmTower(name, pretrained=False, drop_path=0.0, image_size=32, args=args, small_stem=False)
    assert tower.model.patch_embed.patch_size == (2, 2)
    for bad, said in (({"bogus": 1}, "does not accept these args"), ({"checkpoint_path": "x.pth"}, "may not set")):
        with pytest.raises(UniclError, match=said):
            TimmTower("resnet18", pretrained=False, drop_path=0.0, image_size=32, args=bad, small_stem=False)


def test_a_prompt_token_is_one_more_row_of_the_table_and_nothing_else():
    """With ``prefix: kind``, a prompt is encoded as if the vector of its start token were another one."""
    sizes = {"vocab_size": VOCABULARY, "context_length": LENGTH, "eot_id": EOT}
    shape = {"width": WIDTH, "layers": LAYERS, "heads": HEADS}
    plain, tower = factories.transformer(**sizes, **shape), factories.transformer(**sizes, **shape, prefix="kind")
    assert traits_of(plain).prompt_token is None
    assert traits_of(tower).prompt_token == VOCABULARY
    weights = tower.state_dict()
    table = weights["tok.weight"]
    assert len(table) == VOCABULARY + 1
    tokens = captions()
    tokens[:, 0] = EOT - 1  # no other word
    prompts = tokens.clone()
    prompts[:, 0] = VOCABULARY
    plain.load_state_dict({**weights, "tok.weight": table[:-1]})
    assert torch.equal(tower(tokens), plain(tokens)), "captions, and all texts at test time"
    swapped = table[:-1].clone()
    swapped[EOT - 1] = table[-1]
    plain.load_state_dict({**weights, "tok.weight": swapped})
    assert torch.equal(tower(prompts), plain(tokens))
    assert not torch.allclose(tower(prompts), tower(tokens))
