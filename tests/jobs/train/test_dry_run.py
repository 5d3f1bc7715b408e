"""`unicl train --dry-run`: memory and FLOPs beside a real step, a real process, published figures."""

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from unicl_cli.build.data import build_data, build_tokenizer
from unicl_cli.build.model import build_step
from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.dry_run import build_on_meta, dry_run_facts, parse_bytes
from unicl_cli.jobs.train.memory import (
    BatchShape,
    count_flops,
    fake_batch,
    make_fake,
    state_bytes,
    step_bytes,
    step_bytes_in_parts,
)
from unicl_cli.jobs.train.micro_batch import longest_texts
from unicl_cli.losses.unicl import UniCL
from unicl_cli.recipe.load import load_text
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.text import dump

CNN = "{name: cnn, width: 16, stages: 2}"
SHAPE, LARGE = BatchShape(24, 1, 32, 16), BatchShape(96, 1, 64, 16)
RECOMPUTED = "parallel: {grad_checkpoint: true}"
VIT = "{name: timm, model: vit_tiny_patch16_224, args: {depth: 3}}"


def recipe_of(corpus: Path, image: str = CNN, more: str = "", *, size: int = 32, batch: int = 24) -> Recipe:
    more = more if "batch:" in more else f"batch: {{size: {batch}}}\n{more}"
    return load_text(
        f"data: {{image_size: {size}, train: [{{corpus: '{corpus}'}}]}}\n"
        f"model: {{image: {image}, text: {{name: transformer, width: 32, layers: 2, heads: 2}}, embed_dim: 32,\n"
        f"  context_length: 16}}\nsteps: 8\nschedule: {{warmup: 2}}\n"
        f"checkpoint: {{every: 8}}\n{more}"
    )


def on_meta(recipe: Recipe, chunks: int = 1):
    """The step with shapes only."""
    data = build_data(recipe)
    return build_on_meta(recipe, data, lambda: build_tokenizer(recipe, data), chunks)[0]


def with_numbers(recipe: Recipe):
    """(The step with numbers, its tokenizer)."""
    data = build_data(recipe)
    tokenizer = build_tokenizer(recipe, data)
    return build_step(recipe, lambda: tokenizer, data.classes, 1)[0].train(), tokenizer


def real_batch(shape: BatchShape, tokenizer):
    rows = torch.arange(shape.rows)
    batch = fake_batch(shape)._replace(text_index=rows, labels=rows % 3, keys=rows % 3, draws=rows)
    return longest_texts(batch._replace(images=torch.zeros_like(batch.images)), tokenizer)


def alive(recipe: Recipe, chunks: int = 1, shape: BatchShape = SHAPE, **how) -> int:
    step = on_meta(recipe, chunks)
    return step_bytes(step, make_fake(step), shape, **{"world": 1, "strategy": "ddp", "half": False, **how})


@pytest.mark.parametrize(
    ("image", "more", "off"),
    [(CNN, "", 0.25), (CNN, "loss: multitask", 0.25), (VIT, "", 0.1), (VIT, RECOMPUTED, 0.1)],
)
def test_a_step_without_numbers_takes_what_a_real_one_takes(digits: Path, image: str, more: str, off: float):
    """Beside what torch's allocator gave and took back in a real step, the scratch of convolutions included."""
    recipe = recipe_of(digits, image, more, size=64, batch=96)
    real, tokenizer = with_numbers(recipe)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        batch = real_batch(LARGE, tokenizer)
        real(batch)["loss"].backward()
        del batch
    given = sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    assert alive(recipe, 1, LARGE) == pytest.approx(max(accumulate(size for _, size in given)), rel=off)


def test_parts_and_recomputed_blocks_take_less_and_the_smallest_part_least(digits: Path):
    recipe = recipe_of(digits, size=64, batch=96)
    sizes = [alive(recipe, chunks, LARGE) for chunks in (1, 2, 4)]
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * sizes[2]
    for image, blocks in ((CNN, 0.95), (VIT, 0.7)):
        plain, again = (alive(recipe_of(digits, image, more, size=64, batch=96), 1, LARGE) for more in ("", RECOMPUTED))
        assert again < blocks * plain


