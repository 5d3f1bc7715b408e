"""The memory and the FLOPs of a training step, from one step on fake tensors, which have shapes but no values."""

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from unicl_cli.contracts import NO_LABEL, Batch, Drawn, Model
from unicl_cli.core.dist import local_part, pretend_world, shard
from unicl_cli.core.loop import Step
from unicl_cli.jobs.train.batches import extra_of
from unicl_cli.model import TwoTower
from unicl_cli.recipe.schema import Recipe

METHOD = (
    "estimate in {}: runs a step forward and backward on tensors without numbers and counts the tensors alive at once "
    "(activations of one micro-batch, gathered features, tiles of the loss, images), plus weights, gradients, the "
    "optimizer's state and the average; assumes that all texts are distinct and of full length. Not counted: the "
    "workspace of convolutions, the allocator's fragmentation, the memory of libraries; on the host one copy of a "
    "checkpoint while it is written"
)
FIELDS = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers in the optimizer's state for each trained parameter."""


class BatchShape(NamedTuple):
    """A rank's share of a batch: rows, views of each image, its side, and the longest text (None: no texts)."""

    rows: int
    views: int
    side: int
    length: int | None


def columns_of_row(step: Step, shape: BatchShape) -> dict[str, Tensor]:
    """Return the columns of ``Batch.extra`` of one empty row; none if a hook of model or loss needs a real row."""
    image = torch.zeros(3, shape.side, shape.side, dtype=torch.uint8)
    row = Drawn(0, 0, 0, image, NO_LABEL, None if shape.length is None else "", 0, {})
    tokens = torch.zeros(1, shape.length or 1, dtype=torch.int64)
    try:
        return extra_of(step)([row], tokens, torch.zeros(1, dtype=torch.int64))
    except Exception:  # noqa: BLE001 - a hook of a plugin may read media: the loss then says what it misses
        return {}


def fake_batch(shape: BatchShape, columns: Mapping[str, Tensor] = MappingProxyType({})) -> Batch:
    """Return a batch of distinct texts of full length; inside the mode of `make_fake` it has no numbers.

    ``columns``: those of ``extra``, of one row.
    """
    rows, views, side, length = shape
    size = (rows, views, 3, side, side) if views > 1 else (rows, 3, side, side)
    return Batch(
        images=torch.empty(size, dtype=torch.uint8),
        tokens=torch.empty(rows, length or 1, dtype=torch.int64),
        **{name: torch.empty(rows, dtype=torch.int64) for name in ("text_index", "labels", "keys", "draws")},
        extra={name: torch.empty(rows, *x.shape[1:], dtype=x.dtype) for name, x in columns.items()},
    )


