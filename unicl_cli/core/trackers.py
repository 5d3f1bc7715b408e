"""TensorBoard and W&B through accelerate's trackers; their errors never end a training."""

import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicl_cli.errors import UniclError, write_note
from unicl_cli.storage.files import write_atomic


def check_installed(names: Sequence[str]) -> None:
    """Raise UniclError with the pip command for missing packages."""
    found = {name: importlib.util.find_spec(name) for name in names}
    missing = [name for name, spec in found.items() if spec is None or spec.origin is None]  # a folder has no origin
    if missing:
        raise UniclError(f"log.trackers: {', '.join(missing)} not installed", f"pip install {' '.join(missing)}")


def open_tensorboard(run: Path, project: str, done: int) -> Any:
    """Write events to ``run/tb``; hide those after step ``done``, which a continued run repeats."""
    del project  # TensorBoard knows folders only
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tb", run, purge_step=done + 1)


def open_wandb(run: Path, project: str, done: int) -> Any:
    """Open a run of ``project`` under the id in ``run/wandb-id``, so that a continued training stays one run."""
    del done
    from accelerate.tracking import WandBTracker

    known = run / "wandb-id"
    if not known.is_file():
        write_atomic(known, uuid.uuid4().hex)
    name = known.read_text(encoding="utf-8").strip()
    return WandBTracker(project, id=name, name=run.name, resume="allow", dir=str(run))


OPENERS: dict[str, Callable[[Path, str, int], Any]] = {"tensorboard": open_tensorboard, "wandb": open_wandb}


class TrackerSink:
    """Give each tracker the metrics of each step; one that raises is switched off with one warning.

    ``config`` is flat: ``{"optim.lr": 1e-3}``.
    """

    def __init__(self, names: Sequence[str], run: Path, project: str, config: Mapping[str, Any], done: int) -> None:
        self.trackers: dict[str, Any] = {}
        for name in names:
            self.attempt(name, lambda name=name: self.start(name, run, project, config, done))

    def start(self, name: str, run: Path, project: str, config: Mapping[str, Any], done: int) -> None:
        tracker = OPENERS[name](run, project, done)
        tracker.start()
        self.trackers[name] = tracker
        if not done:
            plain = {key: x if isinstance(x, int | float | str) else str(x) for key, x in config.items()}
            tracker.store_init_configuration(plain)

    def attempt(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - foreign code and its network; said once, and the run goes on
            self.trackers.pop(name, None)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            write_note(f"warning: tracker {name} is switched off: {reason}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self.trackers.items()):
            self.attempt(name, lambda tracker=tracker: tracker.log(dict(values), step=step))

    def close(self) -> None:
        for name, tracker in list(self.trackers.items()):
            self.attempt(name, tracker.finish)