def test_many_parts_are_estimated_from_few(digits: Path):
    recipe = recipe_of(digits)

    def make(rows: int) -> int:
        return alive(recipe, -(-rows // 4), BatchShape(rows, 1, 32, 16))

    seen: list[int] = []
    guess = step_bytes_in_parts(lambda rows: (seen.append(rows), make(rows))[1], 24, 4)
    assert seen == [8, 12]
    assert guess == pytest.approx(make(24), rel=0.05)
    assert step_bytes_in_parts(lambda rows: 7 * rows, 10, 4) == 70, "few parts are measured"


@pytest.mark.slow
def test_16_bits_and_other_processes_count(digits: Path):
    recipe = recipe_of(digits, VIT, size=64, batch=96)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # whatever the environment chose: another one takes other memory
        whole, half = (alive(recipe, 1, LARGE, half=half) for half in (False, True))
    assert 0.45 * whole < half < 0.8 * whole
    recipe = recipe_of(digits, "{name: timm, model: vit_tiny_patch16_224, args: {depth: 1}}", size=64, batch=96)
    four, many = (alive(recipe, 4, LARGE, world=world) for world in (4, 256))
    assert many - four > 252 * 96 * 32 * 4, "the features of the other processes"
    assert alive(recipe, 4, LARGE, world=4, strategy="fsdp2") > four, "whole blocks that come and go"


@pytest.mark.slow
def test_what_fits_a_card_is_said(digits: Path):
    recipe = recipe_of(digits, size=64)
    found = dry_run_facts(recipe, Path("run"), 1)
    total = found["memory"]["total"]
    assert "micro_that_fits" not in found
    assert list(found["rows"]) == ["labels", "captions"], "in one order in every process"
    rows = [dry_run_facts(recipe, Path("run"), 1, card)["micro_that_fits"] for card in (2 * total, total / 2, 2**20)]
    assert rows[0] == 24
    assert rows[1] in (3, 6, 12)
    assert rows[2] is None, "not even one row"
    norm = recipe_of(digits, "{name: timm, model: resnet18}", size=64)
    assert dry_run_facts(norm, Path("run"), 1, 2**27)["micro_that_fits"] is None


@pytest.mark.parametrize(
    ("text", "bytes_"), [("24GiB", 24 * 2**30), ("24 GB", 24e9), ("1.5", 1.5 * 2**30), ("9m", 9e6)]
)
def test_amounts_of_memory(text: str, bytes_: float):
    assert parse_bytes(text) == bytes_
    with pytest.raises(UniclError, match="is not an amount of memory"):
        parse_bytes(f"x{text}")


def test_states_are_sixteen_bytes_a_parameter_and_fsdp2_shares_them(digits: Path):
    recipe = recipe_of(digits)
    step = on_meta(recipe)
    count = sum(p.numel() for p in step.parameters())
    assert sum(state_bytes(recipe, step, 1).values()) == 16 * count
    assert sum(state_bytes(recipe, step, 2).values()) == pytest.approx(8 * count, abs=8)
    assert state_bytes(recipe_of(digits, more="ema: {}\noptim: {name: sgd}"), step, 1) == {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": 4 * count,
        "ema": 4 * count,
    }
    frozen = on_meta(recipe_of(digits, CNN.replace("}", ", freeze: true}")))
    trained = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    assert sum(state_bytes(recipe, frozen, 1).values()) == 4 * count + 12 * trained


@pytest.mark.parametrize(
    ("model", "gmacs"), [("resnet50", 4.09), ("swin_tiny_patch4_window7_224", 4.49), ("vit_base_patch16_224", 16.64)]
)  # timm says 17.56 for this ViT: its last block is computed for the class token alone here
def test_flops_are_twice_the_published_multiply_adds(digits: Path, model: str, gmacs: float):
    step = on_meta(recipe_of(digits, f"{{name: timm, model: {model}}}", size=224))
    with make_fake(step):
        assert count_flops(step, BatchShape(2, 1, 224, 16))["picture"] / 2e9 == pytest.approx(gmacs, rel=0.02)


def test_the_checkpoint_is_as_large_as_was_said(digits: Path, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unicl"])
    Path("r.yaml").write_text(dump(recipe_of(digits)))
    assert main(["train", "r.yaml", "--dry-run", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert main(["train", "r.yaml", "--run-dir", "run", "-q"]) == 0
    written = sum(file.stat().st_size for file in Path("run/checkpoints/step-00000008").glob("*.safetensors"))
    assert said["checkpoint_bytes"] == pytest.approx(written, rel=0.05), "but for names and averages of BatchNorm"
    assert said["tokens_at_most"] == 8 * 24 * 16
    assert said["memory"]["total"] == sum(v for k, v in said["memory"].items() if k != "total")


def test_a_model_that_needs_a_real_batch_has_no_estimate_and_the_reason(digits: Path, monkeypatch):
    monkeypatch.setattr(UniCL, "forward", lambda self, model, batch: batch.extra["scores"])
    found = dry_run_facts(recipe_of(digits), Path("run"), 1)
    assert "activations" not in found["memory"]
    assert found["memory_method"] == "without activations: the model needs a real batch (KeyError: 'scores')"


@pytest.mark.parametrize(
    ("loss", "views", "said"),
    [("supcon", 1, "loss supcon needs several views"), ("unicl", 2, "the loss takes one view")],
)
def test_what_a_step_would_refuse_is_refused_without_one(digits: Path, loss: str, views: int, said: str):
    recipe = load_text(dump(recipe_of(digits, more=f"loss: {loss}")), overrides=[f"data.views={views}"])
    with pytest.raises(UniclError, match=said):
        dry_run_facts(recipe, Path("run"), 1)


MEASURE = """
import ctypes, gc, sys
from pathlib import Path
import torch
from test_dry_run import BatchShape, build_data, build_step, build_tokenizer, real_batch
from unicl_cli.recipe.load import load

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def train(recipe, data, tokenizer, rows):
    micro = recipe.batch.micro
    step, _ = build_step(recipe, lambda: tokenizer, data.classes, 1 if micro == "auto" else -(-rows // micro))
    optimizer = torch.optim.AdamW(step.train().parameters(), fused=True)
    batch = real_batch(BatchShape(rows, 1, recipe.data.image_size, 16), tokenizer)
    for _ in range(2):  # the optimizer's state is there in the second
        step(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

for file in sys.argv[1:]:
    recipe = load(file)
    data = build_data(recipe)
    made = recipe, data, build_tokenizer(recipe, data)
    train(*made, 2)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    train(*made, recipe.batch.size)
    print(status("VmHWM") - before)
"""
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what tensors take, not what the heap keeps for the next ones


SMALL_VIT = "{name: timm, model: vit_tiny_patch16_224, args: {depth: 6}}"
TAKEN = {  # image tower: more of the recipe, side of the images, batch, difference
    "cnn in parts": (CNN, "batch: {size: 256, micro: 64}", 96, 256, 0.35),
    "vit": ("{name: timm, model: vit_tiny_patch16_224}", "", 224, 16, 0.25),
    "vit recomputed": (SMALL_VIT, RECOMPUTED, 224, 16, 0.25),
    "swin": ("{name: timm, model: swin_tiny_patch4_window7_224}", "", 224, 4, 0.25),
    "resnet": ("{name: timm, model: resnet18}", "", 224, 16, 0.25),
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory, digits: Path) -> dict[str, float]:
    """The bytes that trainings of each kind took, one after the other in a process of their own."""
    folder = tmp_path_factory.mktemp("taken")
    for name, (image, more, size, batch, _) in TAKEN.items():
        (folder / f"{name}.yaml").write_text(dump(recipe_of(digits, image, more, size=size, batch=batch)))
    command = [sys.executable, "-c", MEASURE, *(str(folder / f"{name}.yaml") for name in TAKEN)]
    there, env = Path(__file__).parent, os.environ | TIGHT
    done = subprocess.run(command, cwd=there, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(TAKEN, map(float, done.stdout.split()), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks /proc for the peak")
@pytest.mark.parametrize("kind", TAKEN)
def test_the_estimate_is_what_a_process_takes(tmp_path: Path, digits: Path, taken: dict[str, float], kind: str):
    image, more, size, batch, off = TAKEN[kind]
    said = dry_run_facts(recipe_of(digits, image, more, size=size, batch=batch), tmp_path, 1)["memory"]["total"]
    assert abs(taken[kind] / said - 1) < off, f"{taken[kind] / 2**20:.0f} MiB taken, {said / 2**20:.0f} MiB said"
