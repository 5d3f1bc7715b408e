"""ViLBERT through the commands: training, metrics, fine-tuning, attention maps, bad input; processes and resume."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from forked_ranks import on_ranks
from PIL import Image
from unicl_regions import build_rcnn, build_regions
from unicl_regions.boxes import grid_boxes

from unicl_cli.api import UniclError, load_model, read_tensors
from unicl_cli.cli import main
from unicl_cli.testing import max_difference

SGD = ("optim={name: sgd, lr: 0.1}", "schedule={name: constant, warmup: 0}")


def train(recipe: str, run: Path, *changes: str) -> Path:
    assert main(["train", recipe, *changes, "--run-dir", str(run), "--devices", "cpu:1", "-q"]) == 0
    return run


@pytest.fixture(scope="session")
def run(made: Path, small: dict[str, tuple[str, ...]]) -> Path:
    return train("vilbert-shapes", made / "run", *small["scenes"])


def figures(run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(corpus), "--evaluator", "loss", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["data"][0]["evaluators"]["loss"]


def test_a_run_has_figures_of_held_out_rows_and_loads_without_the_run_that_sees(
    run: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"words", "regions", "align", "words_acc", "regions_acc", "align_acc"} <= lines[0].keys()
    found = figures(run, made / "scenes", capsys)
    assert found["n"] == 8
    assert {"words", "regions", "align"} <= found.keys()
    assert "text_to_image_r1_of_32" not in found, "there are fewer than 32 rows"
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    resolved = moved / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(str(made / "seer"), "gone"))
    assert figures(moved, made / "scenes", capsys) == found


def test_fine_tuning_starts_from_pretraining_and_finds_regions_and_answers(
    run: Path, made: Path, small: dict[str, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
):
    refer = train("vilbert-refer", made / "refer-run", *small["refer"], f"model.init={run}", "steps=1", "optim.lr=1e-9")
    before, after = read_tensors(run / "model.safetensors"), read_tensors(refer / "model.safetensors")
    near = {k: torch.allclose(v, after[k], atol=1e-6) for k, v in before.items() if k.startswith("model.")}
    assert all(near.values())
    found = figures(refer, made / "refer", capsys)
    assert found["recall_of_regions"] == 1
    assert 0 <= found["acc@0.5"] <= 1
    answer = train(
        "vilbert-answer", made / "answer-run", *small["question"], f"model.init={run}", "loss.model_width=16"
    )
    assert figures(answer, made / "question", capsys).keys() == {"n", "answers"}


def test_an_attention_map_is_drawn_for_each_token(run: Path, made: Path, tmp_path: Path, capsys):
    image, boxes, out = tmp_path / "i.png", tmp_path / "b.json", tmp_path / "maps.png"
    Image.new("RGB", (64, 64), "red").save(image)
    boxes.write_text('{"width": 64, "height": 64, "boxes": [[0, 0, 32, 32], [32, 32, 64, 64]]}')
    words = ("vilbert", "maps", str(image), "red star", "--model", str(run), "-o", str(out))
    assert main([*words, "--boxes", str(boxes)]) == 0
    assert Image.open(out).width > 300
    assert main([*words]) == 2
    assert "needs boxes" in capsys.readouterr().err
    assert main([*words, "--boxes", str(boxes), "--block", "7"]) == 2
    assert "has 2 blocks" in capsys.readouterr().err
    boxes.write_text(json.dumps({"width": 64, "height": 64, "boxes": [[0, 0, 9, 9]] * 5}))
    assert main([*words, "--boxes", str(boxes)]) == 2
    assert "5 boxes, more than" in capsys.readouterr().err


def test_grid_regions_are_cells_of_the_tower_with_the_classes_of_what_they_show(made: Path):
    regions = build_regions(model=str(made / "seer"), image_size=32, moves_pixels=True, stored=None)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = regions.find(images, {})
    seer = load_model(str(made / "seer"))
    torch.testing.assert_close(found.features, seer.step.model.image_tokens(images).detach())
    assert found.boxes[0, 5].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5, 1 / 16])
    classes = regions.distributions(images, found)
    assert classes.shape == (2, 16, 48)
    torch.testing.assert_close(classes.sum(-1), torch.ones(2, 16))
    whole = found._replace(boxes=torch.tensor([[[0, 0, 1, 1, 1.0]]] * 2))
    own = torch.nn.functional.normalize(seer.step.model.encode_image(images).embed, dim=1)
    expected = (seer.step.model.scale() * own @ regions.frozen[0].prompts.T).softmax(1)
    torch.testing.assert_close(regions.distributions(images, whole)[:, 0], expected.detach(), atol=1e-4, rtol=1e-3)
    assert grid_boxes(50).shape == (1, 49, 5), "a class token is not a cell"
    with pytest.raises(UniclError, match="not a square grid"):
        grid_boxes(51)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.augment=basic",), "moves pixels, but no boxes"),
        (("model.regions.model=nowhere",), "nowhere: not a finished run"),
        (("model.regions.boxes=grid",), "sees 32 px, this recipe 64"),
        (("model.blocks=3",), "3 blocks need as many text layers"),
        (("model.text={name: cbow, width: 8}",), "model.text=cbow does not fit"),
        (("model.regions={name: vilbert-rcnn}",), "Faster R-CNN has no weights"),
        (("batch.size=3",), "a process has 3 rows"),
        (("model.heads=3",), "not a multiple of heads 3"),
        (("loss=unicl",), "vilbert: has no image feature of its own"),
    ],
)
def test_a_recipe_that_cannot_work_is_one_line(
    changes: tuple[str, ...], words: str, small: dict[str, tuple[str, ...]], tmp_path: Path, capsys
):
    assert main(["train", "vilbert-shapes", *small["scenes"], *changes, "--run-dir", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err


CORPUS = "data.train=[{{corpus: {}}}]"


@pytest.mark.parametrize(
    ("recipe", "corpus", "words"),
    [
        ("vilbert-shapes", "shapes", "boxes: no row has any"),
        ("vilbert-refer", "scenes", "targets: no row names one of its boxes"),
        ("vilbert-answer", "scenes", "vilbert-answer learns from labels, and no corpus of the mix has classes"),
    ],
)
def test_a_corpus_without_what_the_loss_learns_from_is_refused_before_the_first_step(
    recipe: str, corpus: str, words: str, made: Path, small: dict[str, tuple[str, ...]], tmp_path: Path, capsys
):
    changes = (*small["scenes"], CORPUS.format(made / corpus), "model.init=null")
    for more in (("--dry-run",), ("--run-dir", str(tmp_path / "run"))):
        capsys.readouterr()
        assert main(["train", recipe, *changes, *more, "-q"]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.safetensors"))


def test_rows_without_boxes_are_told_before_the_first_step_and_stop_no_batch(
    made: Path, small: dict[str, tuple[str, ...]], tmp_path: Path, capsys
):
    both = f"data.train=[{{corpus: {made / 'scenes'}}}, {{corpus: {made / 'shapes'}}}]"
    words = ["train", "vilbert-shapes", *small["scenes"], both, "data.mix.by=step"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    assert "warning: 96 of 144 rows have no boxes: the model sees nothing of their images" in capsys.readouterr().err


def test_figures_of_a_split_without_boxes_are_refused(run: Path, made: Path, capsys):
    assert main(["eval", str(run), "--data", str(made / "shapes"), "--evaluator", "loss"]) == 2
    assert "boxes: no row has any" in capsys.readouterr().err


def test_a_dry_run_estimates_the_memory_of_a_joint_model(small: dict[str, tuple[str, ...]], capsys):
    assert main(["train", "vilbert-shapes", *small["scenes"], "batch.size=4", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters_of"]["text"] > 1000
    assert found["flops_of_one"]["pair"] > 1e5, "an image and a text are read together"
    assert found["memory"]["activations"] > 1e5


@pytest.mark.slow
def test_a_dry_run_knows_the_papers_sizes(made: Path, capsys):
    paper = ("vilbert-cc3m", f"data.train=[{{corpus: {made / 'scenes'}}}]", "model.text={name: bert}", "batch.size=2")
    assert main(["train", *paper, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["parameters_of"]
    assert found["text"] == pytest.approx(86e6, rel=0.02), "BERT-base but for its large vocabulary"
    assert found["co_layers"] + found["region_layers"] > 60e6
    assert document["memory"]["activations"] > 1e6


@pytest.mark.slow
def test_a_faster_rcnn_of_random_weights_gives_padded_regions(tmp_path: Path):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    net = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    regions = build_rcnn(weights=str(tmp_path / "w.pt"), classes=3, most=5, stored=None)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    found = regions.find(images, {})
    assert found.features.shape == (1, 5, 1024)
    assert not found.features[~found.there].any()
    assert (found.boxes[..., 2:4] <= 1).all()
    torch.testing.assert_close(regions.distributions(images, found).sum(-1), torch.ones(1, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name"), [("vilbert-shapes", "scenes"), ("vilbert-refer", "refer"), ("vilbert-answer", "question")]
)
def test_two_and_three_processes_train_the_weights_of_one(
    recipe: str, name: str, small: dict[str, tuple[str, ...]], tmp_path: Path
):
    start = {"scenes": (), "refer": ("model.init=null",), "question": ("model.init=null", "loss.model_width=16")}
    changes = (*small[name], *SGD, *start[name], "steps=2")
    one = train(recipe, tmp_path / "one", *changes)
    for count, strategy in itertools.product((2, 3), ("ddp", "fsdp2")):
        other = tmp_path / f"{strategy}-{count}"
        on_ranks(count, "train", recipe, *changes, f"parallel.strategy={strategy}", "--run-dir", other, "-q")
        assert max_difference(one, other) < 1e-4, other


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(small: dict[str, tuple[str, ...]], tmp_path: Path):
    changes = (*small["scenes"], "checkpoint.every=2", "checkpoint.keep=9")
    train("vilbert-shapes", tmp_path / "whole", *changes)
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for name in ("model.safetensors", "meta.json", "status.json"):
        (cut / name).unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    (cut / "checkpoints" / "latest").write_text("step-00000002\n")
    train("vilbert-shapes", cut, *changes)
    assert max_difference(tmp_path / "whole", cut) == 0
