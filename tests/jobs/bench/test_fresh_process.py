"""Peaks of memory: of a piece of work, and of a variant in processes of its own."""

import numpy as np
import pytest

from unicl_cli.jobs.bench.fresh_process import peak_of_work
from unicl_cli.jobs.bench.kinds import Request
from unicl_cli.jobs.bench.protocol import measure_in_fresh_process


def test_the_peak_of_a_piece_of_work_is_what_it_took():
    assert peak_of_work(lambda: np.ones(25_000_000)) == pytest.approx(191, abs=12)
    assert peak_of_work(lambda: None) < 5, "what was held before does not count"


@pytest.mark.slow
@pytest.mark.parametrize(("row", "processes"), [("B=256", 1), ("B=256 on 2", 2)])
def test_a_peak_is_measured_in_fresh_processes(row, processes):
    request = Request("loss", sizes=(256,), processes=(1, 2))
    assert 0 < measure_in_fresh_process(request, row, "tiled", processes) < 500
