"""Parameter groups: layers as timm and open_clip count them, frozen parts, groups by name."""

import json

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch.autograd.graph import saved_tensors_hooks

from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.build.param_groups import freeze_towers, layers_of, rate_factors
from unicl_cli.contracts import Batch, Tuning
from unicl_cli.data.tokenizers import class_tokenizer
from unicl_cli.encoders.timm import TimmTower
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text

TEXT = {"name": "transformer", "width": 16, "layers": 3, "heads": 2}
IMAGE = {"name": "cnn", "width": 8, "stages": 3}
TOKENIZER = class_tokenizer(["zero", "one", "two"])


def recipe(image=None, text=None, model=None, **more):
    model = {"embed_dim": 16, "image": IMAGE | (image or {}), "text": TEXT | (text or {})} | (model or {})
    data = {"train": [{"corpus": "c"}], "image_size": 32}
    return load_text(json.dumps({"data": data, "model": model, "batch": {"size": 6}, "steps": 1, **more}))


def built(asked):
    step, _ = build_step(asked, lambda: TOKENIZER, (), 1)
    add_adapters(asked, step)
    return step.train()


def batch(rows=6, side=32):
    return Batch(
        images=torch.randint(256, (rows, 3, side, side), dtype=torch.uint8),
        tokens=torch.arange(3).view(3, 1),
        text_index=torch.arange(rows) % 3,
        **dict.fromkeys(("labels", "keys"), torch.arange(rows) % 3),
        draws=torch.arange(rows),
        extra={},
    )


def trained(step):
    return {name for name, p in step.named_parameters() if p.requires_grad}


def tower(name, **args):
    return TimmTower(name, pretrained=False, drop_path=0.0, image_size=224, args=args, small_stem=False)


NAMES = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto", "focalnet_tiny_srf")
MORE = ("efficientnet_b0", "regnety_002", "mobilenetv3_small_050", "maxvit_pico_rw_256", "eva02_tiny_patch14_224")


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(more, marks=pytest.mark.slow) for more in MORE)])
def test_layers_of_a_timm_tower_are_scaled_as_timm_scales_them(name):
    """timm's classifier stands where our projection does."""
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=10)
        bare = torch.nn.Module()
        bare.model = timm.create_model(name, num_classes=0)
    wanted = {id(p): g["lr_scale"] for g in param_groups_layer_decay(whole, layer_decay=0.7) for p in g["params"]}
    theirs = {key: wanted[id(p)] for key, p in whole.named_parameters()}
    bare.tuning = Tuning(layer_decay=0.7, lr_scale=0.5)
    found = rate_factors(bare)
    mine = {key.removeprefix("model."): found[id(p)] / 0.5 for key, p in bare.named_parameters()}
    assert mine == pytest.approx({key: theirs[key] for key in mine})
    assert len(set(mine.values())) > 3


def test_layers_of_our_own_towers_begin_at_the_stem_and_end_below_the_projection():
    step = built(recipe())
    layers, top = layers_of(step.model.text.trunk)
    assert top == 4
    assert {name: n for name, n in layers.items() if not name.startswith("blocks.")} == {
        "tok.weight": 0, "pos": 0, "ln.weight": 3, "ln.bias": 3,
    }  # fmt: skip
    assert {n for name, n in layers.items() if name.startswith("blocks.1.")} == {2}
    layers, top = layers_of(step.model.image.trunk)
    assert (layers["stages.0.conv.weight"], layers["stages.2.norm.bias"], layers["read.weight"], top) == (1, 3, 3, 4)


@pytest.mark.parametrize("unlocked", [1, 2])
@pytest.mark.parametrize("kind", ["clip", "custom"])
def test_layers_of_open_clips_vit_are_those_of_its_own_lock(open_clip_folder, kind, unlocked):
    """Its groups count the projection, of which ours are those below."""
    model = {"name": "open_clip", "arch": f"local-dir:{open_clip_folder(kind)}"}
    whole = {"data": {"train": [{"corpus": "c"}], "image_size": 64}, "model": model, "batch": {"size": 6}, "steps": 1}
    step, _ = build_step(load_text(json.dumps(whole)), lambda: pytest.fail("its own"), (), 1)
    step.model.image.net.lock(unlocked_groups=unlocked + 1)
    theirs = trained(step.model.image)
    step.model.image.requires_grad_(requires_grad=True)
    model["image"] = {"freeze": {"unlock": unlocked}}
    mine, _ = build_step(load_text(json.dumps(whole)), lambda: pytest.fail("its own"), (), 1)
    assert trained(mine.model.image) == theirs
    assert "net.proj" in theirs
    assert ("net.conv1.weight" in theirs) is False
    text, top = layers_of(step.model.text)
    assert (text["net.text_projection"], text["net.ln_final.weight"], text["net.positional_embedding"]) == (top, 2, 0)


@pytest.mark.parametrize("kind", ["siglip", "timm", "resnet", "hf"])
def test_every_kind_of_open_clip_has_layers(open_clip_folder, kind):
    model = {"name": "open_clip", "arch": f"local-dir:{open_clip_folder(kind)}"}
    data = {"train": [{"corpus": "c"}], "image_size": 160 if kind in ("siglip", "timm") else 64}
    whole = {"data": data, "model": model, "batch": {"size": 6}, "steps": 1}
    step, _ = build_step(load_text(json.dumps(whole)), lambda: pytest.fail("its own"), (), 1)
    for part in (step.model.image, step.model.text):
        layers, top = layers_of(part)
        assert set(layers.values()) >= set(range(top)), "none is empty but perhaps the projection's"
        heads = {name for name, n in layers.items() if n == top}
        assert all(any(word in name for word in ("proj", "head", "pool")) for name in heads), heads


