"""What this machine brings for training: one look at each thing that has kept somebody from it."""

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from unicl_cli import __version__, registry
from unicl_cli.core.byte_size import binary_size
from unicl_cli.core.machine import cores, free_memory, machine_memory
from unicl_cli.errors import UniclError
from unicl_cli.launch.plan import decide
from unicl_cli.launch.process import count_gpus, list_backends

OK, NOTE, PROBLEM = "ok", "note", "problem"
GIB = 2**30
TRACKERS = ("tensorboard", "wandb")
LAUNCHERS = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES"
    r"|SLURM_(JOB_ID|PROCID|LOCALID|NODEID|NTASKS|STEP_\w+|NNODES|NODELIST)|(ACCELERATE|NCCL|GLOO|TORCHELASTIC)_\w+)"
)
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


class Check(NamedTuple):
    """One line: ``state`` is ok, note (worth knowing) or problem (training cannot work); ``hint`` says what to do."""

    name: str
    state: str
    text: str
    hint: str = ""


def examine() -> list[Check]:
    """Every check, in the order in which one depends on another."""
    checks = [python(), *packages(), machine(), processors(os.environ), *shared_memory()]
    checks += [*disks(), hub(os.environ), launcher(os.environ), trackers(), *plugins()]
    torch = imported("torch")
    if isinstance(torch, Check):
        return [*checks, torch]
    return [*checks, build(torch), *driver(torch), *devices(torch), groups(torch), decision(os.environ, count_gpus)]


# -- software -----------------------------------------------------------------------------------------------------


def python() -> Check:
    return Check("python", OK, f"{platform.python_version()}, {sys.prefix}")


def needed() -> list[str]:
    """The distributions that unicl depends on, without their extras."""
    lines = [line for line in metadata.requires("unicl") or () if "extra ==" not in line]
    return [re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in lines]


