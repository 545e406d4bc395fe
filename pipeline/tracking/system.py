"""System metrics under MLflow's own names, sampled beside the stage and journaled like its own.

MLflow's monitor samples every 10 s inside the training process and sends through the client, so
short stages get nothing and a dead server stops it. This one runs in the sender.
"""

import time
from contextlib import suppress
from typing import Any

import psutil

from pipeline.tracking.journal import Log, Thinning
from pipeline.tracking.operations import Begin, Metrics

MB = 1e6
TREE = 5  # samples between two looks for new processes, which read of every process there is


class Sampler:
    """Samples for one stage: first after 0.1 s, then every `begin.system` seconds.

    `system/cpu_utilization_percentage` and so on are of the machine, `system/process_…` of the
    stage and its children, `system/gpu_0_…` of the first GPU that the stage computes on. `before`
    are the steps of samples that an earlier process took.
    """

    def __init__(self, log: Log, begin: Begin, before: list[int]) -> None:
        self._log = log
        self._pid = begin.pid
        self._gpus: list[str] = begin.card.get("device_uuids", [])
        self._seconds = begin.system
        self._step = before[-1] + 1 if before else 0
        self._thinning = Thinning()
        for step in before:
            self._thinning.add(step)
        self._network = psutil.net_io_counters()
        self._cpu_seconds: dict[int, float] = {}
        self._tree: list[psutil.Process] = []
        self._time = time.monotonic()
        self._cpus = (0.0, 0.0)
        self._used()
        self._processes()
        self._due = self._time + min(0.1, self._seconds)

    def sample_if_due(self) -> float:
        """Journal a sample if it is time; returns the seconds until the next."""
        if (left := self._due - time.monotonic()) > 0:
            return left
        if self._thinning.keeps(self._step):
            self._log.append(Metrics(values=self.sample(), step=self._step))
        self._step += 1
        self._due = time.monotonic() + self._seconds
        return self._seconds

    def sample(self) -> dict[str, float]:
        """One value of every metric."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage("/")
        values: dict[str, float] = {
            "cpu_utilization_percentage": self._used(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MB,
            "disk_available_megabytes": disk.free / MB,
            **self._processes(),
            **_gpus(self._gpus),
        }
        if (network := psutil.net_io_counters()) and self._network:
            received = network.bytes_recv - self._network.bytes_recv
            sent = network.bytes_sent - self._network.bytes_sent
            values["network_receive_megabytes"] = received / MB
            values["network_transmit_megabytes"] = sent / MB
        return {f"system/{name}": round(float(value), 2) for name, value in values.items()}

    def _used(self) -> float:
        """Per cent of the CPUs' time since the last sample; psutil keeps it for one caller."""
        times = psutil.cpu_times()
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # are users', too
        idle, total = times.idle + getattr(times, "iowait", 0.0), sum(times) - guests
        before, self._cpus = self._cpus, (idle, total)
        passed = total - before[1]
        return 100 * max(0.0, 1 - (idle - before[0]) / passed) if passed > 0 else 0.0

    def _processes(self) -> dict[str, float]:
        memory, used = 0.0, 0.0
        now, seconds = time.monotonic(), dict[int, float]()
        try:
            if not self._tree or self._step % TREE == 0:
                stage, own = psutil.Process(self._pid), psutil.Process().pid
                tree = [stage, *stage.children(recursive=True)]
                self._tree = [process for process in tree if process.pid != own]
        except psutil.NoSuchProcess:
            return {}
        for process in self._tree:
            try:
                with process.oneshot():
                    cpu = process.cpu_times()
                    seconds[process.pid] = cpu.user + cpu.system
                    memory += process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            used += seconds[process.pid] - self._cpu_seconds.get(process.pid, 0.0)
        elapsed = max(now - self._time, 1e-3)
        self._cpu_seconds, self._time = seconds, now
        return {
            "process_cpu_utilization_percentage": max(0.0, 100 * used / elapsed),
            "process_memory_usage_megabytes": memory / MB,
        }


def _gpus(uuids: list[str]) -> dict[str, float]:
    """What these of NVIDIA's GPUs report; nothing without a driver."""
    if not uuids:
        return {}
    import pynvml as nvml

    memory, power = nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlDeviceGetPowerUsage  # milliwatts
    limit, rates = nvml.nvmlDeviceGetEnforcedPowerLimit, nvml.nvmlDeviceGetUtilizationRates
    readings = {
        "memory_usage_percentage": lambda gpu: 100 * memory(gpu).used / memory(gpu).total,
        "memory_usage_megabytes": lambda gpu: memory(gpu).used / MB,
        "utilization_percentage": lambda gpu: rates(gpu).gpu,
        "power_usage_watts": lambda gpu: power(gpu) / 1000,
        "power_usage_percentage": lambda gpu: 100 * power(gpu) / limit(gpu),
    }
    values = {}
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        for number, uuid in enumerate(uuids):
            if (gpu := _handle(uuid)) is None:
                continue
            for name, read in readings.items():
                with suppress(nvml.NVMLError):  # this GPU does not report it
                    values[f"gpu_{number}_{name}"] = read(gpu)
    return values


def _handle(uuid: str) -> Any:
    """NVML's handle of a GPU, or of an instance of one (MIG); None where it can't be told which.

    torch's UUIDs lack the kind that NVML puts in front.
    """
    import pynvml as nvml

    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid[:4] == "MIG-" else f"MIG-{uuid}")
    with suppress(nvml.NVMLError):
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        with suppress(nvml.NVMLError):  # most can't be parted
            if nvml.nvmlDeviceGetMigMode(gpu)[0]:
                return None
        return gpu
    return None
