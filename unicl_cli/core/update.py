"""One optimizer update: unscale, clip, agree across ranks, and skip on every rank if not finite."""

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
    """The end of a step, the same on all ranks."""

    bad_loss: bool
    bad_gradient: bool
    stop: bool
    save: bool

    @property
    def bad(self) -> bool:
        return self.bad_loss or self.bad_gradient


class Finished(NamedTuple):
    """A step whose outcome the host knows, the same on all ranks."""

    step: int
    values: Mapping[str, Any]
    bad: bool
    """The loss or its gradient was not finite: no rank made the update."""
    save: bool
    """A rank asked to save."""
    stop: bool
    """A rank asked to stop."""
    is_current: bool
    """The newest step; False: an earlier one, whose batch is gone."""


class Pending:
    """A step whose outcome has not been read: its scalars, and one sum over ranks that decides how it ended.

    The sum counts the ranks with a loss or a gradient that is not finite, and those that ask to stop or to save.
    """

    def __init__(self, step: int, values: Mapping[str, Any], *, stop: bool, save: bool) -> None:
        self.step = step
        self.values = {name: x.detach() if isinstance(x, Tensor) else x for name, x in values.items()}
        loss, norm = self.values["loss"].reshape(()), self.values["grad_norm"].reshape(())
        asked = [loss.new_full((), wish, dtype=torch.float32) for wish in (stop, save)]  # filled there: no copy to it
        ranks = sum_over_ranks(torch.stack([(~torch.isfinite(x)).float() for x in (loss, norm)] + asked))
        self.skip = (ranks[:2].sum() > 0).float()
        """(): 1 where the update must be skipped, on the device."""
        self.ranks = ranks.to("cpu", non_blocking=ranks.device.type == "cuda")
        self.copied: torch.Event | None = None
        if ranks.device.type == "cuda":
            self.copied = torch.Event(ranks.device.type)
            self.copied.record()

    def outcome(self) -> Outcome:
        """Return how the step ended; waits until the device has come so far."""
        if self.copied is not None:
            self.copied.synchronize()
        return Outcome(*(bool(count) for count in self.ranks.tolist()))


class Updates:
    """The updates of the weights, step by step.

    A GPU works through a queue that the host fills. If the host read each outcome before it queued the update, the
    queue would run dry. So the update is skipped on the device: torch's fused optimizers take a tensor by which they
    change nothing, bit for bit, as GradScaler does. The host reads the outcome one step later, when it has long been
    computed. It waits only where it must know: before a logged line and ``after``, where one more bad step would end
    the run, and for an optimizer that cannot skip by itself. On a CPU nothing is queued, so it always reads at once.
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
        asked = accelerator.device.type == "cuda" if ahead is None else ahead
        self.ahead = asked and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.pending: list[Pending] = []
        self.known: list[tuple[Pending, Outcome]] = []
        """Outcomes that have been read and that `finished` has not returned yet."""
        self.newest = -1

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next update; a group may have its own factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients; in fp16 those of the scaled loss, so that small ones do not vanish."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def apply(self, step: int, out: Mapping[str, Any], batch: Any, *, stop: bool, save: bool) -> None:
        """Update the weights after ``step``; raise Diverged beyond a limit of the guard. All ranks call it."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        pending = Pending(step, {**out, "grad_norm": full_tensor(norm)}, stop=stop, save=save)
        has_state = bool(self.optimizer.state)  # a first update that is skipped leaves SGD's momentum as allocated
        ahead = self.ahead and has_state and self.guard.bad_steps_left() > len(self.pending)
        self.pending.append(pending)
        self.newest = step
        if not ahead:
            self.read_outcomes(batch)
        if ahead or not self.known[-1][1].bad:
            self.clip_gradients(norm)
            self.step_optimizer(pending.skip if ahead else None)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def clip_gradients(self, norm: Tensor) -> None:
        """Scale all gradients by one factor, so that their norm is at most ``clip``."""
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters, self.clip, norm)

    def step_optimizer(self, skip: Tensor | None) -> None:
        """Run the optimizer's own step; the device skips it if ``skip`` is 1."""
        if skip is None:
            self.optimizer.step()
            return
        self.optimizer.found_inf = skip  # the attribute that fused optimizers look for
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf

    def read_outcomes(self, batch: Any = None, *, all_but: int = 0) -> None:
        """Read the outcome of all steps but the newest ``all_but``; the guard counts each once."""
        while len(self.pending) > all_but:
            pending = self.pending.pop(0)
            outcome = pending.outcome()
            overflow = self.scaler is not None and not outcome.bad_loss
            self.guard.count(pending.step + 1, bad=outcome.bad, overflow=overflow)
            self.known.append((pending, outcome))
            reason = self.guard.reason()
            if reason is not None:
                at = pending.step + 1
                message = f"the loss or its gradient was not finite {reason}, last at step {at}"
                raise Diverged(message, HINT, at, self.collect_evidence(pending, batch))

    def finished(self, *, wait: bool) -> list[Finished]:
        """Return the steps whose outcome is known, each once, in order; with ``wait`` the newest is among them.

        The newest is also read when a rank asks for something, so that all ranks stop and save at the same step.
        """
        self.read_outcomes(all_but=1 if self.ahead and not wait else 0)
        if any(outcome.stop or outcome.save for _, outcome in self.known):
            self.read_outcomes()
        known, self.known = self.known, []
        return [
            Finished(one.step, one.values, outcome.bad, outcome.save, outcome.stop, one.step == self.newest)
            for one, outcome in known
        ]

    def collect_evidence(self, pending: Pending, batch: Any) -> dict[str, Any]:
        """Gather each rank's values, the global batch's rows, and each module's gradient norm; a collective."""
        values = {name: x for name, x in pending.values.items() if isinstance(x, Tensor)}
        rows = {name: getattr(batch, name, None) for name in ("draws", "keys")}
        return {
            "values": {name: gather_numbers(x.reshape(1)) for name, x in values.items()},
            "gradient_norms": gradient_norms(self.module),
            **{name: gather_numbers(x) for name, x in rows.items() if isinstance(x, Tensor)},
        }


def gather_numbers(x: Tensor) -> list[Any]:
    """(b,) -> the numbers of all ranks; those that are not finite as words, since JSON cannot hold them."""
    return [str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in gather(x).tolist()]


def gradient_norms(module: nn.Module) -> dict[str, Any]:
    """Return the gradient norm of each module that has parameters of its own, before clipping."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            square = full_tensor(torch.linalg.vector_norm(parameter.grad.float())).square()
            squares.setdefault(name.rpartition(".")[0].removeprefix("module."), []).append(square)
    found = {name: float(torch.stack(parts).sum().sqrt()) for name, parts in squares.items()}
    return {name: value if math.isfinite(value) else str(value) for name, value in found.items()}
