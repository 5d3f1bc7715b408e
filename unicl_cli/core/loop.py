"""The training loop: one forward, one backward, one update; everything else is a function of the step."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from unicl_cli.contracts import Loss, Model, Sink
from unicl_cli.core.dist import bare, full_tensor, mean_over_ranks, rank, sum_over_ranks, world_size
from unicl_cli.core.sampler import seed_of
from unicl_cli.errors import UniclError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Step(nn.Module):
    """Model and loss as one module: what DDP wraps and FSDP2 takes as root, so that a loss's parameters sync too."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Mapping[str, Tensor]:
        """The loss of this rank's share; the mean over ranks is the loss of the global batch."""
        return cast("Loss", self.loss)(cast("Model", self.model), batch)

    def train(self, mode: bool = True) -> "Step":  # noqa: FBT001, FBT002 - nn.Module's signature
        """What is frozen as a whole (a tower) stays in evaluation: no dropout, BatchNorm's statistics fixed."""
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                module.eval()
        return self

    def drops_texts(self) -> bool:
        """Does one text get another vector each time: has its tower dropout, or says ``drops``, and is it trained?"""
        text = getattr(self.model, "text", None)
        tower = text if isinstance(text, nn.Module) else self.model
        active = [m for m in tower.modules() if m.training]
        return any((isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "drops", False) for m in active)

    def call(self, name: str, *args: Any) -> Any:
        """A method of the model, or one of the loss that takes the model first (``pair_scores``), outside training.

        FSDP2 gathers the root's weights for it.
        """
        method = getattr(self.model, name, None)
        return method(*args) if method is not None else getattr(self.loss, name)(self.model, *args)


class Plan(NamedTuple):
    """The numbers of a training. ``lr`` is the rate of an update (0 is the first); ``describe`` gives more to log."""

    steps: int
    seed: int
    lr: Callable[[int], float]
    grad_clip: float | None = 1.0
    log_every: int = 10
    max_bad_steps: int = 10
    describe: Callable[[Any], Mapping[str, Tensor]] | None = None


def freeze_idle(step_module: nn.Module, batch: Any, accelerator: "Accelerator") -> list[str]:
    """Names of the parameters that no rank's loss reaches, frozen; run on every rank before wrapping.

    One probe step on the first batch finds them. Buffers (BatchNorm's statistics) are put back.
    """
    buffers = {name: value.clone() for name, value in step_module.named_buffers()}
    with accelerator.autocast():
        out = step_module(send_to_device(batch, accelerator.device))
    out["loss"].backward()
    trained = [(name, p) for name, p in step_module.named_parameters() if p.requires_grad]
    reached = sum_over_ranks(torch.tensor([float(p.grad is not None) for _, p in trained], device=accelerator.device))
    idle = [(name, p) for (name, p), ranks in zip(trained, reached.tolist(), strict=True) if not ranks]
    for _, parameter in idle:
        parameter.requires_grad = False
    step_module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in step_module.named_buffers():
            value.copy_(buffers[name])
    step_module.train()  # a tower that was frozen as a whole goes to evaluation
    return [name for name, _ in idle]


def after_step(step_module: nn.Module) -> None:
    """The own hook of model and loss, where there is one: clamp of scales, queues."""
    for part in bare(step_module).children():
        hook = getattr(part, "after_step", None)
        if hook is not None:
            hook()


class Pace:
    """Where the time goes: images/s, the share spent waiting for data, the time left."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.recent: deque[float] = deque(maxlen=200)
        self.images, self.waited, self.spent = 0, 0.0, 0.0

    def took(self, seconds: float, waited: float, images: int) -> None:
        """One step of ``seconds``, of which ``waited`` were spent in the loader."""
        self.recent.append(seconds)
        self.spent += seconds
        self.waited += waited
        self.images += images

    def line(self, step: int) -> dict[str, float]:
        """Figures since the last line; ``eta_s`` only after 20 steps."""
        values = {"img_s": self.images / max(self.spent, 1e-9), "data_frac": self.waited / max(self.spent, 1e-9)}
        if len(self.recent) >= 20:
            values["eta_s"] = sum(self.recent) / len(self.recent) * (self.steps - step)
        self.images, self.waited, self.spent = 0, 0.0, 0.0
        return values


def rows_of(batch: Any) -> int:
    """Rows of a rank's share: the first dimension of its first tensor, or the length of its first list."""
    return len(batch[0])


