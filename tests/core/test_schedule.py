"""Learning rates as pure functions of the step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unicl_cli.core.schedule import lr_at


def rate(step, **changes):
    return lr_at(step, **({"name": "cosine", "peak": 2.0, "warmup": 10, "steps": 110, "floor": 0.0} | changes))


def test_the_warm_up_is_linear_and_ends_at_the_peak():
    assert [rate(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rate(10) == 2.0


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    for step in range(10, 110):
        assert rate(step, floor=0.05) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()
    assert rate(110, floor=0.05) == pytest.approx(0.1)


def test_past_the_end_the_rate_stays_at_the_floor():
    assert rate(500, floor=0.25) == pytest.approx(0.5)


def test_a_constant_rate_only_warms_up():
    assert [rate(step, name="constant") for step in (0, 9, 10, 60, 109)] == pytest.approx([0.2, 2, 2, 2, 2])


def test_without_warm_up_the_first_step_has_the_peak():
    assert rate(0, warmup=0) == 2.0


def test_a_warm_up_as_long_as_the_run_is_no_division_by_zero():
    assert [rate(step, warmup=5, steps=5) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rate(5, warmup=5, steps=5) == 2.0


@given(step=st.integers(0, 200), warmup=st.integers(0, 150), steps=st.integers(1, 150), floor=st.floats(0, 1))
def test_the_rate_is_a_plain_number_between_nothing_and_the_peak(step, warmup, steps, floor):
    value = rate(step, warmup=warmup, steps=steps, floor=floor)
    assert type(value) is float
    assert 0 <= value <= 2.0
    assert math.isfinite(value)
