"""Device, precision, threads and seeds of a process, and a card that states them."""

import ctypes
import os
import platform
import random
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

from pipeline import launcher, machine
from pipeline.errors import PipelineError
from pipeline.settings import Stage

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """What a process computes on.

    Attributes:
        device: where models and batches live.
        precision: fp32, bf16 or fp16: the type of matrix products; weights stay fp32.
        device_reason: why this device, for people.
        precision_reason: why this precision.
        threads: CPU threads of torch.
        deterministic: whether operations without a repeatable version raise.
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
    threads = settings.threads or len(machine.usable_cores())
    torch.set_num_threads(threads)
    _keep_freed_memory()
    # What use_deterministic_algorithms does, without its import of the compiler: 1.6 s.
    torch.set_deterministic_debug_mode("error" if settings.deterministic else "default")
    # It also fills each fresh tensor with NaN, to show reads of memory nobody wrote: 4 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = settings.deterministic
    torch.backends.cudnn.benchmark = False  # the loop knows whether shapes repeat
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # libraries draw from the global one
    torch.manual_seed(settings.seed)

    device, device_reason = _pick_device(settings.device)
    precision, precision_reason = _pick_precision(settings.precision, device)
    if shard[1] > 1:
        device = _joined(device)
    elif device.type in ("cuda", "xpu"):  # the current device is what `reseed` seeds
        torch.get_device_module(device).set_device(device.index or 0)
    print(f"Using device: {device} because {device_reason}")
    print(f"Using precision: {precision} because {precision_reason}")
    reasons = device_reason, precision_reason
    return Hardware(device, precision, *reasons, threads, settings.deterministic, shard)


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
    device = hardware.device
    facts = machine.card() | {
        "device": str(device),
        "device_reason": hardware.device_reason,
        "driver": None,
        "cuda": None,
        "cudnn": None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": hardware.threads,
        "processes": hardware.shard[1],
        "precision": hardware.precision,
        "precision_reason": hardware.precision_reason,
        "deterministic": hardware.deterministic,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device_name": properties.name,
            "device_count": torch.cuda.device_count(),
            "device_memory": properties.total_memory,
            "driver": _nvidia_driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        # The CPU draws the order of the data only, in integers.
        of_the_cpu: dict[str, Any] = {"cpu_capability": None, "threads": None}
        return facts | {"numerics": machine.digest_of_numerics(facts | of_the_cpu)}
    return facts | {"numerics": machine.digest_of_numerics(facts)}


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of the device's allocator, or of this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak * (1 if platform.system() == "Darwin" else 1024))


def _pick_device(name: str) -> tuple[torch.device, str]:
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        kind = next(kind for kind, there in present.items() if there)
        absent = [kind for kind, there in present.items() if not there]
        reason = "no " + ", ".join(absent) + " is present" if kind == "cpu" else "it is present"
        return torch.device(kind), f"{reason} (device: auto)"
    device = torch.device(name)
    module, number = torch.get_device_module(device), device.index or 0
    if not present[device.type] or number >= module.device_count():
        there = ", ".join(kind for kind, is_there in present.items() if is_there)
        raise PipelineError(
            f"device: {name} is not on this machine (there is: {there}); "
            "set common.device to one of them, or to auto"
        )
    return device, f"the config names it (device: {name})"


def _pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = device.type == "xpu"
    if name == "auto":
        if fast:
            return "bf16", f"this {device.type} computes in it (precision: auto)"
        return "fp32", f"this {device.type} does not compute in bf16 (precision: auto)"
    if name == "fp16" and device.type != "cuda":
        raise PipelineError(
            f"precision: fp16 needs cuda, the device is {device}; set common.precision to auto"
        )
    return name, f"the config names it (precision: {name})"


def _nvidia_driver() -> str | None:
    import pynvml as nvml

    with suppress(nvml.NVMLError):  # there is none on AMD's GPUs
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    return None
