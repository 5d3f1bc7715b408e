"""Files of open_clip models by name (local folder, open_clip's own list, hub), and errors of the hub."""

import errno
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from unicl_cli.errors import UniclError, did_you_mean, is_live, is_quiet, write_line
from unicl_cli.formats import byte_size
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import parse_json

FORMS = ("open_clip:", "local-dir:", "hf-hub:")
FORMS_HINT = "a run or checkpoint directory, open_clip:NAME[/TAG], local-dir:PATH or hf-hub:ORG/REPO"
CONFIG = "open_clip_config.json"
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
)
"""In the order in which open_clip looks for them."""
TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
MAX_CONFIG_BYTES = 16_000_000
LOG_IN = "then log in with `hf auth login` (or set HF_TOKEN)"
T = TypeVar("T")


class Source(NamedTuple):
    """An open_clip model as files: ``config`` is its model_cfg, ``preprocess`` the settings of its images.

    ``folder`` holds the tokenizer of a local model; ``weights`` is None where none were asked for.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    folder: Path | None
    weights: Path | None


def has_form(name: str) -> bool:
    """Return whether the name has one of ``FORMS``, as ``hf-hub:ORG/REPO`` does."""
    return name.startswith(FORMS)


def check_model_name(name: str) -> None:
    """Raise UniclError unless ``name`` has a form or is a directory; called before torch is imported."""
    if not has_form(name) and not Path(name).is_dir():
        raise UniclError(f"model {name}: no such run or checkpoint directory", f"give {FORMS_HINT}")


def find_model(name: str, *, weights: bool = True) -> Source:
    """Find the files of ``open_clip:NAME[/TAG]``, ``local-dir:PATH`` or ``hf-hub:ORG/REPO``; announce downloads.

    Missing weights are an error here: open_clip only warns and continues with random ones.
    """
    form, _, rest = name.partition(":")
    if not has_form(name) or not rest:
        raise UniclError(f"model {name}: unknown form", f"give {FORMS_HINT}")
    if form == "local-dir":
        return find_local(Path(rest), weights=weights)
    return (
        find_built_in(name, rest, weights=weights) if form == "open_clip" else find_on_hub(name, rest, weights=weights)
    )


def find_local(folder: Path, *, weights: bool = True) -> Source:
    """Find the files of a folder with open_clip_config.json and weights."""
    name = f"local-dir:{folder}"
    if not folder.is_dir():
        raise UniclError(f"model {name}: no such folder", f"give a folder with {CONFIG} and {WEIGHTS[0]}")
    if not (folder / CONFIG).is_file():
        raise UniclError(f"model {name}: has no {CONFIG}", "give a folder in open_clip's layout")
    config, preprocess = read_config(folder / CONFIG, name)
    text = config["text_cfg"]
    if "hf_model_name" in text:
        places = (folder / text["hf_model_name"], folder)  # the second: `unicl mix` wrote it, and it was moved
        text["hf_model_name"] = next((str(p) for p in places if (p / "config.json").is_file()), text["hf_model_name"])
    found = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights and found is None:
        raise UniclError(f"model {name}: has no weights", f"put {WEIGHTS[0]} beside {CONFIG}")
    return Source(name, config, preprocess, folder, found if weights else None)


def find_built_in(name: str, rest: str, *, weights: bool) -> Source:
    """Find an architecture of open_clip's own list, with the weights of a tag, by default the first one listed."""
    import open_clip

    arch, _, tag = rest.partition("/")
    config = open_clip.get_model_config(arch)
    if config is None:
        known = open_clip.list_models()
        raise UniclError(
            f"model {name}: open_clip has no '{arch}'{did_you_mean(arch, known)}",
            "list them: python -c 'import open_clip; print(open_clip.list_models())'",
        )
    if not weights:
        return Source(name, config, {}, None, None)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if not tags:
        raise UniclError(f"model {name}: open_clip has no weights of {arch}", "choose another architecture")
    settings: dict[str, Any] = open_clip.get_pretrained_cfg(arch, tag or tags[0])
    if not settings:
        raise UniclError(
            f"model {name}: no weights '{tag}'{did_you_mean(tag, tags)}", f"choose one of {', '.join(tags)}"
        )
    if not settings["hf_hub"]:
        raise UniclError(f"model {name}: its weights are not on the hub", f"choose one of {', '.join(tags)}")
    if settings.get("quick_gelu"):  # open_clip only warns and uses the wrong activation
        config["quick_gelu"] = True
    repo, _, file = settings["hf_hub"].rpartition("/")
    wanted = (f"{file.rpartition('.')[0]}.safetensors", file) if file else WEIGHTS
    (path,) = fetch(repo, [wanted], name)
    return Source(name, config, settings, None, path)


def find_on_hub(name: str, repo: str, *, weights: bool) -> Source:
    """Find the files of a repository in open_clip's layout."""
    files = fetch(repo, [(CONFIG,), WEIGHTS] if weights else [(CONFIG,)], name)
    config, preprocess = read_config(files[0], name)
    return Source(name, config, preprocess, None, files[1] if weights else None)


