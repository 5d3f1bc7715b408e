"""The training loop: one forward, one backward, one update; everything else is a function of the step."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unicl_cli.contracts import Loss, Model, Sink
from unicl_cli.core.dist import bare, mean_over_ranks, rank, sum_over_ranks, world_size
from unicl_cli.core.guard import BadSteps
from unicl_cli.core.host_copy import to_device
from unicl_cli.core.memory import memory_used
from unicl_cli.core.sampler import seed_of
from unicl_cli.core.update import Judged, Updates

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
            if module is not self and own and not any(p.requires_grad for p in own):
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
    """The numbers of a training, and what its job does along the way.

    ``lr`` is the rate of an update (0 is the first); ``describe`` gives more of a batch to log; ``each`` is called
    after every step with the number of completed ones and the batch. ``due``: has ``after`` work at that number (None:
    always)? ``save``: does this rank want it called beside that? ``guard`` counts bad steps, over several calls of
    `fit`. ``ahead``: may the host queue a step before it knows how the last one ended? None: on a GPU.
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
    """Names of the parameters that no rank's loss reaches, frozen; run on every rank before wrapping.

    One probe step on the first batch finds them. Buffers (BatchNorm's statistics) are put back.
    """
    return freeze_unreached(step_module, sum_over_ranks(probe_gradients(step_module, batch, accelerator)))


def probe_gradients(step_module: nn.Module, batch: Any, accelerator: "Accelerator") -> Tensor:
    """(n,): 1 for each trained parameter that this rank's loss on ``batch`` gives a gradient, else 0."""
    buffers = {name: value.clone() for name, value in step_module.named_buffers()}
    with accelerator.autocast():
        out = step_module(to_device(batch, accelerator.device))
    out["loss"].backward()
    trained = [p for p in step_module.parameters() if p.requires_grad]
    found = torch.tensor([float(p.grad is not None) for p in trained], device=accelerator.device)
    step_module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in step_module.named_buffers():
            value.copy_(buffers[name])
    return found


def freeze_unreached(step_module: nn.Module, ranks: Tensor) -> list[str]:
    """Names of the trained parameters that so many ``ranks`` reach, none of them, which are frozen from here on."""
    trained = [(name, p) for name, p in step_module.named_parameters() if p.requires_grad]
    idle = [(name, p) for (name, p), count in zip(trained, ranks.tolist(), strict=True) if not count]
    for _, parameter in idle:
        parameter.requires_grad = False
    step_module.train()  # a tower that was frozen as a whole goes to evaluation
    return [name for name, _ in idle]


def call_after_step(step_module: nn.Module) -> None:
    """The own hook of model and loss, where there is one: clamp of scales, queues."""
    for part in bare(step_module).children():
        hook = getattr(part, "after_step", None)
        if hook is not None:
            hook()


class Pace:
    """What a step takes: images/s, the share spent waiting for data, the time left, memory."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.recent: deque[float] = deque(maxlen=200)
        self.images, self.waited, self.spent = 0, 0.0, 0.0

    def took(self, seconds: float, waited: float, images: int) -> None:
        """One step of ``seconds``, of which ``waited`` were spent in the loader."""
        self.recent.append(seconds)
        self.spent += seconds
        self.waited += waited
        self.images += images

    def line(self, step: int) -> dict[str, float]:
        """Figures since the last line, of this rank; ``eta_s`` only after 20 steps."""
        values = {"img_s": self.images / max(self.spent, 1e-9), "data_frac": self.waited / max(self.spent, 1e-9)}
        values["mem_gb"] = memory_used(self.device) / 1e9
        if len(self.recent) >= 20:
            values["eta_s"] = sum(self.recent) / len(self.recent) * (self.steps - step)
        self.images, self.waited, self.spent = 0, 0.0, 0.0
        return values


def rows_of(batch: Any) -> int:
    """Rows of a rank's share: the first dimension of its first tensor, or the length of its first list."""
    return len(batch[0])


def reseed(seed: int, device: torch.device) -> None:
    """So that dropout is a function of the step, and nothing of it has to be saved."""
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
    """Trains over ``batches`` of (step, batch); ``after(completed steps)`` saves and evaluates.

    ``batch`` is any NamedTuple, ``step_module`` any module that returns a mapping with ``loss``. Returns the number
    of completed steps: every rank stops at the same one when one is ``stopping()``. An update whose loss or gradient
    is not finite is left out on all ranks, logged, and has no ``after``; too many of them raise Diverged.
    A line is of its own step, not a mean since the last one, so that it is the same wherever a run was cut.
    """
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
        ended = updates.finished(wait=logged or due)
        pace.took(time.perf_counter() - began, waited, rows_of(batch) * world_size())
        for one, outcome in ended:
            if outcome.bad or (logged and one.step == step):
                log_step(sink, one, batch, plan, pace if one.step == step else None)
        if any(outcome.save or due for one, outcome in ended if one.step == step and not outcome.bad):
            after(step + 1)
        if any(outcome.stop for _, outcome in ended):
            return step + 1
        began = time.perf_counter()
    return plan.steps


def log_step(sink: Sink, one: Judged, batch: Any, plan: Plan, pace: Pace | None) -> None:
    """The line of a step, with its own ``batch`` and ``pace`` if that is still there; all ranks call it."""
    facts = plan.describe(batch) if plan.describe is not None and pace is not None else {}
    figures = pace.line(one.step + 1) if pace is not None else {}
    slowest = {name: figures.pop(name) for name in ("data_frac", "mem_gb") if name in figures}
    values = mean_over_ranks({**one.values, **facts}, slowest)
    if rank() == 0:
        seen = (one.step + 1) * rows_of(batch) * world_size()
        sink.log(one.step + 1, {**values, "lr": plan.lr(one.step), "samples": seen, **figures})
