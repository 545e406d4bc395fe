"""Row 13, no goal: what the loop reaches of the device it runs on, CPU and CUDA alike.

Examples per second of `fit()` with its validation and saved states, beside a bare loop; the FLOPs
of its training steps by torch's own counter, a second; and their share of the largest matrix
product's in the same precision, measured here. On a GPU the FLOPs are those of the same model on
the CPU, where no operation is hidden in a library's fused one.
"""

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
    "SmolLM2": ("language_model", 60),
}  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """The default trainings, a few epochs at most."""
    rows: list[Row] = []
    with scratch() as folder:
        for name, (model, steps) in CASES.items():
            one = job(model, folder)
            if not rows:
                top = peak(one.hardware, 0.2 if quick else 2)
            count = 3 if quick else steps
            one.ours(3, tracked=False)  # the first steps of a process are slow
            one.bare(3)
            found = alternate(
                {
                    "ours": partial(one.ours, count, tracked=False),
                    "bare": partial(one.bare, count),
                },
                1 if quick else 3,
            )
            examples = count * one.settings.training.batch_size
            work = count * flops(one)
            reached = [100 * work / seconds / top for seconds in found["ours"]]
            median = statistics.median(found["ours"])
            ratio = statistics.median(ratios(found["ours"], found["bare"]))
            where = card(one.hardware)["device_name"]
            what = (
                f"{name} on {where}: {examples / median:,.1f} examples/s, "
                f"{ratio:.3f} × the time of a bare loop, {work / median / 1e9:,.0f} GFLOP/s, of a "
                f"matrix product's {top / 1e9:,.0f} in {one.hardware.precision}"
            )
            rows.append(for_comparison(13, what, reached, "%"))
    return rows


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


def peak(hardware: Hardware, seconds: float) -> float:
    """FLOP/s of a large square matrix product in the hardware's precision."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(hardware.precision, torch.float32)
    size = 8192 if hardware.device.type == "cuda" else 2048
    one = torch.randn(size, size, device=hardware.device).to(kind)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, timed(partial(_product, one, hardware)))
    return 2 * size**3 / best


def _product(one: torch.Tensor, hardware: Hardware) -> None:
    one @ one
    if hardware.device.type != "cpu":
        torch.get_device_module(hardware.device).synchronize()


if __name__ == "__main__":
    main("device", measure)
