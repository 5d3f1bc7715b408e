"""Logistic regression on features for many strengths C at once, and the choice of C on validation data.

The objective is scikit-learn's, ``|W|^2 / 2 + C * sum of cross-entropies`` with a free bias, divided by ``C * n``.
All C are fitted in lockstep by L-BFGS. The features are centred and rotated onto the axes of their covariance, which
leaves |W| as it is and makes the Hessian nearly diagonal: its inverse is the start of each L-BFGS direction.
The search for C fits in float32, each C from the nearest one that is known; the last fit is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PAIRS = 10
SUFFICIENT = 1e-4  # Armijo: the share of the predicted decrease that a step has to reach
HALVINGS = 30
FLOOR = 0.3
REACH = 4.0
"""The first step changes no logit by more: from there the curvature at W = 0 says little."""
KEPT_LOGITS = 1 << 24
KEPT_ROWS = 1 << 14
PATIENCE = 10
"""Consecutive steps without progress that are allowed: the expected decrease is then below the value's resolution."""
ROUGH = 1e-5
"""Relative tolerance of the search: its accuracies are those of the optimum within a row or two."""
LEAST = 0.1
"""Mean cross-entropy below which ROUGH is no longer relative: rows that are fitted this well decide nothing."""


class Linear(NamedTuple):
    """One linear classifier per C: ``weights`` (M, d, K) and ``bias`` (M, K)."""

    weights: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, d) -> (M, n, K)."""
        return features.to(self.weights.dtype) @ self.weights + self.bias[:, None]

    def only(self, index: int) -> Linear:
        """Return one of the classifiers, with M = 1."""
        return Linear(self.weights[index : index + 1], self.bias[index : index + 1])


class State(NamedTuple):
    """M unfinished fits at ``w`` (m, d + 1, K): ``value`` (m,), ``gradient`` like w, ``decay`` (m,) = 1 / (C n).

    ``spread`` (m, 1, K) is the mean of p (1 - p), which says how much of the data's curvature is left here. ``fits``,
    int64 (m,), are their numbers.
    """

    w: Tensor
    value: Tensor
    gradient: Tensor
    spread: Tensor
    decay: Tensor
    fits: Tensor

    def only(self, kept: Tensor) -> State:
        return State(*(field[kept] for field in self))

    def put(self, places: Tensor, part: State) -> None:
        for field, changed in zip(self, part, strict=True):
            field[places] = changed


class RotatedData(NamedTuple):
    """Rotated data, shared by all C. ``axes`` (n, d + 1) ends in a column of ones, which carries the bias."""

    axes: Tensor
    targets: Tensor
    variances: Tensor
    """(d + 1, 1): of each axis; 1 for the bias."""
    penalised: Tensor
    """(d + 1, 1): 1, but 0 for the bias."""

    def at(self, w: Tensor, decay: Tensor, fits: Tensor) -> State:
        """Compute the mean cross-entropy + decay / 2 |W|^2, its gradient and the spread at (m, d + 1, K), (m,)."""
        n, (m, _, num_classes) = len(self.targets), w.shape
        value, spread = w.new_zeros(m), w.new_zeros(m, num_classes)
        gradient = w.new_zeros(w.shape[1], m * num_classes)
        flat = w.transpose(0, 1).reshape(w.shape[1], -1)  # all C in one product: twice as fast as one product each
        for axes, targets in self.chunks(max(1, KEPT_LOGITS // (m * num_classes))):
            logs = (axes @ flat).view(-1, m, num_classes).log_softmax(-1)
            target = targets.view(-1, 1, 1).expand(-1, m, 1)
            value -= logs.gather(-1, target).sum((0, 2))
            p = logs.exp_()
            spread += p.sum(0) - torch.linalg.vector_norm(p, dim=0).square()  # sum of p (1 - p)
            error = p.scatter_add_(-1, target, p.new_full((1, 1, 1), -1.0).expand_as(target))
            gradient.addmm_(axes.T, error.flatten(1))
        shrunk = w * self.penalised
        slopes = gradient.view(-1, m, num_classes).transpose(0, 1) / n + column(decay) * shrunk
        # a step too far leaves rows that are sure and wrong: no spread, so that the next one would be wilder still
        least = FLOOR * (value / n).clamp(max=1)[:, None] / num_classes
        spread = torch.maximum(spread / n, least)[:, None]
        return State(w, value / n + 0.5 * decay * dot(shrunk, shrunk), slopes, spread, decay, fits)

    def reach(self, w: Tensor) -> Tensor:
        """Return the largest logit of each fit: (m, d + 1, K) -> (m,)."""
        flat, rows = w.transpose(0, 1).reshape(w.shape[1], -1), max(1, KEPT_LOGITS // (len(w) * w.shape[2]))
        parts = [(axes @ flat).view(-1, len(w), w.shape[2]).abs().amax((0, 2)) for axes, _ in self.chunks(rows)]
        return torch.stack(parts).amax(0)

    def chunks(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.axes.split(rows), self.targets.split(rows), strict=True))


class History:
    """The last PAIRS steps and changes of gradient, (m, pairs, size), from which L-BFGS builds the inverse Hessian."""

    def __init__(self, like: Tensor) -> None:
        self.steps = self.changes = like.flatten(1)[:, None][:, :0]

    def add(self, step: Tensor, change: Tensor) -> None:
        """Add a pair; one without positive curvature is kept as zeros for its own fit."""
        usable = column(dot(step, change) > 1e-10 * dot(change, change))
        self.steps = torch.cat([self.steps[:, 1 - PAIRS :], (step * usable).flatten(1)[:, None]], 1)
        self.changes = torch.cat([self.changes[:, 1 - PAIRS :], (change * usable).flatten(1)[:, None]], 1)

    def forget(self, places: Tensor) -> None:
        self.steps, self.changes = (kept.masked_fill(column(places), 0) for kept in (self.steps, self.changes))

    def empty(self) -> Tensor:
        """Mark the fits without pairs, bool (m,)."""
        return ~self.steps.any(2).any(1)

    def only(self, kept: Tensor) -> None:
        self.steps, self.changes = self.steps[kept], self.changes[kept]

    def direction(self, gradient: Tensor, inverse: Tensor) -> Tensor:
        """Return the descent direction from the diagonal ``inverse`` of this step, scaled to the newest pair.

        Both inputs are (m, d + 1, K).

        The compact form (Byrd, Nocedal, Schnabel 1994, eq. 3.1): ten operations where the two loops take a hundred.
        """
        if not self.steps.shape[1]:
            return -inverse * gradient
        steps, changes, g = self.steps, self.changes, gradient.flatten(1)[..., None]
        scaled = inverse.flatten(1)[:, None] * changes
        upper = (steps @ changes.mT).triu()
        curvature = upper.diagonal(dim1=1, dim2=2)
        curvature[curvature == 0] = 1  # of a pair of zeros
        inner = changes @ scaled.mT
        newest = inner[:, -1:, -1:]
        scale = torch.where(newest > 0, upper[:, -1:, -1:] / newest, 1.0)
        a = torch.linalg.solve_triangular(upper, steps @ g, upper=True)
        right = curvature[..., None] * a + scale * (inner @ a - scaled @ g)
        b = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        out = steps.mT @ b - scale * (scaled.mT @ a)
        return -(out.view_as(gradient) + scale * inverse * gradient)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def column(a: Tensor) -> Tensor:
    return a.view(-1, 1, 1)


def line_search(problem: RotatedData, state: State, direction: Tensor, slope: Tensor) -> State:
    """Halve each fit's own step until its value decreases enough; a fit that never does keeps its weights."""
    enough = state.value + 4 * torch.finfo(state.value.dtype).eps * state.value.abs()
    new, size = problem.at(state.w + direction, state.decay, state.fits), 1.0
    todo = (~(new.value <= enough + SUFFICIENT * slope)).nonzero()[:, 0]
    for _ in range(HALVINGS):
        if not len(todo):
            return new
        size /= 2
        part = problem.at(state.w[todo] + size * direction[todo], state.decay[todo], state.fits[todo])
        new.put(todo, part)
        todo = todo[~(part.value <= (enough + SUFFICIENT * size * slope)[todo])]
    new.put(todo, state.only(todo))
    return new


