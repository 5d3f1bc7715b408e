"""Logistic regression on features for many strengths C at once, and the choice of C on validation data.

The objective is scikit-learn's, ``|W|^2 / 2 + C * sum of cross-entropies`` with a free bias, divided by ``C * n``.
All C are fitted in lockstep by L-BFGS. The features are centred and rotated onto the axes of their covariance, which
leaves |W| as it is and makes the Hessian nearly diagonal: its inverse is the start of each L-BFGS direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Linear(NamedTuple):
    """One linear classifier per C: ``weights`` (M, d, K) and ``bias`` (M, K)."""

    weights: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, d) -> (M, n, K)."""
        return features.to(self.weights.dtype) @ self.weights + self.bias[:, None]


class State(NamedTuple):
    """M unfinished fits at ``w`` (m, d + 1, K): ``value`` (m,), ``gradient`` like w, ``decay`` (m,) = 1 / (C n).

    ``spread`` (m, 1, K) is the mean of p (1 - p), which says how much of the data's curvature is left here.
    """

    w: Tensor
    value: Tensor
    gradient: Tensor
    spread: Tensor
    decay: Tensor

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

    def at(self, w: Tensor, decay: Tensor) -> State:
        """Compute the mean cross-entropy + decay / 2 |W|^2, its gradient and the spread at (m, d + 1, K), (m,)."""
        n, (m, _, num_classes) = len(self.targets), w.shape
        value, spread = w.new_zeros(m), w.new_zeros(m, num_classes)
        gradient = w.new_zeros(w.shape[1], m * num_classes)
        flat = w.transpose(0, 1).reshape(w.shape[1], -1)  # all C in one product: twice as fast as one product each
        for axes, targets in self.chunks(max(1, KEPT_LOGITS // (m * num_classes))):
            logits = (axes @ flat).view(-1, m, num_classes)
            logits -= logits.amax(-1, keepdim=True)
            target = targets.view(-1, 1, 1).expand(-1, m, 1)
            value -= logits.gather(-1, target).sum((0, 2))
            odds = logits.exp_()
            total = odds.sum(-1, keepdim=True)
            value += total.log().sum((0, 2))
            p = odds.div_(total)
            spread += (p * (1 - p)).sum(0)
            error = p.scatter_add_(-1, target, p.new_full(target.shape, -1.0))
            gradient.addmm_(axes.T, error.flatten(1))
        shrunk = w * self.penalised
        slopes = gradient.view(-1, m, num_classes).transpose(0, 1) / n + column(decay) * shrunk
        # a step too far leaves rows that are sure and wrong: no spread, so that the next one would be wilder still
        least = FLOOR * (value / n).clamp(max=1)[:, None] / num_classes
        spread = torch.maximum(spread / n, least)[:, None]
        return State(w, value / n + 0.5 * decay * dot(shrunk, shrunk), slopes, spread, decay)

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
    new, size = problem.at(state.w + direction, state.decay), 1.0
    todo = (~(new.value <= enough + SUFFICIENT * slope)).nonzero()[:, 0]
    for _ in range(HALVINGS):
        if not len(todo):
            return new
        size /= 2
        part = problem.at(state.w[todo] + size * direction[todo], state.decay[todo])
        new.put(todo, part)
        todo = todo[~(part.value <= (enough + SUFFICIENT * size * slope)[todo])]
    new.put(todo, state.only(todo))
    return new


def minimise(problem: RotatedData, decay: Tensor, num_classes: int, *, rtol: float, max_iter: int) -> Tensor:
    """Minimise all fits in lockstep: (M,) -> (M, d + 1, K).

    A fit is finished when a step neither promised nor brought ``rtol`` of its value. A bound on the
    gradient would stop large C after a few steps, far from the optimum, and so would the promise alone.

    The diagonal that each direction starts from is the Hessian's where the fit stands now: on separable features the
    data's part of it falls by orders of magnitude (60 rows, C = 1e6: 36 evaluations; from the first one's, 1,445).
    """
    state = problem.at(decay.new_zeros(len(decay), len(problem.variances), num_classes), decay)
    out, left = state.w.clone(), torch.arange(len(decay), device=decay.device)
    history = History(state.w)
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
        promised, small = torch.maximum(-slope, dot(state.gradient, plain)), rtol * new.value
        stuck = dot(moved, moved) == 0
        finished = ((promised <= small) & (state.value - new.value <= small)) | (stuck & fresh)
        history.forget(stuck)
        state = new
        if finished.any():
            out[left[finished]] = state.w[finished]
            left, state = left[~finished], state.only(~finished)
            history.only(~finished)
        if not len(left):
            return out
    out[left] = state.w
    return out


def fit_classifiers(
    features: Tensor,
    targets: Tensor,
    strengths: Sequence[float],
    num_classes: int,
    *,
    rtol: float = 1e-8,
    max_iter: int = 1000,
) -> Linear:
    """Fit a classifier for each of M values of scikit-learn's C on (n, d), int64 (n,) of two classes or more.

    Within 1e-6 of the optimum at the default ``rtol`` (seen: 7e-8), in float64: on separable features float32 cannot
    resolve what is left of the loss, and its line search stalls (36 rows, C = 1e6: 17,000 evaluations instead of 70).
    A class without rows has bias -inf. With two classes that have rows scikit-learn fits one vector and a sigmoid; two
    columns at C / 2 give the same decisions, at C they would not.
    """
    present, targets = targets.unique(return_inverse=True)
    halved = 0.5 if len(present) == 2 else 1.0
    problem, basis, mean = rotate(features, targets)
    decay = 1 / (torch.tensor(strengths, dtype=mean.dtype, device=mean.device) * (halved * len(targets)))
    w = minimise(problem, decay, len(present), rtol=rtol, max_iter=max_iter)
    found = basis @ w[:, :-1]
    weights = mean.new_zeros(len(decay), len(mean), num_classes)
    bias = mean.new_full((len(decay), num_classes), -torch.inf)
    weights[:, :, present], bias[:, present] = found, w[:, -1] - torch.einsum("d,mdk->mk", mean, found)
    return Linear(weights, bias)


def rotate(features: Tensor, targets: Tensor) -> tuple[RotatedData, Tensor, Tensor]:
    """Rotate the data onto the axes of its covariance: a float64 copy, these axes (d, d) and the mean (d,)."""
    n, d = features.shape
    mean = features.mean(0, dtype=torch.float64)
    parts = [features[start : start + KEPT_ROWS] for start in range(0, n, KEPT_ROWS)]
    covariance = mean.new_zeros(d, d)
    for part in parts:
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / n)
    variances, basis = torch.linalg.eigh(covariance)
    axes = mean.new_ones(n, d + 1)
    for part, rows in zip(parts, axes.split(KEPT_ROWS), strict=True):
        rows[:, :d] = (part.double() - mean) @ basis
    variances, one = variances.clamp_min(0), mean.new_ones(1)
    problem = RotatedData(
        axes=axes,
        targets=targets,
        variances=torch.cat([variances, one])[:, None],
        penalised=torch.cat([torch.ones_like(variances), 0 * one])[:, None],
    )
    return problem, basis, mean


class Point(NamedTuple):
    """One C (or one number of neighbours) and its result on validation data."""

    c: float
    accuracy: float
    nll: float

    @property
    def merit(self) -> tuple[float, float, float]:
        """Key to compare points, larger is better: accuracy, then lower negative log-likelihood, then the smaller C."""
        return self.accuracy, -self.nll, -self.c


def sweep(measure: Callable[[Sequence[float]], Sequence[Point]]) -> list[Point]:
    """Search C by OpenAI's protocol and return the measured points by ascending C.

    C runs from 10^-6 to 10^6 in 8 steps per decade: seven coarse points, then the interval around the best is halved
    down to one step. This takes 15 fits in 5 calls instead of 97.
    """
    seen: dict[int, Point] = {}

    def look(steps: Sequence[int]) -> int:
        new = [step for step in steps if 0 <= step <= 96 and step not in seen]
        if new:
            seen.update(zip(new, measure([10 ** (-6 + step / 8) for step in new]), strict=True))
        return max(seen, key=lambda step: seen[step].merit)

    peak = look(range(0, 97, 16))
    for distance in (8, 4, 2, 1):
        peak = look([peak - distance, peak + distance])
    return [seen[step] for step in sorted(seen)]


def measure_classifiers(model: Linear, strengths: Sequence[float], features: Tensor, targets: Tensor) -> list[Point]:
    """Measure the classifiers of ``fit_classifiers(…, strengths, …)`` on (n, d) validation features."""
    points: list[Point] = []
    for index, c in enumerate(strengths):
        logits = Linear(model.weights[index : index + 1], model.bias[index : index + 1]).logits(features)[0]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        known = losses[losses.isfinite()]  # a class without training rows costs the same at every C
        points.append(Point(c, int((logits.argmax(1) == targets).sum()) / len(targets), float(known.mean())))
    return points
