"""What every test stands on: an environment without the machine's own settings, golden files, throw-away plugins."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for variable in list(os.environ):  # before typer, torch or a hub library reads them
    if variable.startswith(("UNICL_", "SLURM_", "ACCELERATE_")) or variable in (
        *("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ):
        del os.environ[variable]
os.environ |= {
    "NO_COLOR": "1",
    "TERMINAL_WIDTH": "100",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(Path(tempfile.gettempdir()) / "unicl-tests-hub"),
}

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; review the diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text is what `tests/golden/name` holds."""

    def check(name: str, text: str) -> None:
        if request.config.getoption("--update-golden"):
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), "review, then pytest --update-golden"

    return check


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``distribution("unicl-x", module_text, losses="mine = unicl_x:f")``: installed, as far as entry points go."""
    from unicl_cli import registry

    def install(name: str, module: str, **groups: str) -> Path:
        monkeypatch.delitem(sys.modules, name.replace("-", "_"), raising=False)
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name.replace('-', '_')}.py").write_text(module, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Tests {name}.\n")
        points = "\n".join(f"[unicl.{group}]\n{lines}" for group, lines in groups.items())
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        registry.forget()
        return site

    yield install
    monkeypatch.undo()
    registry.forget()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus: labels of seven digits and captions of ten, with a test split."""
    from unicl_cli.jobs.prepare import Wanted, prepare

    out = tmp_path_factory.mktemp("digits") / "corpus"
    prepare(Wanted(labels=("digits?classes=0-6&limit=60",), captions=("digits?limit=60",), images=(), out=out))
    return out