def minimise(problem: RotatedData, decay: Tensor, start: Tensor, *, rtol: float, least: float, max_iter: int) -> Tensor:
    """Minimise all fits in lockstep from ``start``, (M, d + 1, K), with decay (M,); return the weights.

    A fit is finished when a step neither promised nor brought ``rtol`` of its value (at least of ``least``), or
    PATIENCE steps in a row brought less. A bound on the gradient would stop large C after a few steps, far from the
    optimum, and so would the promise alone.

    The diagonal that each direction starts from is the Hessian's where the fit stands now: on separable features the
    data's part of it falls by orders of magnitude (60 rows, C = 1e6: 36 evaluations; from the first one's, 1,445).
    """
    state = problem.at(start, decay, torch.arange(len(decay), device=decay.device))
    out, left = state.w.clone(), state.fits
    history, idle = History(state.w), torch.zeros_like(left)
    for _ in range(max_iter):
        inverse = 1 / (problem.variances * state.spread + column(state.decay) * problem.penalised)
        plain = inverse * state.gradient
        direction = history.direction(state.gradient, inverse)
        uphill = ~(dot(state.gradient, direction) < 0)
        direction[uphill] = -plain[uphill]
        fresh = history.empty()
        if not history.steps.shape[1]:
            direction *= column((REACH / problem.reach(direction)).clamp(max=1))
        slope = dot(state.gradient, direction)
        new = line_search(problem, state, direction, slope)
        moved = new.w - state.w
        history.add(moved, new.gradient - state.gradient)
        promised, small = torch.maximum(-slope, dot(state.gradient, plain)), rtol * new.value.clamp(min=least)
        stuck, poor = dot(moved, moved) == 0, state.value - new.value <= small
        idle = torch.where(poor, idle + 1, 0)
        finished = ((promised <= small) & poor) | (stuck & fresh) | (idle >= PATIENCE)
        history.forget(stuck)
        state = new
        if finished.any():
            out[left[finished]] = state.w[finished]
            idle, state = idle[~finished], state.only(~finished)
            left = state.fits
            history.only(~finished)
        if not len(left):
            return out
    out[left] = state.w
    return out


