"""A recipe to objects: towers with their own rates, decay where it belongs, epochs, classes of several corpora."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unicl_cli.build.data import build_data, build_tokenizer, check_learnable, merged_classes, total_steps
from unicl_cli.build.init import load_init
from unicl_cli.build.load import load_model
from unicl_cli.build.model import build_image_tower, build_step
from unicl_cli.build.optimizer import build_optimizer, decay_groups, learning_rate, recipe_warnings, warmup_steps
from unicl_cli.build.workers import worker_count
from unicl_cli.cli import main
from unicl_cli.contracts import ClassName
from unicl_cli.core import checkpoint
from unicl_cli.data.corpus import Corpus
from unicl_cli.data.manifest import Manifest, ManifestClass
from unicl_cli.data.tokenizers import clip_tokenizer
from unicl_cli.data.transforms import Augmentation
from unicl_cli.errors import UniclError
from unicl_cli.recipe.load import load, load_text
from unicl_cli.recipe.text import hashed_keys, recipe_hash
from unicl_cli.runs.folder import DEFAULT_MODEL, choose_model, find_run

MODEL = {
    "image": {"name": "cnn", "width": 8, "stages": 2},
    "text": {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
    "embed_dim": 16,
}


@pytest.fixture
def recipe(digits):
    def make(*overrides, **changes):
        whole = {"data": {"train": [{"corpus": str(digits)}], "image_size": 16}, "model": MODEL, "batch": {"size": 12}}
        length = {} if {"epochs", "samples"} & changes.keys() else {"steps": 4}
        return load_text(yaml.safe_dump(whole | length | changes), "r", overrides)

    return make


def built(recipe):
    data = build_data(recipe)
    return build_step(recipe, lambda: build_tokenizer(recipe, data), data.classes, 1)


def corpus(*keys, name="c", group=""):
    classes = [
        ManifestClass(id=number, key=key, names=[f"{name} {key}"], group=group) for number, key in enumerate(keys)
    ]
    empty = {
        "schema_version": 2 if group else 1,
        "rows": 0,
        "bytes": 0,
        "rejected": {},
        "shards": [],
        "class_counts": {},
    }
    return Corpus(Path(name), Manifest(name=name, classes=classes, templates=["{}"], **empty), "0")


def test_classes_of_several_corpora_meet_by_key():
    classes, maps = merged_classes([corpus("a", "b"), corpus("c", "b", "a", name="d")])
    assert classes == (ClassName("a", ("c a",)), ClassName("b", ("c b",)), ClassName("c", ("d c",)))
    assert [m.tolist() for m in maps] == [[0, 1], [2, 1, 0]]


def test_a_class_has_one_place_in_all_corpora_of_a_mix():
    one, other = corpus("a", "b"), corpus("c", "b", name="d", group="breed")
    with pytest.raises(UniclError, match="d: class 'b' is in group 'breed', and in an earlier corpus in no group"):
        merged_classes([one, other])


class Tokens(torch.nn.Module):
    """Tokens that timm's convention names, attention with a key and value of its own, and a matrix."""

    def __init__(self):
        super().__init__()
        self.start, self.free = (torch.nn.Parameter(torch.zeros(1, 2, 4)) for _ in range(2))
        self.attention = torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)

    def no_weight_decay(self):
        return {"start"}


def test_a_module_names_further_parameters_that_do_not_decay():
    model = torch.nn.Sequential(Tokens(), torch.nn.Linear(4, 4))
    model[1].bias.requires_grad_(requires_grad=False)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.2))
    assert decayed == {"0.free", "0.attention.in_proj_weight", "0.attention.out_proj.weight", "1.weight"}
    biases = {f"0.attention.{name}" for name in ("in_proj_bias", "out_proj.bias", "bias_k", "bias_v")}
    assert plain == {"0.start", *biases}, "what is frozen is in no group"
    assert [group["weight_decay"] for group in decay_groups(model, 0.2)] == [0.2, 0.0]


