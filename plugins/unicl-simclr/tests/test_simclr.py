"""NT-Xent against golden values, lightly's head and loss by hand; refusals; processes, resume, recipes."""

import json
import math
from pathlib import Path

import pytest
import torch
from forked_ranks import on_ranks
from torch.nn import functional as F
from unicl_simclr import build_simclr
from unicl_simclr.loss import build_head, nearest_of

from unicl_cli.api import NO_LABEL, NO_TEXT, Batch, Features, UniclError, supcon_loss
from unicl_cli.cli import main
from unicl_cli.testing import FeatureTable, batch_of, max_difference

RECIPE = """
data: {{train: [{{corpus: {corpus}}}], image_size: 16, views: 2, augment: [{{name: shift, noise: 0.1}}]}}
model: {{image: {{name: cnn, width: 8, stages: 2}}, text: null}}
loss: {{name: simclr, batch_norm: false}}
batch: {{size: 12}}
steps: 6
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0}}
log: {{every: 1}}
precision: fp32
"""


class Table(FeatureTable):
    """The features of the first and of the second views, one after the other: row i of a view is 2 i, or 2 i + 1."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__(2 * len(first), first.shape[1])
        self.image.data = torch.stack([first, second], 1).flatten(0, 1)


def golden(count: int, width: int, k: int) -> torch.Tensor:
    """Return unit rows that need no random generator."""
    i = torch.arange(count * width).view(count, width).double()
    return F.normalize(torch.sin(i * 0.7 * k + k) + 0.3 * torch.cos(i * i * 0.013 * k), dim=-1)


def views_of(count: int, labels: list[int] | None = None) -> Batch:
    return batch_of(labels or [NO_LABEL] * count, [NO_TEXT] * count, views=2)


def bare_loss(**options: object) -> torch.nn.Module:
    """The loss without a head."""
    return build_simclr(image_width=8, layers=0, **options).double()


@pytest.mark.parametrize("tile", ["auto", 1, 2, 5])
@pytest.mark.parametrize(("temperature", "value"), [(0.5, 2.736653434706906), (0.1, 7.545057614254575)])
def test_it_is_the_published_loss(tile: object, temperature: float, value: float) -> None:
    model, loss = Table(golden(6, 8, 1), golden(6, 8, 2)), bare_loss(temperature=temperature, tile=tile)
    for labels in (None, [0, 1, 0, 2, 2, 2]):
        assert loss(model, views_of(6, labels))["loss"].item() == pytest.approx(value, abs=1e-12), "labels are ignored"


def test_value_and_gradient_are_those_of_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    model, loss = Table(golden(6, 8, 1), golden(6, 8, 2)), bare_loss(temperature=0.5)
    mine = torch.autograd.grad(loss(model, views_of(6))["loss"], model.image)
    views = model.image.view(6, 2, 8)
    theirs = torch.autograd.grad(lightly.NTXentLoss(0.5)(views[:, 0], views[:, 1]), model.image)
    torch.testing.assert_close(mine, theirs)


def test_without_normalisation_products_are_compared() -> None:
    first, second = 1.5 * golden(4, 8, 1), 0.7 * golden(4, 8, 2)
    z = torch.stack([first, second], 1).flatten(0, 1)
    total = 0.0
    for i in range(8):
        logits = [float(z[i] @ z[k]) / 0.5 for k in range(8)]
        total += math.log(sum(math.exp(x) for k, x in enumerate(logits) if k != i)) - logits[i ^ 1]
    out = bare_loss(temperature=0.5, normalize=False)(Table(first, second), views_of(4))
    assert out["loss"].item() == pytest.approx(total / 8)
    assert out["z_norm"].item() == pytest.approx(1.1)
    unit = bare_loss(temperature=0.5)(Table(first, second), views_of(4))
    assert unit["z_norm"].item() == pytest.approx(1.1), "the norm is that before the normalisation"
    assert unit["loss"].item() != pytest.approx(total / 8, abs=1e-3)


def test_contrastive_accuracy_counts_views_whose_nearest_view_is_of_their_image() -> None:
    first = torch.eye(8, dtype=torch.float64)[:4]
    swapped = first[[0, 1, 3, 2]]  # the second views of images 2 and 3 are exchanged
    assert bare_loss()(Table(first, swapped), views_of(4))["contrastive_top1"] == 0.5
    assert bare_loss()(Table(first, first), views_of(4))["contrastive_top1"] == 1.0
    ids = torch.arange(600)
    z = F.normalize(torch.randn(600, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    dense = (z @ z.T).fill_diagonal_(-torch.inf).argmax(1)
    assert torch.equal(nearest_of(z, z, ids, ids), dense), "more rows than are held at once"


def test_three_views_are_supcons_loss_with_the_image_as_its_class() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    batch, model = views_of(4)._replace(images=images), FeatureTable(12, 8)
    z, ids = F.normalize(model.image, dim=1), torch.arange(12)
    expected = supcon_loss(z, ids // 3, ids, 0.2)["loss"]
    assert bare_loss(temperature=0.2)(model, batch)["loss"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_head_is_lightlys_without_a_last_bias(layers: int, batch_norm: bool) -> None:
    modules = pytest.importorskip("lightly.models.modules")
    ours = build_head(6, 4, layers, batch_norm=batch_norm)
    theirs = modules.SimCLRProjectionHead(6, 6, 4, num_layers=layers, batch_norm=batch_norm)
    mine = {name.removeprefix("layers."): x for name, x in ours.state_dict().items()}
    theirs.load_state_dict({f"layers.{name}": x for name, x in mine.items()}, strict=batch_norm)
    if not batch_norm:
        theirs.layers[-1].bias.data.zero_()
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x))
    learned = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert f"{len(ours) - 1}.bias" not in learned


@pytest.mark.parametrize("layers", [0, 1])
def test_a_head_may_be_linear_or_none(layers: int) -> None:
    x = torch.randn(10, 6)
    out = build_head(6, 4, layers, batch_norm=False)(x)
    assert torch.equal(out, x) if layers == 0 else out.shape == (10, 4)


class Unprojected(FeatureTable):
    """Has no features behind a projection."""

    def encode_image(self, images: torch.Tensor, /) -> Features:
        features = super().encode_image(images)
        return features._replace(embed=torch.full_like(features.embed, torch.nan))


def test_the_head_reads_features_before_the_projection() -> None:
    out = build_simclr(image_width=8).double()(Unprojected(12, 8), views_of(6))
    assert out["loss"].isfinite()


def test_one_view_or_one_image_is_refused() -> None:
    loss = bare_loss()
    with pytest.raises(UniclError, match=r"data\.views: loss simclr needs two views of each image, got 1"):
        loss(FeatureTable(6, 8), batch_of([NO_LABEL] * 6, [NO_TEXT] * 6))
    with pytest.raises(UniclError, match=r"batch\.size 1"):
        loss(FeatureTable(6, 8), views_of(1))


# -- through the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digits with labels, and the same images without."""
    folder = tmp_path_factory.mktemp("corpora")
    for kind in ("labels", "images", "captions"):
        words = ["prepare", f"--{kind}", "digits?limit=60", "-o", str(folder / kind), "--workers", "1", "-q"]
        assert main(words) == 0
    return {kind: folder / kind for kind in ("labels", "images", "captions")}


