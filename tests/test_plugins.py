"""Four systems of odd shape through the public interface alone; as a script it is one of the processes."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import complete
from unicl_odd.joint import Align
from unicl_odd.many import draw_profiles
from unicl_odd.masked import NOTHING, mask_words

from unicl_cli import api
from unicl_cli.cli import run
from unicl_cli.core import checkpoint
from unicl_cli.data.collate import Extra
from unicl_cli.data.corpus import open_corpus
from unicl_cli.data.transforms import eval_transform
from unicl_cli.jobs.train.train import TrainRequest, train_stage
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.stopping import StopFlag
from unicl_cli.recipe.load import load_text

CNN = "{name: cnn, width: 8, stages: 2}"
WORDS = "{name: transformer, width: 16, layers: 1, heads: 2}"
LOGIT_SCALE = "logit_scale: {init: 5.0}"
TWO_TOWER = f"{{image: {CNN}, text: {WORDS}, embed_dim: 16, {LOGIT_SCALE}}}"
MANY = f"{{name: odd-many, image: {CNN}, text: {WORDS}, others: {{profile: odd-profile}}, {LOGIT_SCALE}}}"
JOINT = f"{{name: odd-joint, image: {CNN}, text: {WORDS}}}"
SYSTEMS = {
    "views": (f"{{image: {CNN}, text: null, embed_dim: 16}}", "odd-views"),
    "many": (MANY, "odd-bind"),
    "masked": (TWO_TOWER, "odd-masked"),
    "joint": (JOINT, "odd-align"),
}
SHARDED = ("many", "joint")
RECIPE = """
name: {name}
data: {{train: [{{corpus: {corpus}}}], image_size: 32, augment: {{name: shift, shift: 4, noise: 0.15}}, views: {views}}}
model: {model}
loss: {loss}
batch: {{size: 12}}
steps: 6
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0}}
log: {{every: 1}}
precision: fp32
{more}
"""


def recipe_of(system: str, corpus: Path, more: str = "") -> str:
    model, loss = SYSTEMS[system]
    views = 2 if system == "views" else 1
    return RECIPE.format(name=system, corpus=corpus, model=model, loss=loss, views=views, more=more)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Training answers signals in its own way; this process goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("odd") / "corpus"
    sources = ["--labels", "digits?classes=0-6&limit=60", "--captions", "digits?limit=60"]
    assert run(["prepare", *sources, "-o", str(out), "--workers", "1", "-q"]) == 0
    return out


Train = Callable[..., Path]


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``trained("views")``: the run of `unicl train`, made once."""
    root = tmp_path_factory.mktemp("runs")
    runs: dict[tuple[str, ...], Path] = {}

    def once(system: str, *overrides: str, more: str = "") -> Path:
        key = (system, more, *overrides)
        if key not in runs:
            recipe = root / f"{system}-{len(runs)}.yaml"
            recipe.write_text(recipe_of(system, corpus, more))
            out = root / f"run-{len(runs)}"
            assert run(["train", str(recipe), *overrides, "--run-dir", str(out), "-q"]) == 0
            runs[key] = out
        return runs[key]

    return once


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(folder / "model.safetensors")


