"""Logistic regression on features for many strengths C at once, and the choice of C on validation data.

The objective is scikit-learn's, ``|W|^2 / 2 + C * sum of cross-entropies`` with a free bias, divided by ``C * n``.
All C are fitted in lockstep by L-BFGS. The features are centred and rotated onto the axes of their covariance, which
leaves |W| as it is and makes the Hessian nearly diagonal: its inverse is the start of each L-BFGS direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PAIRS = 10
SUFFICIENT = 1e-4  # Armijo: the share of the predicted decrease that a step has to reach
HALVINGS = 30
KEPT_LOGITS = 1 << 24


class Linear(NamedTuple):
    """One linear classifier per C: ``weights`` (M, d, K) and ``bias`` (M, K)."""

    weights: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, d) -> (M, n, K)."""
        return features.to(self.weights.dtype) @ self.weights + self.bias[:, None]


class Problem(NamedTuple):
    """Rotated data, shared by all C. ``axes`` (n, d + 1) ends in a column of ones, which carries the bias."""

    axes: Tensor
    targets: Tensor
    curvature: Tensor
    """(d + 1, 1): the Hessian's diagonal without the penalty, at uniform predictions."""
    penalised: Tensor
    """(d + 1, 1): 1, but 0 for the bias."""

    def value_and_gradient(self, w: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """(m, d + 1, K), (m,) -> mean cross-entropy + decay / 2 |W|^2, (m,), and its gradient."""
        n, (m, _, num_classes) = len(self.targets), w.shape
        value, gradient = w.new_zeros(m), torch.zeros_like(w)
        for axes, targets in self.chunks(max(1, KEPT_LOGITS // (m * num_classes))):
            logits = axes @ w
            normaliser = logits.logsumexp(-1, keepdim=True)
            target = targets.view(1, -1, 1).expand(m, -1, 1)
            value += (normaliser - logits.gather(-1, target)).sum((1, 2))
            error = (logits - normaliser).exp_().scatter_add_(-1, target, logits.new_full(target.shape, -1.0))
            gradient += axes.T @ error
        shrunk = w * self.penalised
        return value / n + 0.5 * decay * dot(shrunk, shrunk), gradient / n + column(decay) * shrunk

    def chunks(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.axes.split(rows), self.targets.split(rows), strict=True))


class State(NamedTuple):
    """Where the unfinished fits stand: weights, objective, gradient, penalty."""

    w: Tensor
    value: Tensor
    gradient: Tensor
    decay: Tensor

    def only(self, kept: Tensor) -> State:
        return State(*(field[kept] for field in self))


class History:
    """The last PAIRS steps and changes of gradient, from which L-BFGS builds the inverse Hessian."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """A pair without positive curvature is kept with weight 0 for its fit alone."""
        curvature = dot(step, change)
        usable = curvature > 1e-10 * dot(change, change)
        weight = torch.where(usable, 1 / curvature.clamp_min(1e-30), torch.zeros_like(curvature))
        self.pairs = [*self.pairs[-PAIRS + 1 :], (step, change, weight)]

    def only(self, kept: Tensor) -> None:
        self.pairs = [(step[kept], change[kept], weight[kept]) for step, change, weight in self.pairs]

    def direction(self, gradient: Tensor, inverse: Tensor) -> Tensor:
        """The two-loop recursion from the diagonal ``inverse``, scaled to the newest pair; both (m, d + 1, K or 1)."""
        q, shares = gradient.clone(), list[Tensor]()
        for step, change, weight in reversed(self.pairs):
            shares.append(weight * dot(step, q))
            q -= column(shares[-1]) * change
        q = inverse * q
        if self.pairs:
            _, change, weight = self.pairs[-1]
            scale = 1 / (weight * dot(change, inverse * change)).clamp_min(1e-30)
            q *= column(torch.where(weight > 0, scale, torch.ones_like(weight)))
        for (step, change, weight), share in zip(self.pairs, reversed(shares), strict=True):
            q += column(share - weight * dot(change, q)) * step
        return -q


def dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("mij,mij->m", a, b)


def column(a: Tensor) -> Tensor:
    return a.view(-1, 1, 1)


def line_search(problem: Problem, state: State, direction: Tensor, slope: Tensor) -> State:
    """Halve each fit's own step until it decreases enough; one that never does stays where it is."""
    new = State(state.w.clone(), state.value.clone(), state.gradient.clone(), state.decay)
    todo = torch.arange(len(slope), device=slope.device)
    step = torch.ones_like(slope)
    rounding = 4 * torch.finfo(state.value.dtype).eps * state.value.abs()
    for _ in range(HALVINGS):
        w = state.w[todo] + column(step[todo]) * direction[todo]
        value, gradient = problem.value_and_gradient(w, state.decay[todo])
        good = value <= (state.value + SUFFICIENT * step * slope + rounding)[todo]
        done = todo[good]
        new.w[done], new.value[done], new.gradient[done] = w[good], value[good], gradient[good]
        todo = todo[~good]
        if not len(todo):
            break
        step[todo] *= 0.5
    return new


def minimise(problem: Problem, decay: Tensor, num_classes: int, *, rtol: float, max_iter: int) -> Tensor:
    """(M,) -> (M, d + 1, K). A fit is finished when the decrease that its next step predicts is below ``rtol`` of its
    value: a bound on the gradient would stop large C after a few steps, far from the optimum."""
    w = decay.new_zeros(len(decay), len(problem.penalised), num_classes)
    out = w.clone()
    left = torch.arange(len(decay), device=decay.device)
    state = State(w, *problem.value_and_gradient(w, decay), decay)
    history = History()
    for _ in range(max_iter):
        inverse = 1 / (problem.curvature + column(state.decay) * problem.penalised)
        direction = history.direction(state.gradient, inverse)
        uphill = dot(state.gradient, direction) >= 0
        direction[uphill] = -state.gradient[uphill]
        slope = dot(state.gradient, direction)
        new = line_search(problem, state, direction, slope)
        moved = new.w - state.w
        history.add(moved, new.gradient - state.gradient)
        finished = (-slope <= rtol * new.value) | (dot(moved, moved) == 0)
        state = new
        if finished.any():
            out[left[finished]] = state.w[finished]
            left, state = left[~finished], state.only(~finished)
            history.only(~finished)
        if not len(left):
            return out
    out[left] = state.w
    return out


def fit(
    features: Tensor,
    targets: Tensor,
    strengths: Sequence[float],
    num_classes: int,
    *,
    rtol: float = 1e-5,
    max_iter: int = 1000,
) -> Linear:
    """(n, d), int64 (n,), M values of scikit-learn's C -> M classifiers over ``num_classes`` >= 2 classes.

    In float64: on separable features float32 cannot resolve what is left of the loss, and its line search stalls (36
    rows, C = 1e6: 17,000 evaluations instead of 70). With two classes scikit-learn fits one vector and a sigmoid;
    two columns at C / 2 give the same decisions, at C they would not.
    """
    n = len(features)
    features = features.double()
    cs = torch.tensor(strengths, dtype=features.dtype, device=features.device) * (0.5 if num_classes == 2 else 1.0)
    mean = features.mean(0)
    centred = features - mean
    variances, basis = torch.linalg.eigh(centred.T @ centred / n)
    variances, one = variances.clamp_min(0), variances.new_ones(1)
    problem = Problem(
        axes=torch.cat([centred @ basis, features.new_ones(n, 1)], 1),
        targets=targets,
        curvature=torch.cat([variances, one])[:, None] / num_classes,
        penalised=torch.cat([torch.ones_like(variances), 0 * one])[:, None],
    )
    w = minimise(problem, 1 / (cs * n), num_classes, rtol=rtol, max_iter=max_iter)
    weights = basis @ w[:, :-1]
    return Linear(weights, w[:, -1] - torch.einsum("d,mdk->mk", mean, weights))


class Point(NamedTuple):
    """One C and what it gave on validation data."""

    c: float
    accuracy: float
    nll: float

    @property
    def merit(self) -> tuple[float, float, float]:
        """Larger is better: accuracy, then lower negative log-likelihood, then the smaller C."""
        return self.accuracy, -self.nll, -self.c


def sweep(measure: Callable[[Sequence[float]], Sequence[Point]]) -> list[Point]:
    """OpenAI's protocol: of C = 10^-6 … 10^6 in 8 steps a decade, seven coarse points, then the interval around the
    best is halved down to one step. 15 fits in 5 calls instead of 97; the points come back by ascending C."""
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


def measured(model: Linear, strengths: Sequence[float], features: Tensor, targets: Tensor) -> list[Point]:
    """The classifiers of ``fit(…, strengths, …)`` on (n, d) validation features."""
    points: list[Point] = []
    for index, c in enumerate(strengths):
        logits = Linear(model.weights[index : index + 1], model.bias[index : index + 1]).logits(features)[0]
        nll = torch.nn.functional.cross_entropy(logits, targets)
        points.append(Point(c, int((logits.argmax(1) == targets).sum()) / len(targets), float(nll)))
    return points


def held_out(keys: Sequence[str], labels: Sequence[int], *, share: float = 0.2) -> list[bool]:
    """Which rows validate where a corpus has no validation split: ``share`` of each class, by hash of the key, so that
    it is the same on every machine and in every order. A class with one row keeps it for training."""
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)
    out = [False] * len(keys)
    for rows in by_class.values():
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        for row in sorted(rows, key=lambda row: (hashlib.sha256(keys[row].encode()).digest(), row))[:count]:
            out[row] = True
    return out
