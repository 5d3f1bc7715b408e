"""The process group as everything else sees it: rank, gather, shares of a mean, sharding."""

import contextlib
import importlib
import sys
from collections.abc import Generator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from unicl_cli.core.recompute import units_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

FAKE = "torch.testing._internal.distributed.fake_pg"
"""Registers the backend `fake`: a process group without the other processes."""
# torch 2.14 warns of the older names, which are all that torch 2.6 has
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    return dist.get_world_size() if _grouped() else 1


def _home() -> torch.device:
    """Where a collective's tensors have to lie when no argument says so."""
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
    """(b, …) -> (B, …): the rows of all ranks in rank order, any dtype; b must be the same on every rank.

    Gradients of all ranks' losses come back summed. In one process it is ``x`` itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


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
    """(world, …) -> (world, …): row r holds what rank r has for this rank, from its row of this rank's number."""
    return _Exchange.apply(x) if world_size() > 1 else x


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, same shape, without gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def share_of_mean(values: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """(b,), bool (b,) -> (): this rank's share of the mean of the valid rows of all ranks.

    The mean of the shares over ranks is that global mean, however many valid rows a rank has; 0 where no rank has any.
    ``count`` () is the number of valid rows of all ranks, where it is known without asking them.
    """
    count = sum_over_ranks(valid.sum()) if count is None else count
    return values.masked_fill(~valid, 0).sum() * world_size() / count.clamp(min=1)


def mean_over_ranks(
    values: Mapping[str, Tensor | float], largest: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the mean over ranks of each scalar in ``values`` and the largest of each in ``largest``, by name.

    One all-gather and one copy to the host. Every rank must bring the same names in the same order.
    """
    if not values and not largest:
        return {}
    device = next((value.device for value in values.values() if isinstance(value, Tensor)), _home())
    wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    names = [*values, *(largest or {})]
    own = [*values.values(), *(largest or {}).values()]
    row = torch.stack([torch.as_tensor(x, dtype=wide, device=device).detach().reshape(()) for x in own])
    rows = gather(row[None]).cpu()  # (world, names)
    means, tops = rows[:, : len(values)].mean(0), rows[:, len(values) :].amax(0)
    return dict(zip(names, [*means.tolist(), *tops.tolist()], strict=True))


@cache
def _host_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """One whose collectives run on the host: an accelerator's would have to catch up with all its work first."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", group_desc=f"host of {world.group_name}"))


def largest_over_ranks(number: int) -> int:
    """The largest of the numbers that the ranks bring; every rank must ask."""
    if world_size() == 1:
        return number
    largest, world = torch.tensor(number), cast("dist.ProcessGroup", dist.group.WORLD)
    group = world if dist.get_backend(world) in ("gloo", "fake") else _host_group(world)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return int(largest)


def any_rank(flag: bool) -> bool:  # noqa: FBT001
    """Whether ``flag`` is true on at least one rank; every rank must ask."""
    return largest_over_ranks(int(flag)) > 0


@contextlib.contextmanager
def rehearsal() -> Generator[None]:
    """Inside, collectives reach nobody and give meaningless numbers of the right shape, in the memory of real ones.

    So one rank may fail alone, and no other waits for it. Every rank must enter. Sharded modules made inside are of no
    use outside.
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
    """Inside, this process is the first of ``world`` that are not there; for shapes and memory only."""
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
    """The module without DDP around it; FSDP2 wraps nothing."""
    return step.module if isinstance(step, DistributedDataParallel) else step


def shard(step: nn.Module, device: str | None = None) -> nn.Module:
    """FSDP2 in place: each unit of the towers, then the whole as root.

    Units are what any submodule lists as ``units``, each called through its own forward; never a tower or the model
    itself, whose other methods would meet shards. ``step.call`` stays callable. ``device``: the type of one other than
    the process group's own.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # torch keeps the group of a mesh for each that is equal to it: a name keeps that of a rehearsal apart
    name = cast("dist.ProcessGroup", dist.group.WORLD).group_name
    mesh = init_device_mesh(device or _home().type, (world_size(),), mesh_dim_names=(f"ranks of {name}",))
    for unit in units_of(step):
        fully_shard(unit, mesh=mesh)
    fully_shard(step, mesh=mesh)
    register_fsdp_forward_method(step, "call")
    return step


def _is_sharded(x: Tensor) -> "TypeGuard[DTensor]":
    module = sys.modules.get("torch.distributed.tensor")  # a second to import, for what only sharding makes
    return module is not None and isinstance(x, module.DTensor)


def full_tensor(x: Tensor) -> Tensor:
    """The whole of a sharded tensor (a collective), any other as it is."""
    return x.full_tensor() if _is_sharded(x) else x


def local_part(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, any other as it is."""
    return x.to_local() if _is_sharded(x) else x


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The whole ``value``, sharded as ``like`` is if it is."""
    if not _is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)
