"""The Accelerator of this process: device, precision, process group."""

import os
import warnings
from datetime import timedelta
from typing import Any

from unicl_cli.core.machine import cores
from unicl_cli.errors import UniclError, write_note
from unicl_cli.launch.plan import MPI
from unicl_cli.launch.process import is_peer, is_worker


def start_accelerator(precision: str = "auto", devices: str = "auto") -> Any:
    """Return the Accelerator of this process: device, precision, process group.

    ``precision`` auto is bf16 on a GPU that has it, else fp32.
    Everything that accelerate would read from its environment variables or its per-user file is passed here.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

    # torch 2.15 renames an option that accelerate still passes on under its old name
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    cpu = devices.startswith("cpu") or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if precision == "auto":
        precision = "bf16" if not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and cpu:  # accelerate would continue in fp32 without a warning
        raise UniclError("precision: fp16 needs a GPU", "set precision=auto, bf16 or fp32")
    mixed = "no" if precision == "fp32" else precision
    ignore_accelerate_variables(mixed, cpu="1" if cpu else "no")
    if is_worker():
        set_group_variables(torch)
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds the convolutions of float32 to TF32
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a plain 1 gives way to the environment
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(minutes=10)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    if is_worker() and str(accelerator.num_processes) != os.environ["WORLD_SIZE"]:  # each process would train alone
        raise UniclError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: accelerate opened no process group", "run unicl doctor"
        )
    return accelerator


def ignore_accelerate_variables(precision: str, *, cpu: str) -> None:
    """Remove accelerate's own settings from the environment; warn once about those that contradict the recipe."""
    own = {"MIXED_PRECISION": precision, "GRADIENT_ACCUMULATION_STEPS": "1", "USE_CPU": cpu}
    own |= dict.fromkeys(("DYNAMO_BACKEND", "USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM", "DOWNCAST_BF16"), "no")
    plainly = {"false": "no", "0": "no", "off": "no", "": "no", "true": "1", "yes": "1"}
    odd: list[str] = []
    for name, wanted in own.items():
        given = os.environ.pop(f"ACCELERATE_{name}", None)
        if given is not None and plainly.get(given.lower(), given.lower()) not in (
            wanted,
            "no" if name == "USE_CPU" else wanted,
        ):
            odd.append(f"ACCELERATE_{name}={given}")
    if odd and not is_peer():
        write_note(f"warning: {', '.join(odd)}: ignored: the recipe and the options of unicl decide")


def set_group_variables(torch: Any) -> None:
    """Set the variables that a process group reads when it is opened."""
    for name in MPI:  # accelerate would look there too
        os.environ.pop(name, None)
    if "OMP_NUM_THREADS" not in os.environ:
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        own = max(1, min(cores(), share))  # a scheduler may have given this process its own cores
        os.environ["OMP_NUM_THREADS"] = str(own)
        torch.set_num_threads(own)
    if not torch.cuda.is_available():
        return
    from accelerate.utils import check_cuda_p2p_ib_support

    # record the last collectives, in case one hangs
    wanted = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_ON_TIMEOUT": "1"}
    if not check_cuda_p2p_ib_support():  # accelerate raises otherwise
        wanted |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
