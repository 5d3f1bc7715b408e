"""benchmarks/gpu.py: its limits, what a cut leaves, its verdicts and its chapter; the whole of it at toy size."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ROWS = "import json, sys, time\nfrom unicl_cli.storage.files import write_atomic\nfrom pathlib import Path\n"
WRITER = f"""{ROWS}
for n in range(1000):
    write_atomic(Path(sys.argv[1]), json.dumps({{"rows": list(range(n))}}))
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def gpu():
    return import_module("gpu")


@pytest.fixture
def phases():
    return import_module("gpu_phases")


def documents(folder: Path) -> list:
    """All JSON files below a folder; one that cannot be read fails here."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in folder.rglob("*.json")]


def test_a_command_that_hangs_is_cut_and_the_next_one_has_its_turn(gpu, phases, tmp_path):
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(100)"
    hanging = phases.Command("hanging", (sys.executable, "-c", stubborn), 1)
    failing = phases.Command("failing", (sys.executable, "-c", "raise SystemExit('no card at all')"), 1)
    absent = phases.Command("absent", ("/nowhere/at/all",), 1)
    done = phases.Command("done", (sys.executable, "-c", "print('well')"), 1)
    phase = phases.Phase("loss", "a title", 1, (hanging, failing, absent, done))
    gpu.GRACE = 0.3
    assert gpu.run_phase(phase, tmp_path, time.monotonic() + 12, {"toy": True}) == "failed"
    found = json.loads((tmp_path / "loss.json").read_text())
    assert {c["name"]: c["state"] for c in found["commands"]} == {
        "hanging": "cut",
        "failing": "failed",
        "absent": "failed",
        "done": "done",
    }
    assert found["commands"][1]["said"] == ["no card at all"]
    assert found["commands"][0]["seconds"] < 8


def test_without_time_left_a_command_is_not_run_and_the_phase_says_so(gpu, phases, tmp_path):
    command = phases.Command("late", (sys.executable, "-c", "1"))
    assert gpu.run_phase(phases.Phase("rest", "", 1, (command,)), tmp_path, time.monotonic(), {}) == "not run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_at_any_moment_leaves_json_that_can_be_read_and_no_process(phases, tmp_path, number):
    """The kill falls at random: while files are written, between commands, before the first."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys, time, signal\nfrom pathlib import Path\nsys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import gpu\nfrom gpu_phases import Command, Phase\nsignal.signal(signal.SIGTERM, gpu.interrupt)\n"
        "out = Path(sys.argv[1])\n"
        f"script = {WRITER!r}\n"
        "commands = [Command(n, (sys.executable, '-c', script, str(out / 'loss' / (n + '.json')))) for n in 'ab']\n"
        "phases = [Phase('loss', '', 1, tuple(commands))]\n"
        "print('begun', flush=True)\n"
        "gpu.run_phases(phases, out, time.monotonic() + 4, {}, print)\n"
    )
    out, env = tmp_path / "out", {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, script, out], stdout=subprocess.PIPE, env=env)
    assert run.stdout.readline() == b"begun\n"
    time.sleep(random.uniform(0.1, 3))
    run.send_signal(number)
    run.communicate(timeout=30)
    for document in documents(out):
        assert "rows" in document or document["phase"] == "loss"
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.json")}
    time.sleep(0.3)
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.json")}, "nothing writes any more"


def test_every_phase_has_commands_and_limits_that_make_one(phases, tmp_path):
    for cards in (0, 1, 2):
        made = phases.build_phases(tmp_path, cards)
        assert [phase.name for phase in made] == ["right", "loss", "step", "feeding", "rest", "many"]
        assert [phase.name for phase in made if not phase.commands] == (["many"] if cards == 1 else [])
        assert sum(phase.weight for phase in made) == pytest.approx(1, abs=0.03)


def test_a_phase_without_commands_is_told_apart_from_one_that_had_no_time(gpu, phases, tmp_path):
    (many,) = [each for each in phases.build_phases(tmp_path, 1) if each.name == "many"]
    assert gpu.run_phase(many, tmp_path, time.monotonic() + 9, {}) == "needs several cards"


def test_the_words_of_every_benchmark_are_ones_that_the_command_takes(phases, monkeypatch):
    """Checked as the command line checks them; the rows of --only too."""
    import shlex

    import typer

    from unicl_cli.commands.bench import app
    from unicl_cli.jobs.bench import bench, kinds
    from unicl_cli.jobs.bench.cases import select_cases

    seen = []

    def look(request, argv, save=None):
        seen.append([case.name for case in select_cases(kinds.check_request(request))])
        return {"complete": True, "rows": []}

    monkeypatch.setattr(bench, "run_benchmark", look)
    monkeypatch.setattr("unicl_cli.commands.output.print_document", lambda *args, **options: None)
    command = typer.main.get_command(app)
    words = [
        each for found in phases.BENCHES.values() for bench_ in found for each in (bench_.card, bench_.toy) if each
    ]
    for line in words:
        command(args=[*shlex.split(line), "-q"], standalone_mode=False)
    assert len(seen) == len(words)
    assert all(seen)
    assert "pairs B=131072" in seen[0]


