"""Row 13, no goal: what the loop reaches of the device it runs on, CPU and CUDA alike.

Examples per second of `fit()` with its validation and saved states, beside a bare loop; the FLOPs
of its training steps by torch's own counter, a second; and their share of the largest matrix
product's in the same precision, measured here. On a GPU the FLOPs are those of the same model on
the CPU, where no operation is hidden in a library's fused one, and a measurement takes ten seconds
at least: in half a second, states would be saved most of the time.
"""

import math
import statistics
import time
from functools import partial

import pipeline  # noqa: F401  # isort: skip (as in a stage: sets what torch reads when imported)
import torch

from bench.jobs import Job, job
from bench.measure import Row, alternate, for_comparison, main, ratios, scratch, timed
from pipeline.training.hardware import Hardware, card

CASES = {
    "CNN": ("cnn", 216), "GRU": ("rnn", 70), "MiniLM": ("transformer", 60),
    # the bare loop knows no Muon
    "detector": ("detector", 60, "optimizer.name=adamw"), "SmolLM2": ("language_model", 60),
}  # fmt: skip
"""Model, steps of a measurement on a CPU, overrides."""
SECONDS = 10
"""Of a measurement on an accelerator, at least."""
ENDLESS = "training.epochs=1000000"
"""As many epochs as a measurement takes; its steps bound the schedule."""


def measure(quick: bool) -> list[Row]:
    """The default trainings."""
    rows: list[Row] = []
    with scratch() as folder:
        for name, (model, steps, *overrides) in CASES.items():
            one = job(model, folder, ENDLESS, *overrides)
            if not rows:
                top = peak(one.hardware, 0.2 if quick else 2)
            count = 3 if quick else enough(one, steps)
            rows.append(compare(name, one, count, top, 1 if quick else 3))
    return rows


def compare(name: str, one: Job, steps: int, top: float, times: int) -> Row:
    """The row of a training of so many steps, where a matrix product reaches `top` FLOP/s."""
    one.ours(3, tracked=False)  # the first steps of a process are slow
    one.bare(3)
    found = alternate(
        {"ours": partial(one.ours, steps, tracked=False), "bare": partial(one.bare, steps)}, times
    )
    examples = steps * one.settings.training.batch_size
    work = steps * flops(one)
    median = statistics.median(found["ours"])
    ratio = statistics.median(ratios(found["ours"], found["bare"]))
    what = (
        f"{name} on {card(one.hardware)['device_name']}: {examples / median:,.1f} examples/s, "
        f"{ratio:.3f} × the time of a bare loop, {work / median / 1e9:,.0f} GFLOP/s, of a "
        f"matrix product's {top / 1e9:,.0f} in {arithmetic(one.hardware)}"
    )
    return for_comparison(13, what, [100 * work / s / top for s in found["ours"]], "%")


def enough(one: Job, steps: int, seconds: float = SECONDS) -> int:
    """`steps` on a CPU; on an accelerator as many as take so many seconds."""
    if one.hardware.device.type == "cpu":
        return steps
    one.ours(steps, tracked=False)  # kernels are loaded, memory is allocated
    return steps * math.ceil(seconds / min(seconds, one.ours(steps, tracked=False)))


def flops(one: Job) -> float:
    """Floating-point operations of a training step, forward and backward: a mean of 5 batches."""
    from torch.utils._pytree import tree_map_only
    from torch.utils.flop_counter import FlopCounterMode

    model = one.build().module.cpu().train()
    batches = [batch for batch, _ in zip(one.batches[0].epoch(0), range(5), strict=False)]
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            one.loss(model, tree_map_only(torch.Tensor, torch.Tensor.cpu, batch)).backward()
    return counter.get_total_flops() / len(batches)


def arithmetic(hardware: Hardware) -> str:
    """The precision, for people: on CUDA float32 may mean TF32."""
    tf32 = hardware.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "TF32" if tf32 and hardware.precision == "fp32" else hardware.precision


def peak(hardware: Hardware, seconds: float) -> float:
    """FLOP/s of a large square matrix product in the hardware's precision.

    In TF32 where convolutions may compute in it, as they may by torch's default.
    """
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(hardware.precision, torch.float32)
    size = 8192 if hardware.device.type == "cuda" else 2048
    one = torch.randn(size, size, device=hardware.device).to(kind)
    best, until = float("inf"), time.perf_counter() + seconds
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        while time.perf_counter() < until:
            best = min(best, timed(partial(_product, one, hardware)))
    finally:
        products.allow_tf32 = before
    return 2 * size**3 / best


def _product(one: torch.Tensor, hardware: Hardware) -> None:
    one @ one
    synchronize(hardware.device)


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator has still to compute, as is due before a look at the clock."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


if __name__ == "__main__":
    main("device", measure)
