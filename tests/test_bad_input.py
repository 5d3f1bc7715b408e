"""What a user can get wrong ends in one line that says so and in exit status 2, and nothing is lost."""

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from unicl_cli.cli import main
from unicl_cli.core.guard import BadSteps
from unicl_cli.core.loop import Plan, fit
from unicl_cli.core.sinks import Sinks, lines_until
from unicl_cli.data.tokenizers import corpus_tokenizer
from unicl_cli.encoders.transformer import TextTransformer
from unicl_cli.errors import UniclError
from unicl_cli.launch.accelerator import start_accelerator


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pics" / "1.png")
    (tmp_path / "file").write_text("a file\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xc1")
    (tmp_path / "open.csv").write_text('file,title\npics/1.png,"a quote\npics/2.png,is left open\n')
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["prepare", "--images", "pics", "-o", "file/corpus"], "file/corpus: cannot be written"),
        (["prepare", "--images", "pics", "--templates", "binary", "-q"], "templates 'binary': cannot be read"),
        (["prepare", "--labels", "", "-q"], "source '': the name is empty"),
        (["prepare", "--captions", "open.csv", "-q"], "the list ends inside quotes"),
        (["recipes", "show", "binary"], "binary: cannot be read"),
        (["recipes", "cp", "binary", "copy"], "binary: cannot be read"),
        (["zeroshot", "pics", "-q", "--classes", '"open,b'], "a quote is not closed"),
        (["eval", "--quiet", "--model", "nowhere"], "nowhere: no such run"),
        (["probe", "--quiet", "--model", "nowhere"], "nowhere: no such run"),
        (["train", "nowhere", "--quiet"], "no recipe 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    here: Path, capfd: pytest.CaptureFixture[str], line: list[str], said: str
) -> None:
    assert main(line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not (here / "copy.yaml").exists()


SPOILT = (b"\xff\x00", b"[" * 100_000, b'{"loss": 1}', b'{"step": "2"}', b'{"step": 2, "loss": []}', b"5", b"", b" ")


@pytest.mark.parametrize("damage", SPOILT)
def test_a_spoilt_line_of_the_metrics_drops_only_itself(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n{"step": 3, "loss": 2}\n{"step": 9}\n{"step": 4}')
    assert lines_until(path, 8) == ['{"step": 1}\n', '{"step": 3}\n']


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(UniclError, match="not a multiple of heads"):
        TextTransformer(9, 8, 2, width=33, layers=1, heads=2, quick_gelu=False, eps=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_a_context_without_room_for_a_word_is_refused(length: int) -> None:
    with pytest.raises(UniclError, match="leaves no room"):
        corpus_tokenizer(["a cat"], length)


def test_fp16_on_a_cpu_is_refused_instead_of_ignored() -> None:
    with pytest.raises(UniclError, match="fp16 needs a GPU"):
        start_accelerator("fp16", "cpu")


class Diverging(nn.Module):
    """Finite in steps 0 and 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: tuple[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * batch[0]).mean()}


def test_a_step_that_was_left_out_makes_no_checkpoint() -> None:
    accelerator = start_accelerator("fp32", "cpu")
    module = Diverging()
    optimizer = torch.optim.SGD(module.parameters())
    batches = ((step, (torch.full((2,), 1.0 if step < 2 else float("nan")),)) for step in range(9))
    saved: list[int] = []
    plan = Plan(steps=9, seed=0, lr=partial(min, 0.1), guard=BadSteps(3))
    with pytest.raises(UniclError, match="not finite 4 times") as error:
        fit(module, batches, optimizer, plan, accelerator, Sinks([]), after=saved.append)
    assert error.value.exit_code == 3
    assert saved == [1, 2]