def row(name, variants, **facts):
    found = {who: {"median_s": s, "per_s": 1 / s, "mib": mib} for who, (s, mib) in variants.items()}
    return {"name": name, "variants": found, "facts": facts, "skipped": {}, "reference": next(iter(variants))}


@pytest.fixture
def run(tmp_path):
    """Files as a run on a card leaves them, with numbers that are not of any card."""
    out = tmp_path / "run"
    (out / "step").mkdir(parents=True)
    (out / "right").mkdir()
    card = {"name": "a card", "memory_gib": 1.0, "capability": "9.0"}
    machine = {"cards": [card], "versions": {"torch": "2"}, "driver": "1", "cores": 2, "processor": "x", "python": "3"}
    (out / "gpu.json").write_text(json.dumps({"toy": False, "command": "gpu.py", "date": "d", "machine": machine}))
    rows = [
        row("captions", {"unicl": (1.0, 1), "open_clip": (1.25, 1)}),
        row("labels-1000-t80", {"unicl": (1.0, 1), "open_clip": (2.0, 1)}),
        row("profile", {"unicl": (1.0, 1)}, host_waits=0.0, host_waits_logged=3.0),
    ]
    (out / "step" / "vit.json").write_text(json.dumps({"rows": rows}))
    tests = [{"outcome": "passed"}, {"outcome": "failed"}]
    document = {"schema": "unicl/outcomes/1", "tests": tests, "collected": ["a", "b", "c"], "complete": False}
    (out / "right" / "kernel.json").write_text(json.dumps(document))
    return out


def test_each_target_is_met_missed_or_not_run(run):
    judged = {v.what: (v.figure, v.verdict) for v in import_module("gpu_targets").judge_run(run)}
    assert judged["step, ViT-B/32, captions, batch 256 / open_clip"] == ("1.25×", "missed")
    assert judged["step, ViT-B/32, labels, batch 256 / open_clip"] == ("2×", "met")
    assert judged["step: times that the host waits for the GPU, no line logged"] == ("0", "met")
    assert judged["step: times that the host waits for the GPU, a line logged"] == ("3", "missed")
    assert judged["probe / scikit-learn"] == ("", "not run")
    assert judged["checks of kernel"] == ("1 passed, 1 failed, 1 not reached", "missed")


def test_figures_of_toy_size_are_never_judged_nor_written_into_the_docs(run):
    about = json.loads((run / "gpu.json").read_text())
    (run / "gpu.json").write_text(json.dumps(about | {"toy": True}))
    judged = import_module("gpu_targets").judge_run(run)
    assert not [v for v in judged if v.verdict == "met" or v.figure.endswith("×")]
    text = import_module("gpu_page").chapter(run)
    assert "No card was at hand yet" in text
    assert "1.25" not in text


def test_a_variant_that_was_skipped_says_why(run):
    targets = import_module("gpu_targets")
    (run / "loss").mkdir()
    pairs = row("pairs B=8192", {"tiled": (1.0, 1), "open_clip": (3.0, 1)}, flop=1.0)
    pairs["skipped"] = {"memeff": "not installed"}
    (run / "loss" / "bf16.json").write_text(json.dumps({"rows": [pairs]}))
    judged = {v.what: (v.figure, v.verdict) for v in targets.judge_run(run)}
    of = "loss, bf16, d = 512, one positive per row, B = 8,192"
    assert judged[f"{of}: times as fast as memeff"] == ("", "not run (memeff: not installed)")
    assert judged[f"{of}: times as fast as open_clip"] == ("3×", "")


def test_the_chapter_in_the_docs_is_the_one_of_the_json_that_is_committed():
    page = import_module("gpu_page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.replaced(text, page.chapter(page.HOME)) == text, "run python benchmarks/gpu_page.py"


@pytest.mark.slow
def test_the_command_runs_at_toy_size_on_the_cpu(tmp_path):
    """One phase of benchmarks and one of tests.

    At toy size, the other benchmarks run in `test_bench.py`, the other tests of a card among the slow ones.
    """
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: run benchmarks/gpu.py itself")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    phases = ("loss", "many")
    only = [word for phase in phases for word in ("--only", phase)]
    command = [sys.executable, BENCHMARKS / "gpu.py", "--minutes", "30", "--out", tmp_path / "out", *only]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800, check=False)
    ended = {document["phase"]: document for document in documents(tmp_path / "out") if "phase" in document}
    bad = {name: [c for c in each["commands"] if c["state"] != "done"] for name, each in ended.items()}
    assert {name: commands for name, commands in bad.items() if commands} == {}
    assert done.returncode == 0, done.stdout[-3000:]
    assert ended.keys() == set(phases)
    assert "no target is judged" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_checks_of_the_kernels_run_in_tritons_interpreter(gpu, phases, tmp_path):
    right, *_ = phases.build_phases(tmp_path, 0, interpreter=True)
    kernel = next(command for command in right.commands if command.name == "kernel")
    ended = gpu.run_command(kernel, 600, tmp_path / "kernel.log")
    assert ended["state"] == "done", ended["said"]
    outcomes = json.loads((tmp_path / "right" / "kernel.json").read_text())["tests"]
    assert [each["outcome"] for each in outcomes].count("passed") > 10
