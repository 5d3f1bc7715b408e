"""The corpus that most trainings of tests read."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus: labels of seven digits and captions of ten, with a test split."""
    from unicl_cli.jobs.prepare.plan.request import PrepareRequest
    from unicl_cli.jobs.prepare.prepare import prepare

    out = tmp_path_factory.mktemp("digits") / "corpus"
    prepare(PrepareRequest(labels=("digits?classes=0-6&limit=60",), captions=("digits?limit=60",), images=(), out=out))
    return out