def packages() -> Iterator[Check]:
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in needed():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Check("unicl", OK, __version__)
    yield Check("packages", OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    if missing:
        yield Check("packages", PROBLEM, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def imported(name: str) -> Any:
    """The module, or why it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken install fails in any way; the line says how
        reason = f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        return Check(name, PROBLEM, reason, f"pip install --force-reinstall {name}")


def trackers() -> Check:
    here = [name for name in TRACKERS if importlib.util.find_spec(name)]
    away = [name for name in TRACKERS if name not in here]
    hint = f"for log.trackers: pip install {' '.join(away)}" if away else ""
    return Check("trackers", OK, ", ".join(here) or "none installed", hint)


def plugins() -> Iterator[Check]:
    rows = [row for kind in registry.KINDS for row in registry.listing(kind)]
    foreign = sorted({row.dist for row in rows if row.dist not in (None, "unicl")})
    yield Check("plugins", OK, f"{len(rows)} parts" + (f", also from {', '.join(foreign)}" if foreign else ""))
    odd = {f"{row.kind}/{row.name}: {row.state}" for row in rows if row.state != "ok"}
    for line in sorted(odd):
        yield Check("plugins", NOTE, line, "see unicl plugins ls")


# -- the machine --------------------------------------------------------------------------------------------------


def machine() -> Check:
    return Check("platform", OK, f"{platform.platform()}, memory {memory()}")


def memory() -> str:
    """Of the machine, and what is free of it where the system says so."""
    whole, free = machine_memory(), free_memory()
    total = "unknown" if whole is None else binary_size(whole)
    return total if free is None else f"{total}, {binary_size(free)} free"


def processors(environ: Mapping[str, str]) -> Check:
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads and (not threads.isdecimal() or not 1 <= int(threads) <= cores()):
        hint = "threads that wait for a core slow each other: unset it, or take at most the number of cores"
        return Check("cores", NOTE, f"{cores()}, but OMP_NUM_THREADS={threads}", hint)
    return Check("cores", OK, f"{cores()}, OMP_NUM_THREADS={threads or 'unset (all cores)'}")


def shared_memory() -> Iterator[Check]:
    """Linux only: loader workers hand their batches over in /dev/shm, which containers make small."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    size = shutil.disk_usage(place)
    if size.total < GIB:
        hint = "too small for loader workers of large batches: docker run --shm-size=8g, or data.workers=0"
        yield Check("/dev/shm", NOTE, binary_size(size.total), hint)
    else:
        yield Check("/dev/shm", OK, f"{binary_size(size.free)} free of {binary_size(size.total)}")


def disks() -> Iterator[Check]:
    for name, folder in (("disk here", Path.cwd()), ("disk temp", Path(tempfile.gettempdir()))):
        size = shutil.disk_usage(folder)
        text = f"{binary_size(size.free)} free of {binary_size(size.total)}, {folder}"
        if not os.access(folder, os.W_OK):
            yield Check(name, NOTE, f"{folder} may not be written", "train with --run-dir elsewhere, or set TMPDIR")
        elif size.free < 2 * GIB:
            yield Check(name, NOTE, text, "checkpoints of a large model take 2 GiB each: free some space")
        else:
            yield Check(name, OK, text)


def hub(environ: Mapping[str, str]) -> Check:
    """Hugging Face's cache as huggingface_hub finds it, and whether it may ask the network."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    models = len(list(cache.glob("models--*")))
    above = next(folder for folder in (cache, *cache.parents) if folder.exists())
    text = f"{cache}: {models} models, {binary_size(shutil.disk_usage(above).free)} free"
    off = [f"{name}={environ[name]}" for name in OFFLINE if environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if off:
        return Check("hub", NOTE, f"{text}; offline: {', '.join(off)}", "only cached models and data sets can be used")
    return Check("hub", OK, text)


def launcher(environ: Mapping[str, str]) -> Check:
    seen = {name: value for name, value in sorted(environ.items()) if LAUNCHERS.fullmatch(name)}
    own = {name: value for name, value in sorted(environ.items()) if name.startswith("UNICL_")}
    text = ", ".join(f"{name}={value}" for name, value in {**seen, **own}.items())
    return Check("launcher", OK, text or "no variables of one")


def decision(environ: Mapping[str, str], gpus: Callable[[], int]) -> Check:
    """What `unicl train` would do here, and which variables make it do so."""
    try:
        launch = decide(environ, "auto", gpus=gpus)
    except UniclError as error:
        return Check("train", PROBLEM, f"unicl train fails: {error.message}", error.hint or "")
    text = f"unicl train {launch.describe()}"
    if launch.how == "worker":
        return Check("train", NOTE, text, "--launch local starts on its own instead")
    if "RANK" in environ:
        return Check("train", NOTE, text, "RANK alone makes no worker: WORLD_SIZE and MASTER_ADDR belong to it")
    return Check("train", NOTE if launch.note else OK, text, launch.note)


# -- torch --------------------------------------------------------------------------------------------------------


def build(torch: Any) -> Check:
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    made_for = f"ROCm {torch.version.hip}" if getattr(torch.version, "hip", None) else made_for
    return Check("torch", OK, f"{torch.__version__}, built for {made_for}")


def driver(torch: Any) -> Iterator[Check]:
    """An NVIDIA card that torch cannot use: the usual reason for a training that is 50 times too slow."""
    version = Path("/proc/driver/nvidia/version")
    if torch.cuda.is_available() or not (version.exists() or shutil.which("nvidia-smi")):
        return
    number = re.search(r"Kernel Module\D*([\d.]+)", version.read_text(encoding="utf-8")) if version.exists() else None
    has = f"an NVIDIA driver{f' {number[1]}' if number else ''}"
    if torch.version.cuda:
        text = f"{has} is here, but torch's CUDA {torch.version.cuda} cannot use it"
        yield Check("driver", PROBLEM, text, "update the driver, or install a torch for an older CUDA")
    else:
        yield Check("driver", NOTE, f"{has} is here, but this torch is for the CPU", "install torch's CUDA build")


def devices(torch: Any) -> Iterator[Check]:
    """Each device with its memory, after a real step of training on it."""
    for number in range(torch.cuda.device_count()):
        yield tried(torch, f"cuda:{number}", lambda number=number: cuda(torch, number))
    if torch.backends.mps.is_available():
        hint = "fallback for missing operators on" if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1" else ""
        yield tried(torch, "mps", lambda: f"Apple GPU, no fp64 {hint}".strip())
    yield tried(torch, "cpu", lambda: f"fp32 by default, {torch.get_num_threads()} threads")


def cuda(torch: Any, number: int) -> str:
    facts = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    halves = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: fp32 unless precision=fp16"
    memory = f"{binary_size(free)} free of {binary_size(total)}"
    return f"{facts.name}, {memory}, compute {facts.major}.{facts.minor}, {halves}"


def tried(torch: Any, device: str, describe: Callable[[], str]) -> Check:
    """The device's line after one forward and backward on it."""
    try:
        text = describe()
        step(torch, device)
    except Exception as error:  # noqa: BLE001 - a driver fails in any way; the line says how
        reason = f"a training step failed: {type(error).__name__}: {error}".splitlines()[0]
        return Check(device, PROBLEM, reason, "free the device, or choose others with CUDA_VISIBLE_DEVICES")
    return Check(device, OK, f"{text}; a training step works")


def step(torch: Any, device: str) -> None:
    """Forward, backward and one update of a convolution and a contrast on ``device``."""
    with torch.random.fork_rng(devices=[]):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 8)).to(device)
        x = torch.nn.functional.normalize(net(torch.rand(4, 3, 8, 8, device=device)), dim=-1)
        loss = torch.nn.functional.cross_entropy(10 * x @ x.T, torch.arange(4, device=device))
        loss.backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
            raise ArithmeticError("the weights are not finite")


def groups(torch: Any) -> Check:
    """What several processes talk through."""
    found = list_backends()
    if not found:
        return Check("processes", NOTE, "this torch has no torch.distributed", "only one process can train")
    if torch.cuda.device_count() > 1 and "nccl" not in found:
        return Check("processes", PROBLEM, f"{', '.join(found)}, no NCCL", "install torch's CUDA build, or --devices 1")
    return Check("processes", OK, ", ".join(found))
