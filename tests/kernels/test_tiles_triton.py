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

sys.path.insert(0, str(Path(__file__).parents[1]))  # the worker runs this file as a script
from dense_losses import TERMS, both_gap, rows_gap, target_gap

from unicl_cli.errors import UniclError
from unicl_cli.kernels import tiles

HERE = Path(__file__)
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


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
    note("two levels", target_gap(70, 40, sets=False))
    note("label sets in groups", target_gap(70, 40, sets=True))
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


@pytest.mark.slow
def test_the_kernels_give_the_dense_values_and_gradients_for_any_keys_and_tails(interpreted):
    assert len(interpreted) == 2 * 8 + 4 + 3
    assert {name: value for name, value in interpreted.items() if not value < 1e-5} == {}


def test_without_a_gpu_and_without_the_interpreter_the_torch_tiles_are_taken():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not tiles.in_kernel(torch.zeros(1), None)


@pytest.fixture
def ampere(monkeypatch):
    """A device that says it is a GPU with tensor cores, on a machine without a compiler."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("shutil.which", lambda name: None)
    for name in ("CC", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    tiles._has_kernel.cache_clear()
    yield torch.device("cuda")
    tiles._has_kernel.cache_clear()


def test_a_gpu_without_a_c_compiler_is_one_line_with_a_way_out(ampere, monkeypatch):
    with pytest.raises(UniclError, match="the loss kernels need a C compiler") as caught:
        tiles._has_kernel(ampere)
    assert "loss.tile=1024" in caught.value.hint
    monkeypatch.setenv("CC", "cc")
    assert tiles._has_kernel(ampere)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    tiles._has_kernel.cache_clear()
    monkeypatch.delenv("CC")
    assert not tiles._has_kernel(ampere), "an older GPU takes torch's tiles and needs no compiler"


def test_the_interpreter_does_not_get_bfloat16(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tiles._has_kernel.cache_clear()
    assert tiles.in_kernel(torch.zeros(1), None)
    assert not tiles.in_kernel(torch.zeros(1).bfloat16(), None)
    tiles._has_kernel.cache_clear()


def test_a_batch_with_another_number_of_texts_compiles_nothing_again():
    """Triton compiles a kernel again for a number that 16 divides, and for 1, unless it is told not to."""
    from unicl_cli.kernels import triton_kernels

    for kernel in (triton_kernels.sums, triton_kernels.gradients):
        numbers = {p.name for p in kernel.params if p.do_not_specialize}
        assert numbers == {"first", "n_own", "n_other", "per_split"} & set(kernel.arg_names)
        assert len(numbers) >= 3


COMPILE = """
import sys, json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from unicl_cli.kernels import tiles_triton as host, triton_kernels
NUMBERS = ("first", "n_own", "n_other", "width", "per_split")
found = {}
for arch in (80, 90, 100):  # one of each kind of tensor cores
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
    assert len(found) == 12
    assert all(shared <= 99 * 1024 and tensor_cores for shared, tensor_cores in found.values()), found


@pytest.mark.parametrize("blocks", [1, 7, 4096, 2**22])
@pytest.mark.parametrize("others", [1, 700, 131_072, 2**28])
def test_no_launch_has_more_programs_in_its_second_dimension_than_a_gpu_allows(blocks, others):
    from unicl_cli.kernels.tiles_triton import PROGRAMS, _splits

    splits, each = _splits(blocks, others, 64)
    assert splits <= min(PROGRAMS, 65_535)
    assert (splits - 1) * each < others <= splits * each, "every split has columns, and none is left out"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(everything()))
