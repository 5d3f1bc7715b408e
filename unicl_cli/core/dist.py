"""The process group: rank, collectives (gather, exchange, sums, means), and sharding."""

import contextlib
import importlib
import json
import sys
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from unicl_cli.core.host_copy import send
from unicl_cli.core.recompute import recomputable_units

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

FAKE = "torch.testing._internal.distributed.fake_pg"
"""Registers the backend `fake`: a process group without the other processes."""
# torch 2.14 warns of the older names, which are all that torch 2.12 has
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    return dist.get_world_size() if _grouped() else 1


def _home() -> torch.device:
    """Return the device for tensors of a collective when no argument gives it."""
    found = torch.accelerator.current_accelerator() if _grouped() and dist.get_backend() != "gloo" else None
    return torch.device(found.type, torch.accelerator.current_device_index()) if found else torch.device("cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty(world_size() * len(x), *x.shape[1:])
        _all_gather(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # The sum, not the mean: every rank's loss reaches these rows, and DDP and FSDP2 divide by the world size.
        (grad,) = grad_outputs
        mine = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        _reduce_scatter(mine, grad.contiguous())
        return mine


def gather(x: Tensor) -> Tensor:
    """Gather (b, …) -> (B, …): the rows of all ranks in rank order, any dtype; b must be the same on every rank.

    The backward pass sums the gradients of all ranks' losses. In one process it returns ``x`` itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def gather_rows(rows: Sequence[Any]) -> list[Any]:
    """Return the rows of all ranks, any number of each, in rank order; a row is what JSON can hold. A collective."""
    if world_size() == 1:
        return list(rows)
    own = torch.tensor(list(json.dumps(rows).encode()), dtype=torch.uint8, device=_home())
    sizes = gather(torch.tensor([len(own)], device=own.device)).tolist()
    texts = gather(torch.nn.functional.pad(own, (0, max(sizes) - len(own)))[None]).cpu()
    return [row for text, size in zip(texts, sizes, strict=True) for row in json.loads(bytes(text[:size].tolist()))]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _Exchange.forward(ctx, *grad_outputs)


def exchange(x: Tensor) -> Tensor:
    """All-to-all, (world, …) -> (world, …): row r of the result is row `rank()` of rank r's input."""
    return _Exchange.apply(x) if world_size() > 1 else x


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks, same shape, without gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def share_of_mean(values: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Return this rank's share of the mean over the valid rows of all ranks: (b,), bool (b,) -> ().

    The mean of the shares over ranks is that global mean, however many valid rows a rank has; 0 if no rank has any.
    ``count`` () is the number of valid rows of all ranks, if it is known without a collective.
    """
    count = sum_over_ranks(valid.sum()) if count is None else count
    return values.masked_fill(~valid, 0).sum() * world_size() / count.clamp(min=1)


def _one_row(values: Sequence[Tensor | float]) -> Tensor:
    """Stack scalars, (n,), on the device of the first tensor that is not on the CPU, else where collectives run.

    What is on the host goes there in one copy that does not wait.
    """
    own = [x.detach() if isinstance(x, Tensor) else x for x in values]
    there = {place: x for place, x in enumerate(own) if isinstance(x, Tensor) and not x.is_cpu}
    device = next((x.device for x in there.values()), _home())
    wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    row = send(torch.tensor([0.0 if place in there else float(x) for place, x in enumerate(own)], dtype=wide), device)
    for place, x in there.items():
        row[place] = x.reshape(())
    return row


def mean_over_ranks(
    values: Mapping[str, Tensor | float], largest: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the mean over ranks of each scalar in ``values`` and the largest of each in ``largest``, by name.

    One all-gather and one copy to the host. Every rank must bring the same names in the same order.
    """
    if not values and not largest:
        return {}
    names = [*values, *(largest or {})]
    rows = gather(_one_row([*values.values(), *(largest or {}).values()])[None]).cpu()  # (world, names)
    means, tops = rows[:, : len(values)].mean(0), rows[:, len(values) :].amax(0)
    return dict(zip(names, [*means.tolist(), *tops.tolist()], strict=True))


@cache
def _host_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group whose collectives run on the host; those of an accelerator would first wait for all its queued work."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", group_desc=f"host of {world.group_name}"))


def largest_over_ranks(number: int) -> int:
    """Return the largest ``number`` of all ranks; every rank must call it."""
    if world_size() == 1:
        return number
    largest, world = torch.tensor(number), cast("dist.ProcessGroup", dist.group.WORLD)
    group = world if dist.get_backend(world) in ("gloo", "fake") else _host_group(world)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return int(largest)


def any_rank(flag: bool) -> bool:  # noqa: FBT001
    """Return whether ``flag`` is true on at least one rank; every rank must call it."""
    return largest_over_ranks(int(flag)) > 0


@contextlib.contextmanager
def rehearsal() -> Generator[None]:
    """Replace the process group by a fake one: collectives return meaningless numbers of the right shape and memory.

    One rank may fail alone inside, and no other waits for it. Every rank must enter. Modules sharded inside are
    useless outside.
    """
    if world_size() == 1:
        yield
        return
    importlib.import_module(FAKE)
    real, fake = dist.group.WORLD, cast("dist.ProcessGroup", dist.new_group(backend="fake"))
    dist.group.WORLD = fake
    try:
        yield
    finally:
        dist.group.WORLD = real
        dist.destroy_process_group(fake)


@contextlib.contextmanager
def pretend_world(world: int) -> Generator[None]:
    """Act as rank 0 of ``world`` processes that do not exist; for shapes and memory only."""
    if world == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=world, store=importlib.import_module(FAKE).FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def bare(step: nn.Module) -> nn.Module:
    """Return the module without DDP around it; FSDP2 wraps nothing."""
    return step.module if isinstance(step, DistributedDataParallel) else step


def shard(step: nn.Module, device: str | None = None) -> nn.Module:
    """Apply FSDP2 in place: to each unit of the towers, then to the whole as root.

    Units are what any submodule lists as ``units``, each called through its own forward; never a tower or the model
    itself, whose other methods would meet shards. ``step.call`` stays callable. ``device``: a device type
    other than that of the process group.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # torch caches the group of equal meshes; the name keeps the mesh of a rehearsal apart
    name = cast("dist.ProcessGroup", dist.group.WORLD).group_name
    mesh = init_device_mesh(device or _home().type, (world_size(),), mesh_dim_names=(f"ranks of {name}",))
    for unit in recomputable_units(step):
        fully_shard(unit, mesh=mesh)
    fully_shard(step, mesh=mesh)
    register_fsdp_forward_method(step, "call")
    return step


def reshard(step: nn.Module) -> None:
    """Free the whole weights that a call outside training has left in an FSDP2 root; other modules stay as they are.

    While they are there, ``parameters()`` gives them, and not the shards that the optimizer has.
    """
    if hasattr(step, "reshard"):
        cast("Any", step).reshard()


def _is_sharded(x: Tensor) -> "TypeGuard[DTensor]":
    module = sys.modules.get("torch.distributed.tensor")  # its import takes a second, and only sharding makes DTensors
    return module is not None and isinstance(x, module.DTensor)


def full_tensor(x: Tensor) -> Tensor:
    """Return the whole of a sharded tensor (a collective); any other tensor unchanged."""
    return x.full_tensor() if _is_sharded(x) else x


def local_part(x: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; any other tensor unchanged."""
    return x.to_local() if _is_sharded(x) else x


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return the whole ``value``, sharded like ``like`` if that is sharded."""
    if not _is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)