class Regression:
    """The training rows (n, d), int64 (n,) of two classes or more, rotated once to be fitted at any C.

    A class without rows has bias -inf. With two classes that have rows scikit-learn fits one vector and a sigmoid; two
    columns at C / 2 give the same decisions, at C they would not.
    """

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int, dtype: torch.dtype = torch.float64) -> None:
        self.num_classes = num_classes
        self.present, targets = targets.unique(return_inverse=True)
        self.problem, self.basis, self.mean = rotate(features, targets, dtype)

    def fit(
        self,
        strengths: Sequence[float],
        *,
        rtol: float = 1e-8,
        least: float = 0.0,
        max_iter: int = 1000,
        start: Linear | None = None,
    ) -> Linear:
        """Fit a classifier for each of M values of scikit-learn's C, from ``start`` (M classifiers) or from zero.

        Within 1e-6 of the optimum at the default ``rtol`` in float64 (seen: 1e-7): on separable features float32
        cannot resolve what is left of the loss.
        """
        halved = 0.5 if len(self.present) == 2 else 1.0
        rows, dtype = len(self.problem.targets), self.problem.axes.dtype
        decay = 1 / (self.mean.new_tensor(strengths) * (halved * rows)).to(dtype)
        if start is None:
            begin = decay.new_zeros(len(decay), len(self.problem.variances), len(self.present))
        else:
            begin = self.rotated(start).to(dtype)
        w = minimise(self.problem, decay, begin, rtol=rtol, least=least, max_iter=max_iter).double()
        found = self.basis @ w[:, :-1]
        weights = self.mean.new_zeros(len(decay), len(self.mean), self.num_classes)
        bias = self.mean.new_full((len(decay), self.num_classes), -torch.inf)
        weights[:, :, self.present] = found
        bias[:, self.present] = w[:, -1] - torch.einsum("d,mdk->mk", self.mean, found)
        return Linear(weights, bias)

    def rotated(self, model: Linear) -> Tensor:
        """Return classifiers in the rotated axes, (M, d + 1, K); one that did not know a class begins it at zero."""
        weights, bias = model.weights[:, :, self.present], model.bias[:, self.present].nan_to_num(neginf=0.0)
        return torch.cat([self.basis.mT @ weights, (bias + torch.einsum("d,mdk->mk", self.mean, weights))[:, None]], 1)


