"""The probe's solver beside scikit-learn's: how far from the optimum at each C, and for how much time.

Both start cold and have one thread. scikit-learn runs as it comes (tol 1e-4, 1,000 iterations), and with the largest
tol of 1e-4, 1e-5 … 1e-10 that brings it within 1e-6 of the optimum, the lowest value that any of the fits reached.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from unicl_cli.evaluate.logistic_regression import fit_classifiers
from unicl_cli.jobs.bench.kinds import Asked
from unicl_cli.jobs.bench.protocol import Case, Ready

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
OURS, NEAR, DEFAULT = "unicl", "sklearn, as near", "sklearn, default"
ENOUGH = 1e-6
TOLERANCES = [10.0**-power for power in range(4, 11)]
STRENGTHS = [10.0**power for power in range(-6, 7, 2)]
SHAPES = {"gaussian": (2000, 128, 20), "few-rows": (160, 256, 10)}


class Problem(NamedTuple):
    """Rows (n, d) and their classes; ``best`` is the optimum at each of STRENGTHS, ``tol`` what scikit-learn needs."""

    x: Array
    y: Labels
    best: list[float]
    tol: list[float]


def cases(asked: Asked) -> list[Case]:
    del asked
    who = (OURS, NEAR, DEFAULT)
    return [Case(name, "fits", who, NEAR, partial(prepared, name)) for name in ("digits", *SHAPES)]


def data(name: str) -> tuple[Array, Labels]:
    """``digits``: scikit-learn's 1,797 images as 64 pixels; the others are Gaussian classes."""
    if name == "digits":
        found: Any = load_digits(return_X_y=True)
        x, y = found
        return x / 16, y.astype(np.int64)
    n, d, num_classes = SHAPES[name]
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, n)
    y[:num_classes] = np.arange(num_classes)
    return rng.normal(size=(num_classes, d))[y] + 1.5 * rng.normal(size=(n, d)) * np.logspace(0, -1, d) + 3, y


def objective(weights: Array, bias: Array, problem: Sequence[Any], c: float) -> float:
    """Mean cross-entropy + |W|^2 / (2 C n): scikit-learn's for more than two classes, over C n."""
    x, y = problem[:2]
    logits = x @ weights + bias
    highest = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    return float((log_sum - logits[np.arange(len(y)), y]).mean() + (weights**2).sum() / (2 * c * len(y)))


def theirs(x: Array, y: Labels, c: float, tol: float, iterations: int) -> float:
    """The objective of one cold fit."""
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # that it has not converged
        model = LogisticRegression(C=c, tol=tol, max_iter=iterations).fit(x, y)
    return objective(model.coef_.T, model.intercept_, (x, y), c)


def ours(x: Array, y: Labels, **options: Any) -> list[float]:
    """The objective at each of STRENGTHS, which are fitted together."""
    features, targets = torch.from_numpy(x), torch.from_numpy(y)
    model = fit_classifiers(features, targets, STRENGTHS, int(y.max()) + 1, **options)
    parts = zip(model.weights.numpy(), model.bias.numpy(), STRENGTHS, strict=True)
    return [objective(weights, bias, (x, y), c) for weights, bias, c in parts]


def tolerance_for(x: Array, y: Labels, c: float, optimum: float) -> float:
    near = (tol for tol in TOLERANCES if theirs(x, y, c, tol, 100_000) <= optimum * (1 + ENOUGH))
    return next(near, TOLERANCES[-1])


def prepared(name: str, who: Collection[str]) -> Ready:
    x, y = data(name)
    best = ours(x, y, rtol=1e-13, max_iter=20_000)
    tol = [tolerance_for(x, y, c, least) for c, least in zip(STRENGTHS, best, strict=True)]
    forms: dict[str, Callable[[], list[float]]] = {
        OURS: lambda: ours(x, y),
        NEAR: lambda: [theirs(x, y, c, t, 100_000) for c, t in zip(STRENGTHS, tol, strict=True)],
        DEFAULT: lambda: [theirs(x, y, c, 1e-4, 1000) for c in STRENGTHS],
    }
    reached = {key: form() for key, form in forms.items()}
    best = [min(column) for column in zip(best, *reached.values(), strict=True)]
    gaps = {key: [a / b - 1 for a, b in zip(found, best, strict=True)] for key, found in reached.items()}
    facts = {"shape": [*x.shape, int(y.max()) + 1], "c": STRENGTHS, "tol": tol, "gaps": gaps}
    runs = {key: forms[key] for key in who}
    return Ready(len(STRENGTHS), runs, facts, lambda: {"above_optimum": max(gaps[OURS])})
