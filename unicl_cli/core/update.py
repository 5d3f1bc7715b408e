"""One update of the weights: unscaled, cut, agreed on by all ranks, left out on all of them where it is not finite."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from unicl_cli.core.dist import full_tensor, gather, sum_over_ranks
from unicl_cli.core.guard import HINT, BadSteps, Diverged

if TYPE_CHECKING:
    from accelerate import Accelerator


class Outcome(NamedTuple):
    """How a step ended, the same on all ranks."""

    bad_loss: bool
    bad_gradient: bool
    stop: bool
    save: bool

    @property
    def bad(self) -> bool:
        return self.bad_loss or self.bad_gradient


class Judged:
    """A step, its scalars, and one sum over ranks: who met a value that is not finite, asks to stop, asks to save."""

    def __init__(self, step: int, values: Mapping[str, Any], *, stop: bool, save: bool) -> None:
        self.step = step
        self.values = {name: x.detach() if isinstance(x, Tensor) else x for name, x in values.items()}
        loss, norm = self.values["loss"].reshape(()), self.values["grad_norm"].reshape(())
        asked = [loss.new_full((), wish, dtype=torch.float32) for wish in (stop, save)]  # filled there: no copy to it
        ranks = sum_over_ranks(torch.stack([(~torch.isfinite(x)).float() for x in (loss, norm)] + asked))
        self.skip = (ranks[:2].sum() > 0).float()
        """(): 1 where the update is to be left out, on the device."""
        self.ranks = ranks.to("cpu", non_blocking=ranks.device.type == "cuda")
        self.copied: torch.Event | None = None
        if ranks.device.type == "cuda":
            self.copied = torch.Event(ranks.device.type)
            self.copied.record()

    def outcome(self) -> Outcome:
        """Waits until the device has come so far."""
        if self.copied is not None:
            self.copied.synchronize()
        return Outcome(*(bool(count) for count in self.ranks.tolist()))


class Updates:
    """Gradients to weights, step by step.

    A GPU works through what the host has queued. A host that read each step's outcome before it queued the update would
    let that queue run dry. So the fused optimizers of torch are told by a tensor on the device to leave an update out,
    as torch's GradScaler does it (nothing is changed then, bit for bit), and the host reads the outcome one step later,
    when it is long there. It waits where it has to know: where one more bad step would end the run, before a logged
    line and ``after``, for an optimizer that cannot be told, and on a CPU, where there is nothing to wait for.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        accelerator: "Accelerator",
        *,
        clip: float | None,
        guard: BadSteps,
        ahead: bool | None = None,
    ) -> None:
        self.module, self.clip, self.guard = module, clip, guard
        self.parameters = list(module.parameters())  # once: walking through the modules takes as long as an update
        self.optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        self.scaler = accelerator.scaler
        wanted = accelerator.device.type == "cuda" if ahead is None else ahead
        self.ahead = wanted and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.open: list[Judged] = []  # whose outcome has not been read
        self.closed: list[tuple[Judged, Outcome]] = []

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next update; a group may have its own factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def backward(self, loss: Tensor) -> None:
        """fp16: of the scaled loss, so that small gradients do not vanish."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def apply(self, step: int, out: Mapping[str, Any], batch: Any, *, stop: bool, save: bool) -> None:
        """The update of ``step``; raises Diverged where the guard has seen enough. All ranks call it."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        judged = Judged(step, {**out, "grad_norm": full_tensor(norm)}, stop=stop, save=save)
        begun = bool(self.optimizer.state)  # a first update that is masked leaves SGD's momentum as it was allocated
        ahead = self.ahead and begun and self.guard.room() > len(self.open)
        self.open.append(judged)
        if not ahead:
            self.read(0, batch)
        if ahead or not self.closed[-1][1].bad:
            self.cut(norm)
            self.move(judged.skip if ahead else None)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def cut(self, norm: Tensor) -> None:
        """Gradients to at most ``clip``, all by one factor."""
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters, self.clip, norm)

    def move(self, skip: Tensor | None) -> None:
        """The optimizer's own step, left out on the device where ``skip`` is 1."""
        if skip is None:
            self.optimizer.step()
            return
        self.optimizer.found_inf = skip  # what the fused optimizers look for
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf

    def read(self, leave: int, batch: Any = None) -> None:
        """Reads the outcome of all steps but the newest ``leave``; the guard counts each once."""
        while len(self.open) > leave:
            judged = self.open.pop(0)
            outcome = judged.outcome()
            overflow = self.scaler is not None and not outcome.bad_loss
            self.guard.count(judged.step + 1, bad=outcome.bad, overflow=overflow)
            self.closed.append((judged, outcome))
            reason = self.guard.reason()
            if reason is not None:
                at = judged.step + 1
                message = f"the loss or its gradient was not finite {reason}, last at step {at}"
                raise Diverged(message, HINT, at, self.evidence(judged, batch))

    def finished(self, *, wait: bool) -> list[tuple[Judged, Outcome]]:
        """Steps whose outcome is known, each told once; with ``wait``, or if one asks for something, up to the newest.

        So all ranks stop and save at the same step.
        """
        self.read(0 if wait or not self.ahead else 1)
        if any(outcome.stop or outcome.save for _, outcome in self.closed):
            self.read(0)
        done, self.closed = self.closed, []
        return done

    def evidence(self, judged: Judged, batch: Any) -> dict[str, Any]:
        """Values of each rank, the global batch's rows, and the gradient norm of each module; a collective."""
        values = {name: x for name, x in judged.values.items() if isinstance(x, Tensor)}
        rows = {name: getattr(batch, name, None) for name in ("draws", "keys")}
        return {
            "values": {name: gather_numbers(x.reshape(1)) for name, x in values.items()},
            "gradient_norms": gradient_norms(self.module),
            **{name: gather_numbers(x) for name, x in rows.items() if isinstance(x, Tensor)},
        }


def gather_numbers(x: Tensor) -> list[Any]:
    """(b,) -> the numbers of all ranks; what is not finite as a word, since JSON has none for it."""
    return [str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in gather(x).tolist()]


def gradient_norms(module: nn.Module) -> dict[str, Any]:
    """The gradient's norm in each module that has parameters of its own, before it is cut."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            square = full_tensor(torch.linalg.vector_norm(parameter.grad.float())).square()
            squares.setdefault(name.rpartition(".")[0].removeprefix("module."), []).append(square)
    found = {name: float(torch.stack(parts).sum().sqrt()) for name, parts in squares.items()}
    return {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
