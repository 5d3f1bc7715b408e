"""`unicl bench`: each kind through the real command, the protocol, and that it compares equal things only."""

import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from unicl_cli.cli import main
from unicl_cli.commands.bench import complete_kind
from unicl_cli.errors import UniclError
from unicl_cli.jobs.bench import bench
from unicl_cli.jobs.bench.kinds import KINDS, parse_counts
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, add_ratios, measure_case, run_check
from unicl_cli.jobs.bench.tables import iter_notes

CPU = torch.device("cpu")
QUICK = {
    "loader": ["--batch", "2", "--vs", "open_clip"],
    "step": [
        *("--model", "tiny", "--batch", "4", "--no-peak", "--vs", "open_clip"),
        *("--only", "captions", "--only", "mixed", "--only", "frozen-labels"),
    ],
    "text": [
        *("--model", "tiny", "--batch", "4", "--no-peak", "--vs", "open_clip"),
        *("--only", "captions", "--only", "prompts-1000-t80"),
    ],
    "loss": ["--sizes", "48", "--no-peak", "--vs", "open_clip"],
    "eval": ["--model", "tiny", "--classes", "2", "--batch", "2", "--vs", "open_clip"],
    "sampler": ["--sizes", "1e4", "--no-peak"],
    "switches": [
        *("--model", "tiny", "--batch", "4", "--no-peak"),
        *("--only", "parallel.text_cache", "--only", "data.resize", "--only", "data.augment_on"),
    ],
    "start": ["--only", "version"],
}


