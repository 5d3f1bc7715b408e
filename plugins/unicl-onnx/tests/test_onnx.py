"""The exported graphs beside the commands of `unicl`, fed by other people's libraries; and what is refused."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from tokenizers import Tokenizer
from torch import nn
from unicl_onnx import read_class_names
from unicl_onnx.export import (
    build_graphs,
    check_exportable,
    check_folder,
    describe_group,
    export,
    move_into_place,
    place_in_groups,
    preprocessing,
    text_reading,
)

from unicl_cli.api import ClassName, Loaded, Step, UniclError, load_model
from unicl_cli.cli import main
from unicl_cli.data.tokenizers import corpus_tokenizer
from unicl_cli.data.transforms import EvalTransform
from unicl_cli.testing import FeatureTable, recipe_of

CLASSES = ("zero", "one", "two, thin", "seven")


class Pairs(nn.Module):
    score, activation = "pair", "sigmoid"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def drawn(folder: Path) -> list[Path]:
    """Images of odd sizes."""
    paths: list[Path] = []
    for n, size in enumerate([(40, 32), (33, 70), (32, 32)]):
        image = Image.new("RGB", size, (200, 40 * n, 10))
        ImageDraw.Draw(image).ellipse((4, 6, 20, 25), outline="white", width=3)
        paths.append(folder / f"{n}.png")
        image.save(paths[-1])
    return paths


def to_eight_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)) if image.mode == "I;16" else image


def on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    values = np.asarray(image.convert("RGBA")).astype(float)
    alpha = values[:, :, 3:] / 255
    return Image.fromarray((alpha * values[:, :, :3] + (1 - alpha) * 255).round().astype(np.uint8))


def resized(image: Image.Image, size: str) -> Image.Image:
    sides = [int(size) * side // min(image.size) for side in image.size]
    return image.resize(sides, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, height: str, width: str) -> Image.Image:
    left, top = round((image.width - int(width)) / 2), round((image.height - int(height)) / 2)
    return image.crop((left, top, left + int(width), top + int(height)))


RULES: list[tuple[str, Callable[..., Image.Image]]] = [
    (r"decode the first frame|halve both sides of .* more than|keep 8 bits", lambda image: image),
    (r"apply the EXIF orientation", ImageOps.exif_transpose),
    (r"divide values of 16 bits by 256", to_eight_bits),
    (r"put transparency on white", on_white),
    (r"convert to RGB", lambda image: image.convert("RGB")),
    (r"resize the short side to (\d+) and the long .* rounded down, bicubic", resized),
    (r"crop the centre to height (\d+) and width (\d+):", cropped),
]


def by_the_words(data: bytes, steps: list[str]) -> np.ndarray:
    """Follow the steps of `preprocessing.json` in their order, knowing nothing of unicl."""
    image = Image.open(io.BytesIO(data))
    for step in steps:
        (found,) = [(match, act) for rule, act in RULES if (match := re.match(rule, step))]
        image = found[1](image, *found[0].groups())
    return np.asarray(image).transpose(2, 0, 1)


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(out, kind, exif=exif)
    return out.getvalue()


def odd_images() -> dict[str, bytes]:
    """Kinds of images that are easily read in another way."""
    x, y = np.meshgrid(np.linspace(0, 255, 50), np.linspace(0, 255, 37))
    rgb = np.stack([x, y, 255 - x], 2).astype(np.uint8)
    clear = Image.fromarray(np.dstack([rgb, (x + y) // 2 % 256]).astype(np.uint8), "RGBA")
    grey = Image.fromarray(rgb).convert("L")
    faint = grey.copy().convert("LA")
    faint.putalpha(grey)
    palette = Image.fromarray(rgb).quantize(16)
    palette.info["transparency"] = 3
    return {
        "alpha": encoded(clear, "PNG"),
        "grey with alpha": encoded(faint, "PNG"),
        "palette with a clear colour": encoded(palette, "PNG"),
        "16 bits": encoded(Image.fromarray((x * 257).astype(np.uint16)), "PNG"),
        "turned": encoded(Image.fromarray(rgb), "JPEG", 6),
        "grey": encoded(grey, "PNG"),
        "tall": encoded(Image.fromarray(rgb).resize((21, 60)), "PNG"),
    }


@pytest.mark.parametrize("name", odd_images())
def test_a_reader_of_preprocessing_gets_the_models_pixels(name: str):
    transform = EvalTransform((16, 16))
    loaded = Loaded("m", Step(FeatureTable(2, 3), nn.Identity()), None, transform, (), (), ())
    facts = json.loads(json.dumps(preprocessing(loaded)))
    assert (facts["height"], facts["width"], facts["transparency"]) == (16, 16, "white")
    data = odd_images()[name]
    read, own = by_the_words(data, facts["steps"]).astype(int), transform(data).numpy().astype(int)
    assert abs(read - own).max() <= 1


def test_the_steps_of_a_text_name_its_special_tokens():
    told = text_reading(corpus_tokenizer(["a cat", "a dog"] * 3, 16), is_saved=True)
    assert told is not None
    assert told["special_tokens"] == {"<pad>": 0, "<start_of_text>": 1, "<end_of_text>": 2}
    assert (told["eot_id"], told["pad_id"], told["encode_special_tokens"]) == (2, 0, True)
    assert any("encode_special_tokens = True" in step for step in told["steps"])


@pytest.mark.parametrize(
    ("text", "names"),
    [(None, ()), ("cat,dog", ("cat", "dog")), (" cat , two words ,", ("cat", "two words")), ('["a", "b"]', ("a", "b"))],
)
def test_classes_are_read_from_the_command_line(text, names):
    assert read_class_names(text) == names


def test_classes_are_read_from_a_file_and_bad_ones_are_one_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\ufeffcat, the animal\n\ndog\n", encoding="utf-8")
    assert read_class_names(f"@{file}") == ("cat, the animal", "dog")
    for text, reason in (
        ("a,b,a", "duplicate class 'a'"),
        (",", "names no class"),
        ("@none.txt", "no such file"),
        ('{"cat": ["a cat"]}', "has other names or prompts"),
    ):
        with pytest.raises(UniclError, match=reason):
            read_class_names(text)


def test_what_cannot_be_exported_and_a_folder_of_others_are_refused(tmp_path):
    loaded = Loaded("m", Step(FeatureTable(2, 3), Pairs()), None, None, (), ("a photo",), ())  # pyright: ignore
    with pytest.raises(UniclError, match="m scores pairs"):
        check_exportable(loaded, tmp_path / "out", ())
    alone = loaded._replace(step=Step(FeatureTable(2, 3), nn.Identity()))
    with pytest.raises(UniclError, match="m does not classify by texts"):
        check_exportable(alone, tmp_path / "out", ("a",))
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UniclError, match="contains files that are not an export"):
        check_exportable(alone, tmp_path, ())


@pytest.mark.parametrize("meta", ['{"schema": "unicl/model/1"}', "[]", "no JSON", "[" * 100_000])
def test_a_run_or_another_programs_folder_is_not_an_export(tmp_path, meta):
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(UniclError, match="contains files that are not an export"):
        check_folder(tmp_path)
    check_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to("missing")
    with pytest.raises(UniclError, match="contains files that are not an export"):
        check_folder(tmp_path / "link")


def test_an_earlier_export_is_replaced_and_other_files_stay(tmp_path):
    part, out = tmp_path / "part", tmp_path / "out"
    for folder, names in ((part, ("image.onnx", "meta.json")), (out, ("classify.onnx", "meta.json", "mine.onnx"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    move_into_place(part, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "image.onnx": "part",
        "meta.json": "part",
        "mine.onnx": "out",
    }


def test_help_loads_neither_torch_nor_onnx():
    code = (
        "import sys; from unicl_cli.cli import main; main(['onnx', '--help']); "
        "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Export a model's towers to ONNX" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    root = tmp_path_factory.mktemp("trained")
    (root / "recipe.yaml").write_text(recipe_of(digits, steps=3))
    assert main(["train", str(root / "recipe.yaml"), "--run-dir", str(root / "run"), "-q"]) == 0
    return root / "run"


@pytest.mark.slow
def test_graphs_at_any_size_give_what_the_commands_give(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def unicl(*words: object) -> str:
        capsys.readouterr()
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().out

    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    out = tmp_path / "out"
    facts = json.loads(unicl("onnx", trained, "-o", out, "--classes", f"@{names}", "--json"))
    assert facts == json.loads((out / "meta.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == [
        *("classify.onnx", "image.onnx", "meta.json", "preprocessing.json", "text.onnx", "tokenizer.json")
    ]
    for name in facts["graphs"]:
        onnx.checker.check_model(str(out / name))
        assert facts["graphs"][name]["max_difference"] < 1e-4
    steps = json.loads((out / "preprocessing.json").read_text())
    size = steps["height"]
    images = drawn(tmp_path)
    pixels = np.stack([by_the_words(path.read_bytes(), steps["steps"]) for path in images])
    lines = unicl("zeroshot", *images, "--model", trained, "--classes", f"@{names}", "--top-k", 4, "--json")
    (logits,) = session(out / "classify.onnx").run(["logits"], {"pixels": pixels})
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, line in zip(shares, map(json.loads, lines.splitlines()), strict=True):
        told = {item["label"]: item["prob"] for item in line["top"]}
        assert [told[name] for name in CLASSES] == pytest.approx(list(row), abs=1e-4)
        assert CLASSES[int(row.argmax())] == line["label"]
    loaded = load_model(str(trained))
    library = Tokenizer.from_file(str(out / "tokenizer.json"))
    library.encode_special_tokens = facts["tokenizer"]["encode_special_tokens"]
    for text in ("one", "the digit two, thin and slanted to the left", "zero " * 60, "an <end_of_text> in words"):
        library.enable_truncation(facts["tokenizer"]["context_length"])
        ids = np.array([library.encode(text).ids])
        (ours,) = session(out / "text.onnx").run(["text_embeds"], {"tokens": ids})
        theirs = loaded.step.call("encode_text", loaded.tokenizer([text])).embed
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
    for count in (1, 2, 9):
        noise = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        (ours,) = session(out / "image.onnx").run(["image_embeds"], {"pixels": noise.numpy()})
        np.testing.assert_allclose(ours, loaded.step.call("encode_image", noise).embed.detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_graph_that_differs_is_not_written(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = load_model(str(trained))
    image = build_graphs(loaded, ())["image.onnx"]._replace(tolerance=-1.0)
    monkeypatch.setattr("unicl_onnx.export.build_graphs", lambda loaded, classes: {"image.onnx": image})
    with pytest.raises(UniclError, match=r"image\.onnx differs from the model by .*, more than -1\.0e\+00") as caught:
        export(loaded, tmp_path / "out", (), opset=18)
    assert caught.value.exit_code == 1
    assert not any(tmp_path.iterdir())


def test_groups_and_parents_of_classes_are_kept():
    model = SimpleNamespace(
        classes=(
            ClassName("n1", ("fox",), "species", "n0"),
            ClassName("n0", ("canid",), "family"),
            ClassName("r", ("red",)),
        )
    )
    fox = {"key": "n1", "group": "species", "parent": "n0"}
    assert place_in_groups(model, ("fox", "owl")) == [fox, {"key": None, "group": None, "parent": None}]
    assert describe_group(model.classes[2]) == {"key": "r", "group": None, "parent": None}
    twice = SimpleNamespace(classes=(model.classes[0], ClassName("x", ("fox",), "toys")))
    assert place_in_groups(twice, ("fox",)) == [{"key": None, "group": None, "parent": None}]
