"""The wheel brings the recipes: an install without the checkout knows them by name."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_wheel_knows_the_recipes(tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    shipped = sorted(path.stem for path in (tmp_path / "site" / "unicl_cli" / "recipes").glob("*.yaml"))
    assert shipped == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    code = "from unicl_cli.recipe import layers, load; print(layers.builtin_folder()); load.load('quickstart')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == tmp_path / "site" / "unicl_cli" / "recipes"
