"""Device, precision, threads and seeds of a process, and a card that states them."""

import ctypes
import os
import platform
import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

from pipeline import launcher, machine
from pipeline.errors import PipelineError
from pipeline.settings import Stage
from pipeline.training.devices import (
    nvidia_driver,
    pick_device,
    pick_precision,
    refuse_without_kernels,
)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """What a process computes on.

    Attributes:
        device: where models and batches live.
        precision: fp32, tf32, bf16 or fp16: the type of matrix products; weights stay fp32.
        device_reason: why this device, for people.
        precision_reason: why this precision.
        threads: CPU threads of torch.
        deterministic: whether operations without a repeatable version raise; on MPS, where the
            default models have some, they warn.
        shard: (rank, processes) of data-parallel training.
    """

    device: torch.device
    precision: str
    device_reason: str
    precision_reason: str
    threads: int
    deterministic: bool
    shard: tuple[int, int]

    @property
    def leads(self) -> bool:
        """Whether this process is the first of those that train together: it keeps the records."""
        return self.shard[0] == 0

    def autocast(self) -> torch.autocast:
        """A context in which matrix products are computed in the precision."""
        half = _HALF.get(self.precision)
        return torch.autocast(self.device.type, half, enabled=half is not None)

    def reseed(self, seed: int) -> None:
        """Seed the generators that a model draws from: the CPU's and the device's.

        `torch.manual_seed` asks after every kind of device there is, in 0.1 ms.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)


def configure(settings: Stage) -> Hardware:
    """Pick device and precision, pin the threads, seed every generator, and say so.

    Raises:
        PipelineError: the named device is absent, or can't compute in the named precision; or
            several processes were asked for that can't find each other.
    """
    shard = launcher.shard()
    share = len(machine.usable_cores()) // launcher.local_processes()
    threads = settings.threads or max(1, share)
    torch.set_num_threads(threads)
    _keep_freed_memory()
    device, device_reason = pick_device(settings.device)
    if shard[1] > 1:
        device = _joined(device)
        refuse_without_kernels(device)
    elif device.type in ("cuda", "xpu"):  # what is asked and seeded is the current device
        torch.get_device_module(device).set_device(device.index or 0)
    precision, precision_reason = pick_precision(settings.precision, device)
    if device.type == "cuda":
        _pin_float32(precision)
    if device.type in ("cuda", "xpu"):  # a sweep runs several jobs in one process
        torch.accelerator.reset_peak_memory_stats(device)
    # On MPS the gradients of max pooling and embeddings have no repeatable version.
    deterministic = settings.deterministic and device.type != "mps"
    # What use_deterministic_algorithms does, without its import of the compiler: 1.6 s.
    lenient = "warn" if settings.deterministic else "default"
    torch.set_deterministic_debug_mode("error" if deterministic else lenient)
    # It also fills each fresh tensor with NaN, to show reads of memory nobody wrote: 4 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False  # the loop knows whether shapes repeat
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # libraries draw from the global one
    torch.manual_seed(settings.seed)
    print(f"Using device: {device} because {device_reason}")
    print(f"Using precision: {precision} because {precision_reason}")
    if settings.deterministic and not deterministic:
        print(f"Not deterministic: {device} can't repeat gradients of max pooling and embeddings")
    reasons = device_reason, precision_reason
    return Hardware(device, precision, *reasons, threads, deterministic, shard)


def _pin_float32(precision: str) -> None:
    """Say how CUDA multiplies float32: exactly, or in TF32, which keeps ten bits of the mantissa.

    Under bf16 and fp16 recurrences and convolutions that stay in float32 may take it, too: it has
    more bits than they. torch's `fp32_precision` follows these two, not they it.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _joined(device: torch.device) -> torch.device:
    """Meet the other processes; returns this one's own device of the kind.

    Raises:
        PipelineError: the device is one that several processes can't share.
    """
    if device.type == "mps" or device != torch.device(device.type):
        raise PipelineError(
            f"device: {device} is one device, and several processes train; set common.device to "
            f"{'cpu' if device.type == 'mps' else device.type}, or start one process"
        )
    if device.type != "cpu":
        module = torch.get_device_module(device)
        # where each process sees one device only, that is its first
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]) % module.device_count())
        module.set_device(device)
    backend = torch.distributed.get_default_backend_for_device(device)
    if not torch.distributed.is_initialized():  # a sweep runs several jobs in one process
        torch.distributed.init_process_group(backend)
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, instead of giving large blocks back to the kernel.

    A step allocates what the one before freed; from the kernel it would come as pages to map and
    zero one by one, up to a third of a step (mallopt(3)).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def explain_failure(error: Exception, batch_size: int, hardware: Hardware) -> PipelineError | None:
    """A line for the failures of a machine that a user can mend, or None for any other error."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return PipelineError(
            f"out of memory on {hardware.device} with batches of {batch_size} examples ({text}); "
            "lower training.batch_size and raise training.accumulate by the same factor"
        )
    if "InvalidCxxCompiler" in text:
        return PipelineError(
            f"training.compile needs a C++ compiler ({text.partition(': ')[2]}); install one, such "
            "as g++, or set training.compile=null"
        )
    if "deterministic" in text and (op := re.match(r"(\S+) does not have a deterministic", text)):
        return PipelineError(
            f"{op[1]} has no deterministic version on {hardware.device}; "
            "set common.deterministic=false in params.yaml to allow it"
        )
    return None


def card(hardware: Hardware) -> dict[str, Any]:
    """The device card: what a run was computed on. Sizes are bytes."""
    facts = machine.card() | {
        "device": str(hardware.device),
        "device_reason": hardware.device_reason,
        "driver": None,
        "cuda": None,
        "cudnn": None,
        "hip": None,
        "xpu": None,
        "float32": None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": hardware.threads,
        "processes": hardware.shard[1],
        "precision": hardware.precision,
        "precision_reason": hardware.precision_reason,
        "deterministic": hardware.deterministic,
    }
    if hardware.device.type == "cpu":
        return facts | {"numerics": machine.digest_of_numerics(facts)}
    facts |= _accelerator(hardware)
    # The CPU draws the order of the data only, in integers.
    of_the_cpu: dict[str, Any] = {"cpu_capability": None, "threads": None}
    return facts | {"numerics": machine.digest_of_numerics(facts | of_the_cpu)}


def _accelerator(hardware: Hardware) -> dict[str, Any]:
    """What the device card says of a device that is no CPU."""
    device = hardware.device
    if device.type == "mps":
        return {
            "device_name": torch.backends.mps.get_name(),
            "device_memory": torch.mps.recommended_max_memory(),
            "driver": platform.mac_ver()[0],  # it comes with the system
        }
    module = torch.get_device_module(device)
    properties = module.get_device_properties(device)
    facts = {
        "device_name": properties.name,
        "device_count": module.device_count(),
        "device_memory": properties.total_memory,
    }
    if device.type == "xpu":
        return facts | {"driver": properties.driver_version, "xpu": torch.version.xpu}
    backends = {
        "matmul": torch.backends.cuda.matmul,
        "convolution": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "recurrence": torch.backends.cudnn.rnn,
    }
    able = torch.cuda.is_tf32_supported()
    return facts | {
        "device_uuids": _uuids(hardware),
        "driver": nvidia_driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "hip": torch.version.hip,
        "float32": {
            name: "tf32" if able and backend.fp32_precision == "tf32" else "ieee"
            for name, backend in backends.items()
        },
    }


def _uuids(hardware: Hardware) -> list[str]:
    """Of the GPUs that this process, and those beside it on this machine, compute on."""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES", "")).startswith("MIG-"):
        return [shown.split(",")[0]]  # a process gets one instance
    used = [hardware.device.index or 0]
    if hardware.shard[1] > 1:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        used = [*range(min(beside, torch.cuda.device_count()))]
    return [str(torch.cuda.get_device_properties(number).uuid) for number in used]


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak since `configure`, of the device's allocator.

    On the CPU it is that of the process since its start; on MPS, whose driver keeps what is freed,
    what it holds now.
    """
    if device.type in ("cuda", "xpu"):
        return int(torch.accelerator.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak * (1 if platform.system() == "Darwin" else 1024))
