"""`bench probe`: the probe's solver against scikit-learn's, by distance from the optimum at each C and by time.

Both start cold; ours runs on the GPU where there is one. scikit-learn runs with its defaults (tol 1e-4, 1,000
iterations), and with the largest tol of 1e-4, 1e-5 … 1e-10 that reaches the optimum within 1e-6. The optimum is the
lowest value of any fit. The row `search` is a whole probe, with its search for C, next to one fit of scikit-learn at
the C that it chooses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from unicl_cli.evaluate.logistic_regression import fit_classifiers
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import Case, PreparedCase, choose_device
from unicl_cli.jobs.evaluators.probe import Examples, Task, train_regression

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
OURS, NEAR, DEFAULT = "unicl", "sklearn, as near", "sklearn, default"
ENOUGH = 1e-6
TOLERANCES = [10.0**-power for power in range(4, 11)]
STRENGTHS = [10.0**power for power in range(-6, 7, 2)]
SEARCHED = (6565, 1600, 256, 22)
"""Rows of training and of validation, features and classes of the row `search`."""
SHAPES = {"gaussian": (2000, 128, 20), "few-rows": (160, 256, 10)}
SWEEP = "sweep"
LARGE = {SWEEP: (10_000, 512, 50)}
"""As wide as a model's features: scikit-learn runs with its defaults only, since the tolerances would take minutes."""


def cases(request: Request) -> list[Case]:
    variants = (OURS, NEAR, DEFAULT)
    make = partial(prepare_fits, request)
    usual = [Case(name, "fits", variants, NEAR, partial(make, name)) for name in ("digits", *SHAPES)]
    large = Case(SWEEP, "fits", (OURS, DEFAULT), DEFAULT, partial(prepare_sweep, request), extra=True)
    search = Case("search", "probes", (OURS, DEFAULT), DEFAULT, prepare_search)
    return [*usual, search, large]


def load_problem(name: str) -> tuple[Array, Labels]:
    """Return rows and classes: ``digits`` are scikit-learn's 1,797 images of 64 pixels, the others Gaussian classes."""
    if name == "digits":
        found: Any = load_digits(return_X_y=True)
        x, y = found
        return x / 16, y.astype(np.int64)
    n, d, num_classes = (SHAPES | LARGE)[name]
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, n)
    y[:num_classes] = np.arange(num_classes)
    return rng.normal(size=(num_classes, d))[y] + 1.5 * rng.normal(size=(n, d)) * np.logspace(0, -1, d) + 3, y


def objective(weights: Array, bias: Array, problem: Sequence[Any], c: float) -> float:
    """Return mean cross-entropy + |W|^2 / (2 C n): scikit-learn's objective over C n (more than two classes)."""
    x, y = problem[:2]
    logits = x @ weights + bias
    highest = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    return float((log_sum - logits[np.arange(len(y)), y]).mean() + (weights**2).sum() / (2 * c * len(y)))


def fit_sklearn(x: Array, y: Labels, c: float, tol: float, iterations: int) -> float:
    """Return the objective of one cold fit by scikit-learn, on as many threads as torch has."""
    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        warnings.simplefilter("ignore")  # it warns if it has not converged
        model = LogisticRegression(C=c, tol=tol, max_iter=iterations).fit(x, y)
    return objective(model.coef_.T, model.intercept_, (x, y), c)


def fit_unicl(x: Array, y: Labels, device: torch.device, **options: Any) -> list[float]:
    """Return our objective at each of STRENGTHS, which are fitted together on ``device``."""
    features, targets = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    model = fit_classifiers(features, targets, STRENGTHS, int(y.max()) + 1, **options)
    parts = zip(model.weights.cpu().numpy(), model.bias.cpu().numpy(), STRENGTHS, strict=True)
    return [objective(weights, bias, (x, y), c) for weights, bias, c in parts]


def find_tolerance(x: Array, y: Labels, c: float, optimum: float) -> float:
    """Return the largest of TOLERANCES that brings scikit-learn within ENOUGH of the optimum."""
    near = (tol for tol in TOLERANCES if fit_sklearn(x, y, c, tol, 100_000) <= optimum * (1 + ENOUGH))
    return next(near, TOLERANCES[-1])


