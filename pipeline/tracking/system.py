"""System metrics under MLflow's own names, sampled beside the stage and journaled like its own.

MLflow's monitor samples every 10 s inside the training process and sends through the client, so
short stages get nothing and a dead server stops it. This one runs in the sender.
"""

import time
from collections.abc import Callable
from typing import Any

import psutil

from pipeline.tracking.journal import Log, Thinning
from pipeline.tracking.operations import Begin, Metrics

MB = 1e6
TREE = 5  # samples between two looks for new processes, which read of every process there is


class Sampler:
    """Samples for one stage: first after 0.1 s, then every `begin.system` seconds.

    `system/cpu_utilization_percentage` and so on are of the machine, `system/process_…` of the
    stage and its children. `before` are the steps of samples that an earlier process took.
    """

    def __init__(self, log: Log, begin: Begin, before: list[int]) -> None:
        self._log = log
        self._pid = begin.pid
        self._seconds = begin.system
        self._step = before[-1] + 1 if before else 0
        self._thinning = Thinning()
        for step in before:
            self._thinning.add(step)
        self._gpus = _gpus()
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
        }
        if (network := psutil.net_io_counters()) and self._network:
            received = network.bytes_recv - self._network.bytes_recv
            sent = network.bytes_sent - self._network.bytes_sent
            values["network_receive_megabytes"] = received / MB
            values["network_transmit_megabytes"] = sent / MB
        for gpu in self._gpus:
            values |= gpu()
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


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """One function per NVIDIA GPU that samples it; none without a driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []

    def sample(index: int, handle: Any) -> dict[str, float]:
        def memory() -> dict[str, float]:
            found = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return {
                "memory_usage_percentage": 100 * found.used / found.total,
                "memory_usage_megabytes": found.used / MB,
            }

        def utilization() -> dict[str, float]:
            return {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu}

        def power() -> dict[str, float]:
            watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
            limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
            return {"power_usage_watts": watts, "power_usage_percentage": 100 * watts / limit}

        values: dict[str, float] = {}
        for read in (memory, utilization, power):
            try:
                values |= read()
            except pynvml.NVMLError:
                continue  # this GPU does not report it
        return {f"gpu_{index}_{name}": value for name, value in values.items()}

    return [lambda i=i, h=h: sample(i, h) for i, h in enumerate(handles)]  # type: ignore[misc]
