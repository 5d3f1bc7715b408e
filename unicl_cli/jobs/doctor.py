"""Checks of this machine for `unicl doctor`: software, memory, disks, devices, launchers and plugins."""

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
LAUNCHER_VARIABLES = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES"
    r"|SLURM_(JOB_ID|PROCID|LOCALID|NODEID|NTASKS|STEP_\w+|NNODES|NODELIST)|(ACCELERATE|NCCL|GLOO|TORCHELASTIC)_\w+)"
)
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


class Check(NamedTuple):
    """A line of the report. ``state``: ok, note (worth knowing) or problem (training cannot work)."""

    name: str
    state: str
    text: str
    hint: str = ""


def run_checks() -> list[Check]:
    """Run every check, in the order of their dependencies."""
    checks = [check_python(), *check_packages(), check_machine(), check_cores(os.environ), *check_shared_memory()]
    checks += [
        *check_disks(),
        check_hub_cache(os.environ),
        check_launcher(os.environ),
        check_trackers(),
        *check_plugins(),
    ]
    torch = import_package("torch")
    if isinstance(torch, Check):
        return [*checks, torch]
    return [
        *checks,
        check_torch(torch),
        *check_driver(torch),
        *check_devices(torch),
        check_backends(torch),
        check_launch(os.environ, count_gpus),
    ]


# -- software -----------------------------------------------------------------------------------------------------


def check_python() -> Check:
    return Check("python", OK, f"{platform.python_version()}, {sys.prefix}")


def required_packages() -> list[str]:
    """Return the distributions that unicl requires, without its extras."""
    lines = [line for line in metadata.requires("unicl") or () if "extra ==" not in line]
    return [re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in lines]


