"""`unicl train`: a recipe in, a run directory out; the same command continues a run that was interrupted."""

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from unicl_cli.build.optimizer import build_optimizer
from unicl_cli.core.dist import any_rank, bare, barrier, rank, shard, sum_over_ranks, world_size
from unicl_cli.core.ema import Average
from unicl_cli.core.loop import Step
from unicl_cli.core.switches import align_conv_weights, compile_units
from unicl_cli.core.trackers import check_installed
from unicl_cli.errors import Stopped, UniclError, write_line
from unicl_cli.jobs.train.blueprint import join_batchnorm
from unicl_cli.jobs.train.image_cache import cache_images
from unicl_cli.jobs.train.micro_batch import explain_out_of_memory
from unicl_cli.jobs.train.setup import Parts, platform_facts, resume, set_up, write_parts
from unicl_cli.jobs.train.sizes import is_sharded
from unicl_cli.jobs.train.stage import Stage
from unicl_cli.jobs.train.stage_chain import check_stages
from unicl_cli.jobs.train.text_cache import cache_texts
from unicl_cli.jobs.train.validations import check_evaluators
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.slurm import requeue_on_usr1
from unicl_cli.launch.stopping import StopFlag
from unicl_cli.recipe.layers import Override
from unicl_cli.recipe.schema import Recipe
from unicl_cli.recipe.stages import stages_of
from unicl_cli.runs.folder import CHECKPOINTS, ENVIRONMENT, META, OVERRIDES, RECIPE, RUN_LOCK
from unicl_cli.runs.place import check_run_dir
from unicl_cli.runs.plugins import list_plugins
from unicl_cli.storage.files import remove_leftovers, write_atomic
from unicl_cli.storage.lock import lock_folder


class TrainRequest(NamedTuple):
    """The options of the command line that are not in the recipe."""

    devices: str = "auto"
    resume: str = "auto"  # auto | never | a checkpoint directory
    quiet: bool = False
    requeue: bool = False  # put SLURM's job back into its queue on SIGUSR1


def environment(recipe: Recipe, devices: str) -> dict[str, Any]:
    """Return ``env.json``: enough to see why another machine gives other numbers."""
    return {
        **platform_facts(),
        "devices": devices,
        "world": world_size(),
        "cuda": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "plugins": list_plugins(recipe),
        "command": sys.argv,
        "cwd": str(Path.cwd()),
    }


def train(
    recipe: Recipe, run: Path, request: TrainRequest, stop: StopFlag, *, source: str, overrides: Sequence[Override]
) -> None:
    """Train all stages of a recipe into ``run``; every rank calls it. ``stop`` has been installed."""
    stages = stages_of(recipe, run)
    for stage, _, _ in stages:
        check_installed(stage.log.trackers)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(recipe.deterministic)
    accelerator = start_accelerator(recipe.precision, request.devices)
    say(request, f"device: {describe_device(accelerator)}")
    stop.install()  # also in a worker, now that it has peers to stop with
    begin = partial(write_source, recipe, run, source, overrides, request)
    writes = rank() == 0
    if len(stages) > 1:
        check_stages(recipe, run)
    with lock_run(run) if writes else nullcontext(), requeue_on_usr1(stop, wanted=request.requeue and writes):
        barrier()
        for stage, folder, start in stages:
            stop_together(stop)
            train_stage(stage, folder, start, request, accelerator, stop, begin)
    accelerator.end_training()


def say(request: TrainRequest, line: str) -> None:
    """Write a line on rank 0's stderr, unless --quiet was given."""
    if rank() == 0 and not request.quiet:
        write_line(line)


def describe_device(accelerator: Any) -> str:
    """Return the device, the number of processes and the precision in words."""
    device = accelerator.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, threads {torch.get_num_threads()}" if device.type == "cpu" else device.type
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return ", ".join([name, *([f"processes {world_size()}"] if world_size() > 1 else []), precision])


