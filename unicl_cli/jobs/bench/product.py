"""One large matrix product in each number format: the most that a machine's arithmetic gives, as a yardstick."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch

from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import PreparedCase, choose_device

SIDE = {"cuda": 8192, "cpu": 512}
TF32 = "tf32"


def product_variants(request: Request) -> tuple[str, ...]:
    return ("bf16", TF32, "fp32") if choose_device(request).type == "cuda" else ("bf16", "fp32")


@contextmanager
def allow_tf32() -> Generator[None]:
    """Let float32 products round their factors to TF32 within the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_product(request: Request, variants: Collection[str]) -> PreparedCase:
    """Prepare products of two square matrices of random numbers; an item is a floating-point operation."""
    device = choose_device(request)
    side = SIDE[device.type]
    draw = torch.Generator(device).manual_seed(0)
    factors = [torch.randn(side, side, generator=draw, device=device) for _ in range(2)]
    runs: dict[str, Callable[[], Any]] = {}
    for name in variants:
        a, b = (x.bfloat16() if name == "bf16" else x for x in factors)
        runs[name] = make_product(a, b, torch.empty_like(a), rounded=name == TF32)
    return PreparedCase(2 * side**3, runs, {"side": side})


def make_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, rounded: bool) -> Callable[[], Any]:
    """Return the product of ``a`` and ``b`` into ``out``."""

    def plain() -> None:
        torch.mm(a, b, out=out)

    def with_tf32() -> None:
        with allow_tf32():
            plain()

    return with_tf32 if rounded else plain
