"""Variables of a process group that make no sense are one line, whatever command they meet."""

import pytest

from unicl_cli.cli import main
from unicl_cli.errors import UniclError
from unicl_cli.launch.plan import count_processes, decide

SOUND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RANK", value) for value in ("x", "", "-1", "2", "1.0", "9" * 5000, "²", "١")),
        *(("WORLD_SIZE", value) for value in ("-1", "0", "x", str(2**21))),
        *(("LOCAL_RANK", value) for value in ("nonsense", "2")),
        ("LOCAL_WORLD_SIZE", "0"),
        *(("MASTER_PORT", value) for value in ("0", "65536", "port")),
        ("MASTER_ADDR", " "),
    ],
)
def test_a_variable_that_is_not_sound_is_named(name: str, value: str) -> None:
    assert decide(SOUND, "auto", gpus=lambda: 0).how == "worker"
    with pytest.raises(UniclError, match=rf"^{name}[=:]"):
        decide(SOUND | {name: value}, "auto", gpus=lambda: 0)


def test_a_rank_that_is_not_a_number_does_not_silence_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (SOUND | {"RANK": "x"}).items():
        monkeypatch.setenv(name, value)
    assert main(["train", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("devices", ["cpu:0", "cpu:-1", "cpu:100000", f"cpu:{'9' * 5000}", "²"])
def test_a_number_of_processes_beyond_any_machine_is_refused(devices: str) -> None:
    with pytest.raises(UniclError, match=f"--devices {devices[:20]}"):
        count_processes(devices, lambda: 0)


@pytest.mark.parametrize(
    "line",
    [
        ["zeroshot", "x.png", "--top-k", str(10**30)],
        ["inspect", "x", "--batch", "--step", str(10**18)],
        ["inspect", "x", "--step", "-1"],
        ["eval", "x", "--batch", "9" * 5000],
        ["bench", "loss", "--threads", str(2**31)],
        ["train", "quickstart", "--nodes", str(10**30)],
    ],
)
def test_an_integer_that_no_size_can_be_is_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    assert line[-2] in said
    assert said.startswith("error: ")
