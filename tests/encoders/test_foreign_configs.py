"""open_clip configurations and timm options from outside: what no model can be is one line, before it takes memory."""

import json
import random

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from unicl_cli.build.load import load_model
from unicl_cli.build.model import build_image_tower
from unicl_cli.contracts import Part
from unicl_cli.encoders.open_clip_config import check_config
from unicl_cli.errors import UniclError

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    torch.manual_seed(0)
    net = open_clip.CustomTextCLIP(**json.loads(json.dumps(MODEL)))
    save_file({key: x.contiguous() for key, x in net.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def changed(place, value):
    whole = json.loads(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}))
    inner = whole
    *path, last = place.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    return whole


def load(folder, whole):
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return load_model(f"local-dir:{folder}")


def test_the_numbers_of_every_published_model_are_sound():
    for name in open_clip.list_models():
        check_config(name, open_clip.get_model_config(name), {})


def test_the_configuration_of_these_tests_loads(folder):
    loaded = load(folder, {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    assert loaded.transform.size == (16, 16)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model_cfg.vision_cfg.head_width", 0, "model_cfg.vision_cfg.head_width: should be greater than"),
        ("model_cfg.vision_cfg.head_width", 64, "open_clip cannot build it: "),
        ("model_cfg.vision_cfg.patch_size", 0, "model_cfg.vision_cfg.patch_size: should be greater than"),
        ("model_cfg.vision_cfg.width", 10**9, "vision_cfg.width: should be less than"),
        ("model_cfg.vision_cfg.width", 65_536, "parameters, which is too many for its weights"),
        ("model_cfg.vision_cfg.layers", 10**6, "vision_cfg.layers: should be less than"),
        ("model_cfg.vision_cfg.image_size", 10**6, "vision_cfg.image_size: should be less than"),
        ("model_cfg.vision_cfg.timm_model_name", 3, "open_clip cannot build it: "),
        ("model_cfg.vision_cfg.pool_type", "none", r"it cannot encode: an image gives \(1, 5, 16\) instead of"),
        ("model_cfg.vision_cfg.norm_kwargs", {"eps": "x"}, "it cannot encode: .*eps"),
        ("model_cfg.text_cfg.vocab_size", 10, "cannot be read as its weights"),
        ("model_cfg.text_cfg.hf_model_name", 3, "hf_model_name is not a string"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"x": 1}, "text_cfg.tokenizer_kwargs: .*unexpected keyword"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"reduction_mask": "x"}, "text_cfg.tokenizer_kwargs: AssertionError"),
        ("model_cfg.init_logit_scale", "x", "open_clip cannot build it: "),
        ("model_cfg.embed_dim", None, "embed_dim: should be a valid integer"),
        ("preprocess_cfg.mean", ["a", "b", "c"], "preprocess_cfg.mean"),
        ("preprocess_cfg.mean", [0.5, 0.5], "preprocess_cfg.mean"),
        ("preprocess_cfg.std", [0, 0.5, 0.5], "preprocess_cfg.std"),
        ("preprocess_cfg.interpolation", "odd", "preprocess_cfg.interpolation: should be 'bicubic'"),
        ("preprocess_cfg.size", [1, 2, 3], "preprocess_cfg.size"),
    ],
)
def test_what_no_model_can_be_is_one_line(place, value, message, folder):
    with pytest.raises(UniclError, match=message) as caught:
        load(folder, changed(place, value))
    assert "\n" not in caught.value.message


def test_a_token_beyond_the_table_is_found_when_the_model_is_loaded(tmp_path):
    small = json.loads(json.dumps(MODEL))
    small["text_cfg"]["vocab_size"] = 10
    net = open_clip.CustomTextCLIP(**json.loads(json.dumps(small)))
    save_file({key: x.contiguous() for key, x in net.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UniclError, match="it cannot encode: index out of range"):
        load(tmp_path, {"model_cfg": small, "preprocess_cfg": PREPROCESS})


VALUES = (0, -1, 1, 3, 10**9, 2**63, 0.5, 1e308, None, True, "x", "", [], [1, 2], {}, {"a": 1})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_changed_configuration_loads_or_is_one_line(seed, folder):
    draw = random.Random(seed)
    section = draw.choice(["model_cfg", "model_cfg.vision_cfg", "model_cfg.text_cfg", "preprocess_cfg"])
    whole = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    inner = whole
    for key in section.split("."):
        inner = inner[key]
    try:
        load(folder, changed(f"{section}.{draw.choice(sorted(inner))}", draw.choice(VALUES)))
    except UniclError:
        return


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"features_only": True}, "args may not set features_only"),
        ({"in_chans": 1}, "args may not set in_chans"),
        ({"num_classes": 5}, "args may not set num_classes"),
        ({"global_pool": ""}, r"an image gives \(1, 512, 1, 1\) instead of \(1, 512\)"),
        ({"global_pool": "odd"}, "timm does not accept these args"),
        ({"output_stride": 7}, "timm does not accept these args"),
        ({"act_layer": "odd"}, "timm does not accept these args"),
        ({"unknown": 1}, "timm does not accept these args: .*unexpected keyword"),
        ({"base_width": 10**9}, "args: base_width: 1000000000 is too large"),
    ],
)
def test_args_that_timm_or_its_model_refuses_are_one_line(args, message):
    with pytest.raises(UniclError, match=message) as caught:
        build_image_tower(Part("timm", {"model": "resnet18", "args": args}), 32)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("options", [{"width": 1}, {"width": 20}, {"stages": 60}, {"width": 10**9}])
def test_the_sizes_of_the_small_cnn_are_bounded(options):
    with pytest.raises(UniclError, match=r"width|stages"):
        build_image_tower(Part("cnn", options), 32)
