"""Updates: the same decided on the device or after reading; fp16 scales, unscales, skips and grows as torch does."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unicl_cli.core.guard import BadSteps, Diverged
from unicl_cli.core.loop import Plan, fit
from unicl_cli.launch.accelerator import start_accelerator


class Points(NamedTuple):
    x: Tensor
    keys: Tensor
    draws: Tensor


class Net(nn.Module):
    """A few layers with dropout; ``hook`` multiplies the loss."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(5, 7), nn.Linear(7, 2), nn.Dropout(0.3)

    def forward(self, batch):
        out = self.last(self.drop(torch.tanh(self.first(batch.x[:, :5]))))
        return {"loss": (out.square().mean(1) * batch.x[:, 5]).mean(), "size": out.detach().mean()}


class Sink:
    def __init__(self):
        self.rows = {}

    def log(self, step, values):
        assert step not in self.rows
        self.rows[step] = {k: repr(v) for k, v in values.items() if k not in ("img_s", "data_frac", "mem_gb", "eta_s")}

    def close(self):
        pass


def batch(step, factor=1.0):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
    x[:, 5] = factor
    return Points(x, torch.arange(4) % 2, torch.arange(4) + 4 * step)


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


class Run:
    """A training of so many steps, of which some are bad; ``factors`` step -> factor on the loss."""

    def __init__(self, steps=12, bad=(), *, name="adamw", stop_at=None, scaler=None, factors=None, **plan):
        torch.manual_seed(0)
        self.net, self.sink, self.done, self.error = Net(), Sink(), [], None
        self.optimizer = OPTIMIZERS[name](self.net.parameters())
        factors = dict.fromkeys(bad, math.nan) | (factors or {})
        batches = ((n, batch(n, factors.get(n, 1.0))) for n in range(steps))
        whole = Plan(steps=steps, seed=3, lr=lambda n: 0.1 / (n + 1), **({"log_every": 4} | plan))
        accelerator = start_accelerator("fp32", "cpu")
        accelerator.scaler = scaler
        asked = iter(range(steps))
        try:
            self.ended = fit(
                self.net, batches, self.optimizer, whole, accelerator, self.sink,
                after=self.done.append, stopping=lambda: stop_at is not None and next(asked) >= stop_at,
            )  # fmt: skip
        except Diverged as error:
            self.error = error
        finally:
            accelerator.scaler = None

    def same(self, other):
        pairs = list(zip(self.net.parameters(), other.net.parameters(), strict=True))
        states = [(self.optimizer.state[a], other.optimizer.state[b]) for a, b in pairs]
        flat = [(one[key], two[key]) for one, two in states for key in one.keys() & two.keys()]
        return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in [*pairs, *flat])


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("due", [None, lambda step: step % 5 == 0, lambda step: False])
def test_an_update_that_is_masked_on_the_device_is_one_that_was_not_made(name, due):
    bad = {0, 3, 4, 7, 11}
    first, ahead = (Run(bad=bad, name=name, due=due, ahead=ahead) for ahead in (False, True))
    assert first.same(ahead)
    assert not first.same(Run(bad=bad - {4}, name=name))
    assert first.done == ahead.done == [n for n in range(1, 13) if n - 1 not in bad and (due is None or due(n))]
    assert first.sink.rows == ahead.sink.rows
    assert set(first.sink.rows) == {4, 8, 12} | {n + 1 for n in bad}
    assert list(ahead.sink.rows) == sorted(ahead.sink.rows)


@settings(max_examples=15, deadline=None)
@given(bad=st.sets(st.integers(0, 13)), in_a_row=st.integers(0, 4), share=st.sampled_from([0.0002, 0.001]))
def test_a_run_that_is_ahead_ends_at_the_same_step(bad, in_a_row, share):
    first, ahead = (
        Run(14, bad, due=lambda step: False, ahead=ahead, guard=BadSteps(in_a_row, share)) for ahead in (False, True)
    )
    assert first.same(ahead)
    assert (first.error is None) == (ahead.error is None)
    if first.error is not None:
        assert first.error.message == ahead.error.message
        assert repr(first.error.evidence) == repr(ahead.error.evidence)