def read_config(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model_cfg, preprocess_cfg) of an open_clip_config.json."""
    try:
        whole = parse_json(read_regular(path, MAX_CONFIG_BYTES))
        config = deepcopy(whole["model_cfg"])
        if not all(isinstance(config[key], dict) for key in ("vision_cfg", "text_cfg")):
            raise TypeError("vision_cfg and text_cfg are mappings")
        if not isinstance(config["text_cfg"].get("hf_model_name", ""), str):
            raise TypeError("text_cfg.hf_model_name is not a string")
        return config, dict(whole.get("preprocess_cfg", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniclError(
            f"model {name}: {path} is not a model configuration: {error}",
            "check that it has model_cfg with vision_cfg and text_cfg",
        ) from error


# -- the hub --------------------------------------------------------------------------------------------------------


def find_cached(repo: str, names: Sequence[str]) -> Path | None:
    """Return the first of the files that is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = (ask_hub(repo, lambda file=file: try_to_load_from_cache(repo, file)) for file in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch(repo: str, wanted: Sequence[Sequence[str]], name: str) -> list[Path]:
    """Return a file for each list of alternatives: from the cache, else announced and downloaded."""
    from huggingface_hub import HfApi, hf_hub_download

    have = [find_cached(repo, names) for names in wanted]
    if all(have):
        return [path for path in have if path is not None]
    info = ask_hub(repo, lambda: HfApi().model_info(repo, files_metadata=True))
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
    files: list[str] = []
    for names in wanted:
        file = next((file for file in names if file in sizes), None)
        if file is None:
            raise UniclError(
                f"model {name}: {repo} on the hub has no {names[0]}", "give a repository in open_clip's layout"
            )
        files.append(file)
    new = sum(sizes[file] for file, path in zip(files, have, strict=True) if path is None)
    place = "" if name.endswith(f":{repo}") else f" from {repo}"
    announce(name, f"{byte_size(new)}{place}, licence {licence(info)}")
    return [Path(ask_hub(repo, lambda file=file: hf_hub_download(repo, file))) for file in files]


def tokenizer_folder(repo: str) -> Path:
    """Return the folder with the tokenizer files of a repository; a local path is returned unchanged."""
    if Path(repo).is_dir():
        return Path(repo)
    path = find_cached(repo, ("tokenizer_config.json",))
    if path is not None:
        return path.parent
    from huggingface_hub import snapshot_download

    announce(repo, "tokenizer")
    return Path(ask_hub(repo, lambda: snapshot_download(repo, allow_patterns=list(TOKENIZER))))


def announce(name: str, what: str) -> None:
    """Print one line before a download; show the hub's progress bars only on a terminal."""
    from huggingface_hub.utils import disable_progress_bars

    if is_quiet() or not is_live():
        disable_progress_bars()
    write_line(f"downloading {name}: {what}; kept in the cache")


def licence(info: Any) -> str:
    """Return the licence that the model card states."""
    card = None if info.card_data is None else info.card_data.get("license")
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return str(card or next(tags, "not stated"))


class Repo(NamedTuple):
    """A repository on the hub as errors describe it; ``otherwise`` says how to do without the hub."""

    name: str
    page: str
    otherwise: str


def model_repo(repo: str) -> Repo:
    """The repository of a model."""
    return Repo(repo, f"https://huggingface.co/{repo}", "use local-dir:PATH or a run")


def ask_hub(repo: str, ask: Callable[[], T]) -> T:
    """Return ``ask()``; every failure of the hub becomes a UniclError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    client = cast("type[Exception]", HfHubHTTPError.__bases__[0])  # of its HTTP client, of which there were several
    try:
        return ask()
    except (client, OSError, ValueError) as error:
        raise explain(model_repo(repo), error) from error


def explain(repo: Repo, error: Exception) -> UniclError:
    """Return the error to show for a request to the hub that failed."""
    from huggingface_hub import errors

    name, status = repo.name, getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return not_cached(repo)
    if isinstance(error, errors.HFValidationError):
        return bad_name(name)
    if isinstance(error, errors.GatedRepoError):
        return gated_repository_error(repo)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return UniclError(f"{name}: not on the hub, or private", f"check the name; if it is private, {LOG_IN}")
    if isinstance(error, errors.HfHubHTTPError):
        return UniclError(f"{name}: the hub answered with status {status}", "try again later")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return UniclError(
            f"{name}: no space left for the download", "free some space, or set HF_HOME to a folder on a larger disk"
        )
    if isinstance(error, PermissionError):
        return UniclError(f"{name}: the cache cannot be written: {error}", "set HF_HOME to a folder of your own")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UniclError(
        f"{name}: cannot be fetched from the hub: {reason}",
        f"check the connection and run the same command again to continue, or {repo.otherwise}",
    )


def not_cached(repo: Repo) -> UniclError:
    """The error for a repository that is needed offline and was never fetched."""
    return UniclError(
        f"{repo.name}: not in the hub's cache, and HF_HUB_OFFLINE is set",
        f"unset HF_HUB_OFFLINE once to download it, or {repo.otherwise}",
    )


def check_repo(name: str) -> None:
    """Raise UniclError unless ``name`` can be that of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise bad_name(name) from error
    if name.count("/") != 1:
        raise bad_name(name)


def check_licence(licence: str) -> None:
    """Raise UniclError unless ``licence`` is an identifier as a card has it."""
    if not LICENCE.fullmatch(licence):
        raise UniclError(
            f"--license {licence}: is not an identifier of the hub", "write for example cc-by-4.0 or other"
        )


def bad_name(name: str) -> UniclError:
    """The error for what cannot be the name of a repository."""
    return UniclError(f"{name}: not a name on the hub", "write it as org/name")


def gated_repository_error(repo: Repo) -> UniclError:
    """The error for a repository whose terms have to be accepted first."""
    return UniclError(f"{repo.name}: gated: its terms have to be accepted", f"accept them at {repo.page}, {LOG_IN}")
