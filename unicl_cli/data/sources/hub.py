"""Facts about a data set on the Hugging Face hub before anything is fetched: its commit, or an error that helps."""

import os
import re
from pathlib import Path

from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size
from unicl_cli.storage import hub

HUB = "hf:"
"""Start of a SRC on the hub."""
TIMEOUT = 10.0
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit that ``revision`` (a branch, tag or commit) names now; None if only the cache may be asked.

    UniclError for no network, a name that is not there, and HF_HUB_OFFLINE without a cached copy: at once, since
    `datasets` itself tries for 23 s [measured].
    """
    if not _NAME.fullmatch(name):
        raise hub.bad_name(f"hf:{name}")
    if is_offline():
        if not _is_cached(name):
            raise hub.not_cached(_repo(name))
        return revision
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT, files_metadata=True)
    except errors.RevisionNotFoundError as error:
        raise UniclError(f"hf:{name}: has no revision '{revision}'", f"see {page(name)}/tree/main") from error
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage] - the client's own base
        raise hub.explain(_repo(name), error) from error
    if not any(_cache_of(name).glob(f"*/*/{info.sha}")):
        size = sum(file.size or 0 for file in info.siblings or ())
        hub.announce(f"hf:{name}", f"up to {byte_size(size)}, licence {hub.licence(info)}")
    return info.sha


def fetch_folder(name: str) -> Path:
    """Return the folder of all files of a data set on the hub, from the cache or downloaded. UniclError if neither."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    if is_offline():
        raise hub.not_cached(_repo(name))
    try:
        hub.announce(f"hf:{name}", "all its files")
        return Path(snapshot_download(name, repo_type="dataset"))
    except (OSError, ValueError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage] - as above
        raise hub.explain(_repo(name), error) from error


def gated_dataset_error(name: str) -> UniclError:
    """The error for a data set whose terms have to be accepted first."""
    return hub.gated_repository_error(_repo(name))


def _repo(name: str) -> hub.Repo:
    by_hand = f"run `hf download {name} --repo-type dataset --local-dir DIR` on a machine with network and give DIR"
    cached = "set HF_HUB_OFFLINE=1 to read it from the cache"
    return hub.Repo(f"hf:{name}", page(name), cached if _is_cached(name) else by_hand)


def page(name: str) -> str:
    """The address of a data set's page."""
    return f"https://huggingface.co/datasets/{name}"


def hf_home() -> Path:
    """Return the folder of Hugging Face downloads; HF_DATASETS_CACHE and HF_HUB_CACHE may move parts of it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()


def datasets_cache() -> Path:
    """Return the folder in which `datasets` keeps its Arrow files."""
    return Path(os.environ.get("HF_DATASETS_CACHE", hf_home() / "datasets")).expanduser()


def is_offline() -> bool:
    """Was the network forbidden by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE?"""
    wanted = os.environ.get("HF_DATASETS_OFFLINE") or os.environ.get("HF_HUB_OFFLINE", "")
    return wanted.upper() in ("1", "ON", "YES", "TRUE")


def _is_cached(name: str) -> bool:
    return _cache_of(name).is_dir()


def _cache_of(name: str) -> Path:
    return datasets_cache() / name.replace("/", "___")
