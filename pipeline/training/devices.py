"""Which device and which precision a process computes with, and why no other."""

import os
import re
import warnings

import torch

from pipeline.errors import PipelineError

TENSOR_CORES = (7, 0)
"""The first compute capability that multiplies fp16 faster than fp32."""
NEEDS = {
    "tf32": "cuda of compute capability 8.0 or more",
    "bf16": "cuda of compute capability 8.0 or more, an xpu that computes in it, macOS 14 or a CPU",
    "fp16": "cuda",
}


def pick_device(name: str) -> tuple[torch.device, str]:
    """The device of that name, or for `auto` the first of cuda, xpu, mps and cpu; and why.

    `auto` passes over a card that torch has no kernels for. The reason says what is wrong with an
    NVIDIA GPU that is there and can't be used.

    Raises:
        PipelineError: the named device is absent, or torch has no kernels for it.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kinds = [kind for kind, is_there in present.items() if is_there]
    asked = name == "auto" or name.startswith("cuda")
    hidden = _why_no_cuda() if asked and not present["cuda"] else None
    if name == "auto":
        devices = [
            torch.device(kind, number) if number else torch.device(kind)
            for kind in kinds
            for number in range(torch.get_device_module(kind).device_count())
        ]
        lacks = {device: _lacks_kernels(device) for device in devices}
        device = next(device for device, lack in lacks.items() if lack is None)
        reason = "no cuda, xpu, mps is usable" if device.type == "cpu" else "it is present"
        wrong = [lack for lack in (hidden, *lacks.values()) if lack]
        return device, f"{'; '.join([reason, *wrong])} (device: auto)"
    device = torch.device(name)
    module, number = torch.get_device_module(device), device.index or 0
    if not present[device.type] or number >= module.device_count():
        there = ", ".join(kinds) + (f"; {hidden}" if hidden else "")
        raise PipelineError(
            f"device: {name} is not on this machine (there is: {there}); "
            "set common.device to one of them, or to auto"
        )
    refuse_without_kernels(device)
    return device, f"the config names it (device: {name})"


def refuse_without_kernels(device: torch.device) -> None:
    """Raise a `PipelineError` for a CUDA device that torch has no kernels for."""
    if lack := _lacks_kernels(device):
        raise PipelineError(
            f"device: {lack}; install a torch that is built for it, or set common.device to cpu"
        )


def pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    """The precision of that name, or for `auto` the fastest that the device computes in; and why.

    `auto` asks torch for the current device: it has to be set before.

    Raises:
        PipelineError: the device does not compute in the named precision.
    """
    kind, cuda = device.type, device.type == "cuda"
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        module = torch.get_device_module(device)
        fast = kind in ("cuda", "xpu") and module.is_bf16_supported(including_emulation=False)
    if name == "auto":
        if fast:
            return "bf16", f"this {kind} computes in it (precision: auto)"
        if cuda and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
            return "fp16", f"this {kind} computes in it, not in bf16 (precision: auto)"
        return "fp32", f"no half precision is known to be faster on this {kind} (precision: auto)"
    able = {
        "fp32": True,
        "tf32": cuda and torch.cuda.is_tf32_supported(),
        "bf16": fast
        or kind == "cpu"
        or (kind == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)),
        "fp16": cuda,
    }
    if not able[name]:
        raise PipelineError(
            f"precision: {name} needs {NEEDS[name]}, the device is {device}; "
            "set common.precision to auto"
        )
    emulated = name == "bf16" and kind == "cpu" and not fast
    how = "; this cpu emulates it" if emulated else ""
    return name, f"the config names it (precision: {name}){how}"


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none, as with AMD's GPUs."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def _why_no_cuda() -> str | None:
    """What keeps torch from an NVIDIA GPU that is there; None where there is none."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
        if not nvml.nvmlDeviceGetCount():
            return None
        gpu = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))
        driver, offers = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError as error:
        absent = error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND
        return None if absent else f"NVIDIA's driver does not answer: {error}"
    built, offered = torch.version.cuda, f"{offers // 1000}.{offers % 1000 // 10}"
    if built is None:
        return f"{gpu}: torch {torch.__version__} is built without CUDA; install one with it"
    if offers // 1000 < int(built.split(".")[0]):  # of one major version any driver will do
        return (
            f"{gpu}: its driver {driver} offers CUDA {offered}, torch is built for {built}; "
            "update the driver"
        )
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"{gpu}: CUDA_VISIBLE_DEVICES={visible} hides it"
    return f"{gpu}: torch, built for CUDA {built}, can't start it (driver {driver}, CUDA {offered})"


def _lacks_kernels(device: torch.device) -> str | None:
    """Why torch's CUDA kernels don't run on a device, or None where they do."""
    built = torch.cuda.get_arch_list() if device.type == "cuda" and torch.version.cuda else []
    if not built:
        return None
    with warnings.catch_warnings(action="ignore"):  # torch says the same in twenty lines
        capability = torch.cuda.get_device_capability(device)
    if any(_runs(kernels, capability) for kernels in built):
        return None
    return (
        f"{device} ({torch.cuda.get_device_name(device)}) has compute capability "
        f"{capability[0]}.{capability[1]}, and torch {torch.__version__} kernels for "
        f"{', '.join(built)}"
    )


def _runs(kernels: str, capability: tuple[int, int]) -> bool:
    """Whether kernels of an architecture such as sm_86 or compute_90a run on a device.

    Machine code (sm) runs on its own major version from its minor version on, PTX (compute) on
    whatever came later; with the suffix `a` on that very capability, with `f` on its family.
    """
    if not (named := re.fullmatch(r"(sm|compute)_(\d+)([af]?)", kernels)):
        return False
    kind, suffix, built = named[1], named[3], divmod(int(named[2]), 10)
    if suffix == "a":
        return capability == built
    later = capability >= built
    return later and (capability[0] == built[0] or (kind == "compute" and not suffix))