def fit(
    step_module: nn.Module,
    batches: Iterator[tuple[int, Any]],
    optimizer: Any,
    plan: Plan,
    accelerator: "Accelerator",
    sink: Sink,
    *,
    after: Callable[[int], None],
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Trains over ``batches`` of (step, batch); ``after(completed steps)`` saves and evaluates.

    ``batch`` is any NamedTuple, ``step_module`` any module that returns a mapping with ``loss``. Returns the number
    of completed steps: every rank stops at the same one when one is ``stopping()``. An update whose loss or gradient
    is not finite is left out on all ranks, without ``after``; more than ``plan.max_bad_steps`` in a row end the run
    with exit code 3.
    """
    pace, bad_steps = Pace(plan.steps), 0
    began = time.perf_counter()
    for step, batch in batches:
        waited = time.perf_counter() - began
        torch.manual_seed(seed_of(plan.seed, step, rank()))  # dropout is a function of the step: nothing to save
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step) * group.get("lr_scale", 1.0)
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with accelerator.autocast():  # accelerate adds its own only to a prepared module; a sharded one is not
            out = step_module(batch)
        accelerator.backward(out["loss"])
        norm = gradient_norm(step_module, plan.grad_clip, accelerator)
        bad, stop = flags(out["loss"], norm, stop=stopping())
        bad_steps = update(optimizer, bad_steps, step, plan, accelerator, bad=bad)
        optimizer.zero_grad(set_to_none=True)
        after_step(step_module)
        pace.took(time.perf_counter() - began, waited, rows_of(batch) * world_size())
        if (step + 1) % plan.log_every == 0 or step + 1 == plan.steps or bad:
            facts = {} if plan.describe is None else plan.describe(batch)
            values = mean_over_ranks({**out, "grad_norm": norm, **facts})
            if rank() == 0:
                seen = (step + 1) * rows_of(batch) * world_size()
                sink.log(step + 1, {**values, "lr": plan.lr(step), "samples": seen, **pace.line(step + 1)})
        if not bad:  # checkpoints of steps that were left out would push the good ones away
            after(step + 1)
        if stop:
            return step + 1
        began = time.perf_counter()
    return plan.steps


def gradient_norm(step_module: nn.Module, clip: float | None, accelerator: "Accelerator") -> Tensor:
    """(): the norm of all gradients before they are cut to ``clip``."""
    norm = accelerator.clip_grad_norm_(step_module.parameters(), math.inf if clip is None else clip)
    return full_tensor(cast("Tensor", norm))


def flags(loss: Tensor, norm: Tensor, *, stop: bool) -> tuple[bool, bool]:
    """Is a loss or norm not finite on any rank; is any rank to stop: one small all-reduce."""
    finite = torch.isfinite(loss.detach()) & torch.isfinite(norm.detach())
    bad, stopping = sum_over_ranks(torch.stack([(~finite).float(), finite.new_full((), stop).float()])).tolist()
    return bool(bad), bool(stopping)


def update(optimizer: Any, before: int, step: int, plan: Plan, accelerator: "Accelerator", *, bad: bool) -> int:
    """The update, unless it is bad; returns how many in a row were left out, ``before`` of them before this one."""
    if not bad:
        optimizer.step()
        return 0
    if accelerator.scaler is not None:
        accelerator.scaler.update()  # fp16: a smaller factor next time; it refuses to unscale twice without
    return count_bad(before, step, plan)


def count_bad(before: int, step: int, plan: Plan) -> int:
    """One more update that was left out; too many in a row end the run."""
    if before + 1 > plan.max_bad_steps:
        raise UniclError(
            f"the loss or its gradient was not finite {before + 1} times in a row, last at step {step + 1}",
            "lower optim.lr, lengthen schedule.warmup, or try precision=fp32; the last checkpoint is from before",
            exit_code=3,
        )
    return before + 1
