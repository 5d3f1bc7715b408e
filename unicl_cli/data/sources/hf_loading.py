"""The splits of data sets that the `datasets` library describes, as files to read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from unicl_cli.data.sources.hf_folder import check_folder, is_saved_dataset
from unicl_cli.data.sources.hf_parquet import StoredSplit, fetch_parquet, find_fetched, find_parquet
from unicl_cli.data.sources.hub import HUB, commit_of, gated_dataset_error, is_offline, page
from unicl_cli.errors import UniclError, is_live, is_quiet


def load_splits(path: str, config: str | None, revision: str | None) -> Mapping[str, StoredSplit]:
    """Return the splits with their files; images are not decoded."""
    commit = commit_of(path.removeprefix(HUB), revision) if path.startswith(HUB) else None
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.logging.set_verbosity_error()
    if not is_live() or is_quiet():
        datasets.disable_progress_bars()
    try:
        found: Any = _find_parquet(path, config, revision, commit) or _load(path, config, commit)
    except UniclError:
        raise
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise gated_dataset_error(path.removeprefix(HUB)) from error
        raise UniclError(f"{path}: {_one_line(error)}", "check the name at https://huggingface.co/datasets") from error
    except Exception as error:  # the library raises ValueError, RuntimeError, OSError, ArrowInvalid, TypeError, ...
        raise UniclError(
            f"{path}: `datasets` cannot read it: {_one_line(error)}", _choose_hint(path, str(error))
        ) from error
    if not isinstance(found, dict):
        found = {str(found.split or "train").partition("[")[0]: found}
    splits = cast("dict[str, Any]", found)
    return {
        str(name): of
        if isinstance(of, StoredSplit)
        else StoredSplit([Path(f["filename"]).absolute() for f in of.cache_files], of.features)
        for name, of in splits.items()
    }


def _find_parquet(
    path: str, config: str | None, revision: str | None, commit: str | None
) -> dict[str, StoredSplit] | None:
    """Return the splits of a data set of Parquet files; None for another. UniclError as `check_folder`."""
    if not path.startswith(HUB):
        check_folder(Path(path))
        return None if is_saved_dataset(Path(path)) else find_parquet(path, config)
    name = path.removeprefix(HUB)
    if commit is None or is_offline():
        return find_fetched(name, config, revision)
    return fetch_parquet(name, config, commit)


def _load(path: str, config: str | None, commit: str | None) -> Any:
    """Return what `datasets` makes of a path, once its own files are known to name nothing outside of it."""
    import datasets

    if path.startswith(HUB):
        return datasets.load_dataset(path.removeprefix(HUB), config, revision=commit, keep_in_memory=False)
    if is_saved_dataset(Path(path)):
        return datasets.load_from_disk(path, keep_in_memory=False)
    return datasets.load_dataset(path, config, keep_in_memory=False)


def _choose_hint(path: str, said: str) -> str:
    if "Config name is missing" in said or "BuilderConfig" in said:
        return "choose a configuration: ?config=NAME"
    if "scripts are no longer supported" in said:
        return "try '?revision=refs/convert/parquet': this data set's own Python script is never run"
    if path.startswith(HUB):
        return f"see {page(path.removeprefix(HUB))}"
    return "check that it is complete, or save it again"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