def document(capsys, *words):
    assert main(["bench", *words, "--rounds", "2", "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", [*(k for k in QUICK if k != "loader"), pytest.param("loader", marks=pytest.mark.slow)])
def test_each_kind_says_what_it_measured_and_where(kind, capsys):
    found = document(capsys, kind, *QUICK[kind])
    assert (found["schema"], found["kind"], found["rounds"]) == ("unicl/bench/1", kind, 2)
    assert found["complete"]
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in found["versions"]["torch"]
    assert found["rows"]
    for row in found["rows"]:
        assert row["reference"] in row["variants"]
        for own in row["variants"].values():
            assert len(own["seconds"]) == 2
            assert min(own["seconds"]) > 0
            assert own["per_s"] == pytest.approx(row["count"] / own["median_s"])
            assert own["speed"]["low"] <= own["speed"]["median"] <= own["speed"]["high"]
    if "open_clip" in QUICK[kind]:
        checks = [row["checks"] for row in found["rows"]]
        assert all(check for check in checks), "compared only after a check"
        assert max(check.get("forward", 0) for check in checks) <= 1e-5
        assert max(check.get("gradients", 0) for check in checks) <= 1e-4


@pytest.mark.slow
def test_the_probes_solver_is_near_the_optimum_beside_scikit_learns(capsys):
    (row,) = document(capsys, "probe", "--only", "few-rows")["rows"]
    assert row["checks"]["above_optimum"] <= 1e-6


@pytest.mark.slow
def test_several_processes_measure_a_row_too(capsys):
    words = ("loss", "--sizes", "256", "--processes", "1,2", "--vs", "open_clip", "--no-peak")
    rows = {row["name"]: row for row in document(capsys, *words)["rows"]}
    assert {"B=256", "B=256 on 2"} <= rows.keys()
    together = rows["B=256 on 2"]
    assert together["facts"]["ranks"] == 2
    assert set(together["variants"]) == {"folded", "tiled", "open_clip"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loader", "step"])
def test_a_recipe_brings_its_own_data_and_model(kind, digits, capsys):
    words = ["digits-unicl", f"data.train=[{{corpus: {digits}}}]", "eval=[]", "batch.size=24"]
    found = document(capsys, kind, *words)
    assert {row["count"] for row in found["rows"]} <= {24, 72}
    rows = {row["name"]: row["facts"] for row in found["rows"]}
    if kind == "loader":
        assert 0 <= rows["training"]["waited"]["unicl"] <= 1
        assert rows["0 workers"]["workers"] == 0
    else:
        assert rows["step"]["batch"] == 24
        assert all(0 < own["mib"] < 500 for row in found["rows"] for own in row["variants"].values())


def test_a_row_without_its_kind_is_the_list_of_kinds(capsys):
    assert main(["bench"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in KINDS)
    assert main(["bench", "--json"]) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["kinds"]] == list(KINDS)
    assert complete_kind("lo") == ["loader", "loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lose"], "bench: unknown kind 'lose'; did you mean 'loss'?"),
        (["loss", "--vs", "openclip"], "--vs openclip: unknown; did you mean 'open_clip'?"),
        (["sampler", "--vs", "open_clip"], "bench sampler: open_clip has no counterpart"),
        (["start", "--sizes", "3"], "bench start: does not take --sizes"),
        (["loss", "--sizes", "3,x"], "--sizes 3,x: 'x' is not a whole number of at least 1"),
        (["text", "quickstart"], "bench text: does not take a recipe (given: 'quickstart')"),
        (["step", "quickstart", "--batch", "4"], "bench step quickstart: --batch cannot be combined with a recipe"),
        (["step", "quick"], "no recipe 'quick'"),
        (["step", "--model", "ViT-B32"], "--model ViT-B32: unknown; did you mean 'ViT-B-32'?"),
        (["step", "--only", "caption"], "--only caption: unknown row; did you mean 'captions'?"),
        (["step", "--precision", "fp8"], "--precision fp8: unknown"),
        (["step", "--devices", "cpu:2"], "--devices cpu:2: not a device for benchmarks"),
        (["sampler", "--sizes", "100"], "--sizes 100: fewer rows than a batch of 4096"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message, capsys):
    assert main(["bench", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 2, "the line and its hint"
    assert said.out == ""


def test_sizes_are_read_as_people_write_them():
    assert parse_counts("sizes", "256, 4k,64k,1e6") == (256, 4096, 65536, 1_000_000)
    assert parse_counts("sizes", None) == ()


def toy(name, runs, check=None, **settings):
    return Case(
        name, "things", tuple(runs), next(reversed(runs)), lambda who: PreparedCase(4, runs, check=check), **settings
    )


def test_variants_take_turns_and_each_round_begins_with_another():
    met = []
    runs = {name: (lambda name=name: (met.append(name), time.sleep(0.001), sum(range(10**6)))) for name in "ab"}
    case = toy("toy", runs)
    row = add_ratios(measure_case(case, case.prepare("ab"), rounds=2, device=CPU, advance=lambda _: None))
    order = [name for n, name in enumerate(met) if n == 0 or met[n - 1] != name]
    assert "".join(met)[:4] == "abab", "two warm-ups"
    assert "".join(order).startswith("abab" + "ab")
    assert met[-1] == "a", "the second round began with b"
    assert row["variants"]["b"]["speed"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_ratios_are_made_round_by_round():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 20.0]}
    variants = {
        name: {"seconds": each, "mib": mib} for (name, each), mib in zip(seconds.items(), (10, 40), strict=True)
    }
    row = add_ratios({"reference": "theirs", "variants": variants})
    assert row["variants"]["ours"]["speed"] == {"median": 3.0, "low": 2.0, "high": 5.0}
    assert row["variants"]["ours"]["memory"] == 0.25


@pytest.fixture
def pair():
    from unicl_cli.jobs.bench.model_pair import make_model_pair

    return make_model_pair("tiny", CPU, 6)


@pytest.fixture
def batch(pair):
    from unicl_cli.jobs.bench.captions import mix_captions_and_prompts
    from unicl_cli.jobs.bench.step import make_pair_batch

    return make_pair_batch(mix_captions_and_prompts(6, 2, 1), pair.tokenizer, pair.recipe.data.image_size)


@pytest.mark.parametrize("where", ["visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight", "logit_scale"])
def test_nothing_is_compared_when_weights_differ(pair, batch, where):
    from unicl_cli.jobs.bench.step import compare_step

    def row():
        return run_check("captions", PreparedCase(6, {}, check=lambda: compare_step(pair, batch)))

    assert row()["forward"] <= 1e-5
    with torch.no_grad():
        dict(pair.theirs.named_parameters())[where].mul_(1.01)
    with pytest.raises(UniclError, match=r"captions: not compared: (forward|gradients) differs by") as caught:
        row()
    assert caught.value.exit_code == 1


def test_nothing_is_compared_when_a_gradient_alone_differs(pair, batch):
    from unicl_cli.jobs.bench.step import compare_step

    pair.ours.text.trunk.pos.register_hook(lambda grad: grad * 1.001)
    with pytest.raises(UniclError, match="not compared: gradients"):
        run_check("captions", PreparedCase(6, {}, check=lambda: compare_step(pair, batch)))


def test_a_switch_that_changes_a_number_is_not_measured(pair, batch):
    from copy import deepcopy

    from unicl_cli.jobs.bench.switches import compare_values

    plain = deepcopy(pair.step)
    makers = {"on": lambda: pair.step, "off": lambda: deepcopy(plain)}

    def row():
        pair.step.zero_grad()
        return run_check("key", PreparedCase(6, {}, check=lambda: compare_values(makers, batch.batch)))

    assert row()["gradients"] == 0
    with torch.no_grad():
        pair.ours.text.proj.weight.mul_(1.01)
    with pytest.raises(UniclError, match=r"key: not compared: (forward|gradients)"):
        row()


def test_texts_of_a_frozen_tower_are_looked_up_as_in_training(batch):
    from unicl_cli.jobs.bench.model_pair import make_model_pair, make_recipe, shape_of
    from unicl_cli.jobs.bench.switches import build_trained_step

    def bank(*changes):
        recipe = make_recipe(shape_of("tiny"), 6, precision="fp32", frozen_text=True, changes=changes)
        return build_trained_step(recipe, CPU).model.bank

    frozen = make_model_pair("tiny", CPU, 6, frozen_text=True)
    frozen.step(batch.batch)
    assert len(frozen.ours.bank.places) == len(batch.batch.tokens)
    assert bank() is not None
    assert bank("parallel.text_cache=off") is None


def test_a_run_of_a_minute_is_its_own_warm_up(monkeypatch):
    monkeypatch.setattr("unicl_cli.jobs.bench.protocol.LONG", 1.0)
    monkeypatch.setattr("unicl_cli.jobs.bench.protocol.LONGEST", 2.0)
    met = []
    runs = {name: partial(met.append, name) for name in ("short", "long", "longest")}
    took = {"short": 0.5, "long": 1.5, "longest": 2.5}

    def timer(run):
        return (run(), took[met[-1]])[1]

    row = measure_case(
        toy("toy", runs), PreparedCase(1, runs, timer=timer), rounds=2, device=CPU, advance=lambda _: None
    )
    assert Counter(met) == {"short": 2 + 2, "long": 1 + 2, "longest": 2}
    assert [own["seconds"] for own in row["variants"].values()] == [[x, x] for x in took.values()]


def test_the_table_of_switches_says_who_waited_for_data():
    own = {"median_s": 1.0, "per_s": 1.0, "mib": None, "speed": {"median": 1.0, "low": 1.0, "high": 1.0}}
    row = {
        "name": "data.workers",
        "reference": "0",
        "variants": {"1": own, "0": own},
        "skipped": {},
        "facts": {"waited": {"1": 0.001, "0": 0.25}},
        "checks": {"first_s": 75.2},
    }
    said = list(iter_notes({"rows": [row], "rounds": 3, "clock": "CPU", "command": "unicl", "complete": True}))
    assert "data.workers 0: 25.0 % of the time was spent waiting for data" in said
    assert "data.workers: the first forward and backward took 75 s" in said


def test_a_check_that_is_not_a_number_does_not_pass():
    with pytest.raises(UniclError, match="forward differs by nan"):
        run_check("toy", PreparedCase(1, {}, check=lambda: {"forward": float("nan")}))


def test_ctrl_c_prints_what_has_been_measured(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    cases = [toy("done", {"a": lambda: sum(range(10**5))}), toy("cut", {"a": interrupt})]
    monkeypatch.setattr(bench, "select_cases", lambda request: cases)
    assert main(["bench", "start", "--json", "-q"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["done"]
    assert not found["complete"]


def test_the_table_fits_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "text", *QUICK["text"], "--rounds", "1", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "open_clip 3.3.0" in "".join(lines)
    assert any("prompts-1000-t80" in line for line in lines)


def test_the_file_holds_every_row_as_soon_as_it_is_measured(tmp_path, capsys, monkeypatch):
    out = tmp_path / "found.json"
    seen = []

    def look(name):
        found = json.loads(out.read_text())
        seen.append(([row["name"] for row in found["rows"]], found["complete"]))
        return sum(range(10**4))

    cases = [toy(name, {"a": partial(look, name)}) for name in ("one", "two")]
    monkeypatch.setattr(bench, "select_cases", lambda request: cases)
    assert main(["bench", "start", "--rounds", "1", "-q", "-o", str(out)]) == 0
    assert seen[0] == ([], False), "before the first row"
    assert seen[-1] == (["one"], False), "while the second is measured"
    assert json.loads(out.read_text())["complete"]


def test_a_variant_that_runs_out_of_memory_is_left_out_with_the_reason():
    met = Counter()

    def full():
        met["full"] += 1
        if met["full"] > 3:  # two warm-ups and a round
            raise torch.OutOfMemoryError("CUDA out of memory")

    case = toy("toy", {"full": full, "fits": lambda: sum(range(10**4))})
    prepared = case.prepare(())._replace(timer=lambda run: (run(), 1.0)[1])
    row = add_ratios(measure_case(case, prepared, rounds=3, device=CPU, advance=lambda _: None))
    assert list(row["variants"]) == ["fits"]
    assert row["skipped"] == {"full": "out of memory"}
    assert len(row["variants"]["fits"]["seconds"]) == 3
    assert met["full"] == 4, "it is not tried again"


def test_another_error_of_a_variant_is_not_taken_for_lack_of_memory():
    def broken():
        raise RuntimeError("shapes differ")

    case = toy("toy", {"broken": broken})
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure_case(case, case.prepare(()), rounds=1, device=CPU, advance=lambda _: None)


def test_the_largest_batch_is_found_by_doubling():
    from unicl_cli.jobs.bench.step import largest_batch

    tried = []
    assert largest_batch(256, 6, lambda rows: (tried.append(rows), rows <= 1024)[1]) == 1024
    assert tried == [512, 1024, 2048]
    assert largest_batch(256, 2, lambda rows: True) == 1024


@pytest.fixture
def own_precision():
    """Let a benchmark have another precision than those before it, which a process has only once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_results_are_compared_in_float32_whatever_precision_is_measured(own_precision, capsys):
    words = ("step", "--model", "tiny", "--batch", "4", "--no-peak", "--vs", "open_clip", "--precision", "bf16")
    (row,) = document(capsys, *words, "--only", "captions")["rows"]
    assert row["facts"]["precision"] == "bf16"
    assert row["checks"]["gradients"] <= 1e-4


def test_losses_of_one_positive_per_row_stand_beside_a_yardstick(capsys):
    found = document(capsys, "loss", "--sizes", "48", "--all", "--no-peak", "--vs", "open_clip", "--precision", "bf16")
    product, _, sets, pairs = found["rows"]
    assert sets["variants"].keys() == {"one label", "own text", "five labels"}
    assert product["count"] == 2 * product["facts"]["side"] ** 3
    assert product["variants"].keys() == {"bf16", "fp32"}
    assert pairs["facts"] == {"texts": 48, "d": 512, "ranks": 1, "precision": "bf16", "flop": 6 * 48**2 * 512}
    assert pairs["skipped"]["memeff"] in ("not installed", "needs a GPU")
    assert pairs["checks"]["forward"] <= 1e-5


def test_a_profile_says_where_a_step_takes_its_time(capsys):
    words = ("step", "--model", "tiny", "--batch", "4", "--no-peak", "--only", "profile")
    (row,) = document(capsys, *words)["rows"]
    profile = row["facts"]["profile"]
    assert sum(each["share"] for each in profile) <= 1
    assert [each["ms"] for each in profile] == sorted((each["ms"] for each in profile), reverse=True)
    assert any("aten::" in each["name"] for each in profile)
    assert row["facts"]["host_waits"] is None, "only a GPU can be waited for"


def test_the_document_goes_to_a_file_too(tmp_path: Path, capsys):
    out = tmp_path / "found.json"
    words = ["sampler", "--sizes", "1e4", "--only", "1e4 next", "--rounds", "1", "-q", "-o", str(out)]
    assert main(["bench", *words]) == 0
    assert json.loads(out.read_text())["rows"][0]["name"] == "1e4 next"
    assert "1e4 next" in capsys.readouterr().out
