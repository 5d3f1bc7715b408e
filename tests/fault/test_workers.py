"""Loader workers end with their trainer, however that ends."""

import sys
from pathlib import Path

import pytest
from forking import complete

BOOM = """
from torch import nn

class Boom(nn.Module):
    score, activation, calls = "text", "softmax", 0

    def forward(self, model, batch):
        self.calls += 1
        if self.calls == 4:
            raise RuntimeError("boom")
        return {"loss": model.encode_image(batch.images).embed.sum() * model.encode_text(batch.tokens).embed.sum()}

PARTS = {"losses": {"boom": lambda: Boom()}}
"""


@pytest.mark.slow
def test_a_fault_in_a_training_with_workers_ends_the_process(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "boom.py").write_text(BOOM)
    changes = [f"data.train=[{{corpus: {digits}}}]", "eval=[]", "batch.size=8", "loss=boom", "data.workers=1"]
    command = [sys.executable, "-m", "unicl_cli", "--plugin", "boom.py", "train", "quickstart", *changes, "-q"]
    done = complete(command, cwd=tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: boom" in done.stderr
