"""The loop: what no loss reaches is frozen, updates that are not finite are left out, a stop ends at a step's end."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from unicl_cli.core.guard import BadSteps
from unicl_cli.core.loop import Plan, Step, call_after_step, fit, freeze_idle
from unicl_cli.core.sampler import seed_of
from unicl_cli.errors import UniclError
from unicl_cli.launch.accelerator import start_accelerator


class Points(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.norm, self.idle = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.capped = nn.Parameter(torch.zeros(1))

    def after_step(self):
        with torch.no_grad():
            self.capped.fill_(7)


class Squares(nn.Module):
    """Mean square error; the dropout shows the seed of a step."""

    def __init__(self, model=None):
        super().__init__()
        self.noise = []

    def forward(self, model, batch):
        self.noise.append(torch.rand(1).item())
        out = model.norm(model.used(batch.x))
        return {"loss": (out.sum(1) - batch.y).square().mean(), "extra": out.mean()}


class Sink:
    def __init__(self):
        self.rows = {}

    def log(self, step, values):
        self.rows[step] = dict(values)

    def close(self):
        pass


def batch(step, bad=False):
    random = torch.Generator().manual_seed(step)
    x = torch.randn(6, 3, generator=random)
    return Points(x, torch.full((6,), math.nan) if bad else x.sum(1))


def run(*, steps=6, start=0, bad=(), stop_at=None, plan=None, net=None):
    torch.manual_seed(0)
    step = Step(net or Net(), Squares())
    accelerator = start_accelerator("fp32", "cpu")
    optimizer = torch.optim.SGD([{"params": step.parameters(), "lr_scale": 0.5}], lr=0.0)
    sink, done = Sink(), []
    batches = ((n, batch(n, n in bad)) for n in range(start, steps))
    plan = plan or Plan(steps=steps, seed=3, lr=lambda n: 0.1 / (n + 1), log_every=2)
    ended = fit(
        step, batches, optimizer, plan, accelerator, sink,
        after=done.append, stopping=lambda: stop_at is not None and len(done) + 1 >= stop_at,
    )  # fmt: skip
    return step, sink, done, ended, optimizer


def test_every_step_is_followed_by_what_comes_after_it():
    step, sink, done, ended, optimizer = run()
    assert done == [1, 2, 3, 4, 5, 6]
    assert ended == 6
    assert list(sink.rows) == [2, 4, 6]
    row = sink.rows[4]
    assert row.keys() >= {"loss", "extra", "grad_norm", "lr", "samples", "img_s", "data_frac"}
    assert (row["lr"], row["samples"]) == (0.1 / 4, 24)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 6 * 0.5), "the tower's own factor"
    assert step.model.capped.item() == 7, "the model's own hook"


def test_the_seed_of_a_step_depends_on_the_step_alone():
    whole, cut = run()[0].loss.noise, run(start=4)[0].loss.noise
    assert whole[4:] == cut
    assert len(set(whole)) == 6
    torch.manual_seed(seed_of(3, 4, 0))
    assert torch.rand(1).item() == whole[4]


def test_the_last_step_is_logged_whatever_the_interval():
    _, sink, *_ = run(plan=Plan(steps=6, seed=0, lr=lambda n: 0.1, log_every=100))
    assert list(sink.rows) == [6]


def test_an_update_that_is_not_finite_is_left_out_and_logged():
    step, sink, done, _, _ = run(steps=2, bad={1})
    before = run(steps=1, plan=Plan(steps=1, seed=3, lr=lambda n: 0.1 / (n + 1)))[0]
    assert done == [1]  # no checkpoint of what was left out
    assert math.isnan(sink.rows[2]["loss"])
    for (name, a), (_, b) in zip(step.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_too_many_of_them_in_a_row_end_the_run():
    plan = Plan(steps=9, seed=0, lr=lambda n: 0.1, guard=BadSteps(2))
    with pytest.raises(UniclError, match="was not finite 3 times in a row, last at step 7") as caught:
        run(steps=9, bad={1, 2, 4, 5, 6}, plan=plan)
    assert caught.value.exit_code == 3
    plan = plan._replace(guard=BadSteps(2))
    assert run(steps=9, bad={1, 2, 4, 5, 7, 8}, plan=plan)[3] == 9, "good ones in between"


def test_a_stop_ends_after_the_step_that_heard_it():
    _, _, done, ended, _ = run(stop_at=3)
    assert done == [1, 2, 3]
    assert ended == 3


def test_gradients_are_cut_and_the_norm_is_that_before():
    free = run(steps=1, plan=Plan(steps=1, seed=0, lr=lambda n: 1.0, grad_clip=None))
    cut = run(steps=1, plan=Plan(steps=1, seed=0, lr=lambda n: 1.0, grad_clip=0.01))
    torch.manual_seed(0)
    start = Net()
    assert free[1].rows[1]["grad_norm"] == pytest.approx(cut[1].rows[1]["grad_norm"])
    for result, expected in ((free, free[1].rows[1]["grad_norm"]), (cut, 0.01)):
        pairs = zip(start.parameters(), result[0].model.parameters(), strict=True)
        moved = torch.cat([(b - a).flatten() for a, b in pairs if b.shape != (1,)]).norm().item()
        assert moved == pytest.approx(expected * 0.5, rel=1e-3)


def test_what_no_loss_reaches_is_named_and_frozen_and_statistics_stay():
    torch.manual_seed(0)
    step = Step(Net(), Squares()).train()
    weights = {name: value.clone() for name, value in step.state_dict().items()}
    idle = freeze_idle(step, batch(0), start_accelerator("fp32", "cpu"))
    assert idle == ["model.capped", "model.idle.weight", "model.idle.bias"]
    assert {name for name, p in step.named_parameters() if not p.requires_grad} == set(idle)
    assert all(torch.equal(value, weights[name]) for name, value in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())


def test_hooks_of_model_and_loss_are_both_called():
    step = Step(Net(), Squares())
    called = []
    step.loss.after_step = lambda: called.append("loss")
    call_after_step(step)
    assert called == ["loss"]
    assert step.model.capped.item() == 7


def test_a_method_of_the_model_is_called_through_the_step():
    step = Step(Net(), Squares())
    assert torch.equal(step.call("used", torch.ones(1, 3)), step.model.used(torch.ones(1, 3)))


class Words(nn.Module):
    def __init__(self, share: float):
        super().__init__()
        self.table, self.drop = nn.Embedding(3, 2), nn.Dropout(share)


def test_a_trained_text_tower_with_dropout_is_told_from_others():
    model = nn.Module()
    model.image = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    step = Step(model, nn.Identity())
    for text, drops in ((Words(0.0), False), (Words(0.1), True)):
        model.text = text
        assert step.train().drops_texts() == drops
        assert not step.eval().drops_texts()
    model.text.requires_grad_(False)
    assert not step.train().drops_texts(), "frozen"
    model.text = Words(0.0)
    model.text.drops = True
    assert step.train().drops_texts(), "a tower may say so itself"


def test_a_step_of_which_nothing_learns_goes_to_training_and_back():
    step = Step(Net(), nn.Identity()).requires_grad_(False)
    assert not step.train().model.training
    assert not step.eval().training
