"""What is read of GPUs, with NVIDIA's interface in place of a driver."""

import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.tracking.journal import Log, read
from pipeline.tracking.operations import Metrics
from pipeline.tracking.system import Sampler


class NVMLError(Exception):
    """What the real module raises for whatever a driver or GPU does not know."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Three GPUs; the second does not report its power, the third is parted and has an instance."""
    known = {"GPU-a": 0, "GPU-b": 1, "GPU-c": 2, "MIG-d": 3}

    def handle(uuid: str) -> int:
        if uuid not in known:
            raise NVMLError("Not Found")
        return known[uuid]

    def parted(gpu: int) -> list[int]:
        if gpu != 2:
            raise NVMLError("Not Supported")
        return [1, 1]

    def power(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError("Not Supported")
        return 150_000  # milliwatts

    module = ModuleType("pynvml")
    vars(module).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMigMode=parted,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=(gpu + 1) * 2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=40 + gpu, memory=1),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 600_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def sample(folder: Path, *uuids: str) -> dict[str, float]:
    """The first that a sampler writes for a stage on these GPUs; of GPUs only."""
    (metrics,) = samples(folder / "observed.jsonl", [], 1, *uuids)
    return {key: value for key, value in metrics.values.items() if "gpu" in key}


def samples(path: Path, before: list[int], count: int, *uuids: str) -> list[Metrics]:
    """What a sampler writes that is asked so many times."""
    begin = SimpleNamespace(pid=os.getpid(), system=0.0, card={"device_uuids": [*uuids]})
    sampler = Sampler(Log(path), begin, before)
    for _ in range(count):
        sampler.sample_if_due()
    return [one for one, _ in read(path) if isinstance(one, Metrics)]


def test_memory_use_and_power_of_each_gpu_are_sampled(nvml: ModuleType, tmp_path: Path) -> None:
    assert sample(tmp_path, "a", "b") == {
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
    assert sample(tmp_path, "a") == {}


@pytest.mark.parametrize(
    ("uuids", "megabytes"),
    [
        (["b"], [4000.0]),  # the first that the stage sees, whatever its place in the machine
        (["d"], [8000.0]),
        (["MIG-d"], [8000.0]),
        (["c"], []),  # its numbers would be those of all instances
        ([], []),
    ],
)
def test_only_what_the_stage_computes_on_is_sampled(
    uuids: list[str], megabytes: list[float], nvml: ModuleType, tmp_path: Path
) -> None:
    found = sample(tmp_path, *uuids)
    assert [v for k, v in found.items() if k.endswith("usage_megabytes")] == megabytes
    assert all(key.startswith("system/gpu_0_") for key in found)


def test_a_second_sampler_goes_on_where_the_first_was_ended(tmp_path: Path) -> None:
    # from 4,000 on only every second is kept
    found = samples(tmp_path / "observed.jsonl", list(range(3999)), 4)
    assert [one.step for one in found] == [3999, 4001]


def test_samplers_of_two_stages_don_t_take_the_cpu_s_use_from_each_other(tmp_path: Path) -> None:
    begin = SimpleNamespace(pid=os.getpid(), system=0.0, card={})
    both = [Sampler(Log(tmp_path / name), begin, []) for name in ("one", "other")]
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    for sampler in both:
        sampler.sample_if_due()
    for name in ("one", "other"):
        ((sample, _),) = read(tmp_path / name)
        assert sample.values["system/cpu_utilization_percentage"] > 20