def prepare_fits(request: Request, name: str, variants: Collection[str]) -> PreparedCase:
    """Prepare both solvers on one problem; each has run once already, to find the optimum and the tolerances."""
    x, y = load_problem(name)
    device = choose_device(request)
    best = fit_unicl(x, y, device, rtol=1e-13, max_iter=20_000)
    tol = [find_tolerance(x, y, c, least) for c, least in zip(STRENGTHS, best, strict=True)]
    forms: dict[str, Callable[[], list[float]]] = {
        OURS: lambda: fit_unicl(x, y, device),
        NEAR: lambda: [fit_sklearn(x, y, c, t, 100_000) for c, t in zip(STRENGTHS, tol, strict=True)],
        DEFAULT: lambda: fit_sklearn_sweep(x, y),
    }
    reached = {key: form() for key, form in forms.items()}
    gaps = gaps_of(best, reached)
    facts = {"shape": [*x.shape, int(y.max()) + 1], "c": STRENGTHS, "tol": tol, "gaps": gaps}
    runs = {key: forms[key] for key in variants}
    return PreparedCase(len(STRENGTHS), runs, facts, lambda: {"above_optimum": max(gaps[OURS])})


def load_overlapping() -> Examples:
    """Return float32 rows of Gaussian classes that overlap, with variances over three decades as a tower's have."""
    rows, held, d, num_classes = SEARCHED
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, rows + held)
    x = 0.2 * rng.normal(size=(num_classes, d))[y] + 1.5 * rng.normal(size=(rows + held, d))
    features = torch.from_numpy((x * np.logspace(0.5, -1, d)).astype(np.float32))
    return Examples(features, torch.from_numpy(y.astype(np.int64)), [""] * len(y))


def prepare_search(variants: Collection[str]) -> PreparedCase:
    """Prepare a whole probe and one fit of scikit-learn at its C, both on one thread."""
    whole, rows, num_classes = load_overlapping(), SEARCHED[0], SEARCHED[-1]
    inside = [row < rows for row in range(len(whole.targets))]
    train, held = whole.only(inside), whole.only([not part for part in inside])

    def search() -> float:
        return train_regression(Task(train, held, num_classes, joined=True), None, lambda fits: None).chosen

    chosen = search()

    def fit() -> None:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            LogisticRegression(C=chosen, max_iter=1000).fit(train.features.numpy(), train.targets.numpy())

    forms: dict[str, Callable[[], Any]] = {OURS: search, DEFAULT: fit}
    return PreparedCase(1, {key: forms[key] for key in variants}, {"shape": SEARCHED, "c": chosen})


def prepare_sweep(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare the large problem; the optimum is that of our own fit with the smallest tolerance."""
    x, y = load_problem(SWEEP)
    device = choose_device(request)
    best = fit_unicl(x, y, device, rtol=1e-13, max_iter=20_000)
    forms: dict[str, Callable[[], list[float]]] = {
        OURS: lambda: fit_unicl(x, y, device),
        DEFAULT: lambda: fit_sklearn_sweep(x, y),
    }
    gaps = gaps_of(best, {OURS: forms[OURS]()})
    facts = {"shape": [*x.shape, int(y.max()) + 1], "c": STRENGTHS, "gaps": gaps}
    runs = {key: forms[key] for key in variants}
    return PreparedCase(len(STRENGTHS), runs, facts, lambda: {"above_optimum": max(gaps[OURS])})


def fit_sklearn_sweep(x: Array, y: Labels) -> list[float]:
    """Return the objectives of scikit-learn with its defaults at each of STRENGTHS."""
    return [fit_sklearn(x, y, c, 1e-4, 1000) for c in STRENGTHS]


def gaps_of(best: Sequence[float], reached: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return how far each solver is above the lowest objective that any fit reached, relative to it."""
    lowest = [min(column) for column in zip(best, *reached.values(), strict=True)]
    return {key: [a / b - 1 for a, b in zip(found, lowest, strict=True)] for key, found in reached.items()}
