"""What is picked and told on accelerators, with answers in place of torch's calls and NVIDIA's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import machine
from pipeline.errors import PipelineError
from pipeline.training import devices, hardware
from tests.conftest import stage_settings

WHEEL = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]
TURING, AMPERE, VOLTA = (7, 5), (8, 6), (7, 0)


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that puts cards of these compute capabilities into the machine.

    It returns what is asked of torch from then on, in order.
    """

    def put(*capabilities: tuple[int, int]) -> list[str]:
        asked: list[str] = []
        current = [0]

        def properties(device: Any = None) -> SimpleNamespace:
            number = (device.index or 0) if isinstance(device, torch.device) else device
            number = current[0] if number is None else number
            return SimpleNamespace(
                name=f"card {number}", total_memory=8_000, uuid=f"uuid-{number}",
                major=capabilities[number][0], minor=capabilities[number][1],
            )  # fmt: skip

        def supports_bf16(including_emulation: bool = True) -> bool:
            asked.append("bf16")
            return including_emulation or properties().major >= 8

        def set_device(number: int) -> None:
            asked.append("set_device")
            current[0] = number

        seed = torch.manual_seed
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: len(capabilities),
            "get_device_properties": properties,
            "get_device_capability": lambda one: (properties(one).major, properties(one).minor),
            "get_device_name": lambda one: properties(one).name,
            "get_arch_list": lambda: WHEEL,
            "is_bf16_supported": supports_bf16,
            "set_device": set_device,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch, "manual_seed", lambda one: asked.append("seed") or seed(one))
        reset = torch.accelerator, "reset_peak_memory_stats"
        monkeypatch.setattr(*reset, lambda _device: asked.append("reset"))
        return asked

    return put


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """NVIDIA's interface where there is one card, whose driver offers CUDA 12.4, and torch none."""
    import pynvml

    answers: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _handle: "NVIDIA A10",
        "nvmlSystemGetDriverVersion": lambda: "550.54",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12040,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return pynvml


