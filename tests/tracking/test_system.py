"""What is read of GPUs, with NVIDIA's interface in place of a driver."""

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.tracking.journal import Log, read
from pipeline.tracking.system import Sampler


class NVMLError(Exception):
    """What the real module raises for whatever a driver or GPU does not know."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Two GPUs; the second does not report its power."""

    def power(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError("Not Supported")
        return 150_000  # milliwatts

    module = ModuleType("pynvml")
    vars(module).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=(gpu + 1) * 2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=40 + gpu, memory=1),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 600_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def sample(folder: Path) -> dict[str, float]:
    """The first that a sampler writes; of GPUs only."""
    path = folder / "observed.jsonl"
    end = time.monotonic() + 5
    Sampler(Log(path), 1, 0.01, [], lambda: not path.stat().st_size)
    while not list(read(path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    ((record, _), *_) = read(path)
    return {key: value for key, value in record["values"].items() if "gpu" in key}


def test_memory_use_and_power_of_each_gpu_are_sampled(nvml: ModuleType, tmp_path: Path) -> None:
    assert sample(tmp_path) == {
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_memory_usage_megabytes": 2000.0,
        "system/gpu_0_utilization_percentage": 40.0,
        "system/gpu_0_power_usage_watts": 150.0,
        "system/gpu_0_power_usage_percentage": 25.0,
        "system/gpu_1_memory_usage_percentage": 50.0,
        "system/gpu_1_memory_usage_megabytes": 4000.0,
        "system/gpu_1_utilization_percentage": 41.0,
    }


def test_without_a_driver_there_are_none(nvml: ModuleType, tmp_path: Path) -> None:
    def missing() -> None:
        raise NVMLError("Driver Not Loaded")

    vars(nvml)["nvmlInit"] = missing
    assert sample(tmp_path) == {}


def test_a_second_sampler_goes_on_where_the_first_was_ended(tmp_path: Path) -> None:
    path = tmp_path / "observed.jsonl"
    end = time.monotonic() + 5
    wanted = iter([True, True, False])
    Sampler(Log(path), 1, 0.01, [*range(3998), 5000], lambda: next(wanted))
    while not list(read(path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    ((record, _),) = read(path)  # of the second only every second is kept from 4,000 on
    assert record["step"] == 5001
