"""The exported graphs beside the commands of `unicl`, fed by other people's libraries; and what is refused."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from torch import nn
from unicl_onnx import read_class_names
from unicl_onnx.export import build_graphs, check_exportable, export, move_into_place

from unicl_cli.api import Loaded, Step, UniclError, load_model
from unicl_cli.testing import FeatureTable, recipe_of, small_corpus, unicl

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


def framed(path: Path, size: int) -> np.ndarray:
    """By `preprocessing.json`: short side bicubic, centre crop."""
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    short = min(image.size)
    image = image.resize([int(size * side / short) for side in image.size], Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


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


def test_an_earlier_export_is_replaced_and_other_files_stay(tmp_path):
    part, out = tmp_path / "part", tmp_path / "out"
    for folder, names in ((part, ("image.onnx", "meta.json")), (out, ("classify.onnx", "meta.json", "mine.txt"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    move_into_place(part, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "image.onnx": "part",
        "meta.json": "part",
        "mine.txt": "out",
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
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    (root / "recipe.yaml").write_text(recipe_of(small_corpus(root / "corpus"), steps=3))
    unicl("train", root / "recipe.yaml", "--run-dir", root / "run", "-q")
    return root / "run"


@pytest.mark.slow
def test_graphs_at_any_size_give_what_the_commands_give(trained: Path, tmp_path: Path):
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
    size = json.loads((out / "preprocessing.json").read_text())["height"]
    images = drawn(tmp_path)
    pixels = np.stack([framed(path, size) for path in images])
    lines = unicl("zeroshot", *images, "--model", trained, "--classes", f"@{names}", "--top-k", 4, "--json")
    (logits,) = session(out / "classify.onnx").run(["logits"], {"pixels": pixels})
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, line in zip(shares, map(json.loads, lines.splitlines()), strict=True):
        told = {item["label"]: item["prob"] for item in line["top"]}
        assert [told[name] for name in CLASSES] == pytest.approx(list(row), abs=1e-4)
        assert CLASSES[int(row.argmax())] == line["label"]
    loaded = load_model(str(trained))
    library = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in ("one", "the digit two, thin and slanted to the left", "zero " * 60):
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
