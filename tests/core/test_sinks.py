"""Where figures go: lines that survive a cut, a console line without what was not measured, the state of a run."""

import errno
import io
import json
import math
import re

import pytest

from unicl_cli.core.sinks import ConsoleSink, JsonlSink, Sinks, StatusSink, format_duration, line_of
from unicl_cli.storage import files
from unicl_cli.storage.files import write_atomic


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(path, *steps, start=0):
    sink = JsonlSink(path, start)
    for step in steps:
        sink.log(step, {"loss": step / 2})
    sink.close()


def test_lines_are_flat_and_what_is_not_finite_is_null(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl", 0)
    sink.log(1, {"loss": math.nan, "norm": math.inf, "lr": 0.5})
    assert rows(tmp_path / "m.jsonl")[0] | {"time": 0} == {"step": 1, "time": 0, "loss": None, "norm": None, "lr": 0.5}
    sink.close()


def test_a_continued_run_drops_the_lines_after_its_checkpoint(tmp_path):
    file = tmp_path / "m.jsonl"
    logged(file, 1, 2, 3, 4)
    logged(file, 3, 4, 5, start=2)
    assert [row["step"] for row in rows(file)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}'])
def test_a_line_that_was_cut_by_a_kill_is_dropped(tmp_path, torn):
    file = tmp_path / "m.jsonl"
    logged(file, 1, 2)
    with file.open("a") as handle:
        handle.write(torn)
    logged(file, 3, start=2)
    assert [row["step"] for row in rows(file)] == [1, 2, 3]


def test_a_console_line_names_what_was_measured():
    values = {"loss": 3.4116, "excess_loss": 0.41, "lr": 4.8e-4, "img_s": 5200.4, "data_frac": 0.031, "eta_s": 4320.0}
    expected = "step 1200/20000 | loss 3.412 | ETA 1h12m | img/s 5,200 | lr 0.00048 | excess 0.410 | data 3 %"
    assert line_of("step 1200/20000", values, 200) == expected
    assert line_of("step 1200/20000", values, len(expected)) == expected
    assert line_of("step 1200/20000", values, 80) == expected.removesuffix(" | excess 0.410 | data 3 %")
    assert line_of("step 1200/20000", values, 65) == "step 1200/20000 | loss 3.412 | ETA 1h12m | img/s 5,200"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_fits_eighty_columns(monkeypatch, terminal):
    """What a terminal of that width gets, with a bar, and a file."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", shown)
    sink = ConsoleSink(100000, 0)
    names = ("loss", "excess_loss", "lr", "logit_scale", "grad_norm", "img_s", "data_frac", "mem_gb", "unique_text")
    for step in range(1, 100001, 33333):
        sink.log(step, dict.fromkeys((*names, "label_share", "padding", "eta_s"), 123.456))
    sink.close()
    lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", shown.getvalue())]
    assert max(map(len, lines)) <= 80
    assert any("loss 123.456 | ETA 2m03s | img/s 123" in line for line in lines)
    assert any("━" in line for line in lines) == terminal


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (42.9, "42s"), (185, "3m05s"), (4320, "1h12m"), (90061, "25h01m")]
)
def test_times_are_short(seconds, shown):
    assert format_duration(seconds) == shown


def test_without_a_terminal_the_first_and_the_last_line_are_printed(capfd):
    sink = ConsoleSink(100, 0)
    for step in range(1, 101):
        sink.log(step, {"loss": 1.0})
    sink.say("[1] a note with [brackets]")
    sink.close()
    shown = capfd.readouterr().err.splitlines()
    assert [line.split(" |")[0] for line in shown] == [
        "step 1/100 1.0 %",
        "step 100/100 100.0 %",
        "[1] a note with [brackets]",
    ]


def test_quiet_is_quiet(capfd):
    sink = ConsoleSink(2, 0, quiet=True)
    Sinks([sink]).log(2, {"loss": 1.0})
    sink.say("x")
    assert capfd.readouterr() == ("", "")


def test_the_status_says_what_a_run_is_doing(tmp_path):
    sink = StatusSink(tmp_path / "status.json", 50, 2)
    sink.log(3, {"loss": 0.5, "img_s": math.nan})
    first = json.loads((tmp_path / "status.json").read_text())
    assert (first["state"], first["step"], first["steps"], first["world"], first["last_loss"]) == (
        "running",
        3,
        50,
        2,
        0.5,
    )
    assert "img_s" not in first
    sink.log(4, {"loss": 0.4})
    assert json.loads((tmp_path / "status.json").read_text()) == first, "not at every step"
    sink.set_state("stopped", signal=15)
    assert json.loads((tmp_path / "status.json").read_text())["signal"] == 15


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "älter")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "älter"


def test_a_file_that_a_full_disk_does_not_take_is_named(tmp_path):
    """The operating system names none when a write fails."""
    with pytest.raises(OSError, match="full") as caught, files.temporary_beside(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(tmp_path / "a")