def test_gains_biases_scales_tables_and_positions_keep_their_size(recipe):
    step, _ = built(recipe())
    optimizer = build_optimizer(recipe(), step)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in step.named_parameters() if id(p) in decayed}
    assert names == {
        *(f"model.image.trunk.stages.{n}.conv.weight" for n in (0, 1)),
        *("model.image.trunk.read.weight", "model.image.proj.weight", "model.text.proj.weight"),
        *(f"model.text.trunk.blocks.0.{n}.weight" for n in ("qkv", "proj", "fc1", "fc2")),
    }
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.2}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(step.parameters()))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_tower_has_its_own_rate_and_a_frozen_one_takes_no_part(recipe, name):
    slow = recipe("model.image.lr_scale=0.1", "model.text.freeze=true", optim={"name": name, "lr": 0.5})
    step, _ = built(slow)
    optimizer = build_optimizer(slow, step)
    scales = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    for key, parameter in step.named_parameters():
        if key.startswith("model.text.trunk."):
            assert not parameter.requires_grad
            assert id(parameter) not in scales
        else:
            assert scales[id(parameter)] == (0.1 if key.startswith("model.image.trunk.") else 1.0), key
    assert type(optimizer).__name__.lower() == name


def test_lars_makes_the_steps_of_its_published_form(recipe):
    """SimCLR's LARS with lightly's numbers: `utils.lars.LARS(trust_coefficient=.001, eps=0)` on the same matrix."""
    module = torch.nn.Linear(4, 3).double()
    module.weight.data = torch.arange(12.0).double().sin().view(3, 4)
    module.bias.data.fill_(2.0)
    optim = {"name": "lars", "lr": 0.3, "momentum": 0.9, "weight_decay": 1e-6}
    optimizer = build_optimizer(recipe(optim=optim), module)
    for _ in range(3):
        module.weight.grad = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
        module.bias.grad = torch.ones(3).double()
        optimizer.step()
    expected = torch.tensor([0.0018964389, 0.8430226151, 0.9105042499], dtype=torch.float64)
    torch.testing.assert_close(module.weight.data[0, :3], expected, rtol=0, atol=1e-9)
    # gains and biases have neither decay nor an adapted rate: plain momentum of 1, 1.9, 2.71 steps of 0.3
    torch.testing.assert_close(module.bias.data, torch.full([3], 2 - 0.3 * (1 + 1.9 + 2.71)).double())


def test_nothing_left_to_train_is_refused(recipe):
    step, _ = built(recipe())
    step.requires_grad_(requires_grad=False)
    with pytest.raises(UniclError, match="no parameter is left to train"):
        build_optimizer(recipe(), step)


def test_the_seed_decides_the_weights(recipe):
    one, same, other = (built(r)[0].state_dict() for r in (recipe(), recipe(), recipe(seed=1)))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.image.proj.weight"], other["model.image.proj.weight"])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 4), ({"samples": 100}, 9), ({"epochs": 1}, 10), ({"epochs": 2.5}, 25)],
)
def test_the_length_of_a_run_is_steps_samples_or_passes(recipe, changes, steps):
    asked = recipe(**changes)
    assert total_steps(asked, build_data(asked)) == steps, "60 rows of each kind, six of each in a batch"


def test_an_epoch_of_whole_steps_in_turn_is_as_long(recipe):
    asked = recipe("data.mix.by=step", epochs=1)
    assert total_steps(asked, build_data(asked)) == 10


def test_without_a_warm_up_of_its_own_a_recipe_takes_a_tenth_of_the_run_and_at_most_2000_steps(recipe):
    for steps, expected in ((8, 1), (200, 20), (19_999, 2000), (400_000, 2000)):
        assert warmup_steps(recipe(schedule={}), steps) == expected
    assert warmup_steps(recipe(schedule={"warmup": 500}), 200) == 500, "a number of steps stays one"


def test_a_warm_up_below_one_is_a_share_of_the_run(recipe):
    for warmup, first in ((0.5, 0.1 / 50), (10, 0.1 / 10), (0, 0.1)):
        assert learning_rate(recipe(schedule={"warmup": warmup}, optim={"lr": 0.1}), 100)(0) == pytest.approx(first)


def test_workers_are_none_on_a_cpu_unless_asked_for(recipe):
    assert worker_count(recipe(), torch.device("cpu"), 1) == 0
    assert worker_count(recipe("data.workers=3"), torch.device("cpu"), 1) == 3
    assert 0 <= worker_count(recipe(), torch.device("cuda"), 1) <= 8


def test_the_device_does_what_the_loader_then_leaves_out(recipe):
    wanted = ("data.views=2", "data.augment=[{name: strong, flip: 0.3}, {name: shift, noise: 0.1}]")
    whole, shared = (build_data(recipe(*wanted, f"data.augment_on={place}")) for place in ("loader", "device"))
    assert whole.device_augment is None
    assert shared.device_augment is not None
    for number, view in enumerate(whole.mix.strands[0].transform.views):
        first = shared.mix.strands[0].transform.views[number].ops
        assert first == Augmentation(crop=view.ops.crop)
        assert shared.device_augment.views[number]._replace(crop=first.crop) == view.ops


