"""Devices and precisions are picked, explained, and refused when absent."""

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.utils.deterministic

from pipeline.errors import PipelineError
from pipeline.training import hardware, modules
from tests.conftest import stage_settings


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_the_choice_is_printed_with_its_reason(capsys):
    chosen = hardware.configure(stage_settings())
    assert chosen.device == torch.device("cpu")
    assert "Using device: cpu because the config names it" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_auto_falls_back_to_the_cpu_and_says_what_is_missing(capsys):
    chosen = hardware.configure(stage_settings(device="auto"))
    assert chosen.device.type == "cpu"
    assert "no cuda" in chosen.device_reason


@pytest.mark.parametrize("device", ["cuda:9", "cuda:31"])
def test_an_absent_device_is_an_error_that_says_what_is_there(device):
    with pytest.raises(
        PipelineError, match=rf"device: {device} is not on this machine .*cpu.*auto"
    ):
        hardware.configure(stage_settings(device=device))


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_number_beyond_the_devices_that_are_there_is_refused(kind, monkeypatch):
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "is_available", lambda: True)
    monkeypatch.setattr(module, "device_count", lambda: 2)
    with pytest.raises(PipelineError, match=f"device: {kind}:2 is not on this machine"):
        hardware.configure(stage_settings(device=f"{kind}:2"))


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(PipelineError, match="fp16 needs cuda"):
        hardware.configure(stage_settings(precision="fp16"))


def test_auto_precision_is_bf16_only_where_the_cpu_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert hardware.configure(stage_settings(precision="auto")).precision == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert hardware.configure(stage_settings(precision="auto")).precision == "fp32"


def test_the_seed_decides_every_generator():
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        hardware.configure(stage_settings(seed=11))
        draws.append((random.random(), np.random.rand(), torch.rand(3).tolist()))
    assert draws[0] == draws[1]


STEPS = """
import resource
from pipeline.training import hardware, modules
from tests.conftest import stage_settings
import torch
if {configured}:
    hardware.configure(stage_settings())
net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3))
images = torch.rand(256, 1, 28, 28)
for step in range(12):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(images).sum().backward()
    net.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is set")
def test_a_step_takes_the_memory_that_the_step_before_freed():
    def faults(configured: bool) -> int:
        command = [sys.executable, "-c", STEPS.format(configured=configured)]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        return int(done.stdout.splitlines()[-1])

    assert faults(configured=True) < faults(configured=False) / 10


def test_fresh_tensors_are_not_filled():
    hardware.configure(stage_settings(deterministic=True))
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_the_card_states_what_the_result_depends_on():
    card = hardware.card(hardware.configure(stage_settings()))
    assert card["threads"] == 1
    assert card["libraries"]["torch"] == torch.__version__.split("+")[0]
    assert card["ram"] > 2**28
    assert card["precision"] == "fp32"
    assert card["cuda"] is None


def test_numerics_tell_apart_what_may_change_the_bits_and_nothing_else():
    one = hardware.card(hardware.configure(stage_settings()))
    again = hardware.card(hardware.configure(stage_settings(seed=5)))
    threads = hardware.card(hardware.configure(stage_settings(threads=2)))
    bf16 = hardware.card(hardware.configure(stage_settings(precision="bf16")))
    assert one["numerics"] == again["numerics"]
    assert len({one["numerics"], threads["numerics"], bf16["numerics"]}) == 3


def test_an_operation_without_a_deterministic_version_is_named():
    chosen = hardware.configure(stage_settings())
    error = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but …")
    explained = hardware.explain_failure(error, 8, chosen)
    assert "cumsum_cuda_kernel has no deterministic version" in str(explained)
    assert hardware.explain_failure(RuntimeError("shapes differ"), 8, chosen) is None


@pytest.mark.gpu
def test_auto_takes_the_gpu():
    chosen = hardware.configure(stage_settings(device="auto", precision="auto"))
    card = hardware.card(chosen)
    assert chosen.device.type == "cuda"
    assert card["driver"]
    assert card["cuda"] == torch.version.cuda


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_matrix_products_are_of_the_precision_and_outputs_are_not(precision, kind):
    chosen = replace(hardware.configure(stage_settings()), precision=precision)
    seen = []

    def model(x):
        seen.append(x @ x)
        return {"logits": seen[0], "ids": x.long()}

    found = modules.in_precision(model, chosen)(torch.ones(2, 2))
    assert seen[0].dtype == (kind or torch.float32)
    assert found["logits"].dtype == torch.float32
    assert found["ids"].dtype == torch.int64


class Module:
    """What torch has for a kind of device."""

    def __init__(self) -> None:
        self.current = None

    def device_count(self) -> int:
        return 2

    def set_device(self, device: torch.device) -> None:
        self.current = device


@pytest.mark.parametrize(("rank", "index"), [("0", 0), ("1", 1), ("3", 1)])
def test_each_of_several_processes_has_a_device_that_it_sees(rank, index, monkeypatch):
    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda _device: module)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", rank)
    device = hardware._joined(torch.device("cuda"))
    assert device == module.current == torch.device("cuda", index)


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_several_processes_share_no_device(name):
    with pytest.raises(PipelineError, match=f"device: {name} is one device, and several"):
        hardware._joined(torch.device(name))
