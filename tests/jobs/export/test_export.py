"""`unicl export`: open_clip loads what it writes and computes the same; what open_clip cannot build is refused."""

import io
import json

import open_clip
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from unicl_cli.build.load import load_model
from unicl_cli.cli import main
from unicl_cli.core import checkpoint
from unicl_cli.encoders.carry import transferable_weights
from unicl_cli.jobs.export import export
from unicl_cli.jobs.export.card import without_places
from unicl_cli.jobs.export.open_clip_layout import is_plain_vit
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.text import dump

TEXT = {"name": "transformer", "width": 32, "layers": 2, "heads": 2}
TEXTS = ["a photo of the digit zero.", "Two small digits, naïve and odd", "", " ".join(["seven eight nine"] * 20)]


@pytest.fixture(scope="module")
def train(digits, tmp_path_factory):
    """``train(image, text, …)``: a finished run of two steps at a rate that moves every weight."""
    home, made = tmp_path_factory.mktemp("runs"), {}

    def make(image, text=TEXT, *, size=32, loss="unicl", **model):
        asked = json.dumps([image, text, size, loss, model])
        if asked in made:
            return made[asked]
        name = f"run{len(made)}"
        whole = {
            "data": {"train": [{"corpus": str(digits)}], "image_size": size, "augment": "none"},
            "model": {"image": image, "text": text, "embed_dim": 24, "context_length": 20, **model},
            "loss": loss,
            "batch": {"size": 12},
            "steps": 2,
            "optim": {"lr": 3e-2},
            "schedule": {"warmup": 0},
        }
        recipe = home / f"{name}.yaml"
        recipe.write_text(dump(load_text(json.dumps(whole))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["unicl"])
            assert main(["train", str(recipe), "--run-dir", str(home / name), "-q", "--devices", "cpu:1"]) == 0
        made[asked] = str(home / name)
        return made[asked]

    return make


def picture(width, height):
    noise = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.numpy()).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def differences(name, folder):
    """The largest differences of open_clip's vectors of the folder from those of the model called ``name``."""
    loaded = load_model(name)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    pictures = [picture(*size) for size in ((40, 90), (33, 20), (200, 199))]
    with torch.no_grad():
        theirs = model.encode_image(
            torch.stack([transform(Image.open(io.BytesIO(each))) for each in pictures]), normalize=True
        )
        ours = loaded.step.model.encode_image(torch.stack([loaded.transform(each) for each in pictures])).embed
        texts = model.encode_text(tokenize(TEXTS), normalize=True)
        own = loaded.step.model.encode_text(loaded.tokenizer(TEXTS)).embed
    return float((theirs - F.normalize(ours)).abs().max()), float((texts - F.normalize(own)).abs().max())


VIT = {"name": "timm", "model": "vit_tiny_patch16_224", "args": {"depth": 2}}
TOWERS = {
    "a ViT at another size than its name says": (VIT, TEXT, {"tokenizer": "corpus"}),
    "a ViT with a norm before its blocks and layer scale": (
        {**VIT, "args": {"depth": 2, "pre_norm": True, "init_values": 0.1, "qkv_bias": False, "mlp_ratio": 2.0}},
        {**TEXT, "norm_eps": 1e-3},
        {"tokenizer": "clip"},
    ),
    "both with CLIP's first GELU": (
        {
            "name": "timm",
            "model": "vit_base_patch32_clip_quickgelu_224",
            "args": {"depth": 1, "embed_dim": 64, "num_heads": 4},
        },
        {**TEXT, "quick_gelu": True},
        {"tokenizer": "clip", "size": 64},
    ),
    "a ResNet": ({"name": "timm", "model": "resnet10t"}, TEXT, {"tokenizer": "corpus"}),
    "a MobileNet, with a hidden layer behind its pooling": (
        {"name": "timm", "model": "mobilenetv3_small_050", "args": {"drop_rate": 0.1}},
        TEXT,
        {"tokenizer": "corpus"},
    ),
    "a ViT without class token": (
        {"name": "timm", "model": "test_vit2"},
        {**TEXT, "quick_gelu": True},
        {"tokenizer": "corpus", "size": 160},
    ),
}