def max_difference(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# -- each of the four learns, by the command ---------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_of_odd_shape_trains_by_the_command(system: str, trained: Train, corpus: Path):
    folder = trained(system)
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    trained_names = {name.split(".")[0] for name in weights(folder)}
    assert trained_names == ({"model"} if system in ("many", "joint") else {"model", "loss"})


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_of_odd_shape_learns_its_twelve_rows(system: str, trained: Train):
    length = ("steps=100", "optim.lr=0.003") if system == "joint" else ("steps=40", "optim.lr=0.01")
    lines = metrics(trained(system, "data.train.0.limit=6", "optim.name=adamw", "data.augment=none", *length))
    first, last = (sum(line["loss"] for line in part) for part in (lines[:10], lines[-10:]))
    assert last < 0.8 * first


def test_micro_batches_of_a_plugin_model_change_no_weight(trained: Train):
    assert max_difference(trained("many"), trained("many", "batch.micro=5")) < 1e-5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_with_loader_processes(trained: Train):
    for system in ("many", "masked"):  # both have hooks
        assert max_difference(trained(system), trained(system, "data.workers=1")) == 0


# -- what is special about each ----------------------------------------------------------------------------------


def drawn(count: int, **changes: Any) -> list[api.Drawn]:
    image = torch.arange(3 * 4 * 4).view(3, 4, 4).to(torch.uint8)
    one = api.Drawn(row=0, draw=0, seed=1, image=image, label=0, text="a", text_hash=0, media={})
    return [one._replace(draw=n, **changes) for n in range(count)]


def test_a_missing_modality_is_zeros_whatever_stands_beside_it():
    every = draw_profiles(drawn(40), torch.zeros(1, 1), torch.zeros(40), names=["p"], missing=0.5)
    assert every["p"].shape == (40, 4)
    assert every["has_p"].dtype is torch.bool
    assert 5 < int(every["has_p"].sum()) < 35
    assert not every["p"][~every["has_p"]].any()
    later = draw_profiles(drawn(40)[17:], torch.zeros(1, 1), torch.zeros(23), names=["p"], missing=0.5)
    assert torch.equal(every["p"][17:], later["p"]), "a function of (seed, draw)"


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_a_modality_that_no_row_has_still_takes_part(missing: float, trained: Train):
    folder = trained("many", f"model.missing={missing}")
    assert any(line["loss_profile"] > 0 for line in metrics(folder)) == (missing == 0)
    step = api.load_model(str(folder)).step
    assert all(parameter.requires_grad for parameter in step.model.towers["profile"].parameters())
    before, after = weights(trained("many", "model.missing=1.0")), weights(trained("many", "model.missing=0.0"))
    moved = (before["model.scales.profile"] - after["model.scales.profile"]).abs()
    assert float(moved) > 0


@pytest.fixture(scope="session")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose rows have a second modality, two in three."""
    out = tmp_path_factory.mktemp("striped") / "corpus"
    sources = ["--labels", "odd-stripes?rows=24&profile=true", "--captions", "odd-stripes?profile=true"]
    assert run(["prepare", *sources, "-o", str(out), "--workers", "1", "-q"]) == 0
    return out


def test_media_of_a_corpus_train_by_the_command(trained: Train, striped: Path):
    stored = trained("many", f"data.train.0.corpus={striped}", "model.missing=null")
    lines = metrics(stored)
    assert all(line["loss_profile"] > 0 and math.isfinite(line["loss"]) for line in lines)
    plain = trained("many", f"data.train.0.corpus={striped}", "model.missing=1.0")
    moved = weights(stored)["model.scales.profile"] - weights(plain)["model.scales.profile"]
    assert float(moved.abs()) > 0


@pytest.mark.slow
def test_media_are_the_same_with_loader_processes(trained: Train, striped: Path):
    of = ("many", f"data.train.0.corpus={striped}", "model.missing=null")
    assert max_difference(trained(*of), trained(*of, "data.workers=2")) == 0


def test_a_masked_word_is_hidden_and_wanted():
    tokens = torch.tensor([[1, 7, 8, 2, 0], [1, 5, 2, 0, 0]])
    index = torch.tensor([0, 1, 0, api.NO_TEXT])
    extra = mask_words(drawn(4), tokens, index, pad_id=0, chance=1.0)
    for row, (masked, target) in enumerate(zip(extra["masked_tokens"], extra["word_target"], strict=True)):
        if index[row] == api.NO_TEXT:
            assert target == NOTHING
            continue
        (place,) = (masked != tokens[index[row]]).nonzero().flatten().tolist()
        assert tokens[index[row], place] == target
        assert masked[place] == 0
    nothing = mask_words(drawn(4), tokens, index, pad_id=0, chance=0.0)["word_target"]
    assert (nothing == NOTHING).all()


def test_a_loss_without_anything_masked_goes_on(trained: Train):
    lines = metrics(trained("masked", "loss.chance=0.0"))
    assert [line["loss_words"] for line in lines] == [0.0] * 6
    assert all(line["masked"] == 0 for line in lines)
    assert metrics(trained("masked"))[0]["masked"] > 0


def test_a_pair_score_knows_no_padding_and_no_neighbours(trained: Train):
    loaded = api.load_model(str(trained("joint")))
    assert loaded.tokenizer is not None
    texts = ["a thin upright two, narrow", "zero"]
    images = torch.randint(0, 255, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        both = Align().pair_scores(loaded.step.model, images, loaded.tokenizer(texts))
        alone = Align().pair_scores(loaded.step.model, images[1:2], loaded.tokenizer(texts[1:]))
    assert both.shape == (3, 2)
    torch.testing.assert_close(both[1:2, 1:], alone)


def test_a_frozen_tower_of_a_plugin_model_stays_as_it_is(trained: Train):
    frozen = trained("many", "model.text.freeze=true", "model.others.profile.freeze=true")
    free, now = weights(trained("many")), weights(frozen)
    assert all(name in now for name in free)
    model = api.load_model(str(frozen)).step.train().model
    assert not model.towers["text"].training
    assert not model.towers["profile"].training
    assert model.towers["image"].training
    start = weights(trained("many", "model.text.freeze=true", "model.others.profile.freeze=true", "steps=1"))
    for name, value in now.items():
        kept = name.startswith(("model.towers.text.", "model.towers.profile."))
        assert torch.equal(value, start[name]) == kept, name


def test_a_text_tower_brings_its_own_tokenizer(trained: Train, capsys: pytest.CaptureFixture[str]):
    folder = trained("masked", "loss=unicl", "model.text={name: odd-letters, length: 30}")
    assert not (folder / "tokenizer.json").exists()
    loaded = api.load_model(str(folder))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer(["ab", "c"]).tolist() == [[98, 99], [100, 0]]
    assert loaded.tokenizer.context_length == 30
    found = evaluated(folder, capsys)
    assert found["n"] > 500
    assert "retrieval" in found


def test_hooks_of_model_and_loss_fill_one_batch(trained: Train):
    many = api.load_model(str(trained("many"))).step.model
    masked = api.load_model(str(trained("masked"))).step.loss
    hooks = Extra([many.extra, masked.extra])
    tokens, index = torch.tensor([[1, 7, 8, 2]]), torch.zeros(5, dtype=torch.int64)
    extra = hooks(drawn(5), tokens, index)
    assert sorted(extra) == ["has_profile", "masked_tokens", "profile", "word_target"]
    assert all(len(field) == 5 for field in extra.values())


# -- after training ----------------------------------------------------------------------------------------------


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["eval", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["data"][0]


def test_eval_takes_the_score_of_a_pair(trained: Train, capsys: pytest.CaptureFixture[str]):
    folder = trained("joint")
    found = evaluated(folder, capsys)
    loaded = api.load_model(str(folder))
    names = [item.names[0] for item in loaded.classes]
    assert loaded.tokenizer is not None
    tokens = loaded.tokenizer([loaded.templates[0].replace("{}", name) for name in names])
    table = open_corpus(loaded.corpora[0]).table("test", "labels")
    samples = [table.read(row) for row in range(len(table))]
    with torch.no_grad():
        scores = torch.cat([
            loaded.step.loss.pair_scores(loaded.step.model, eval_transform(one.image, 32)[None], tokens)
            for one in samples
        ])  # fmt: skip
    hits = scores.argmax(1) == torch.tensor([one.label for one in samples])
    assert found["n"] == len(samples)
    assert found["top1"] == pytest.approx(float(hits.float().mean()), abs=2 / len(samples))
    assert "retrieval" not in found


def test_eval_takes_the_score_of_texts_from_a_plugin_model(trained: Train, capsys: pytest.CaptureFixture[str]):
    found = evaluated(trained("many"), capsys)
    assert found["n"] > 500
    assert 0 <= found["top1"] <= 1


def test_eval_refuses_a_loss_that_scores_nothing(trained: Train):
    with pytest.raises(api.UniclError, match="zeroshot needs a model whose loss scores classes"):
        run(["eval", str(trained("views"))])


def test_a_pair_score_is_validated_during_training(trained: Train, corpus: Path):
    folder = trained("joint", more=f"eval: [{{corpus: {corpus}, every: 3, limit: 20}}]")
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert max_difference(folder, trained("joint")) == 0, "validation changes no weight"


def test_dry_run_knows_a_plugin_model(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for system in SYSTEMS:
        recipe = tmp_path / f"{system}.yaml"
        recipe.write_text(recipe_of(system, corpus))
        capsys.readouterr()
        assert run(["train", str(recipe), "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parameters"] > 1000


# -- the other two groups ----------------------------------------------------------------------------------------


def test_a_data_set_of_a_plugin_is_prepared_and_trained_on(tmp_path: Path):
    out = tmp_path / "stripes"
    sources = ["--labels", "odd-stripes?rows=24", "--captions", "odd-stripes"]
    assert run(["prepare", *sources, "-o", str(out), "--workers", "1"]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_of("masked", out))
    assert run(["train", str(recipe), "--run-dir", str(tmp_path / "run"), "-q", "steps=2"]) == 0
    assert [item.names[0] for item in api.load_model(str(tmp_path / "run")).classes] == ["horizontal", "vertical"]


def test_a_command_of_a_plugin_runs_and_fails_like_a_built_in(trained: Train, capsys: pytest.CaptureFixture[str]):
    folder = trained("views")
    capsys.readouterr()
    assert run(["odd-size", str(folder)]) == 0
    assert int(capsys.readouterr().out) == sum(value.numel() for value in weights(folder).values())
    with pytest.raises(api.UniclError, match="fewer than"):
        run(["odd-size", str(folder), "--at-least", "100000000"])


def test_the_public_interface_is_sorted_complete_and_loads_no_torch():
    constants = [name for name in api.__all__ if name.isupper()]
    types = [name for name in api.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in api.__all__ if name.islower()]
    assert api.__all__ == sorted(constants) + sorted(types) + sorted(functions)
    assert set(api.__all__) == set(api._MODULE)
    assert all(getattr(api, name) is not None for name in api.__all__)
    code = "import sys, unicl_cli.api; print(sorted({'torch', 'numpy', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no 'contrasst'"):
        api.contrasst  # noqa: B018


# -- several processes -------------------------------------------------------------------------------------------


def everything(corpus: Path, out: Path) -> None:
    """All systems on however many processes there are; those of SHARDED once more under FSDP2."""
    accelerator, stop = start_accelerator("fp32", "cpu"), StopFlag()
    validated = f"eval: [{{corpus: {corpus}, every: 3, limit: 20}}]"
    for system in SYSTEMS:
        recipe = load_text(recipe_of(system, corpus))
        train_stage(recipe, out / system, None, TrainRequest(quiet=True), accelerator, stop, lambda: None)
    for system in SHARDED:
        more = f"parallel: {{strategy: fsdp2}}\n{validated}"
        recipe = load_text(recipe_of(system, corpus, more))
        train_stage(recipe, out / f"{system}-sharded", None, TrainRequest(quiet=True), accelerator, stop, lambda: None)
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(trained: Train, corpus: Path, tmp_path: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = complete([*launch, __file__, str(corpus), str(tmp_path)], timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for system in SYSTEMS:
        assert max_difference(trained(system), tmp_path / system) < 1e-4, system
        alone, together = metrics(trained(system)), metrics(tmp_path / system)
        assert [x["loss"] for x in together] == pytest.approx([x["loss"] for x in alone], abs=1e-4)
    for system in SHARDED:
        assert max_difference(trained(system), tmp_path / f"{system}-sharded") < 1e-4, system
        assert len((tmp_path / f"{system}-sharded" / "eval.jsonl").read_text().splitlines()) == 2


if __name__ == "__main__":
    everything(Path(sys.argv[1]), Path(sys.argv[2]))