def test_the_device_augments_all_corpora_alike(recipe, digits):
    corpora = f"data.train=[{{corpus: {digits}}}, {{corpus: {digits}, augment: {{name: basic, %s}}}}]"
    device = ("data.augment=basic", "data.augment_on=device", "batch.size=64")
    assert build_data(recipe(corpora % "crop: [0.9, 1.0]", *device)).device_augment
    with pytest.raises(UniclError, match=r"data\.augment_on=device needs the same augmentation for every corpus"):
        build_data(recipe(corpora % "flip: 0.0", *device))


def test_a_warm_up_that_outlasts_the_run_is_doubted(recipe):
    for steps, said in ((99, 1), (100, 0)):
        asked = recipe(f"steps={steps}", "schedule.warmup=100")
        found = [line for line in recipe_warnings(asked, build_data(asked)) if "schedule.warmup of 100 steps" in line]
        assert len(found) == said


def test_a_batch_of_one_row_is_told_before_the_first_step(recipe):
    for loss in ("unicl", "clip"):
        asked = recipe("batch.size=1", "data.mix.labels=1", f"loss={loss}")
        with pytest.raises(UniclError, match=r"batch\.size 1: a batch of one row has nothing to tell apart"):
            recipe_warnings(asked, build_data(asked))
    asked = recipe("batch.size=1", "data.mix.labels=1", "loss=ce", "model.text=null")
    assert recipe_warnings(asked, build_data(asked)) == [], "a classifier compares classes, not rows"
    asked = recipe("batch.size=1", "data.mix.labels=1", "loss=multitask")
    assert "nothing to tell apart" in recipe_warnings(asked, build_data(asked))[0]


def test_batches_of_one_class_are_counted(recipe, digits):
    some = recipe("batch.size=2", "data.mix.labels=1")
    (line,) = [each for each in recipe_warnings(some, build_data(some)) if "hold one class only" in each]
    lone = int(line.split(": ")[1].split()[0])
    labels = build_data(some).mix.strands[0].row_labels()
    drawn = [labels[build_data(some).order.batch(step)[1]] for step in range(20)]
    assert lone == sum(len(set(each.tolist())) == 1 for each in drawn) > 0
    none = recipe("batch.size=12")
    assert not [each for each in recipe_warnings(none, build_data(none)) if "one class" in each]


def test_balance_draws_the_classes_of_a_mix_equally(recipe):
    asked = recipe("data.balance=1", "data.mix.labels=1", "data.train.0.limit=23")
    data = build_data(asked)
    strand = data.mix.strands[0]
    rows = np.concatenate(
        [data.order.batch(step)[1] for step in range(strand.size)]
    )  # as many passes as rows of a batch
    counts = np.bincount(strand.row_labels()[rows])
    assert counts[counts > 0].max() - counts[counts > 0].min() <= asked.batch.size
    assert set(rows.tolist()) == set(range(strand.size)), "no row is lost"


def test_a_recipe_without_balance_keeps_the_hash_from_before_the_key(recipe):
    assert "balance" not in hashed_keys(recipe())["data"]
    assert recipe_hash(recipe("data.balance=0.5")) != recipe_hash(recipe("data.balance=0")) == recipe_hash(recipe())


@pytest.mark.parametrize(("tokenizer", "length"), [("corpus", 32), ("clip", 77), ("classes", 1)])
def test_tokenizers_by_name(recipe, tokenizer, length):
    asked = recipe(f"model.tokenizer={tokenizer}")
    found = build_tokenizer(asked, build_data(asked))
    assert found.context_length == length
    assert found(["zero"]).shape[0] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train.0.split=tset"], "has no split 'tset'"),
        (["batch.size=2"], "batch.size: a batch of 2 is too small for 2 streams"),
        (["data.views=3", "data.train.0.augment=[basic, basic]"], "2 entries"),
        (["data.templates=clip8"], "templates 'clip8': unknown; did you mean 'clip80'"),
        (["data.augment=[{name: basic, rand: m9}]"], "data.augment: rand: 'm9' is not a RandAugment"),
        (["data.augment=[{name: basic, rand: rand-x9}]"], "rand: 'rand-x9' is not a RandAugment"),
    ],
)
def test_what_cannot_be_built_is_one_line(recipe, overrides, message):
    with pytest.raises(UniclError, match=message):
        build_data(recipe(*overrides))