@pytest.mark.parametrize("towers", TOWERS)
def test_open_clip_computes_the_same_from_the_folder(train, towers, tmp_path, capsys):
    image, text, changes = TOWERS[towers]
    run = train(image, text, **changes)
    capsys.readouterr()
    assert main(["export", run, "-o", str(tmp_path / "m"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "unicl/export/1"
    assert max(document["max_difference"].values()) < 1e-5
    assert {name: (tmp_path / "m" / name).stat().st_size for name in document["files"]} == document["files"]
    assert ("tokenizer.json" in document["files"]) == (changes["tokenizer"] == "corpus")
    assert max(differences(run, tmp_path / "m")) < 1e-5
    tensors = load_file(tmp_path / "m/open_clip_model.safetensors")
    assert sum(x.numel() for x in tensors.values()) == document["parameters"]
    own, again = load_model(run), load_model(f"local-dir:{tmp_path / 'm'}")
    pixels = torch.stack([own.transform(picture(70, 40))])
    assert torch.equal(pixels, torch.stack([again.transform(picture(70, 40))]))
    with torch.no_grad():
        found = F.normalize(again.step.model.encode_image(pixels).embed)
        torch.testing.assert_close(found, own.step.model.encode_image(pixels).embed)


def test_a_model_of_open_clip_comes_back_as_it_was(open_clip_folder, tmp_path):
    for kind in ("clip", "custom", "siglip", "timm", "resnet"):
        folder, out = open_clip_folder(kind), tmp_path / kind
        assert main(["export", f"local-dir:{folder}", "-o", str(out), "-q"]) == 0
        old = open_clip.create_model(f"local-dir:{folder}").state_dict()
        new = open_clip.create_model(f"local-dir:{out}").state_dict()
        renamed = {name.removeprefix("text."): x for name, x in new.items()}
        assert renamed.keys() == {name.removeprefix("text.") for name in old}
        assert all(torch.equal(x, renamed[name.removeprefix("text.")]) for name, x in old.items()), kind


@pytest.mark.parametrize("name", ["a ViT at another size than its name says", "both with CLIP's first GELU"])
def test_a_training_starts_from_both_towers_of_the_folder(train, name, tmp_path):
    image, text, changes = TOWERS[name]
    run = train(image, text, **changes)
    assert main(["export", run, "-o", str(tmp_path / "m"), "-q"]) == 0
    model, source = load_model(run).step.model, load_model(f"local-dir:{tmp_path / 'm'}").step.model
    found = transferable_weights(model, source)
    assert found.keys() == {"image", "text", "logit_scale"}
    pixels = torch.stack([load_model(run).transform(picture(70, 40))])
    with torch.no_grad():
        expected = model.encode_image(pixels).embed
        for parameter in model.image.parameters():
            parameter.fill_(1.0)
        model.load_state_dict(found["image"], strict=False)
        torch.testing.assert_close(model.encode_image(pixels).embed, expected)


@pytest.mark.parametrize(("end", "code"), [("[SEP]", 0), ("[END]", 2), (None, 2)])
def test_a_tokenizer_of_the_user_ends_its_texts(train, end, code, tmp_path, capsys):
    words = ["[UNK]", *([] if end is None else [end]), "a", "zero"]
    library = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    if end is not None:
        library.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, library.token_to_id(end))]
        )
    library.save(str(tmp_path / "tokenizer.json"))
    run = train(VIT, tokenizer=str(tmp_path / "tokenizer.json"))
    capsys.readouterr()
    assert main(["export", run, "-o", str(tmp_path / "m")]) == code
    error = " ".join(capsys.readouterr().err.split())
    assert ("does not end a text with the token" in error) == bool(code), error


def test_the_bias_of_the_sigmoid_is_that_of_the_loss(train, tmp_path):
    run = train(VIT, loss="sigmoid", tokenizer="clip")
    assert main(["export", run, "-o", str(tmp_path / "m"), "-q"]) == 0
    model = open_clip.create_model(f"local-dir:{tmp_path / 'm'}")
    assert model.logit_bias.item() == load_model(run).step.loss.bias.item() != 0
    assert load_model(f"local-dir:{tmp_path / 'm'}").step.loss.activation == "sigmoid"
    assert "@ texts.T + model.logit_bias).sigmoid())" in (tmp_path / "m/README.md").read_text()


