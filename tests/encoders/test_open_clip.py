"""Models of open_clip without training: logits, images and tokens equal open_clip's; bad files are one-line errors."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unicl_cli.build.load import load_model
from unicl_cli.cli import main
from unicl_cli.errors import UniclError

KINDS = ("clip", "custom", "siglip", "timm", "resnet", "hf")
TEXTS = ["a photo of a cat.", "Ünïcode &amp; dogs", "word " * 100, ""]


def sample_images():
    rng = np.random.default_rng(0)
    sizes = (64, 64), (90, 130), (200, 71), (33, 20)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def theirs(folder):
    """(model, preprocessing, tokenizer) as open_clip itself loads them."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def our_logits(loaded, data, texts):
    """Compute logits as `zeroshot` and `eval` do, with the bias of a sigmoid model."""
    call = loaded.step.call
    with torch.no_grad():
        u = call("encode_image", torch.stack([loaded.transform(each) for each in data])).embed
        v = call("encode_text", loaded.tokenizer(texts)).embed
        return call("scale") * u @ v.T + getattr(loaded.step.loss, "bias", 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_open_clips_own_pipeline(open_clip_folder, kind):
    folder = open_clip_folder(kind)
    model, preprocess, tokenize = theirs(folder)
    loaded = load_model(f"local-dir:{folder}")
    with torch.no_grad():
        expected, _ = model.get_logits(torch.stack([preprocess(each) for each in sample_images()]), tokenize(TEXTS))
    got = our_logits(loaded, [encoded(each) for each in sample_images()], TEXTS)
    assert got.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert loaded.step.loss.activation == ("sigmoid" if kind == "siglip" else "softmax")
    assert (len(loaded.templates), loaded.classes, loaded.corpora) == (80, (), ())
    assert not loaded.step.training


@pytest.mark.parametrize("kind", ["clip", "custom", "siglip"])
def test_images_are_open_clips_before_it_divides_by_255(open_clip_folder, kind):
    folder = open_clip_folder(kind)
    _, preprocess, _ = theirs(folder)
    loaded = load_model(f"local-dir:{folder}")
    model = loaded.step.model
    for image in [*sample_images(), Image.new("L", (70, 100), 90)]:
        ours = loaded.transform(encoded(image))
        assert ours.dtype == torch.uint8
        torch.testing.assert_close(model.pixels(ours[None])[0], preprocess(image), atol=1e-6, rtol=0)


def test_tokens_are_open_clips_cut_to_the_longest(open_clip_folder):
    for kind, pad in (("clip", 0), ("hf", 1)):
        folder = open_clip_folder(kind)
        tokenizer, whole = (
            load_model(f"local-dir:{folder}").tokenizer,
            open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS),
        )
        ours = tokenizer(TEXTS)
        assert torch.equal(ours, whole[:, : ours.shape[1]])
        assert not bool((whole[:, ours.shape[1] :] != pad).any())
        assert tokenizer.cuts(TEXTS) == 1


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cut_tokens_give_what_the_whole_context_gives(open_clip_folder, kind):
    loaded = load_model(f"local-dir:{open_clip_folder(kind)}")
    model = loaded.step.model
    tokens = loaded.tokenizer(TEXTS[:2])
    short = tokens[:, : int((tokens != 0).sum(1).max())]
    padded = torch.nn.functional.pad(short, (0, 24 - short.shape[1]))
    assert short.shape[1] < 24
    assert model.text.causal == (kind == "clip")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(short).embed, model.encode_text(padded).embed, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "width"), [("clip", 64), ("timm", 64), ("siglip", 64), ("resnet", 24)])
def test_pooled_features_come_before_the_projection(open_clip_folder, kind, width):
    model = load_model(f"local-dir:{open_clip_folder(kind)}").step.model
    with torch.no_grad():
        size = model.image.traits.frame.size
        pooled, embed = model.encode_image(torch.randint(256, (2, 3, *size), dtype=torch.uint8))
    assert (model.image_width, pooled.shape) == (width, (2, width))
    net = model.image.net
    if kind == "clip":
        joint = pooled @ net.proj
    elif kind == "timm":
        joint = net.head(pooled)
    else:
        joint = pooled
    torch.testing.assert_close(torch.nn.functional.normalize(joint, dim=1), embed)