def test_what_a_run_ends_with_is_enough_to_look_into():
    error = Run(bad={2, 3}, guard=BadSteps(1)).error
    assert (error.exit_code, error.step) == (3, 4)
    assert error.message == "the loss or its gradient was not finite 2 times in a row, last at step 4"
    found = error.evidence
    assert found["draws"] == [12, 13, 14, 15]
    assert found["keys"] == [0, 1, 0, 1]
    assert found["values"]["loss"] == ["nan"]
    assert found["values"]["size"][0] == pytest.approx(0, abs=2)
    assert found["gradient_norms"] == {"first": "nan", "last": "nan"}


def test_the_norms_of_the_modules_are_those_before_the_cut():
    """Of a step whose loss alone is infinite: its gradients are finite."""

    class Far(Net):
        def forward(self, batch):
            out = super().forward(batch)
            return out | {"loss": out["loss"] + batch.x[0, 5].detach()}

    torch.manual_seed(0)
    net, accelerator = Far(), start_accelerator("fp32", "cpu")
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    one = batch(0)
    one.x[0, 5], one.x[0, :5] = math.inf, 0
    one.x[1:, 5] = 0
    plan = Plan(steps=1, seed=0, lr=lambda n: 0.1, guard=BadSteps(0), grad_clip=1e-9)
    with pytest.raises(Diverged) as caught:
        fit(net, iter([(0, one)]), optimizer, plan, accelerator, Sink(), after=print)
    norms = caught.value.evidence["gradient_norms"]
    assert caught.value.evidence["values"]["loss"] == ["inf"]
    assert norms.keys() == {"first", "last"}


def test_a_stop_is_heard_by_the_next_step_at_the_latest():
    for ahead, due in ((False, None), (True, None), (True, lambda step: False)):
        run = Run(stop_at=5, ahead=ahead, due=due, log_every=100)
        assert run.ended == (6 if due is None else 7)
        assert run.same(Run(run.ended))


def test_a_rank_that_wants_to_save_is_heard_where_nothing_is_due():
    wants = iter([False, False, True, False, False, True, True, False] + [False] * 9)
    run = Run(bad={5}, due=lambda step: False, save=lambda: next(wants))
    assert run.done == [3, 7], "not after a bad step; it is asked again"


# -- fp16 ---------------------------------------------------------------------------------------------------------


def scaled(scale=2.0**16, interval=3):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)


def by_hand(steps, factors):
    """The loop as torch's documentation writes it, with a scaler."""
    torch.manual_seed(0)
    net, scaler = Net(), scaled()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    scales = []
    for n in range(steps):
        from unicl_cli.core.sampler import seed_of

        torch.manual_seed(seed_of(3, n, 0))
        optimizer.param_groups[0]["lr"] = 0.1 / (n + 1)
        scaler.scale(net(batch(n, factors.get(n, 1.0)))["loss"]).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return net, scaler, scales


@pytest.mark.parametrize("ahead", [False, True])
def test_fp16_steps_skips_and_grows_as_torchs_own_loop_does(ahead):
    """Gradients that overflow once they are scaled: 1e36 x 2^16 is more than float32 holds."""
    factors = {1: 1e36, 2: 1e36, 7: math.inf}
    net, scaler, scales = by_hand(12, factors)
    run_scaler = scaled()
    run = Run(12, factors=factors, scaler=run_scaler, ahead=ahead)
    assert min(scales) < 2**16, "it has skipped"
    assert max(scales[4:]) > min(scales), "and grown"
    assert run_scaler.state_dict() == scaler.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), run.net.parameters(), strict=True))


def test_a_scaler_goes_on_where_it_was():
    whole, first, second = scaled(), scaled(), scaled()
    Run(9, scaler=whole, factors={2: 1e36})
    Run(5, scaler=first, factors={2: 1e36})
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        Run(1, scaler=second)
    assert second.state_dict() == whole.state_dict()
    assert whole.get_scale() != 2.0**16
