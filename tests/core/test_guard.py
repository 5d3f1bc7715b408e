"""Guards: when too many steps are bad, what a spike is, a scale that sticks; a restored one decides alike."""

import json
import math
import random

from unicl_cli.core.guard import BadSteps, DivergenceGuard, Figures


def counted(outcomes, guard=None, overflow=False):
    """The step and the reason at which a run of such outcomes ends."""
    guard = guard or BadSteps()
    for step, bad in enumerate(outcomes, 1):
        guard.count(step, bad=bad, overflow=overflow)
        if guard.reason():
            return step, guard.reason()
    return None


def test_the_eleventh_bad_step_in_a_row_is_too_many():
    assert counted([True] * 10) is None
    assert counted([True] * 11) == (11, "11 times in a row")
    assert counted([True] * 3, BadSteps(2)) == (3, "3 times in a row")


def test_so_is_the_eleventh_of_ten_thousand_steps():
    scattered = [step % 900 == 0 for step in range(1, 9_901)]
    assert sum(scattered) == 11
    assert counted(scattered) == (9_900, "11 times in 10,000 steps")
    assert counted([step % 1_000 == 0 for step in range(1, 50_000)]) is None, "one in a thousand is allowed"
    assert counted(scattered, BadSteps(share=0.002)) is None


def test_overflows_of_fp16_count_in_a_row_only():
    assert counted([step % 5 == 0 for step in range(1, 9_000)], overflow=True) is None
    assert counted([True] * 11, overflow=True) == (11, "11 times in a row")


def test_a_guard_that_stops_has_no_room():
    guard = BadSteps(0, 0.0)
    assert guard.bad_steps_left() == 0
    assert counted([False, True], guard) == (2, "once")


def test_room_is_what_may_still_go_wrong():
    guard = BadSteps()
    rooms = []
    for step in range(1, 12):
        rooms.append(guard.bad_steps_left())
        guard.count(step, bad=True)
    assert rooms == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert guard.reason()


CALM = [2.0 + 0.01 * (n % 5) for n in range(30)]


def watched(losses, figures=None, name="loss", start=1):
    figures = figures or Figures()
    told = [(step, *figures.watch(step, {name: loss})[0]) for step, loss in enumerate(losses, start)]
    return [(step, spike) for step, *spikes in told for spike in spikes]


def test_three_lines_far_above_the_median_are_a_spike_and_one_is_not():
    ((step, spike),) = watched([*CALM, 9.0, *[2.0] * 5, 9.0, 8.0, 7.0, 7.0, 2.0])
    assert step == 39
    assert spike.calm_step == 36
    assert spike.words.startswith("the loss is 7.000, the third line in a row above 2.0")


def test_the_gradient_norm_spikes_too_and_what_is_not_finite_is_no_value():
    ((step, spike),) = watched([*CALM, 9.0, math.nan, 9.0, math.inf, 9.0], name="grad_norm")
    assert (step, spike.calm_step) == (35, 30)
    assert "gradient norm is 9.000" in spike.words
    assert watched([*CALM[:19], 9.0, 9.0, 9.0]) == [], "from 20 lines on"


def test_what_stays_high_is_told_once_and_then_usual():
    figures = Figures()
    assert len(watched([*CALM, *[9.0] * 300], figures)) == 1
    assert figures.spikes["loss"].limit() >= 9


def scales(*runs, cap=100.0, warmup=10):
    """Warnings as (step, words) of (count, scale) runs, a line each ten steps."""
    figures, step, told = Figures(cap, warmup), 0, []
    for count, scale in runs:
        for _ in range(count):
            step += 10
            words = figures.watch(step, {"logit_scale": scale})[1]
            told += [(step, words)] if words else []
    return told


def test_a_scale_that_stays_at_its_cap_is_told_once():
    assert scales((101, 100.0)) == []
    assert scales((300, 100.0), (10, 60.0), (300, 100.0)) == [
        (1020, "logit_scale has been at its cap of 100 for 1,000 steps")
    ]
    assert scales((90, 100.0), (1, 99.0), (90, 100.0)) == []


def test_a_scale_that_falls_is_told_once_and_one_that_began_low_is_not():
    assert scales((5, 14.3), (9, 4.5)) == [(60, "logit_scale has fallen to 4.50")]
    assert scales((50, 2.7)) == []
    assert scales((1, 14.3), (9, 4.5), warmup=1000) == []


def test_a_guard_that_was_saved_decides_like_one_that_was_not():
    """At any moment, through JSON, over a random course."""
    rng = random.Random(0)
    course = [
        {"loss": rng.gauss(2, 0.1) + 5 * (n % 40 > 36), "grad_norm": rng.expovariate(1), "logit_scale": 100.0}
        for n in range(250)
    ]

    def run(cut):
        guard, told = DivergenceGuard(BadSteps(), Figures(100.0, 5)), []
        for step, values in enumerate(course, 1):
            told.append(guard.figures.watch(10 * step, values))
            guard.bad.count(step, bad=step % 30 == 0)
            told.append((guard.bad.bad_steps_left(), guard.bad.reason()))
            if step == cut:
                state = json.loads(json.dumps(guard.state()))
                guard = DivergenceGuard(BadSteps(), Figures(100.0, 5))
                guard.load(state)
        return told, guard.state()

    whole = run(None)
    assert sum(len(spikes) for spikes, _ in whole[0][::2]) >= 2
    assert any(words for _, words in whole[0][::2])
    for cut in range(1, 250, 7):
        assert run(cut) == whole