@pytest.fixture
def copy(open_clip_folder, tmp_path):
    """A copy of a tiny model that a test may damage."""

    def make(kind="clip"):
        return Path(shutil.copytree(open_clip_folder(kind), tmp_path / kind))

    return make


def test_a_model_without_weights_is_refused_and_never_random(copy):
    folder = copy()
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UniclError, match=r"local-dir:.*: has no weights"):
        load_model(f"local-dir:{folder}")


def test_damaged_or_foreign_weights_are_refused(copy):
    folder = copy()
    weights = folder / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UniclError, match="cannot be read as its weights"):
        load_model(f"local-dir:{folder}")
    tensors = load_file(shutil.copyfile(copy("custom") / weights.name, folder / "other.safetensors"))
    save_file({name: x for name, x in tensors.items() if "ln_final" not in name}, weights)
    with pytest.raises(UniclError, match=r"cannot be read as its weights: .*[Mm]issing key"):
        load_model(f"local-dir:{folder}")


class Trap:
    """Unpickled with trust, this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_read_as_tensors_or_not_at_all(copy, tmp_path):
    folder, trace = copy(), tmp_path / "ran"
    tensors = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    pickled = folder / "open_clip_pytorch_model.bin"
    torch.save(tensors, pickled)
    assert load_model(f"local-dir:{folder}").step.model.embed_dim == 24
    torch.save({**tensors, "trap": Trap(trace)}, pickled)
    with pytest.raises(UniclError, match="contains more than weights"):
        load_model(f"local-dir:{folder}")
    pickled.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(UniclError, match="contains more than weights"):
        load_model(f"local-dir:{folder}")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not a"),
        ("[]", "is not a"),
        ({"model_cfg": {"embed_dim": 8}}, "is not a"),
        (
            {"model_cfg": {"embed_dim": 8, "vision_cfg": {"layrs": 2}, "text_cfg": {}}},
            "open_clip cannot build it: .*layrs",
        ),
        (
            {"model_cfg": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "no_such_net"}, "text_cfg": {}}},
            "open_clip cannot build it: .*no_such_net",
        ),
    ],
)
def test_a_bad_configuration_is_one_line(copy, config, message):
    folder = copy()
    (folder / "open_clip_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UniclError, match=message):
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local-dir:nowhere", "local-dir:nowhere: no such folder"),
        ("local-dir:.", "open_clip_config.json"),
        ("local-dir:", "model local-dir:: unknown form"),
        ("open_clip:ViT-B-3", "open_clip has no 'ViT-B-3'; did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/openi", "no weights 'openi'; did you mean 'openai'"),
        ("ViT-B-32", "model ViT-B-32: no such run or checkpoint directory"),
    ],
)
def test_a_wrong_name_is_one_line(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UniclError, match=message):
        load_model(name)


def test_a_folder_without_its_form_names_the_form(open_clip_folder):
    folder = open_clip_folder("clip")
    with pytest.raises(UniclError) as error:
        load_model(str(folder))
    assert error.value.hint == f"write local-dir:{folder}"


def test_eval_probe_and_zeroshot_work_without_training(open_clip_folder, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["unicl"])
    monkeypatch.setenv("UNICL_MODEL", f"local-dir:{open_clip_folder('clip')}")
    assert main(["eval", "--json", "-q"]) == 2
    assert "names no corpus to evaluate on" in capsys.readouterr().err
    assert main(["eval", "--data", str(digits), "--template", "a photo of {}.", "--json", "-q"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["data"]
    assert (measured["n"], measured["classes"]) == (597, 10)
    assert main(["probe", "--data", str(digits), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 0.3
    sample_images()[1].save(tmp_path / "a.png")
    assert main(["zeroshot", str(tmp_path / "a.png"), "--classes", "cat,dog", "--json", "-q"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["prob"] == pytest.approx(max(each["prob"] for each in row["top"]))
    assert main(["zeroshot", str(tmp_path / "a.png"), "-q"]) == 2
    assert "has no classes of its own" in capsys.readouterr().err


def test_what_needs_transformers_says_so(open_clip_folder, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UniclError) as error:
        load_model(f"local-dir:{open_clip_folder('hf')}")
    assert error.value.hint == "run pip install transformers"
