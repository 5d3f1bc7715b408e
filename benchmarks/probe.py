"""The probe's solver beside scikit-learn's in one process: how far from the optimum at each C, and for how much time.

Both start cold, take turns, and have one thread; time is CPU time. scikit-learn runs as it comes (tol 1e-4, 1000
iterations), and with the largest tol of 1e-4, 1e-5 … 1e-10 that brings it within 1e-6 of the optimum, which is the
lowest value that any of the fits reached.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from unicl_cli.evaluate.probe import fit

Array = NDArray[np.float64]
ENOUGH = 1e-6
TOLERANCES = [10.0**-power for power in range(4, 11)]


def data(name: str) -> tuple[Array, NDArray[np.int64]]:
    """``digits`` (scikit-learn's 1,797 pictures as 64 pixels), or n,d,K of Gaussian classes."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return x / 16, y.astype(np.int64)
    n, d, num_classes = map(int, name.split(","))
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, n)
    y[:num_classes] = np.arange(num_classes)
    return rng.normal(size=(num_classes, d))[y] + 1.5 * rng.normal(size=(n, d)) * np.logspace(0, -1, d) + 3, y


def objective(weights: Array, bias: Array, x: Array, y: NDArray[np.int64], c: float) -> float:
    """Mean cross-entropy + |W|^2 / (2 C n): scikit-learn's for more than two classes, over C n."""
    logits = x @ weights + bias
    highest = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    return float((log_sum - logits[np.arange(len(y)), y]).mean() + (weights**2).sum() / (2 * c * len(y)))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def theirs(x: Array, y: NDArray[np.int64], c: float, tol: float, iterations: int) -> tuple[float, float]:
    """(objective, seconds) of one cold fit."""
    model, seconds = timed(lambda: LogisticRegression(C=c, tol=tol, max_iter=iterations).fit(x, y))
    return objective(model.coef_.T, model.intercept_, x, y, c), seconds


def ours(x: Array, y: NDArray[np.int64], strengths: list[float], **options: Any) -> tuple[list[float], float]:
    """(objective at each C, seconds for all of them together)."""
    features, targets = torch.from_numpy(x), torch.from_numpy(y)
    model, seconds = timed(lambda: fit(features, targets, strengths, int(y.max()) + 1, **options))
    parts = zip(model.weights.numpy(), model.bias.numpy(), strengths, strict=True)
    return [objective(weights, bias, x, y, c) for weights, bias, c in parts], seconds


def tolerance_for(x: Array, y: NDArray[np.int64], c: float, optimum: float) -> float:
    for tol in TOLERANCES:
        if theirs(x, y, c, tol, 100_000)[0] <= optimum * (1 + ENOUGH):
            return tol
    return TOLERANCES[-1]


def compare(name: str, strengths: list[float], rounds: int) -> bool:
    """Prints the table of one data set; was every objective of ours near enough?"""
    x, y = data(name)
    optimum = ours(x, y, strengths, rtol=1e-13, max_iter=20_000)[0]
    tolerances = [tolerance_for(x, y, c, best) for c, best in zip(strengths, optimum, strict=True)]
    own: list[tuple[list[float], float]] = []
    plain: list[list[tuple[float, float]]] = []
    tight: list[list[tuple[float, float]]] = []
    for _ in range(rounds):
        own.append(ours(x, y, strengths))
        plain.append([theirs(x, y, c, 1e-4, 1000) for c in strengths])
        tight.append([theirs(x, y, c, tol, 100_000) for c, tol in zip(strengths, tolerances, strict=True)])
    optimum = [min(best, own[0][0][i], tight[0][i][0], plain[0][i][0]) for i, best in enumerate(optimum)]
    print(f"\n{name}: n, d, K = {len(x)}, {x.shape[1]}, {int(y.max()) + 1}")
    print("| C | optimum | gap, ours | gap, default tol | gap, tol | tol |\n|---|---|---|---|---|---|")
    for i, (c, best, tol) in enumerate(zip(strengths, optimum, tolerances, strict=True)):
        gaps = [value / best - 1 for value in (own[0][0][i], plain[0][i][0], tight[0][i][0])]
        print(f"| {c:g} | {best:.9g} | {gaps[0]:.1e} | {gaps[1]:.1e} | {gaps[2]:.1e} | {tol:g} |")
    seconds = {
        "ours": [run[1] for run in own],
        "default tol": [sum(part[1] for part in run) for run in plain],
        "that tol": [sum(part[1] for part in run) for run in tight],
    }
    for label, values in seconds.items():
        ratios = [value / mine for value, mine in zip(values, seconds["ours"], strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{label}: {statistics.median(values):.2f} s, {statistics.median(ratios):.2f} of ours ({spread})")
    return all(value <= best * (1 + ENOUGH) for value, best in zip(own[0][0], optimum, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "2000,128,20", "160,256,10"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strengths", nargs="+", type=float, default=[10.0**power for power in range(-6, 7, 2)])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # scikit-learn's that it has not converged
    with threadpool_limits(1):
        near = [compare(name, args.strengths, args.rounds) for name in args.data]
    if not all(near):
        raise SystemExit("an objective of ours is more than 1e-6 above the optimum")


if __name__ == "__main__":
    main()
