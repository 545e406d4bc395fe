"""The machine a process runs on, as far as it can be told without torch: importing that takes 1 s.

`pipeline.training.hardware` adds what torch computes on.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("numpy", "torch", "torchvision", "tokenizers", "transformers")
"""Libraries whose version may change a result."""

OF_ACCELERATORS = ("driver", "hip", "xpu", "float32")
NUMERICS = (
    *("device_name", "cuda", "cudnn", "cpu_capability", "threads"),
    *("processes", "precision", "deterministic", "libraries"),
    *OF_ACCELERATORS,
)
"""Facts of the device card that may change a result's bits."""


def card() -> dict[str, Any]:
    """The device card of a stage that computes without torch. Sizes are bytes."""
    processor, memory = _processor(), psutil.virtual_memory().total
    facts: dict[str, Any] = {
        "device": "cpu",
        "device_name": processor,
        "device_count": 1,
        "device_memory": memory,
        "device_reason": "this stage needs no other",
        "cpu": processor,
        "cpu_cores": psutil.cpu_count(logical=False),
        "ram": memory,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    return facts | {"numerics": digest_of_numerics(facts)}


def digest_of_numerics(facts: Mapping[str, Any]) -> str:
    """Digest of all that may change a result's bits.

    Two runs of equal config, data and digest should agree exactly. What only accelerators have is
    left out where it is None, so that a CPU's digest does not change with what is told of them.
    """
    told = {name: facts.get(name) for name in NUMERICS}
    told = {k: v for k, v in told.items() if v is not None or k not in OF_ACCELERATORS}
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def usable_cores() -> list[int]:
    """The CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count(logical=False) or os.cpu_count() or 1))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file() and (model := re.search(r"model name\s*: (.+)", info.read_text())):
        return model[1].strip()
    return platform.processor() or platform.machine()