def describe_model(parts: Parts) -> str:
    """Return the parameters of the model and of each of its towers, and the length of the training in words."""
    step = cast("Step", parts.step)
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in step.model.named_children()}
    towers = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
    total = sum(p.numel() for p in step.parameters())
    learning = sum(p.numel() for p in step.parameters() if p.requires_grad)
    frozen = f", learning {learning:,}" if learning < total else ""
    return (
        f"model: {parts.recipe.model.name}: parameters {total:,} ({towers}){frozen}; "
        f"steps {parts.sizes.steps:,}, batch {parts.recipe.batch.size:,}"
    )


def stop_together(stop: StopFlag) -> None:
    """Raise Stopped on all ranks if a signal has reached any of them."""
    if any_rank(stop()):
        raise Stopped("stopped before the next step", "run the same command again to continue")


@contextmanager
def lock_run(run: Path) -> Generator[None]:
    """Lock the run directory for this training; remove it again if nothing was written into it."""
    check_run_dir(run)
    lock = run / RUN_LOCK
    is_new = not lock.exists()
    with lock_folder(run, RUN_LOCK, "give another --run-dir"):
        try:
            yield
        finally:
            if is_new and not (run / ENVIRONMENT).exists():
                lock.unlink(missing_ok=True)


def write_source(recipe: Recipe, run: Path, source: str, overrides: Sequence[Override], request: TrainRequest) -> None:
    """Write the recipe as given, for people to read; unicl itself reads ``resolved.yaml``."""
    text = Path(source).read_text(encoding="utf-8") if Path(source).is_file() else f"extends: {source}\n"
    write_atomic(run / RECIPE, text)
    write_atomic(run / OVERRIDES, "".join(f"{item}\n" for item in overrides))
    write_atomic(run / ENVIRONMENT, json.dumps(environment(recipe, request.devices), indent=1))


def wrap_step(step: nn.Module, accelerator: Any, *, sharded: bool) -> Any:
    """Return the step on its device: sharded by FSDP2, or wrapped by DDP if there are several processes.

    BatchNorm of several GPUs computes the statistics of the global batch.
    """
    if accelerator.device.type == "cuda" and world_size() > 1:
        step = join_batchnorm(step)  # on the CPU, torch has no such BatchNorm
    if sharded:
        return shard(step)
    align_conv_weights(step)
    return accelerator.prepare(step)


def train_stage(
    recipe: Recipe,
    run: Path,
    start_from: str | None,
    request: TrainRequest,
    accelerator: Any,
    stop: StopFlag,
    begin: Callable[[], None],
) -> None:
    """Train one recipe into one run directory, from its newest checkpoint on; leave a finished run as it is.

    Nothing is written before all is built and loaded, so that a mistake found there leaves no run. ``begin`` writes
    the files that all stages share.
    """
    if (run / META).is_file() and request.resume == "auto":
        if rank() == 0:
            write_line(f"{run}: already finished")
        return
    parts = set_up(recipe, accelerator, run, request.resume, start_from)
    step = parts.step
    check_evaluators(recipe, cast("Step", step), parts.tokenizer)
    say(request, describe_model(parts))
    if recipe.parallel.compile:
        compile_units(step)
    step = wrap_step(step, accelerator, sharded=is_sharded(recipe, parts.sizes.world))
    optimizer = accelerator.prepare(build_optimizer(recipe, step))
    average = None if recipe.ema is None else Average(step, recipe.ema.decay, warmup=recipe.ema.warmup)
    facts = resume(request.resume, run, parts, step, optimizer, average)
    done = 0 if facts is None else int(facts["step"])
    if any_rank(done * world_size() != sum_over_ranks(torch.tensor(done, device=accelerator.device)).item()):
        raise UniclError(
            f"{run}: not every process sees its checkpoints", "put --run-dir on storage that all nodes share"
        )
    stop_together(stop)
    parts = cache_images(parts, step, accelerator, str(run), partial(stop_together, stop))
    if rank() == 0:
        begin()
        for folder in (run, run / CHECKPOINTS):
            remove_leftovers(folder)  # left by a run that was killed
        write_parts(parts, run)
    note = cache_texts(parts, step)
    if note is not None and rank() == 0:
        write_line(f"{run}: {note}")
    local = parts.sizes.local
    with explain_out_of_memory(local, parts.micro or local, cast("Step", bare(step))):
        Stage(parts._replace(step=step), run, accelerator, optimizer, average).run(facts, stop, quiet=request.quiet)