def test_a_mix_of_one_kind_leaves_the_other_out(recipe):
    for share, kinds in ((1.0, {"labels"}), (0.0, {"captions"}), ("auto", {"labels", "captions"})):
        data = build_data(recipe(f"data.mix.labels={share}"))
        assert {s.kind for s in data.mix.strands} == kinds


def test_pictures_without_text_need_a_model_without_text(digits, recipe, tmp_path):
    assert main(["prepare", "--images", "digits?limit=20", "-o", str(tmp_path / "c")]) == 0
    only = recipe(f"data.train=[{{corpus: {tmp_path / 'c'}}}]")
    with pytest.raises(UniclError, match="holds images without label or text"):
        check_learnable(only, build_data(only))
    with pytest.raises(UniclError, match="but the corpora hold only images"):
        build_data(recipe(f"data.train=[{{corpus: {tmp_path / 'c'}}}]", "data.mix.labels=1.0"))


def test_an_image_tower_alone():
    assert build_image_tower("cnn", 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 128)


@pytest.fixture
def run(recipe, digits, tmp_path, monkeypatch):
    """A finished run in ``runs/r``, trained by the command."""
    from unicl_cli.recipe.text import dump

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unicl"])
    Path("r.yaml").write_text(dump(recipe(ema={"decay": 0.5})))
    assert main(["train", "r.yaml", "--run-dir", "runs/r", "-q"]) == 0
    return Path("runs/r")


def test_a_run_and_its_checkpoints_are_loaded(run, recipe, monkeypatch):
    loaded = load_model("runs/r")
    assert not loaded.step.training
    assert (loaded.transform.size, len(loaded.classes)) == ((16, 16), 10)
    average = checkpoint.read_tensors(run / "ema.safetensors")
    own = checkpoint.weights(loaded.step)
    assert all(torch.equal(own[name], average[name]) for name in own), "the average, unless raw weights are asked for"
    raw = checkpoint.weights(load_model("runs/r", raw_weights=True).step)
    assert all(torch.equal(raw[n], t) for n, t in checkpoint.read_tensors(run / "model.safetensors").items())
    assert load_model("runs/r/checkpoints/step-00000004").tokenizer.vocab_size == loaded.tokenizer.vocab_size
    assert choose_model(None) == "runs/r", "the run that finished last"
    monkeypatch.setenv("UNICL_MODEL", "nowhere")
    with pytest.raises(UniclError, match="model nowhere: no such run"):
        load_model(None)
    (run / "meta.json").unlink()
    assert find_run("runs/r")[1].name == "step-00000004", "unfinished: its newest checkpoint"
    step, tokenizer = built(recipe(seed=9))
    assert load_init(step, recipe(seed=9), "runs/r", tokenizer) == "all of runs/r"
    assert torch.equal(step.model.image.proj.weight, average["model.image.proj.weight"]), "what eval measures"


def test_a_folder_that_is_no_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_model(None) == DEFAULT_MODEL, "no run: a published model"
    Path("x").mkdir()
    with pytest.raises(UniclError, match="x: neither a run nor a checkpoint directory"):
        find_run("x")
    Path("x/resolved.yaml").write_text(json.dumps({}))
    with pytest.raises(UniclError, match="x: has no whole checkpoint yet"):
        find_run("x")


def test_a_model_beyond_this_machine_is_refused_before_it_takes_memory() -> None:
    changes = ["model.image={name: timm, model: test_vit, args: {embed_dim: 65536, depth: 900}}", "data.image_size=160"]
    with pytest.raises(UniclError, match=r"do not fit into the memory of this machine|can't allocate memory"):
        build_step(load("quickstart", changes), lambda: clip_tokenizer(77), (ClassName("a", ("a",)),), 1)


@pytest.mark.parametrize(
    "changes",
    ["model.text={name: transformer, width: 256, layers: 1024}", "model.image={name: cnn, width: 64, stages: 8}"],
)
def test_towers_are_refused_as_soon_as_they_are_larger_than_what_is_free(changes: str, monkeypatch) -> None:
    monkeypatch.setattr("unicl_cli.build.model.free_memory", lambda: 2**26)
    with pytest.raises(UniclError, match=r"more than .* in \d\d tensors"):
        build_step(load("quickstart", [changes]), lambda: clip_tokenizer(77), (ClassName("a", ("a",)),), 1)
