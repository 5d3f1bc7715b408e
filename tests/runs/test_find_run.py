"""A checkpoint may be named by the file that names its step."""

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.runs.folder import find_run


@pytest.mark.parametrize("pointer", ["best", "latest"])
def test_the_file_that_names_a_step_stands_for_its_checkpoint(tmp_path, pointer):
    step = tmp_path / "run/checkpoints/step-00000008"
    step.mkdir(parents=True)
    (step / "trainer.json").write_text("{}")
    (step.parent / pointer).write_text("step-00000008")
    assert find_run(str(step.parent / pointer)) == (tmp_path / "run", step)
    (step.parent / pointer).write_text("../../elsewhere")
    with pytest.raises(UniclError, match="neither a run nor a checkpoint"):
        find_run(str(step.parent / pointer))
