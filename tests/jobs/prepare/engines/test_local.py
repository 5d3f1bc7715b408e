"""The local engine: markers of all units, from this process or a pool, until a stop."""

import os
from contextlib import contextmanager

import pytest

from unicl_cli.contracts import Row
from unicl_cli.jobs.prepare.engines.choice import EngineChoice
from unicl_cli.jobs.prepare.engines.engine import WorkList
from unicl_cli.jobs.prepare.engines.local import run_local
from unicl_cli.jobs.prepare.plan.request import PrepareOptions, PrepareRequest
from unicl_cli.jobs.prepare.prepare import prepare
from unicl_cli.jobs.prepare.shards.units import Unit, Work


class Told:
    """Progress as the engine reports it."""

    def __init__(self):
        self.rows = 0

    def tick(self, rows, size, rejected):
        self.rows += rows

    def say(self, line):
        raise AssertionError(line)


def report_pid(work, source, tick, stopped):
    """A job that tells the process it ran in."""
    if stopped():
        return None
    tick(len(work.rows), 0, {})
    return {"rows": len(work.rows), "rejected": {}, "payload": 0, "unit": work.unit.name, "pid": os.getpid()}


def work_list(tmp_path, count, group_rows):
    units = [Unit(f"u{n}", "train", "digits", "labels", 0, 1, group_rows) for n in range(count)]
    row = Row("k", "0", (), 0)
    return WorkList(report_pid, units, lambda unit: Work(unit, tmp_path, "digits", [row], None, False, {}), {}.get)


@pytest.mark.parametrize(("workers", "group_rows", "in_pool"), [(1, 8, False), (2, 2048, False), (2, 8, True)])
def test_a_pool_is_started_only_for_several_workers_and_large_images(tmp_path, workers, group_rows, in_pool):
    told = Told()
    markers = list(run_local(work_list(tmp_path, 3, group_rows), workers=workers, progress=told, stopped=lambda: False))
    assert sorted(marker["unit"] for marker in markers) == ["u0", "u1", "u2"]
    assert all((marker["pid"] != os.getpid()) == in_pool for marker in markers)
    assert told.rows == 3


@pytest.mark.parametrize(("workers", "group_rows"), [(1, 8), (2, 8)])
def test_a_stop_ends_the_engine_early(tmp_path, workers, group_rows):
    got = []
    for marker in run_local(
        work_list(tmp_path, 9, group_rows), workers=workers, progress=Told(), stopped=lambda: bool(got)
    ):
        got.append(marker)
    assert 1 <= len(got) < 9


def test_the_order_in_which_an_engine_yields_does_not_change_the_corpus(tmp_path):
    def backwards(todo, *, workers, progress, stopped):
        return run_local(todo._replace(units=todo.units[::-1]), workers=1, progress=progress, stopped=stopped)

    opened = []

    class Backwards(EngineChoice):
        @contextmanager
        def open(self, workers):
            opened.append(workers)
            yield backwards, workers

    written = []
    for name, engine in (("a", EngineChoice()), ("b", Backwards())):
        options = PrepareOptions(dedup="exact")
        request = PrepareRequest(("digits?limit=30",), ("digits?limit=20",), (), tmp_path / name / "c", options)
        prepare(request, workers=1, engine=engine)
        files = sorted(file for file in request.out.rglob("*") if file.is_file())
        written.append({file.relative_to(request.out): file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert opened == [1], "once, for the comparison and the shards"
    assert len([file for file in written[0] if file.suffix == ".parquet"]) > 2
