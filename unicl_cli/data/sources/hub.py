"""What the Hugging Face hub says of a data set, before anything is fetched: its commit, or one line that helps."""

import os
import re
from pathlib import Path

from unicl_cli.core.byte_size import decimal_size
from unicl_cli.core.hub import announce, licence
from unicl_cli.errors import UniclError

TIMEOUT = 10.0
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LOG_IN = "then log in with `hf auth login` (or set HF_TOKEN) and repeat the command"


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that ``revision`` (a branch, tag or commit) is now; None where only the cache may be asked.

    UniclError for no network, a name that is not there, and HF_HUB_OFFLINE without a cached copy: at once, since
    `datasets` itself tries for 23 s [measured].
    """
    if not _NAME.fullmatch(name):
        raise UniclError(f"hf:{name}: is no name on the hub", "names look like hf:org/name")
    if is_offline():
        if not _is_cached(name):
            raise UniclError(f"hf:{name}: HF_HUB_OFFLINE is set, and the cache ({hf_home()}) lacks it", _by_hand(name))
        return revision
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT, files_metadata=True)
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage] - the client's own base
        raise _refused(name, revision, error) from error
    if not any(_cache_of(name).glob(f"*/*/{info.sha}")):
        size = sum(file.size or 0 for file in info.siblings or ())
        announce(f"hf:{name}", f"up to {decimal_size(size)}, licence {licence(info)}")
    return info.sha


def _refused(name: str, revision: str | None, error: Exception) -> UniclError:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return UniclError(f"hf:{name}: has no revision '{revision}'", f"see {page(name)}/tree/main")
    if isinstance(error, errors.GatedRepoError):
        return gated(name)
    if isinstance(error, errors.RepositoryNotFoundError):
        return UniclError(
            f"hf:{name}: is not on the hub, or is private", f"check the name; if it is private, {_LOG_IN}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return UniclError(f"hf:{name}: the hub answers with status {error.response.status_code}", "try again later")
    cached = "HF_HUB_OFFLINE=1 before the command takes it from the cache" if _is_cached(name) else _by_hand(name)
    return UniclError(f"hf:{name}: the hub cannot be reached: {error}", cached)


def gated(name: str) -> UniclError:
    """The error for a data set whose terms are to be accepted first."""
    return UniclError(
        f"hf:{name}: is gated: its owner wants its terms accepted", f"accept them at {page(name)}, {_LOG_IN}"
    )


def page(name: str) -> str:
    """The address of a data set's page."""
    return f"https://huggingface.co/datasets/{name}"


def hf_home() -> Path:
    """Where the libraries of Hugging Face keep what they fetched; HF_DATASETS_CACHE and HF_HUB_CACHE may move parts."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser()


def datasets_cache() -> Path:
    """Where `datasets` keeps its Arrow files."""
    return Path(os.environ.get("HF_DATASETS_CACHE", hf_home() / "datasets")).expanduser()


def is_offline() -> bool:
    """Was the network forbidden by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE?"""
    wanted = os.environ.get("HF_DATASETS_OFFLINE") or os.environ.get("HF_HUB_OFFLINE", "")
    return wanted.upper() in ("1", "ON", "YES", "TRUE")


def _is_cached(name: str) -> bool:
    return _cache_of(name).is_dir()


def _cache_of(name: str) -> Path:
    return datasets_cache() / name.replace("/", "___")


def _by_hand(name: str) -> str:
    return f"on a machine with network: hf download {name} --repo-type dataset --local-dir DIR; give DIR as the source"