def trained(corpus: Path, folder: Path, *changes: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(RECIPE.format(corpus=corpus))
    place = ("--run-dir", str(folder / "run"), "--devices", "cpu:1", "-q")
    return main(["train", str(folder / "r.yaml"), *changes, *place])


def test_images_alone_are_enough_and_knn_and_probe_are_measured_on_labels(
    corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = f"eval=[{{corpus: {corpora['labels']}, every: 3, evaluators: [knn, probe]}}]"
    best = ("checkpoint.every=3", "checkpoint.best.metric=knn_top1")
    assert trained(corpora["images"], tmp_path, "loss.batch_norm=true", entry, *best) == 0
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(0.1 < line["knn_top1"] <= 1 and 0.1 < line["probe_top1"] <= 1 for line in lines)
    best_line = max(lines, key=lambda line: (line["knn_top1"], -line["step"]))
    assert (run / "checkpoints" / "best").read_text().strip() == f"step-{best_line['step']:08d}"
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(corpora["labels"]), "--evaluator", "knn", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)["data"]
    assert data["evaluators"]["knn"]["top1"] == lines[-1]["knn_top1"]
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"contrastive_top1", "z_norm"} <= metrics.keys()


def test_captions_are_ignored_and_one_view_ends_with_one_line(
    corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(corpora["captions"], tmp_path / "a", "steps=1") == 0
    capsys.readouterr()
    assert trained(corpora["labels"], tmp_path / "b", "data.views=1") == 2
    error = capsys.readouterr().err
    assert "error: data.views: loss simclr needs two views of each image, got 1" in error
    assert "Traceback" not in error
    assert not (tmp_path / "b" / "run" / "env.json").exists(), "nothing is written before the first step"


@pytest.mark.parametrize("change", ["loss.temperature=0", "loss.layers=4", "loss.dim=0", "loss.tile=0", "loss.norm=1"])
def test_a_wrong_option_is_one_problem(
    corpora: dict[str, Path], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert trained(corpora["labels"], tmp_path, change) == 2
    assert f"): {change.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits-simclr", "cifar10-resnet18-simclr", "imagenet-resnet50-simclr"])
