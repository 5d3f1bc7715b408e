"""Checkpoints: weights, optimizer state and step, written atomically, and the same files for any world size."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unicl_cli.core.checkpoint_files import (
    EMA,
    LATEST,
    MODEL,
    OPTIM,
    TRAINER,
    clear_place,
    fingerprint,
    folder_of,
    is_whole,
    prune,
    read_pointer,
)
from unicl_cli.core.dist import any_rank, bare, full_tensor, rank, shard_like
from unicl_cli.errors import UniclError, write_note
from unicl_cli.storage.files import replace_durably, sync_folder, temporary_beside, temporary_name, write_atomic

WRITING_FAILS = (OSError, SafetensorError)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and saved buffers by name; a tensor with two names is listed under the first."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in bare(module).state_dict(keep_vars=True).items():
        if id(value) not in seen:
            kept[name] = value
            seen.add(id(value))
    return kept


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return full tensors on the CPU, under the names of the Step; every rank must call it."""
    return {name: full_tensor(value.detach()).cpu().contiguous() for name, value in own_tensors(module).items()}


def state_of(
    module: nn.Module, optimizer: Any, average: Mapping[str, Tensor] | None, *, copy: bool
) -> dict[str, dict[str, Tensor]]:
    """Return file -> name -> full tensor on rank 0, and empty files on the other ranks; all must call it (FSDP2).

    Optimizer state is named ``parameter/field``; its groups and rates come from the recipe and are not saved. With
    ``copy`` nothing shares memory with the module. Copies from a GPU may be unfinished: call `wait_for_copies`.
    """
    files = {MODEL: {name: to_host(value, copy=copy) for name, value in own_tensors(module).items()}}
    if optimizer is not None:
        state, named = optimizer.state, bare(module).named_parameters()
        fields = ((f"{name}/{field}", value) for name, p in named for field, value in state.get(p, {}).items())
        files[OPTIM] = {name: to_host(torch.as_tensor(value), copy=True) for name, value in fields}
    if average is not None:
        files[EMA] = {name: to_host(value, copy=copy) for name, value in average.items()}
    return {name: {n: x for n, x in tensors.items() if x is not None} for name, tensors in files.items()}


def to_host(value: Tensor, *, copy: bool) -> Tensor | None:
    """Return the full tensor on rank 0's host, None elsewhere; a GPU copies into pinned memory without a wait."""
    whole = full_tensor(value.detach())
    if rank() != 0:
        return None
    if whole.device.type == "cuda":
        return whole.contiguous().to("cpu", non_blocking=True)
    here = whole.cpu().contiguous()
    return here.clone() if copy and here.data_ptr() == value.data_ptr() else here


def save(
    root: Path,
    module: nn.Module,
    optimizer: Any,
    facts: Mapping[str, Any],
    keep: int,
    average: Mapping[str, Tensor] | None = None,
    keep_every: int | None = None,
) -> Path:
    """Write ``root/step-00000100`` for ``facts["step"] == 100`` and point ``root/latest`` at it; all ranks call it.

    Every file is synced before the folder gets its name, so an interruption at any moment leaves the last checkpoint
    usable. ``average``: the moving average of the weights, by name.
    """
    files = state_of(module, optimizer, average, copy=False)
    problem: OSError | SafetensorError | None = None
    if rank() == 0:
        wait_for_copies(files)
        try:
            write(root, files, facts)
            for line in prune(root, keep, keep_every):
                write_note(f"warning: {line}")
        except WRITING_FAILS as error:
            problem = error
    raise_on_all_ranks(folder_of(root, int(facts["step"])), problem)
    return folder_of(root, int(facts["step"]))


def wait_for_copies(files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Wait for copies from a GPU."""
    if torch.cuda.is_available() and any(x.is_pinned() for tensors in files.values() for x in tensors.values()):
        torch.cuda.synchronize()


def raise_on_all_ranks(target: Path, problem: BaseException | None) -> None:
    """Raise the write error of rank 0 on all ranks; every rank must call it."""
    if any_rank(flag=problem is not None):
        raise UniclError(
            f"{target}: the checkpoint could not be written: {problem or 'see rank 0'}",
            "free some space (or lower checkpoint.keep) and run the same command again",
        ) from problem


def write(root: Path, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Write the files of one checkpoint, sync them and rename their folder; keep a whole one that `latest` names."""
    target = folder_of(root, int(facts["step"]))
    if read_pointer(root / LATEST) == target.name and is_whole(target):
        return
    part = temporary_name(root)
    try:
        part.mkdir(parents=True)
        for name, tensors in files.items():
            write_tensors(part / name, tensors)
        crash_if_asked("after_tmp", target)
        prints = {name: fingerprint(part / name) for name in files}
        write_atomic(part / TRAINER, json.dumps({**facts, "files": prints}, indent=1))
        crash_if_asked("before_rename", target)
        clear_place(target)  # damaged, or from before a rollback: `latest` does not name it, or reading skipped it
        part.rename(target)
    except WRITING_FAILS:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(root)
    crash_if_asked("before_latest", target)
    write_atomic(root / LATEST, target.name)


def crash_if_asked(name: str, target: Path) -> None:
    """End the process here if a test sets ``UNICL_TEST_CRASH=before_latest`` (or ``before_latest:step-00000006``)."""
    if os.environ.get("UNICL_TEST_CRASH") in (name, f"{name}:{target.name}"):
        os._exit(9)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that is whole or absent."""
    with temporary_beside(path) as part:
        part.touch()
        mode = part.stat().st_mode  # as the umask says: safetensors makes the file private to its owner
        save_file(dict(tensors), part)
        part.chmod(mode)
        crash_if_asked("half_written", path.parent)
        replace_durably(part, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; UniclError if it is damaged."""
    if path.exists() and not path.is_file():
        raise UniclError(f"{path}: not a regular file", "restore it from a copy")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UniclError(f"{path}: cannot be read: {error}", "use another checkpoint, or train again") from error


def find_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with values that are not finite, and of logit scales whose exponential is not."""
    return [
        name
        for name, value in tensors.items()
        if not bool(torch.isfinite(value.float().exp() if name.endswith("logit_scale") else value).all())
    ]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Copy every tensor into the module; names and shapes must match exactly. ``place`` is named in the error."""
    mine = own_tensors(module)
    missing, unknown = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
    if missing or unknown:
        raise UniclError(
            f"{place}: belongs to another model: {len(missing)} tensors missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])})",
            "use the recipe that the checkpoint was trained with",
        )
    for name, own in mine.items():
        if own.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(own.shape)} in the model"
            raise UniclError(f"{place}: {name} has another shape: {shapes}", "use the recipe it was trained with")
    with torch.no_grad():
        for name, own in mine.items():
            own.copy_(shard_like(tensors[name].to(own.device), own))


def load_optimizer(module: nn.Module, optimizer: Any, path: Path) -> None:
    """Load the state of each parameter by name, sharded like the parameter; scalars (step counts) stay whole."""
    parameters = dict(bare(module).named_parameters())
    for key, value in read_tensors(path).items():
        name, _, field = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.ndim == parameter.ndim and value.ndim and value.shape != parameter.shape):
            raise UniclError(
                f"{path}: {key} belongs to no parameter of this model", "use the recipe that it was trained with"
            )
        if value.ndim:
            value = shard_like(value.to(parameter.device), parameter)
        if value.shape == parameter.shape and value.stride() != parameter.stride():  # else updates run one by one
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][field] = value
