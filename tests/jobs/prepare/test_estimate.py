"""The time that a dry run foresees: cores share the computing, workers the waiting."""

import os
import signal

import pytest

from unicl_cli.cli import main
from unicl_cli.jobs.prepare.estimate import SourceSample, _estimate_seconds


@pytest.mark.parametrize(
    ("seconds", "cpu", "workers", "cores", "expected"),
    [
        (1.0, 2.0, 2, 2, 10.0),  # two threads of the sample computed at once: two workers are no faster
        (1.0, 2.0, 1, 2, 20.0),
        (1.0, 2.0, 8, 2, 10.0),  # more workers than cores compute no faster
        (8.0, 0.8, 4, 2, 20.0),  # but they wait for more servers at once
        (8.0, 0.8, 1, 1, 80.0),
    ],
)
def test_the_time_is_that_of_the_cores_or_of_the_waits(seconds, cpu, workers, cores, expected):
    sample = SourceSample("s", "labels", "train", 1000, 100, 100, {}, 1, 1, seconds, cpu)
    assert _estimate_seconds(sample, workers, cores) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kept", "staged", "least", "most"),
    [
        (100, 5000, 1000 / 100 * 5000, 1000 / 100 * 5000),
        (50, 5000, 1000 / 100 * 5000, 1.21 * 1000 / 100 * 5000),  # as many more as the sample allows
        (0, 300, 3000, 3000),  # a line for each row
    ],
)
def test_the_rows_that_wait_take_what_those_of_the_sample_take(kept, staged, least, most):
    sample = SourceSample("s", "captions", "train", 1000, 100, kept, {}, 1, 1, 1.0, 1.0, staged)
    assert least <= round(sample.most_staged()) <= most


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--dry-run", "stopped; nothing was written"),
        ("--verify", "stopped; nothing was written"),
        (None, "continue with"),
    ],
)
def test_a_stopped_command_says_whether_it_wrote(option, message, tmp_path, monkeypatch, capsys):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("unicl_cli.data.sources.resolve.check_known", stop)
    words = ["-o", str(tmp_path / "c"), *([option] if option else [])]
    assert main(["prepare", *words, *([] if option == "--verify" else ["--labels", "digits?limit=20"])]) == 75
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
