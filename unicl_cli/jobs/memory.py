"""What a training step keeps in memory and computes, from one forward of tensors that have shapes and no numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from unicl_cli.contracts import Batch, Model
from unicl_cli.core.loop import Step
from unicl_cli.recipe import Recipe

METHOD = (
    "estimate: 16 bytes a trained parameter (weight, gradient, AdamW's two averages) and every tensor that one float32 "
    "forward without numbers saves for backward, each storage once, and twice the largest of them for gradients on "
    "their way; texts are taken as all distinct and of full length; bf16 keeps about half of the activations. Left "
    "out: the workspace of convolutions (up to a third more), the allocator's own loss, features gathered from other "
    "processes, pictures on their way"
)
IN_FLIGHT = 2
"""Gradients as large as an activation that a backward step holds at once: what comes in, and what goes out."""
FIELDS = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers that the optimiser keeps for each trained parameter."""


class Shape(NamedTuple):
    """A rank's share of a batch: rows, views of each picture, its side, and the longest text (None: no texts)."""

    rows: int
    views: int
    side: int
    length: int | None


def batch_of(shape: Shape) -> Batch:
    """A batch in which every text is a distinct one of full length; under ``unreal`` it has no numbers."""
    rows, views, side, length = shape
    size = (rows, views, 3, side, side) if views > 1 else (rows, 3, side, side)
    return Batch(
        images=torch.empty(size, dtype=torch.uint8),
        tokens=torch.empty(rows, length or 1, dtype=torch.int64),
        **{name: torch.empty(rows, dtype=torch.int64) for name in ("text_index", "labels", "keys", "draws")},
        extra={},
    )


def unreal(*steps: nn.Module) -> FakeTensorMode:
    """Moves modules from the meta device to a processor that computes shapes only; their forward belongs inside."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # what two names share stays shared
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


def saved_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that ``forward`` saves for backward, each storage once, and of gradients on their way through the largest.

    The module's own parameters and buffers are not among them.
    """
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}  # pyright: ignore[reportPrivateUsage]
    seen: dict[int, int] = {}
    alive: list[Any] = []  # a storage that was freed could lend its number to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (number := storage._cdata) not in own:  # pyright: ignore[reportPrivateUsage]
            seen[number] = storage.nbytes()
            alive.append(storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(forward())
    return sum(seen.values()) + IN_FLIGHT * max(seen.values(), default=0)


def activations(step: Step, whole: Step, shape: Shape, chunks: int) -> int:
    """Bytes kept between forward and backward of a rank's share that is encoded in ``chunks`` recomputed parts.

    ``step`` was built for them, ``whole`` for one. At the peak the features of all rows and the activations of one
    part, of the larger tower, are alive.
    """
    kept = saved_bytes(step, lambda: step(batch_of(shape)))
    if chunks == 1:
        return kept
    part = batch_of(shape._replace(rows=-(-shape.rows // chunks)))
    model = cast("Model", whole.model)
    images = part.images.flatten(0, 1) if shape.views > 1 else part.images
    parts = [saved_bytes(whole, lambda: model.encode_image(images))]
    if shape.length is not None:
        parts.append(saved_bytes(whole, lambda: model.encode_text(part.tokens)))
    return kept + max(parts)


def states(recipe: Recipe, step: Step, sharded_over: int) -> dict[str, int]:
    """Bytes of weights, gradients, optimiser and average on one rank; FSDP2 shares them out."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in step.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    found = {"weights": whole, "gradients": trained, "optimizer": FIELDS[recipe.optim.name] * trained}
    if recipe.ema is not None:
        found["ema"] = whole
    return {name: -(-size // sharded_over) for name, size in found.items()}


def flops(step: Step, shape: Shape) -> dict[str, int]:
    """Floating-point operations of one forward of a picture, and of a text of full length."""
    model, two = cast("Model", step.model), batch_of(shape._replace(rows=2, views=1))
    counted: dict[str, int] = {}
    ways: dict[str, Callable[[], Any]] = {"picture": lambda: model.encode_image(two.images)}
    if shape.length is not None:
        ways["text"] = lambda: model.encode_text(two.tokens)
    for name, forward in ways.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        counted[name] = counter.get_total_flops() // 2
    return counted