@pytest.mark.parametrize(
    ("built", "visible", "said"),
    [
        ("13.2", None, "its driver 550.54 offers CUDA 12.4, torch is built for 13.2; update the"),
        (None, None, f"torch {torch.__version__} is built without CUDA"),
        ("12.8", "", "CUDA_VISIBLE_DEVICES= hides it"),
        ("12.8", None, "torch, built for CUDA 12.8, can't start it (driver 550.54, CUDA 12.4)"),
    ],
)
@pytest.mark.usefixtures("nvml")
def test_of_a_gpu_that_torch_can_t_use_it_is_said_what_is_wrong(built, visible, said, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device, reason = devices.pick_device("auto")
    assert device == torch.device("cpu")
    assert reason.startswith(f"no cuda, xpu, mps is usable; NVIDIA A10: {said}")
    with pytest.raises(PipelineError) as refused:
        devices.pick_device("cuda")
    assert f"(there is: cpu; NVIDIA A10: {said}" in str(refused.value)


def test_a_driver_that_does_not_answer_is_told_and_none_is_not(nvml, monkeypatch):
    def fails(number: int) -> Callable[[], None]:
        def fail() -> None:
            raise nvml.NVMLError(number)

        return fail

    monkeypatch.setattr(nvml, "nvmlInit", fails(nvml.NVML_ERROR_DRIVER_NOT_LOADED))
    assert "NVIDIA's driver does not answer: Driver Not Loaded" in devices.pick_device("auto")[1]
    monkeypatch.setattr(nvml, "nvmlInit", fails(nvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert devices.pick_device("auto")[1] == "no cuda, xpu, mps is usable (device: auto)"


@pytest.mark.parametrize(
    ("kernels", "runs_on", "does_not"),
    [
        ("sm_80", [(8, 0), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_86", [(8, 6)], [(8, 0)]),
        ("sm_90a", [(9, 0)], [(9, 1), (10, 0)]),
        ("sm_100f", [(10, 0), (10, 3)], [(12, 0)]),
        ("compute_80", [(8, 0), (12, 0)], [(7, 5)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
    ],
)
def test_kernels_run_where_nvidia_says(kernels, runs_on, does_not, cards, monkeypatch):
    cards(*runs_on, *does_not)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [kernels])
    for number in range(len(runs_on)):
        devices.refuse_without_kernels(torch.device("cuda", number))
    for number in range(len(runs_on), len(runs_on) + len(does_not)):
        with pytest.raises(PipelineError, match=f"torch .* kernels for {kernels}"):
            devices.refuse_without_kernels(torch.device("cuda", number))


def test_auto_passes_over_a_card_without_kernels(cards, monkeypatch):
    cards(VOLTA, TURING)
    device, reason = devices.pick_device("auto")
    assert device == torch.device("cuda", 1)
    assert "it is present; cuda (card 0) has compute capability 7.0, and torch" in reason
    cards(VOLTA)
    device, reason = devices.pick_device("auto")
    assert device == torch.device("cpu")
    assert "no cuda, xpu, mps is usable; cuda (card 0) has" in reason
    with pytest.raises(PipelineError, match=r"^device: cuda \(card 0\) has .* capability 7.0"):
        devices.pick_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm has other names for its kernels
    assert devices.pick_device("auto")[0] == torch.device("cuda")


def test_the_named_device_is_the_current_one_before_anything_is_asked(cards):
    asked = cards(TURING, AMPERE)
    chosen = hardware.configure(stage_settings(device="cuda:1", precision="auto"))
    assert asked[0] == "set_device"
    assert {"bf16", "seed", "reset"} <= set(asked[1:])
    assert chosen.precision == "bf16"  # as card 1 has it, not card 0


@pytest.mark.parametrize(
    ("capability", "auto", "refused"),
    [((6, 1), "fp32", ["tf32", "bf16"]), (TURING, "fp16", ["tf32", "bf16"]), (AMPERE, "bf16", [])],
)
def test_precisions_of_a_card(capability, auto, refused, cards):
    cards(capability)
    device = torch.device("cuda")
    assert devices.pick_precision("auto", device)[0] == auto
    for name in ("fp32", "tf32", "bf16", "fp16"):
        if name in refused:
            with pytest.raises(PipelineError, match=f"precision: {name} needs cuda of compute"):
                devices.pick_precision(name, device)
        else:
            assert devices.pick_precision(name, device)[0] == name


def test_a_cpu_without_bf16_emulates_it_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    name, reason = devices.pick_precision("bf16", torch.device("cpu"))
    assert name == "bf16"
    assert "this cpu emulates it" in reason
    with pytest.raises(PipelineError, match="precision: tf32 needs cuda"):
        devices.pick_precision("tf32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("precision", "products", "others"),
    [("fp32", "ieee", "ieee"), ("tf32", "tf32", "tf32"), ("bf16", "ieee", "tf32")],
)
def test_the_card_tells_what_float32_is(precision, products, others, cards):
    cards(AMPERE)
    card = hardware.card(hardware.configure(stage_settings(device="cuda", precision=precision)))
    expected = {"matmul": products, "convolution": others, "recurrence": others}
    assert card["float32"] == expected
    with torch.backends.cudnn.flags(enabled=False):  # torch refuses settings that part
        torch.get_float32_matmul_precision()


def test_numerics_see_the_accelerator_and_a_cpu_s_stay_as_they_were(cards, monkeypatch):
    cards(AMPERE)
    seen = set()
    for driver in ("550.54", "580.1"):
        monkeypatch.setattr(hardware, "nvidia_driver", lambda driver=driver: driver)
        for precision in ("fp32", "tf32"):
            chosen = hardware.configure(stage_settings(device="cuda", precision=precision))
            seen.add(hardware.card(chosen)["numerics"])
    assert len(seen) == 4
    facts = {"device_name": "a cpu", "threads": 2, "precision": "fp32"}
    told = facts | {"hip": None, "xpu": None, "float32": None, "driver": None}
    assert machine.digest_of_numerics(told) == machine.digest_of_numerics(facts)
    assert machine.digest_of_numerics(facts) == "64761d2ef5694baa"  # written down before


def test_the_card_names_the_gpus_that_the_stage_computes_on(cards, monkeypatch):
    cards(AMPERE, AMPERE, AMPERE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    chosen = hardware.configure(stage_settings(device="cuda:2", precision="fp32"))
    card = hardware.card(chosen)
    assert card["device_uuids"] == ["uuid-2"]
    assert (card["device_name"], card["device_memory"]) == ("card 2", 8_000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    both = replace(chosen, shard=(0, 2))
    assert hardware.card(both)["device_uuids"] == ["uuid-0", "uuid-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    assert hardware.card(chosen)["device_uuids"] == ["MIG-1234"]


def test_a_mac_s_gpu_is_named_and_what_it_can_t_repeat_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M2")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, _minor: major < 14)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 123)
    chosen = hardware.configure(stage_settings(device="mps"))
    card = hardware.card(chosen)
    assert (card["device_name"], card["device_memory"]) == ("Apple M2", 16_000)
    assert card["deterministic"] is False
    assert torch.get_deterministic_debug_mode() == 1  # warns
    assert "Not deterministic: mps can't repeat" in capsys.readouterr().out
    assert hardware.peak_memory(chosen.device) == 123
    with pytest.raises(PipelineError, match=r"precision: bf16 needs .* macOS 14 or a CPU, the"):
        hardware.configure(stage_settings(device="mps", precision="bf16"))


def test_an_xpu_is_named_with_its_driver_and_its_own_peak_of_memory(monkeypatch):
    properties = SimpleNamespace(name="Arc", total_memory=9, driver_version="1.6")
    for name, answer in {
        "is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda _one: None,
        "is_bf16_supported": lambda including_emulation: True,
        "get_device_properties": lambda _one: properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.xpu, name, answer)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda _device: 77)
    chosen = hardware.configure(stage_settings(device="xpu", precision="auto"))
    card = hardware.card(chosen)
    assert (chosen.precision, card["device_name"], card["driver"]) == ("bf16", "Arc", "1.6")
    assert hardware.peak_memory(chosen.device) == 77