def make_fake(*steps: nn.Module) -> FakeTensorMode:
    """Move modules from the meta device to fake CPU tensors, which compute only shapes; run them inside the mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # a tensor that two names share stays shared
    with mode:
        for module in dict.fromkeys(inner for step in steps for inner in step.modules()):
            for table in (module._parameters, module._buffers):  # pyright: ignore[reportPrivateUsage]
                for name, tensor in table.items():
                    if tensor is not None:
                        pair = moved.setdefault(id(tensor), (tensor, _twin(tensor)))
                        table[name] = cast("Any", pair[1])
    return mode


def _twin(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class Ledger(TorchDispatchMode):
    """A count of the bytes of the storages that operations inside make, while they live: ``now``, and ``most`` at once.

    Storages of ``known`` tensors and of their views are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}  # pyright: ignore[reportPrivateUsage]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) not in self.sizes:  # pyright: ignore[reportPrivateUsage]
                self.sizes[key] = 0
                weakref.finalize(leaf.untyped_storage(), self.remove, key)
                self.note(key, leaf.untyped_storage().nbytes())
        return out

    def note(self, key: int, size: int) -> None:
        """Note that a storage has ``size`` bytes from here on."""
        self.now += size - self.sizes[key]
        self.sizes[key] = size
        self.most = max(self.most, self.now)

    def remove(self, key: int) -> None:
        """Note that a storage is gone."""
        self.now -= self.sizes.pop(key)

    @contextlib.contextmanager
    def follow_resizes(self) -> Generator[None]:
        """Note storages that change their size: this is how FSDP2 frees memory and takes it again."""
        plain, ledger = torch.UntypedStorage.resize_, self

        def resize(self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            changed = plain(self, size)
            if (key := self._cdata) in ledger.sizes:  # pyright: ignore[reportPrivateUsage]
                ledger.note(key, self.nbytes())
            return changed

        torch.UntypedStorage.resize_ = resize
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = plain


def step_bytes(step: Step, mode: FakeTensorMode, shape: BatchShape, *, world: int, strategy: str, half: bool) -> int:
    """Return the most bytes that a step of a rank's share has alive at once, besides those of `state_bytes`.

    ``step`` comes from `make_fake`; it may be sharded here over ``world`` processes, so use it only once. ``half``:
    bf16 autocast.
    """
    columns = columns_of_row(step, shape)
    apart = world > 1 and strategy == "ddp"  # DDP has a place for every gradient all the time
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in step.parameters() if p.requires_grad and apart]
    with pretend_world(world):
        module = shard(step, "cpu") if world > 1 and strategy == "fsdp2" else step
        ledger = Ledger(local_part(x) for x in (*module.parameters(), *module.buffers()))
        with mode, ledger, ledger.follow_resizes(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module(fake_batch(shape, columns))["loss"]
            with torch.autocast("cpu", enabled=False):
                loss.backward()
    for hook in hooks:
        hook.remove()
    return ledger.most


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def step_bytes_in_parts(make: Callable[[int], int], rows: int, at_once: int) -> int:
    """Return the bytes of a step of ``rows`` rows, ``at_once`` of them encoded at once; ``make(rows)`` measures one.

    Many parts are estimated from three, since each further part only adds its features and images.
    """
    if rows <= 3 * at_once:
        return make(rows)
    two, three = make(2 * at_once), make(3 * at_once)
    return two + (three - two) * (rows - 2 * at_once) // at_once


def state_bytes(recipe: Recipe, step: Step, sharded_over: int) -> dict[str, int]:
    """Return the bytes of weights, gradients, optimizer and average on one rank; FSDP2 divides them among the ranks."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in step.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    found = {"weights": whole, "gradients": trained, "optimizer": FIELDS[recipe.optim.name] * trained}
    if recipe.ema is not None:
        found["ema"] = trained
    return {name: -(-size // sharded_over) for name, size in found.items()}


def count_flops(step: Step, shape: BatchShape) -> dict[str, int]:
    """Count the floating-point operations of one forward of an image, and of a text of full length.

    A joint model has no forward of an image alone (it raises TypeError, docs/plugins.md): a `pair` is a row of a step.
    Attention is counted as the matrix products that define it, so that the count does not depend on the fused kernel
    that a machine has.
    """
    two = shape._replace(rows=2, views=1)
    try:
        return count_towers(step, two)
    except TypeError:
        columns = columns_of_row(step, two)
        return {"pair": operations(lambda: step(fake_batch(two, columns))) // 2}


def count_towers(step: Step, two: BatchShape) -> dict[str, int]:
    """Return the operations of an image and of a text, each encoded alone; ``two`` rows are encoded at once."""
    model, batch = cast("Model", step.model), fake_batch(two)
    found = {"picture": operations(lambda: model.encode_image(batch.images)) // 2}
    has_tower = not isinstance(step.model, TwoTower) or step.model.text is not None  # a loss may read tokens itself
    if two.length is not None and has_tower:
        found["text"] = operations(lambda: model.encode_text(batch.tokens)) // 2
    return found


def operations(forward: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        forward()
    return counter.get_total_flops()
