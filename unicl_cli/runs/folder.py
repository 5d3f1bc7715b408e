"""The files of a run directory."""

from pathlib import Path

from unicl_cli.core import checkpoint, hub
from unicl_cli.errors import UniclError

RUNS = Path("runs")


def is_checkpoint(folder: Path) -> bool:
    return (folder / checkpoint.TRAINER).is_file()


def last_run() -> str | None:
    """The run in ``runs/`` that finished last."""
    done = [path.parent for path in RUNS.glob("*/meta.json")]
    return str(max(done, key=lambda run: (run / "meta.json").stat().st_mtime)) if done else None


def find_run(name: str) -> tuple[Path, Path]:
    """(run directory, folder with the weights) of a run or checkpoint directory."""
    hub.check_named(name)
    folder = Path(name)
    if is_checkpoint(folder):
        return folder.resolve().parent.parent, folder
    if (folder / hub.CONFIG).is_file() and not (folder / "resolved.yaml").is_file():
        raise UniclError(f"model {name}: is a folder in open_clip's layout", f"write local-dir:{name}")
    if not (folder / "resolved.yaml").is_file():
        raise UniclError(
            f"{name}: is neither a run nor a checkpoint directory", "give a directory that unicl train wrote"
        )
    if (folder / "meta.json").is_file():
        return folder, folder
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None:
        raise UniclError(f"{name}: has no whole checkpoint yet", "wait for the first, or train again")
    return folder, newest