def check_packages() -> Iterator[Check]:
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in required_packages():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Check("unicl", OK, __version__)
    yield Check("packages", OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    if missing:
        yield Check(
            "packages", PROBLEM, f"missing: {', '.join(missing)}", f"install them: pip install {' '.join(missing)}"
        )


def import_package(name: str) -> Any:
    """Import a module; return it, or a problem with the reason."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken install fails in any way; the line says how
        reason = f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        return Check(name, PROBLEM, reason, f"reinstall it: pip install --force-reinstall {name}")


def check_trackers() -> Check:
    installed = [name for name in TRACKERS if importlib.util.find_spec(name)]
    missing = [name for name in TRACKERS if name not in installed]
    hint = f"to use log.trackers: pip install {' '.join(missing)}" if missing else ""
    return Check("trackers", OK, ", ".join(installed) or "none installed", hint)


def check_plugins() -> Iterator[Check]:
    rows = [row for kind in registry.KINDS for row in registry.list_parts(kind)]
    foreign = sorted({row.dist for row in rows if row.dist not in (None, "unicl")})
    yield Check("plugins", OK, f"{len(rows)} parts, from {', '.join(['unicl', *foreign])}")
    odd = {f"{row.kind}/{row.name}: {row.state}" for row in rows if row.state != "ok"}
    for line in sorted(odd):
        yield Check("plugins", NOTE, line, "run unicl plugins ls for details")


# -- the machine --------------------------------------------------------------------------------------------------


def check_machine() -> Check:
    return Check("platform", OK, f"{platform.platform()}, memory {describe_memory()}")


def describe_memory() -> str:
    """Return the machine's memory, and the free part if the system reports it."""
    whole, free = machine_memory(), free_memory()
    return ("unknown" if whole is None else binary_size(whole)) + (
        "" if free is None else f", {binary_size(free)} free"
    )


def check_cores(environ: Mapping[str, str]) -> Check:
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads and (not threads.isdecimal() or not 1 <= int(threads) <= cores()):
        hint = "unset it, or set at most the number of cores: more threads than cores slow each other down"
        return Check("cores", NOTE, f"{cores()}, but OMP_NUM_THREADS={threads}", hint)
    setting = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS not set (uses all cores)"
    return Check("cores", OK, f"{cores()}, {setting}")


def check_shared_memory() -> Iterator[Check]:
    """Check /dev/shm (Linux only): loader workers pass batches through it, and containers make it small."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    size = shutil.disk_usage(place)
    if size.total < GIB:
        hint = "run docker with --shm-size=8g, or set data.workers=0"
        yield Check(
            "/dev/shm", NOTE, f"{binary_size(size.total)}, too small for loader workers with large batches", hint
        )
    else:
        yield Check("/dev/shm", OK, f"{binary_size(size.free)} free of {binary_size(size.total)}")


def check_disks() -> Iterator[Check]:
    for name, folder in (("disk here", Path.cwd()), ("disk temp", Path(tempfile.gettempdir()))):
        size = shutil.disk_usage(folder)
        text = f"{folder}: {binary_size(size.free)} free of {binary_size(size.total)}"
        if not os.access(folder, os.W_OK):
            yield Check(
                name, NOTE, f"{folder}: not writable", "choose another folder with --run-dir (temporary files: TMPDIR)"
            )
        elif size.free < 2 * GIB:
            yield Check(name, NOTE, text, "free some space: a checkpoint of a large model takes 2 GiB")
        else:
            yield Check(name, OK, text)


def check_hub_cache(environ: Mapping[str, str]) -> Check:
    """Report Hugging Face's cache, found as huggingface_hub does, and whether downloads are switched off."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    models = len(list(cache.glob("models--*")))
    above = next(folder for folder in (cache, *cache.parents) if folder.exists())
    text = f"{cache}: {models} models, {binary_size(shutil.disk_usage(above).free)} free"
    off = [
        f"{name}={environ[name]}"
        for name in OFFLINE_VARIABLES
        if environ.get(name, "").lower() in ("1", "true", "yes", "on")
    ]
    if off:
        return Check(
            "hub",
            NOTE,
            f"{text}; offline: {', '.join(off)}",
            "unset it to download models and data sets: only cached ones work now",
        )
    return Check("hub", OK, text)


def check_launcher(environ: Mapping[str, str]) -> Check:
    """Report the variables of launchers and of unicl that are set."""
    seen = {name: value for name, value in sorted(environ.items()) if LAUNCHER_VARIABLES.fullmatch(name)}
    own = {name: value for name, value in sorted(environ.items()) if name.startswith("UNICL_")}
    text = ", ".join(f"{name}={value}" for name, value in {**seen, **own}.items())
    return Check("launcher", OK, text or "no launcher variables are set")


def check_launch(environ: Mapping[str, str], gpus: Callable[[], int]) -> Check:
    """Report how `unicl train` would start here, and the variables that decide it."""
    try:
        launch = decide(environ, "auto", gpus=gpus)
    except UniclError as error:
        return Check("train", PROBLEM, f"unicl train would fail: {error.message}", error.hint or "")
    text = f"unicl train {launch.describe()}"
    if launch.how == "worker":
        return Check("train", NOTE, text, "to ignore the launcher, use --launch local")
    if "RANK" in environ:
        return Check("train", NOTE, text, "RANK is ignored without WORLD_SIZE and MASTER_ADDR")
    return Check("train", NOTE if launch.note else OK, text, launch.note)


# -- torch --------------------------------------------------------------------------------------------------------


def check_torch(torch: Any) -> Check:
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    made_for = f"ROCm {torch.version.hip}" if getattr(torch.version, "hip", None) else made_for
    return Check("torch", OK, f"{torch.__version__}, built for {made_for}")


def check_driver(torch: Any) -> Iterator[Check]:
    """Report an NVIDIA GPU that torch cannot use, the usual reason for training 50 times too slowly."""
    version = Path("/proc/driver/nvidia/version")
    if torch.cuda.is_available() or not (version.exists() or shutil.which("nvidia-smi")):
        return
    number = re.search(r"Kernel Module\D*([\d.]+)", version.read_text(encoding="utf-8")) if version.exists() else None
    found = f"NVIDIA driver {number[1]}" if number else "an NVIDIA driver"
    if torch.version.cuda:
        text = f"{found} found, but this torch (CUDA {torch.version.cuda}) cannot use the GPU"
        yield Check("driver", PROBLEM, text, "update the driver, or install a torch built for an older CUDA")
    else:
        yield Check("driver", NOTE, f"{found} found, but this torch is built for the CPU", "install torch's CUDA build")


def check_devices(torch: Any) -> Iterator[Check]:
    """Report each device after a real training step on it."""
    for number in range(torch.cuda.device_count()):
        yield try_device(torch, f"cuda:{number}", lambda number=number: describe_cuda(torch, number))
    if torch.backends.mps.is_available():
        fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
        text = "Apple GPU, no fp64, missing operators run on the CPU" if fallback else "Apple GPU, no fp64"
        yield try_device(torch, "mps", lambda: text)
    yield try_device(torch, "cpu", lambda: f"fp32 by default, {torch.get_num_threads()} threads")


def describe_cuda(torch: Any, number: int) -> str:
    facts = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16 (fp32 unless precision=fp16)"
    return (
        f"{facts.name}, {binary_size(free)} free of {binary_size(total)}, compute {facts.major}.{facts.minor}, {half}"
    )


def try_device(torch: Any, device: str, describe: Callable[[], str]) -> Check:
    """Describe a device after one training step on it, or report the failure."""
    try:
        text = describe()
        train_one_step(torch, device)
    except Exception as error:  # noqa: BLE001 - a driver fails in any way; the line says how
        reason = f"a training step failed: {type(error).__name__}: {error}".splitlines()[0]
        return Check(device, PROBLEM, reason, "free the device, or choose another with CUDA_VISIBLE_DEVICES")
    return Check(device, OK, f"{text}; a training step works")


def train_one_step(torch: Any, device: str) -> None:
    """Run forward, backward and one update of a small convolution with a contrastive loss on ``device``."""
    with torch.random.fork_rng(devices=[]):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 8)).to(device)
        x = torch.nn.functional.normalize(net(torch.rand(4, 3, 8, 8, device=device)), dim=-1)
        loss = torch.nn.functional.cross_entropy(10 * x @ x.T, torch.arange(4, device=device))
        loss.backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
            raise ArithmeticError("the weights are not finite")


def check_backends(torch: Any) -> Check:
    """Report the backends by which several processes communicate."""
    found = list_backends()
    if not found:
        return Check(
            "processes",
            NOTE,
            "this torch has no torch.distributed",
            "install another build of torch to train with several processes",
        )
    if torch.cuda.device_count() > 1 and "nccl" not in found:
        return Check(
            "processes",
            PROBLEM,
            f"{', '.join(found)}, no NCCL for several GPUs",
            "install torch's CUDA build, or use --devices 1",
        )
    return Check("processes", OK, ", ".join(found))