def test_rates_are_products_of_tower_layer_and_group():
    asked = recipe(
        text={"lr_scale": 0.5, "layer_decay": 0.5},
        optim={"weight_decay": 0.2, "groups": [{"match": "model.text.*.qkv.*", "lr_scale": 3.0, "weight_decay": 0.01}]},
    )
    step = built(asked)
    groups = build_optimizer(asked, step).param_groups
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {name: found[id(p)] for name, p in step.named_parameters()}
    assert named["model.text.trunk.tok.weight"] == (0.5 * 0.5**4, 0.0)
    assert named["model.text.trunk.blocks.0.fc1.weight"] == (0.5 * 0.5**3, 0.2)
    assert named["model.text.trunk.blocks.2.qkv.weight"] == (0.5 * 0.5 * 3.0, 0.01)
    assert named["model.text.trunk.blocks.2.qkv.bias"] == (0.5 * 0.5 * 3.0, 0.0), "a bias never decays"
    assert named["model.text.proj.weight"] == (1.0, 0.2), "the projection is the model's, not the tower's"
    assert named["model.image.trunk.stages.0.conv.weight"] == (1.0, 0.2)


def test_the_first_group_that_matches_counts_and_one_that_matches_nothing_is_refused():
    groups = [{"match": "*.bias", "freeze": True}, {"match": "model.text.*", "lr_scale": 0.1}, {"match": "*"}]
    asked = recipe(optim={"groups": groups})
    step = built(asked)
    assert {name for name, _ in step.named_parameters()} - trained(step) == {
        name for name, _ in step.named_parameters() if name.endswith(".bias")
    }
    for wrong, said in (("model.txt.*", r"did you mean 'model\.text\.\*'"), ("qkv", "no parameter matches 'qkv'")):
        with pytest.raises(UniclError, match=said):
            built(recipe(optim={"groups": [{"match": wrong}]}))


@pytest.mark.parametrize(
    ("how", "learns"),
    [
        (False, {"tok", "pos", "blocks.0", "blocks.1", "blocks.2", "ln", "proj"}),
        (True, {"proj"}),
        ("all", set()),
        ({"unlock": 1}, {"blocks.2", "ln", "proj"}),
        ({"unlock": 3}, {"blocks.0", "blocks.1", "blocks.2", "ln", "proj"}),
    ],
)
def test_a_tower_is_frozen_whole_or_with_its_projection_or_but_for_its_last_blocks(how, learns):
    step = built(recipe(text={"freeze": how}))
    names = {name.removeprefix("model.text.").removeprefix("trunk.") for name in trained(step) if ".text." in name}
    assert {".".join(n.split(".")[: 2 if n.startswith("blocks") else 1]) for n in names} == learns
    assert any(".image." in name for name in trained(step))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": {"freeze": {"unlock": 4}}}, r"^model\.text\.freeze\.unlock: 4 of the 3 blocks of TextTransformer"),
        (
            {"text": {"freeze": {"unlock": 1}, "lora": {}}},
            "model.text.lora freezes the tower, but model.text.freeze.unlock trains blocks",
        ),
        (
            {"model": {"text": {"name": "linear", "freeze": {"unlock": 1}}}},
            r"^model\.text\.freeze\.unlock: LabelEmbedding has",
        ),
    ],
)
def test_what_cannot_be_unlocked_is_refused(changes, said):
    with pytest.raises(UniclError, match=said):
        built(recipe(**changes))


def test_layer_decay_of_a_tower_without_blocks_is_refused():
    asked = recipe(model={"text": {"name": "linear", "layer_decay": 0.5}})
    with pytest.raises(UniclError, match=r"^model\.text\.layer_decay: LabelEmbedding has no blocks"):
        build_optimizer(asked, built(asked))


def saved(step):
    """Bytes that one forward keeps for backward, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in step.parameters()}
    seen: dict[int, int] = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        alive.append(x)
        return x

    alive: list[torch.Tensor] = []
    with saved_tensors_hooks(pack, lambda x: x):
        step(batch())["loss"].backward()
    return sum(seen.values())


def test_a_frozen_tower_keeps_no_activations_and_has_no_gradients_and_no_state():
    whole, image, top = (
        built(recipe(image={"freeze": how}, text={"freeze": True})) for how in (False, True, {"unlock": 1})
    )
    kept = [saved(step) for step in (whole, image, top)]
    assert kept[1] < kept[0] / 20, "two towers frozen: the pooled features and the loss are left"
    assert kept[1] < kept[2] < kept[0] / 3, "frozen lower blocks build no graph"
    assert all(p.grad is None for name, p in image.named_parameters() if name not in trained(image))
    asked = recipe(image={"freeze": True}, text={"freeze": True})
    optimizer = build_optimizer(asked, image)
    optimizer.step()
    assert {id(p) for p in optimizer.state} == {id(p) for p in image.parameters() if p.requires_grad}


def test_a_partly_frozen_towers_batchnorm_stands_still_below_and_counts_above():
    image = {"name": "timm", "model": "resnet18", "freeze": {"unlock": 2}}
    step = built(recipe(model={"image": image}))
    norms = {name: (m, m.running_mean.clone()) for name, m in step.named_modules() if hasattr(m, "running_mean")}
    step(batch())
    moved = {
        name.removeprefix("model.image.trunk.model.")
        for name, (m, old) in norms.items()
        if (m.running_mean != old).any()
    }
    assert moved
    assert all(name.startswith("layer4.") for name in moved)


def test_freeze_is_not_undone_by_an_inner_tower():
    outer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    outer.tuning, outer[1].tuning = Tuning(freeze=True), Tuning()
    freeze_towers(torch.nn.Sequential(outer))
    assert not trained(outer)
