"""The training loop: one forward, one backward and one update per step; the rest are functions of the step."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli.contracts import Loss, Model, Sink
from unicl_cli.core.dist import any_rank, bare, mean_over_ranks, rank, reshard, sum_over_ranks, world_size
from unicl_cli.core.guard import BadSteps
from unicl_cli.core.host_copy import to_device
from unicl_cli.core.memory import memory_used
from unicl_cli.core.sampler import seed_of
from unicl_cli.core.towers import traits_of
from unicl_cli.core.update import Finished, Updates

if TYPE_CHECKING:
    from accelerate import Accelerator


class Step(nn.Module):
    """Model and loss as one module. DDP wraps it and FSDP2 takes it as root, so that a loss's parameters sync too."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the loss of this rank's share; the mean over ranks is the loss of the global batch."""
        return cast("Loss", self.loss)(cast("Model", self.model), batch)

    def train(self, mode: bool = True) -> "Step":  # noqa: FBT001, FBT002 - nn.Module's signature
        """Set the mode; a module that is frozen as a whole (a tower) stays in evaluation.

        So it has no dropout, and BatchNorm's statistics stay fixed.
        """
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters())
            if module is not self and own and not any(p.requires_grad for p in own):
                module.eval()
        return self

    def drops_texts(self) -> bool:
        """Return True if equal texts get different vectors: a trained text tower has dropout, or says ``drops``."""
        text = getattr(self.model, "text", None)
        tower = text if isinstance(text, nn.Module) else self.model
        active = [m for m in tower.modules() if m.training]
        return any((isinstance(m, nn.Dropout) and m.p > 0) or traits_of(m).drops for m in active)

    def call(self, name: str, *args: Any) -> Any:
        """Call a method of the model, or of the loss with the model first (``pair_scores``), outside training.

        FSDP2 gathers the root's weights for it.
        """
        method = getattr(self.model, name, None)
        return method(*args) if method is not None else getattr(self.loss, name)(self.model, *args)


class Plan(NamedTuple):
    """The settings of the training loop, and its callbacks.

    ``lr(n)``: the learning rate of update n (0 is the first). ``describe(batch)``: more metrics of a batch to log.
    ``each(n, batch)``: called after every step with the number of completed steps. ``due(n)``: True if ``after`` has
    work once n steps are completed; None means always. ``save()``: True if this rank asks for ``after`` although it is
    not due. ``guard``: counts bad steps, over several calls of `fit`. ``ahead``: let the host queue a step before it
    knows how the last one ended; None means on a GPU.
    """

    steps: int
    seed: int
    lr: Callable[[int], float]
    grad_clip: float | None = 1.0
    log_every: int = 10
    describe: Callable[[Any], Mapping[str, Tensor]] | None = None
    each: Callable[[int, Any], None] | None = None
    due: Callable[[int], bool] | None = None
    save: Callable[[], bool] = lambda: False
    guard: BadSteps | None = None
    ahead: bool | None = None


def freeze_idle(step_module: nn.Module, batch: Any, accelerator: "Accelerator") -> list[str]:
    """Freeze the parameters that no rank's loss reaches; return their names. Every rank calls it before wrapping.

    One probe step on the first batch finds them. Buffers (BatchNorm's statistics) are put back.
    """
    return freeze_unreached(step_module, sum_over_ranks(probe_gradients(step_module, batch, accelerator)))


def probe_gradients(step_module: nn.Module, batch: Any, accelerator: "Accelerator") -> Tensor:
    """Run one probe step; return (n,): 1 for each trained parameter that gets a gradient on this rank, else 0."""
    buffers = {name: value.clone() for name, value in step_module.named_buffers()}
    try:
        with accelerator.autocast():
            out = step_module(to_device(batch, accelerator.device))
        out["loss"].backward()
        trained = [p for p in step_module.parameters() if p.requires_grad]
        return torch.tensor([float(p.grad is not None) for p in trained], device=accelerator.device)
    finally:
        step_module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in step_module.named_buffers():
                value.copy_(buffers[name])


def freeze_unreached(step_module: nn.Module, ranks: Tensor) -> list[str]:
    """Freeze the parameters that no rank's loss reaches (``ranks`` counts them); return their names."""
    trained = [(name, p) for name, p in step_module.named_parameters() if p.requires_grad]
    idle = [(name, p) for (name, p), count in zip(trained, ranks.tolist(), strict=True) if not count]
    for _, parameter in idle:
        parameter.requires_grad = False
    step_module.train()  # puts a tower that is frozen as a whole into evaluation
    return [name for name, _ in idle]


def has_finite_loss(step_module: nn.Module, batch: Any, accelerator: "Accelerator") -> bool:
    """Return whether the loss on a batch is finite on every rank, without training on it; every rank calls it."""
    training = step_module.training
    step_module.eval()  # neither dropout nor new statistics of BatchNorm
    try:
        with torch.no_grad(), accelerator.autocast():
            loss = step_module(batch)["loss"]
    finally:
        step_module.train(training)
    return not any_rank(flag=not bool(torch.isfinite(loss)))


def call_after_step(step_module: nn.Module) -> None:
    """Call the ``after_step`` of model and loss, where they have one: it clamps scales or fills queues."""
    for part in bare(step_module).children():
        hook = getattr(part, "after_step", None)
        if hook is not None:
            hook()


class Pace:
    """The pace of a training: images/s, the share of time spent waiting for data, the time left, memory."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.recent: deque[float] = deque(maxlen=200)
        self.images, self.waited, self.spent = 0, 0.0, 0.0

    def add_step(self, seconds: float, waited: float, images: int) -> None:
        """Add a step of ``seconds``, of which ``waited`` were spent in the loader."""
        self.recent.append(seconds)
        self.spent += seconds
        self.waited += waited
        self.images += images

    def figures(self, step: int) -> dict[str, float]:
        """Return this rank's metrics since the last line; ``eta_s`` only after 20 steps."""
        values = {"img_s": self.images / max(self.spent, 1e-9), "data_frac": self.waited / max(self.spent, 1e-9)}
        values["mem_gb"] = memory_used(self.device) / 1e9
        if len(self.recent) >= 20:
            values["eta_s"] = sum(self.recent) / len(self.recent) * (self.steps - step)
        self.images, self.waited, self.spent = 0, 0.0, 0.0
        return values


def rows_of(batch: Any) -> int:
    """Return the rows of a rank's share: the length of the batch's first tensor or list."""
    return len(batch[0])


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generator, so that dropout is a function of the step and its state need not be saved."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # the other backends' generators cost 50 times as much
    else:
        torch.manual_seed(seed)


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
    """Train over ``batches`` of (step, batch); return the number of completed steps.

    ``batch`` is any NamedTuple, ``step_module`` any module that returns a mapping with ``loss``.
    ``after(completed steps)`` saves and evaluates. Once ``stopping()`` is true on one rank, all stop at the same step.
    An update whose loss or gradient is not finite is skipped on all ranks and logged, and ``after`` is not called for
    it; too many of them raise Diverged. A logged line shows its own step, not a mean since the last line, so that it
    does not depend on where a run was interrupted.
    """
    reshard(step_module)  # images or a validation may have been encoded just before
    guard, pace = plan.guard or BadSteps(), Pace(plan.steps, accelerator.device)
    updates = Updates(step_module, optimizer, accelerator, clip=plan.grad_clip, guard=guard, ahead=plan.ahead)
    began = time.perf_counter()
    for step, batch in batches:
        waited = time.perf_counter() - began
        reseed(seed_of(plan.seed, step, rank()), accelerator.device)
        updates.set_rate(plan.lr(step))
        batch = to_device(batch, accelerator.device)
        with accelerator.autocast():  # accelerate adds its own only to a prepared module; a sharded one is not
            out = step_module(batch)
        updates.backward(out["loss"])
        updates.apply(step, out, batch, stop=stopping(), save=plan.save())
        call_after_step(step_module)
        if plan.each is not None:
            plan.each(step + 1, batch)
        logged = (step + 1) % plan.log_every == 0 or step + 1 == plan.steps
        due = plan.due is None or plan.due(step + 1)
        finished = updates.finished(wait=logged or due)
        pace.add_step(time.perf_counter() - began, waited, rows_of(batch) * world_size())
        for one in finished:  # this step if its outcome is known, and before it an earlier one that was read late
            if one.bad or (logged and one.is_current):
                log_step(sink, one, batch, plan, pace)
            if one.is_current and not one.bad and (due or one.save):
                after(step + 1)
        if any(one.stop for one in finished):
            return step + 1
        began = time.perf_counter()
    return plan.steps


def log_step(sink: Sink, one: Finished, batch: Any, plan: Plan, pace: Pace) -> None:
    """Log the line of a step; of an earlier one without the metrics of ``batch`` and ``pace``. All ranks call it."""
    facts, figures = {}, {}
    if one.is_current:
        facts = plan.describe(batch) if plan.describe is not None else {}
        figures = pace.figures(one.step + 1)
    slowest = {name: figures.pop(name) for name in ("data_frac", "mem_gb") if name in figures}
    values = mean_over_ranks({**one.values, **facts}, slowest)
    if rank() == 0:
        seen = (one.step + 1) * rows_of(batch) * world_size()
        sink.log(one.step + 1, {**values, "lr": plan.lr(one.step), "samples": seen, **figures})