def test_the_card_says_how_to_load_it_and_what_it_was_trained_on(train, tmp_path, capsys):
    run = train(VIT, tokenizer="corpus")
    out = tmp_path / "m"
    assert main(["export", run, "--repo", "org/name", "--license", "mit", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"hf upload org/name {out}" in printed
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit",
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "unicl"],
    }
    code = body.split("```python\n")[1].split("```")[0].replace('"hf-hub:org/name"', repr(f"local-dir:{out}"))
    (tmp_path / "photo.jpg").write_bytes(picture(50, 40))
    exec(compile(code.replace("photo.jpg", str(tmp_path / "photo.jpg")), "card", "exec"), {})
    assert "tensor([[" in capsys.readouterr().out
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["model"]["embed_dim"] == 24
    assert (
        json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
        == "org/name"
    )


def test_the_card_names_no_place_of_this_machine(train, tmp_path, capsys, monkeypatch):
    run = train(VIT, tokenizer="corpus")
    monkeypatch.chdir(tmp_path)
    assert main(["export", run, "-o", 'a "b']) == 0
    assert "export it with --repo ORG/NAME" in capsys.readouterr().out  # its tokenizer would be looked for elsewhere
    card = (tmp_path / 'a "b/README.md').read_text()
    assert "/tmp" not in card
    assert str(tmp_path.parent.parent) not in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["data"]["train"][0]["corpus"] == "corpus"
    (tmp_path / "photo.jpg").write_bytes(picture(50, 40))
    exec(compile(card.split("```python\n")[1].split("```")[0], "card", "exec"), {})
    assert "tensor([[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/home/me/a b/c", "c"),
        ("~/c/", "c"),
        ("local-dir:/home/me/c", "local-dir:c"),
        ("s3://bucket/c", "c"),
        ("D:\\me\\c", "c"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("a photo of a {}/b.", "a photo of a {}/b."),
    ],
)
def test_a_path_in_the_recipe_of_a_card_is_its_last_name(place, shown):
    assert without_places({"model": [{"init": place}], "steps": 1}) == {"model": [{"init": shown}], "steps": 1}


PLAIN = {"vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_base_patch32_clip_quickgelu_224"}
ODD = {
    *("vit_tiny_r_s16_p8_224", "vitamin_small_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"),
    *(
        "beit3_base_patch16_224",
        "aimv2_large_patch14_224",
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_siglip_224",
    ),
}


@pytest.mark.parametrize("name", sorted(PLAIN | ODD))
def test_a_published_vit_of_another_kind_goes_by_its_name(name):
    with torch.device("meta"):
        assert is_plain_vit(timm.create_model(name, num_classes=0)) == (name in PLAIN)