def fit_classifiers(
    features: Tensor, targets: Tensor, strengths: Sequence[float], num_classes: int, **options: Any
) -> Linear:
    """Fit a classifier for each C of ``strengths`` in float64; ``options`` are those of ``Regression.fit``."""
    return Regression(features, targets, num_classes).fit(strengths, **options)


def rotate(features: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[RotatedData, Tensor, Tensor]:
    """Rotate the data onto the axes of its covariance: a copy in ``dtype``, these axes (d, d) and the mean (d,)."""
    n, d = features.shape
    mean = features.mean(0, dtype=torch.float64)
    parts = [features[start : start + KEPT_ROWS] for start in range(0, n, KEPT_ROWS)]
    covariance = mean.new_zeros(d, d)
    for part in parts:
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / n)
    variances, basis = torch.linalg.eigh(covariance)
    axes = mean.new_ones(n, d + 1, dtype=dtype)
    for part, rows in zip(parts, axes.split(KEPT_ROWS), strict=True):
        rows[:, :d] = (part.double() - mean) @ basis
    variances, one = variances.clamp_min(0), mean.new_ones(1)
    problem = RotatedData(
        axes=axes,
        targets=targets,
        variances=torch.cat([variances, one])[:, None].to(dtype),
        penalised=torch.cat([torch.ones_like(variances), 0 * one])[:, None].to(dtype),
    )
    return problem, basis, mean


class Point(NamedTuple):
    """One C (or one number of neighbours) and its result on validation data."""

    c: float
    accuracy: float
    nll: float

    @property
    def sort_key(self) -> tuple[float, float, float]:
        """Key to compare points, larger is better: accuracy, then lower negative log-likelihood, then the smaller C."""
        return self.accuracy, -self.nll, -self.c


def sweep(measure: Callable[[Sequence[float]], Sequence[Point]]) -> list[Point]:
    """Search C by OpenAI's protocol and return the measured points by ascending C.

    C runs from 10^-6 to 10^6 in 8 steps per decade: seven coarse points, then the interval around the best is halved
    down to one step. This takes 15 fits instead of 97. The coarse points 10^4 and 10^6, whose fits take longest, are
    left out where the two below them are both worse than the best.
    """
    seen: dict[int, Point] = {}

    def look(steps: Sequence[int]) -> int:
        new = [step for step in steps if 0 <= step <= 96 and step not in seen]
        if new:
            seen.update(zip(new, measure([10 ** (-6 + step / 8) for step in new]), strict=True))
        return max(seen, key=lambda step: seen[step].sort_key)

    peak = look(range(0, 65, 16))
    for step in (80, 96):
        if step - peak <= 32:
            peak = look([step])
    for distance in (8, 4, 2, 1):
        peak = look([peak - distance, peak + distance])
    return [seen[step] for step in sorted(seen)]


class Search:
    """The search for C: each fit, in float32 to ROUGH, begins at the nearest C that is fitted already."""

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int) -> None:
        self.regression = Regression(features, targets, num_classes, torch.float32)
        self.known: dict[float, Linear] = {}

    def fit(self, strengths: Sequence[float]) -> Linear:
        """Fit a classifier for each C."""
        start = None
        if self.known:
            begin = [self.nearest(c) for c in strengths]
            start = Linear(torch.cat([each.weights for each in begin]), torch.cat([each.bias for each in begin]))
        model = self.regression.fit(strengths, rtol=ROUGH, least=LEAST, start=start)
        self.known |= {c: model.only(index) for index, c in enumerate(strengths)}
        return model

    def nearest(self, c: float) -> Linear:
        """Return the classifier of the C nearest to ``c`` by ratio."""
        return self.known[min(self.known, key=lambda known: abs(math.log(known / c)))]


def measure_classifiers(model: Linear, strengths: Sequence[float], features: Tensor, targets: Tensor) -> list[Point]:
    """Measure the classifiers of ``fit_classifiers(…, strengths, …)`` on (n, d) validation features."""
    points: list[Point] = []
    for index, c in enumerate(strengths):
        logits = model.only(index).logits(features)[0]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        known = losses[losses.isfinite()]  # a class without training rows costs the same at every C
        points.append(Point(c, int((logits.argmax(1) == targets).sum()) / len(targets), float(known.mean())))
    return points
