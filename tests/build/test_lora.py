"""LoRA: adapters that add nothing at first, learn alone and become plain weights; torch's attention split for them."""

import pytest
import torch
from torch import nn

from unicl_cli.build import lora
from unicl_cli.build.model import add_adapters, build_step
from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.contracts import Batch, Lora
from unicl_cli.core.checkpoint import weights
from unicl_cli.data.tokenizers import class_tokenizer
from unicl_cli.encoders.split_attention import SplitAttention, can_split
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load_text
from unicl_cli.yaml_lines import write_yaml

TOKENIZER = class_tokenizer(["zero", "one", "two"])
TEXT = {"name": "transformer", "width": 16, "layers": 2, "heads": 2, "lora": {"rank": 4}}
VIT = {"name": "timm", "model": "test_vit", "lora": {"rank": 2, "alpha": 4}}


def recipe(micro="auto", **model):
    model = {"embed_dim": 16, "image": VIT, "text": TEXT} | model
    data = {"train": [{"corpus": "c"}], "image_size": 32}
    batch = {"size": 6, "micro": micro}
    return load_text(write_yaml({"data": data, "model": model, "batch": batch, "steps": 1}))


def open_clip(folder, **more):
    data = {"train": [{"corpus": "c"}], "image_size": 64}
    both = {"image": {"lora": {"rank": 4}}, "text": {"lora": {"rank": 4}}} | more
    model = {"name": "open_clip", "arch": f"local-dir:{folder}", **both}
    return load_text(write_yaml({"data": data, "model": model, "batch": {"size": 6}, "steps": 1}))


def built(asked, chunks=1):
    """The model before and after its adapters."""
    steps = [build_step(asked, lambda: TOKENIZER, (), chunks)[0].train() for _ in range(2)]
    add_adapters(asked, steps[1])
    return steps


def batch(side, tokens, rows=6):
    random = torch.Generator().manual_seed(3)
    return Batch(
        images=torch.randint(256, (rows, 3, side, side), dtype=torch.uint8, generator=random),
        tokens=tokens,
        text_index=torch.arange(rows) % len(tokens),
        **dict.fromkeys(("labels", "keys"), torch.arange(rows) % 3),
        draws=torch.arange(rows),
        extra={},
    )


def ours(side=160):
    return batch(side, torch.arange(3).view(3, 1))