CHANGES = [
    *({"proj_bias": False}, {"act_layer": "gelu_tanh"}, {"act_layer": "silu"}, {"norm_layer": "rmsnorm"}),
    *({"embed_norm_layer": "layernorm"}, {"qk_norm": True}, {"scale_mlp_norm": True}, {"scale_attn_norm": True}),
    *({"pos_embed": "none"}, {"dynamic_img_size": True}, {"no_embed_class": True}, {"final_norm": False}),
    *({"attn_layer": "diff"}, {"patch_size": (16, 8)}, {"depth": 0}),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_vit_with_a_part_that_open_clip_lacks_is_not_plain(change):
    with torch.device("meta"):
        assert not is_plain_vit(timm.create_model("vit_tiny_patch16_224", num_classes=0, **{"depth": 1, **change}))


REFUSED = {
    "cnn": ("cnn", TEXT, {}, "open_clip has no image tower like Cnn"),
    "cbow": (VIT, {"name": "cbow", "width": 16}, {}, "open_clip has no text tower like"),
    "args with other tensors": (
        {"name": "timm", "model": "resnet10t", "args": {"stem_type": ""}},
        TEXT,
        {},
        "by its name alone, without args (stem_type)",
    ),
    "args with the same tensors": (
        {"name": "timm", "model": "resnet10t", "args": {"act_layer": "silu"}},
        TEXT,
        {},
        "by its name alone, without args (act_layer)",
    ),
    "size": ({"name": "timm", "model": "test_vit2"}, TEXT, {}, "with other tensors (first visual.trunk"),
    "no text": (VIT, None, {"loss": "ce"}, "does not classify by texts"),
    "prefix": (VIT, {**TEXT, "prefix": "kind"}, {}, "prompts begin with a token of their own"),
    "heads": (VIT, TEXT, {"heads": "kind"}, "more than directions"),
    "two activations": (VIT, {**TEXT, "quick_gelu": True}, {}, "one of its towers has quick_gelu"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_open_clip_cannot_build_is_one_line_and_nothing_is_written(train, fault, tmp_path, capsys):
    image, text, changes, message = REFUSED[fault]
    run = train(image, text, **{"tokenizer": "corpus", **changes})
    capsys.readouterr()
    assert main(["export", run, "-o", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split()), error
    assert run in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "projection", "code", "hint"),
    [
        (VIT, "visual.proj", 1, "report this as a bug"),
        (
            {"name": "timm", "model": "resnet10t"},
            "visual.head.proj.weight",
            2,
            "at the image size of the backbone's name",
        ),
    ],
)
def test_a_difference_is_a_bug_unless_timm_builds_the_backbone_by_its_name(
    train, image, projection, code, hint, tmp_path, capsys, monkeypatch
):
    run = train(image, tokenizer="clip")
    real = export.layout_of_model

    def wrong(*words):
        layout = real(*words)
        layout.tensors[projection] = layout.tensors[projection].flip(0, 1)
        return layout

    monkeypatch.setattr(export, "layout_of_model", wrong)
    assert main(["export", run, "-o", str(tmp_path / "m")]) == code
    error = " ".join(capsys.readouterr().err.split())
    assert "open_clip's image" in error
    assert hint in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo", "no-name"], "write it as org/name"),
        (["--repo", "a/b/c"], "write it as org/name"),
        (["--license", "My Own"], "is not an identifier of the hub"),
    ],
)
def test_a_name_that_the_hub_would_refuse_is_refused_here(train, words, message, tmp_path, capsys):
    assert main(["export", "open_clip:ViT-B-32", "-o", str(tmp_path / "m"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys, open_clip_folder):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/notes.txt").write_text("mine")
    assert main(["export", f"local-dir:{open_clip_folder('clip')}", "-o", str(tmp_path / "m")]) == 2
    assert "contains other files (notes.txt)" in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in (tmp_path / "m").iterdir()] == ["notes.txt"]


def test_a_folder_that_exists_is_filled(tmp_path, open_clip_folder, monkeypatch):
    leftover = ".unicl-0123456789abcdef0123456789abcdef.tmp"
    for name in ("current", "linked", "killed"):
        (tmp_path / name).mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("linked")
    (tmp_path / "killed" / leftover).mkdir()
    monkeypatch.chdir(tmp_path / "current")
    for out in (".", "../link", "../killed"):
        assert main(["export", f"local-dir:{open_clip_folder('clip')}", "-o", out, "-q"]) == 0
    for name in ("current", "linked", "killed"):
        found = {file.name for file in (tmp_path / name).iterdir()} - {leftover}
        assert found == {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750
    assert {path.name for path in tmp_path.iterdir()} == {"current", "link", "linked", "killed"}


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_is_one_line_and_leaves_nothing(error, tmp_path, open_clip_folder, monkeypatch, capsys):
    def fill(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fill)
    assert main(["export", f"local-dir:{open_clip_folder('clip')}", "-o", str(tmp_path / "a/b/m")]) == 2
    assert "cannot be written: No space left on device" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_text_tower_of_transformers_is_refused(open_clip_folder, tmp_path, capsys):
    assert main(["export", f"local-dir:{open_clip_folder('hf')}", "-o", str(tmp_path / "m")]) == 2
    assert "on the hub, not in a folder" in " ".join(capsys.readouterr().err.split())
