"""A training of any module in a run directory, for plugins: metrics, status, checkpoints, resume and stops."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from unicl_cli.core import checkpoint, checkpoint_files
from unicl_cli.core.dist import barrier, rank, world_size
from unicl_cli.core.loop import Plan, fit
from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, StatusSink
from unicl_cli.errors import Stopped, UniclError, is_quiet
from unicl_cli.launch.stopping import StopFlag
from unicl_cli.runs.folder import CHECKPOINTS, METRICS, RUN_LOCK, STATUS
from unicl_cli.runs.settings_file import OTHER_RUN, write_settings
from unicl_cli.storage.files import remove_leftovers
from unicl_cli.storage.lock import lock_folder

Batches = Callable[[int], Iterator[tuple[int, Any]]]


class ModuleRun(NamedTuple):
    """A run directory of a plugin's command.

    ``settings`` are all that the numbers depend on, as plain data; every ``save_every`` steps there is a checkpoint, of
    which the newest ``keep`` stay.
    """

    folder: Path
    command: str
    settings: Mapping[str, Any]
    save_every: int
    keep: int = 2


def train_module(
    place: ModuleRun,
    step: nn.Module,
    optimizer: Any,
    batches: Batches,
    plan: Plan,
    accelerator: Any,
    stop: StopFlag,
) -> None:
    """Train ``step``, a module that returns ``loss``, in a run directory, from its newest checkpoint on.

    ``batches(n)`` are the batches from step n on. All ranks call it. A stop saves a checkpoint and raises Stopped; the
    end writes ``model.safetensors``.
    """
    run = place.folder
    with lock_folder(run, RUN_LOCK, OTHER_RUN) if rank() == 0 else nullcontext():
        barrier()
        if rank() == 0:
            remove_leftovers(run)
            write_settings(run, place.command, place.settings)
        done = restore(run / CHECKPOINTS, step, optimizer)

        def save(completed: int) -> None:
            facts = {"step": completed, "steps": plan.steps, "seed": plan.seed, "world": world_size()}
            checkpoint.save(run / CHECKPOINTS, step, optimizer, facts, place.keep)

        def is_due(completed: int) -> bool:
            return completed % place.save_every == 0 or completed == plan.steps

        with open_sinks(run, plan.steps, done) as (sinks, status):
            ended = fit(
                step, batches(done), optimizer, plan._replace(due=is_due), accelerator, sinks, after=save, stopping=stop
            )
            if ended < plan.steps:
                save(ended)
                status("stopped", step=ended)
                raise Stopped(
                    f"stopped after step {ended:,} of {plan.steps:,}", "run the same command again to continue"
                )
            weights = checkpoint.weights(step)
            if broken := checkpoint.find_non_finite(weights):
                raise UniclError(f"{run}: the weights are not finite: {broken[0]}", "train with a lower learning rate")
            if rank() == 0:
                checkpoint.write_tensors(run / checkpoint_files.MODEL, weights)
            status("done", step=ended)
        barrier()


def restore(root: Path, step: nn.Module, optimizer: Any) -> int:
    """Load the newest checkpoint under ``root``; return its step, 0 without one."""
    folder = checkpoint_files.newest(root)
    if folder is None:
        return 0
    checkpoint.load_weights(step, checkpoint.read_tensors(folder / checkpoint_files.MODEL), str(folder))
    checkpoint.load_optimizer(step, optimizer, folder / checkpoint_files.OPTIM)
    return checkpoint_files.step_of(folder)


@contextmanager
def open_sinks(run: Path, steps: int, done: int) -> Generator[tuple[Sinks, Callable[..., None]]]:
    """Yield rank 0's sinks, and a function that writes the state of the run; both do nothing on other ranks."""
    if rank() != 0:
        yield Sinks([]), lambda *words, **facts: None
        return
    status = StatusSink(run / STATUS, steps, world_size())
    sinks = Sinks([JsonlSink(run / METRICS, done), status, ConsoleSink(steps, done, quiet=is_quiet())])
    status.set_state("running", step=done)
    try:
        yield sinks, status.set_state
    except Stopped:
        raise
    except Exception:
        status.set_state("failed")
        raise
    finally:
        sinks.close()