def clips():
    tokens = torch.randint(1, 400, (3, 9), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    return batch(64, tokens)


def adapters(module):
    """The layers with an adapter, by name; peft is imported here, and so only by the process that tests it."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLayer)}


def trained(asked, batch, steps=3, chunks=1):
    plain, step = built(asked, chunks)
    torch.manual_seed(0)
    for layer in adapters(step).values():  # so that both factors learn from the start
        nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        step(batch)["loss"].backward()
        optimizer.step()
    return plain, step


@pytest.fixture
def case(open_clip_folder):
    def make(kind, **changes):
        if kind == "own":
            whole = recipe(**changes)
            return whole.model_copy(update={"data": whole.data.model_copy(update={"image_size": 160})}), ours()
        return open_clip(open_clip_folder(kind), **changes), clips()

    return make


@pytest.mark.parametrize("kind", ["own", "clip", "custom"])
def test_at_first_the_adapted_model_gives_the_bits_of_the_plain_one(case, kind):
    asked, rows = case(kind)
    plain, step = built(asked)
    for name in ("encode_image", "encode_text"):
        x = rows.images if name == "encode_image" else rows.tokens
        for one, other in zip(plain.call(name, x), step.call(name, x), strict=True):
            assert torch.equal(one, other), name
    assert plain(rows)["loss"].item() == step(rows)["loss"].item()


@pytest.mark.parametrize("kind", ["own", "clip", "custom", "hf", "siglip"])
def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else_of_the_towers_learns(case, kind):
    asked, rows = case(kind)
    if kind == "siglip":
        asked, rows = (
            asked.model_copy(update={"data": asked.data.model_copy(update={"image_size": 160})}),
            batch(160, rows.tokens),
        )
    if kind == "hf":
        rows = rows._replace(tokens=torch.full((3, 24), 4))
    plain, step = built(asked)
    linear = [name for name, m in plain.named_modules() if isinstance(m, nn.Linear | nn.MultiheadAttention)]
    adapted = adapters(step)
    count = sum(isinstance(m, nn.Linear) for unit in units(plain) for m in unit.modules())
    count += sum(isinstance(m, nn.MultiheadAttention) for unit in units(plain) for m in unit.modules())
    assert len(adapted) == count <= len(linear), "in_proj and out_proj of an attention are one Linear and one matrix"
    learns = {name for name, p in step.named_parameters() if p.requires_grad}
    rest = {name for name in learns if lora.MARK not in name}
    assert rest <= {"model.logit_scale", "model.image.proj.weight", "model.text.proj.weight"}
    step(rows)["loss"].backward()
    idle = [name for name in learns if step.get_parameter(name).grad is None]
    assert [name for name in idle if ".pooler." not in name] == [], "each adapter is reached"
    optimizer = build_optimizer(asked, step)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(learns)


def units(step):
    return {id(u): u for m in step.modules() for u in getattr(m, "units", ())}.values()


@pytest.mark.parametrize("kind", ["own", "clip"])
def test_merged_weights_encode_what_the_adapters_encode(case, kind):
    asked, rows = case(kind)
    plain, step = trained(asked, rows)
    base = weights(plain)
    frozen = {n: x for n, x in step.state_dict().items() if ".base_layer." in n}
    assert frozen
    assert all(torch.equal(x, base[plain_name(name, base)]) for name, x in frozen.items()), "the base has not moved"
    step.eval()
    with torch.no_grad():
        before = [step.call("encode_image", rows.images).embed, step.call("encode_text", rows.tokens).embed]
        lora.merge_adapters(step)
        after = [step.call("encode_image", rows.images).embed, step.call("encode_text", rows.tokens).embed]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert weights(step).keys() == base.keys(), "the names of a model without adapters"
    assert not adapters(step)
    assert not any(isinstance(m, SplitAttention) for m in step.modules())
    moved = [name for name, x in weights(step).items() if not torch.equal(x, base[name])]
    assert any("attn" in name or "qkv" in name for name in moved)


def plain_name(name, base):
    name = name.replace(".base_layer", "")
    return name if name in base else name.replace("in_proj.", "in_proj_")


@pytest.mark.parametrize("kind", ["own", "clip"])
def test_micro_batches_train_adapters_as_the_whole_batch_does(case, kind):
    asked, rows = case(kind)
    found = []
    for chunks in (1, 3):
        step = built(asked, chunks)[1].double()
        for layer in adapters(step).values():
            nn.init.constant_(layer.lora_B["default"].weight, 0.01)
        loss = step(rows)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in step.parameters() if p.grad is not None)])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-11, rtol=1e-9)


def test_adapters_depend_on_the_seed_alone():
    one = built(recipe())[1].state_dict()
    torch.manual_seed(5)
    same = built(recipe())[1].state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize(
    ("targets", "found"),
    [(["qkv"], {"qkv"}), (["blocks.0.fc1", "proj"], {"fc1", "proj"}), ("auto", {"qkv", "proj", "fc1", "fc2"})],
)
def test_targets_are_ends_of_names(targets, found):
    step = built(recipe(text={**TEXT, "lora": {"targets": targets}}, image="cnn"))[1]
    names = list(adapters(step))
    assert {name.rpartition(".")[2] for name in names} == found
    assert all(name.startswith("model.text.trunk.blocks.") for name in names)
    assert len([name for name in names if name.endswith("fc1")]) == (
        1 if "blocks.0.fc1" in targets else 2 * ("fc1" in found)
    )


def test_attention_is_opened_only_where_a_target_lies_in_it(case):
    asked, rows = case("clip", image={"lora": {"targets": ["c_fc"]}}, text={"lora": {"targets": ["out_proj"]}})
    step = built(asked)[1]
    assert not any(isinstance(m, SplitAttention) for m in step.model.image.modules())
    assert sum(isinstance(m, SplitAttention) for m in step.model.text.modules()) == 2
    assert step(rows)["loss"].isfinite()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"text": {**TEXT, "lora": {"targets": ["qvk"]}}},
            r"^model\.text\.lora\.targets: TextTransformer has no layer 'qvk'; did you mean 'qkv'\?",
        ),
        ({"image": {"name": "cnn", "lora": {}}}, r"^model\.image\.lora: Cnn has no Linear layer in its blocks"),
        ({"text": {"name": "cbow", "lora": {"targets": ["bag"]}}}, "Cbow has no layer 'bag'"),
    ],
)
def test_what_has_nothing_to_adapt_is_refused(changes, said):
    with pytest.raises(UniclError, match=said):
        built(recipe(**{"image": "cnn", **changes}))


def test_convolutions_can_be_named():
    step = built(recipe(image={"name": "cnn", "lora": {"targets": ["conv"]}}))[1]
    assert len(adapters(step.model.image)) == 3
    assert step(ours(32))["loss"].isfinite()
    lora.merge_adapters(step)


def test_dropout_of_adapters_makes_texts_drawn_anew(case):
    asked, _ = case("own", text={**TEXT, "lora": {"dropout": 0.5}})
    step = built(asked)[1]
    assert step.drops_texts(), "each row's text then has its own vector"
    assert not built(recipe())[1].drops_texts()


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UniclError, match=r"^model\.\w+\.lora needs the package peft") as caught:
        built(recipe())
    assert caught.value.hint == "run pip install 'unicl[peft]'"
    with pytest.raises(UniclError, match="a checkpoint with LoRA adapters needs the package peft"):
        lora.merge_adapters(nn.Linear(2, 2))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("mask", [None, "float", "bool", "causal", "heads"])
def test_opened_attention_gives_the_bits_of_torchs(first, mask):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=first)
    opened = SplitAttention(attention)
    x, memory = torch.randn(5, 7, 32), torch.randn(5, 7, 32)
    length, rows = (7, 5) if first else (5, 7)
    seen = torch.full((length, length), float("-inf")).triu(1)
    options = {
        None: {}, "float": {"attn_mask": seen}, "bool": {"attn_mask": seen.bool()},
        "causal": {"attn_mask": seen, "is_causal": True}, "heads": {"attn_mask": torch.randn(4 * rows, length, length)},
    }[mask]  # fmt: skip
    for inputs in ((x, x, x), (x, memory, memory), (x, memory, x)):
        want = attention(*inputs, need_weights=False, **options)[0]
        assert torch.equal(want, opened(*inputs, **options)[0])
    back = opened.to_torch()
    assert all(
        torch.equal(a, b) for a, b in zip(attention.state_dict().values(), back.state_dict().values(), strict=True)
    )
    assert torch.equal(want, back(*inputs, need_weights=False, **options)[0])
    with pytest.raises(ValueError, match="gives no attention weights"):
        opened(x, x, x, need_weights=True)


def test_attention_of_other_forms_stays_closed():
    assert can_split(nn.MultiheadAttention(8, 2, bias=False))
    for options in ({"kdim": 4, "vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        assert not can_split(nn.MultiheadAttention(8, 2, **options))
    opened = SplitAttention(nn.MultiheadAttention(8, 2, bias=False))
    assert opened.to_torch().in_proj_bias is None


def test_the_help_of_targets_names_layers_only():
    tower = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    with pytest.raises(UniclError) as caught:
        lora.targets_of(tower, Lora(targets=("x",)).targets, "model.image")
    assert caught.value.hint == "use names such as 1"
