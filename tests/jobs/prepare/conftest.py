"""Fixtures of tests that download: a server with faults, and units that run in this process."""

from collections.abc import Iterator

import pytest
from image_server import ImageServer, serve_images

from unicl_cli.data.fetch import Fetcher
from unicl_cli.jobs.prepare.engines import local


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    """A server of images on loopback; who asks it again does not wait."""
    monkeypatch.setattr(Fetcher.__new__, "__defaults__", (*Fetcher.__new__.__defaults__[:-2], 0.01, "unicl-test"))
    with serve_images() as images:
        yield images


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units run here: what their own processes add is `test_prepare.py`'s and the slow tests'."""
    monkeypatch.setattr(local, "_run_pool", lambda todo, workers, *rest: local._run_here(todo, *rest))
