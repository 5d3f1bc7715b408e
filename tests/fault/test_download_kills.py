"""Kills of a prepare that downloads: every URL ends once, in the corpus or among what is left out."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "download_kills.py"


@pytest.mark.slow
@pytest.mark.parametrize(("dedup", "kills"), [("off", 3), ("near", 4)])
def test_a_killed_download_loses_and_doubles_no_url(tmp_path: Path, dedup: str, kills: int):
    """`benchmarks/download_kills.py` kills oftener."""
    spec = importlib.util.spec_from_file_location("download_kills", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.kill_downloads(tmp_path, urls=250, kills=kills, dedup=dedup)
    assert found.problems() == []
    assert found.kills > 1
    assert found.most_asked <= found.kills + 1