def test_the_recipes_fit_the_schema(name: str) -> None:
    assert main(["recipes", "validate", name]) == 0


@pytest.mark.slow
def test_the_scale_of_the_paper_can_be_planned(
    corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (f"data.train=[{{corpus: {corpora['images']}}}]", f"eval.0.corpus={corpora['labels']}", "eval.0.split=test")
    capsys.readouterr()
    words = ["imagenet-resnet50-simclr", *data, "--dry-run", "--json", "--devices", "cpu:8"]
    assert main(["train", *words, "--run-dir", str(tmp_path / "run")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["batch"], facts["batch_per_process"], facts["processes"]) == (4096, 512, 8)
    assert facts["parameters_of"]["loss"] == 2048 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128


@pytest.mark.slow
def test_processes_train_what_one_trains(corpora: dict[str, Path], tmp_path: Path) -> None:
    assert trained(corpora["images"], tmp_path) == 0
    one = tmp_path / "run"
    rows = logged(one)
    for count in (2, 3):
        for strategy in ("ddp", "fsdp2"):
            other = tmp_path / f"{strategy}-{count}"
            options = (f"parallel.strategy={strategy}", "--run-dir", other, "-q")
            on_ranks(count, "train", tmp_path / "r.yaml", *options)
            assert max_difference(one, other) < 1e-4, other
            for key in ("loss", "contrastive_top1", "z_norm"):
                assert [row[key] for row in logged(other)] == pytest.approx([row[key] for row in rows], abs=1e-4), key


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_is_killed_continues_bit_for_bit(corpora: dict[str, Path], tmp_path: Path) -> None:
    """With BatchNorm in the head, whose statistics are in the checkpoint, and AdamW."""
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus=corpora["images"]))
    changes = ("checkpoint.every=2", "loss.batch_norm=true", "optim={name: adamw, lr: 1e-3}")
    command = ("train", tmp_path / "r.yaml", *changes, "-q", "--run-dir")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    on_ranks(1, *command, whole)
    with pytest.raises(RuntimeError, match=r"exit (code )?9"):
        on_ranks(1, *command, cut, UNICL_TEST_CRASH="before_latest:step-00000004")
    assert (cut / "checkpoints" / "latest").read_text().strip() == "step-00000002"
    on_ranks(1, *command, cut)
    assert max_difference(whole, cut) == 0
