"""The Triton kernels against the dense float64 loss: by Triton's interpreter without a GPU; as a script the worker.

The interpreter is chosen when the kernels are imported, hence the process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY
from unicl_cli.kernels import tiles
from unicl_cli.losses import both_ways, contrast, contrast_tiled

HERE = Path(__file__)
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def unit(rows: int, width: int, seed: int) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).float()


def keys_of(rows: int, seed: int) -> Tensor:
    draw = torch.randint(0, 6, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([NO_KEY, 0, 1, 2, 2**40, 2**62 + 5])[draw]


def gap(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry unless that is tiny."""
    return max(((x - y).abs().max() / y.abs().max().clamp(min=0.1)).item() for x, y in zip(ours, exact, strict=True))


def graded(value: Tensor, upstream: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [value, *torch.autograd.grad(value.reshape(-1) @ upstream.to(value), inputs)]


def inputs_of(*features: Tensor, scale: float, device: str = "cpu") -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Leaves for the kernel, and the same numbers in float64."""
    leaves = tuple(x.to(device).requires_grad_() for x in (*features, torch.tensor(scale)))
    return leaves, tuple(x.detach().double().requires_grad_() for x in leaves)


def rows_gap(n: int, m: int, width: int, *, excluded: bool, scale: float = 14.3) -> float:
    (q, k, s), wide = inputs_of(unit(n, width, n), unit(m, width, m + 1), scale=scale)
    keys = keys_of(n, width), keys_of(m, n)
    ids = (torch.arange(n) % 7, torch.arange(m) % 5) if excluded else None
    upstream = torch.rand(n, generator=torch.Generator().manual_seed(n))
    ours = graded(contrast_tiled(q, k, *keys, s, ids), upstream, (q, k, s))
    return gap(ours, graded(contrast(*wide[:2], *keys, wide[2], ids), upstream, wide))


def dense(u: Tensor, v: Tensor, keys: Tensor, scale: Tensor, weights: tuple[float, float]) -> Tensor:
    each = contrast(u, v, keys, keys, scale), contrast(v, u, keys, keys, scale)
    count = (keys != NO_KEY).sum().clamp(min=1)
    return sum(weight * x[keys != NO_KEY].sum() / count for weight, x in zip(weights, each, strict=True))


def both_gap(
    n: int, width: int, terms: dict[str, float], *, folded: bool, scale: float = 14.3, **more: object
) -> float:
    texts = max(1, n // 3) if folded else n
    (u, v, s), wide = inputs_of(unit(n, width, n), unit(texts, width, n + 1), scale=scale, **more)
    keys, index = keys_of(n, width).to(u.device), (torch.arange(n) % texts).to(u.device)
    loss = both_ways(u, v, keys, s, terms=list(terms), index=index if folded else None)["loss"]
    weights = terms.get("image", 0.0), terms.get("text", 0.0)
    one = torch.ones(1, device=u.device)
    return gap(graded(loss, one, (u, v, s)), graded(dense(wide[0], wide[1][index], keys, wide[2], weights), one, wide))


TERMS = ({"image": 0.5, "text": 0.5}, {"image": 1.0}, {"text": 1.0})


def everything() -> dict[str, float]:
    """The largest difference of each kind of case."""
    from unicl_cli.kernels import tiles_triton

    assert tiles.in_kernel(torch.zeros(1), None)
    assert not tiles.in_kernel(torch.zeros(1), 4)
    assert not tiles.in_kernel(torch.zeros(1).double(), None)
    found: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        found[name] = max(found.get(name, 0.0), value)

    def cases(kind: str, rows: list[tuple[int, int, int]], both: list[tuple[int, int]]) -> None:
        for n, m, width in rows:
            for excluded in (False, True):
                note(f"{kind}, rows{' with exclusion' * excluded}", rows_gap(n, m, width, excluded=excluded))
        for (n, width), terms in zip(both, cycle(TERMS)):
            for folded in (False, True):
                note(f"{kind}, {' and '.join(terms)}{', folded' * folded}", both_gap(n, width, terms, folded=folded))

    cases("one block", [(1, 1, 8), (5, 70, 130)], [(70, 40), (5, 130), (33, 8), (1, 40)])
    note("scale 100", both_gap(70, 40, TERMS[0], folded=True, scale=100.0))
    tiles_triton.SUMS[4] = tiles_triton.GRADIENTS[4] = tiles_triton.Blocks(16, 32, 64, 4, 1)
    tiles_triton.PROGRAMS, tiles_triton.SLICE = 4, 64
    cases("many blocks", [(33, 70, 130)], [(70, 130), (33, 40), (33, 8)])
    tiles_triton.PARTIAL = 2 * 70
    cases("many launches", [(70, 33, 8)], [(70, 40)])
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    out = tmp_path_factory.mktemp("triton") / "out.json"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE, out], capture_output=True, text=True, timeout=300, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_the_kernels_give_the_dense_values_and_gradients_for_any_keys_and_tails(interpreted):
    assert len(interpreted) == 2 * 8 + 4 + 1
    assert {name: value for name, value in interpreted.items() if not value < 1e-5} == {}


def test_without_a_gpu_and_without_the_interpreter_the_torch_tiles_are_taken():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not tiles.in_kernel(torch.zeros(1), None)


COMPILE = """
import sys, json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from unicl_cli.kernels import tiles_triton as host, triton_kernels
NUMBERS = ("first", "n_own", "n_other", "width", "per_split")
found = {}
for arch in (80, 90):
    for kind, size in (("bf16", 2), ("fp32", 4)):
        for name, blocks, more in (
            ("sums", host.SUMS[size], {"COLUMNS": True}),
            ("gradients", host.GRADIENTS[size], {"SLICE": host.SLICE, "BY_OWN": True, "BY_OTHER": True}),
        ):
            kernel = getattr(triton_kernels, name)
            fixed = {"OWN": blocks.own, "OTHER": blocks.other, "DEPTH": blocks.depth, "EXCLUDE": True,
                     "PRECISION": "tf32x3", **more}
            types = {"own": "*" + kind, "other": "*" + kind, "own_ids": "*i64", "other_ids": "*i64",
                     **dict.fromkeys(NUMBERS, "i32"), **dict.fromkeys(fixed, "constexpr")}
            source = ASTSource(kernel, {arg: types.get(arg, "*fp32") for arg in kernel.arg_names}, fixed)
            options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            found[f"{arch} {kind} {name}"] = [made.metadata.shared, "mma" in made.asm["ptx"]]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_with_tensor_cores_and_fit_their_shared_memory():
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TRITON_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300, env=env, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 8
    assert all(shared <= 99 * 1024 and tensor_cores for shared, tensor_cores in found.values()), found


@pytest.mark.gpu
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("n", "width"), [(1, 8), (333, 130), (2049, 512), (4096, 768)])
def test_on_a_gpu_float32_gives_the_dense_float64_values_and_gradients(n, width, folded):
    assert tiles.in_kernel(torch.zeros(1, device="cuda"), None)
    assert both_gap(n, width, TERMS[0], folded=folded, device="cuda") < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_half_precision_is_multiplied_as_it_is_and_summed_in_float32(dtype):
    u, v = (unit(1500, 512, seed).cuda().to(dtype).requires_grad_() for seed in (0, 1))
    wide = [x.detach().double().requires_grad_() for x in (u, v)]
    keys = keys_of(1500, 2).cuda()
    s, t = (torch.tensor(14.3, device="cuda", dtype=d, requires_grad=True) for d in (torch.float32, torch.float64))
    loss, exact = both_ways(u, v, keys, s)["loss"], dense(*wide, keys, t, (0.5, 0.5))
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-4
    grads, exact_grads = torch.autograd.grad(loss, (u, v, s)), torch.autograd.grad(exact, (*wide, t))
    for ours, theirs in zip(grads, exact_grads, strict=True):
        assert (ours.double() - theirs).abs().max() < 2e-2 * theirs.abs().max()


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_give_the_same_bits_twice():
    u, v, keys = unit(3000, 512, 0).cuda().requires_grad_(), unit(3000, 512, 1).cuda(), torch.arange(3000).cuda() % 700
    torch.use_deterministic_algorithms(True)  # the sums of positives are torch's
    try:
        one, two = (torch.autograd.grad(both_ways(u, v, keys, 14.3)["loss"], u)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(one, two)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(everything()))
