"""No step waits for the device: nothing that it computes is fetched before `log_losses`."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.task import find, tasks
from pipeline.training import net as nets
from pipeline.training.batches import Batches, Ragged
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import Hardware, configure
from pipeline.training.loop import Loop
from pipeline.training.modules import sparse_gradients
from tests.models.presets import fused_attention, preset
from tests.test_training import OPTIMIZER, STAGE, TRAINING

Make = Callable[[torch.device], tuple[nets.Net, Batches]]
CLASSES = [str(number) for number in range(4)]
DETECTION = find(model="detector").settings.DetectorTraining(
    **TRAINING.model_dump(exclude={"label_smoothing", "monitor"}), monitor="map", box_weight=3.0
)


def net(model: str, settings: Any, **facts: Any) -> nets.Net:
    task = find(model=model)
    return nets.build(task, settings, task.settings.Facts(**facts))


def batches(device: torch.device, inputs: Callable[[Tensor], dict[str, Tensor]], **more: Any):
    labels = torch.arange(64, device=device) % len(CLASSES)

    def collate(index: Tensor, place: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return inputs(index), labels[place]

    return Batches(64, device, collate, 8, shuffle=True, **more)


def images(device: torch.device) -> tuple[nets.Net, Batches]:
    from pipeline.tasks.image_classification.augment import affine
    from pipeline.tasks.image_classification.settings import Augment

    pixels = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, device=device)
    change = affine(Augment(degrees=10, translate=0.1, scale=0.1, flip=True))

    def inputs(index: Tensor) -> dict[str, Tensor]:
        return {"images": pixels[index.to(device, non_blocking=True)]}

    facts = {"channels": 1, "height": 28, "width": 28, "mean": [0.1], "std": [0.3]}
    return net("cnn", preset("cnn", "convnet"), classes=CLASSES, **facts), batches(
        device, inputs, augment=lambda one, draw: one._replace(inputs=change(one.inputs, draw))
    )


def ragged(lengths: Tensor, device: torch.device) -> Ragged:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Ragged(torch.randint(1, 999, (int(offsets[-1]),), device=device), offsets)


def clips(device: torch.device) -> tuple[nets.Net, Batches]:
    lengths = torch.arange(2000, 2064)
    sounds = ragged(lengths, device)

    def inputs(index: Tensor) -> dict[str, Tensor]:
        samples, sizes = sounds.pad(index)
        return {"waveforms": samples.float().div_(32768), "lengths": sizes}

    made = net("rnn", preset("rnn", "gru"), classes=CLASSES, sample_rate=8000)
    return made, batches(device, inputs, lengths=lengths)


def sentences(device: torch.device) -> tuple[nets.Net, Batches]:
    lengths = torch.arange(64) // 3 + 4  # some batches have padding, some none
    words = ragged(lengths, device)

    def inputs(index: Tensor) -> dict[str, Tensor]:
        ids, sizes = words.pad(index)
        mask = torch.arange(ids.shape[1], device=device) < sizes[:, None]
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    made = net("transformer", preset("transformer", "minilm"), classes=CLASSES)
    return made, batches(device, inputs, lengths=lengths)


def scenes(device: torch.device) -> tuple[nets.Net, Batches]:
    from pipeline.tasks.object_detection.augment import changes
    from pipeline.tasks.object_detection.settings import Augment

    pixels = torch.randint(0, 256, (64, 1, 64, 64), dtype=torch.uint8, device=device)
    sizes = torch.full((64, 2), 64, device=device)
    boxes = torch.tensor([[4.0, 4, 24, 24], [20, 30, 60, 50], [0, 0, 0, 0]], device=device)
    labels = torch.tensor([1, -2, -1], device=device)  # one counts, one is ignored, one is none

    def collate(index: Tensor, place: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        count = len(index)
        given = {"images": pixels[place], "sizes": sizes[place]}
        return given, (boxes.expand(count, -1, -1), labels.expand(count, -1))

    change = changes(Augment(translate=0.1, scale=0.1, flip=True, contrast=0.4, invert=True))
    facts = {"classes": CLASSES, "channels": 1, "sizes": [8.0, 16.0], "whole": True}
    made = net("detector", preset("detector", "ttfnet", size=64), **facts)
    return made, Batches(64, device, collate, 8, shuffle=True, augment=change)


def documents(device: torch.device) -> tuple[nets.Net, Batches]:
    from pipeline.tasks.language_modeling.data import Rows
    from pipeline.texts import bpe

    ids = [np.arange(5 + row % 12, dtype=np.int32) for row in range(64)]
    rows = Rows.of([[(one, np.append(one[1:], -1).astype(np.int32))] for one in ids], [9] * 64)
    there = rows._replace(
        tokens=Ragged(rows.tokens.values.to(device), rows.tokens.offsets),
        targets=rows.targets.to(device),
    )
    small = {"layers": 2, "width": 64, "block": 16, "context": 16}
    small["writing"] = {"tokens": 6, "temperature": 0, "seed": 0}
    made = net(
        "language_model", preset("language_model", "scratch", **small), merges=bpe.learn(["a b"], 9)
    )
    lengths, weights = rows.longest, rows.counted.double()
    return made, Batches(
        64, device, lambda index, _: there.gather(index), 8, True, lengths=lengths, weights=weights
    )


def loop_of(make: Make, hardware: Hardware, **changes: Any) -> Loop:
    nowhere = Checkpoints(None)  # type: ignore[arg-type]
    made, train = make(hardware.device)
    settings, optimizer = TRAINING, OPTIMIZER
    if make is scenes:
        settings, optimizer = DETECTION, OPTIMIZER.model_copy(update={"name": "muon"})
    return Loop(
        made.module, train, train, made.task.model, settings.model_copy(update=changes), optimizer,
        hardware, 0, nowhere, lambda metrics, step: None,
    )  # fmt: skip


MAKES = {"image_classification": images, "speech_classification": clips}
MAKES |= {"text_classification": sentences, "object_detection": scenes}
MAKES |= {"language_modeling": documents}
every_model = pytest.mark.parametrize("make", [MAKES[t.name] for t in tasks() if t.name in MAKES])


class NothingIsFetched(TorchDispatchMode):
    """Raises where the host asks for a number, a truth or a count that a tensor holds."""

    asks = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.exchanged: list[str] = []
        """What was sent to other processes or received, by the name of the operation."""

    def __enter__(self):  # type: ignore[no-untyped-def]
        # On a CPU these copy nothing, so no operation tells of them.
        names = ("cpu", "tolist", "numpy")
        self.patches = [mock.patch.object(Tensor, name, _waits) for name in names]
        for patch in self.patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error):  # type: ignore[no-untyped-def]
        for patch in self.patches:
            patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            self.exchanged.append(name)
        if name in self.asks or (name == "index" and any(_is_mask(i) for i in args[1])):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _waits(*_: object) -> None:
    raise AssertionError("waits for the device")


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@every_model
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_asks_for_no_value(make, precision, monkeypatch):
    """On a CPU, with what a GPU has: fused attention, dense gradients, fp16's scaler."""
    fused_attention(monkeypatch)
    loop = loop_of(make, configure(STAGE.model_copy(update={"precision": "bf16"})))
    sparse_gradients(loop.model, False)
    if precision == "fp16":
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = [p.detach().clone() for p in loop.model.parameters()]
    batches = list(loop.train.epoch(0))[:4]
    with NothingIsFetched():
        losses = [loop.step(iter([batch])) for batch in batches]
    assert torch.isfinite(torch.stack(losses)).all()
    moved = zip(before, loop.model.parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in moved) > 0.9 * len(before)


def test_a_step_of_several_processes_exchanges_its_gradients_once(monkeypatch):
    """And what its batch norms counted; in a group of one, whose operations are the same."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        loop = loop_of(images, replace(configure(STAGE), shard=(0, 2)), accumulate=3)
        batches = list(loop.train.epoch(0))
        loop.step(iter(batches))  # parts the gradients in the order in which they came
        with NothingIsFetched() as seen:
            loop.step(iter(batches[3:]))
    finally:
        torch.distributed.destroy_process_group()
    assert seen.exchanged.count("allreduce_") == 1
    assert set(seen.exchanged) == {"allreduce_", "broadcast_"}


def test_the_check_sees_what_waits():
    with NothingIsFetched():
        values = torch.arange(3.0)
        for ask in (
            lambda: bool((values > 0).all()), lambda: values.sum().item(),
            lambda: values[values > 1], lambda: values.nonzero(), lambda: values.cpu(),
            lambda: values.tolist(),
        ):  # fmt: skip
            with pytest.raises(AssertionError, match="waits"):
                ask()


@every_model
def test_a_batch_is_gathered_without_a_look_at_what_is_on_the_device(make, monkeypatch):
    """On the meta device nothing can be fetched, and no value of the host goes there unnoticed."""
    _, train = make(torch.device("meta"))
    tensor, generator = torch.tensor, torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch, "Generator", lambda *_: generator)  # meta has none
    next(train.epoch(0))  # constants are put on the device once

    def on_the_host(*given: Any, device: Any = None, **more: Any) -> Tensor:
        assert device is None, "torch.tensor copies from pageable memory, and waits"
        return tensor(*given, **more)

    monkeypatch.setattr(torch, "tensor", on_the_host)
    found = list(itertools.islice(train.epoch(0), 4))
    assert {one.device.type for batch in found for one in batch.inputs.values()} == {"meta"}


GPU_CASES = [(task.about.model, *more) for task in tasks() for more in ((), ("precision=fp16",))]
GPU_CASES += [("cnn", "in_memory_limit=1"), ("cnn", "training.compile=reduce-overhead")]
GPU_CASES += [(model, "training.batch_size=256") for model in ("cnn", "rnn", "transformer")]


@pytest.fixture(scope="module", params=GPU_CASES, ids=" ".join)
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A training by the config and on real data, whose first ten steps were made already."""
    from bench.gpu import Place

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    place, (model, *overrides) = Place(tmp_path_factory.mktemp("bench")), request.param
    if not place.data(model).exists():
        pytest.skip(f"{place.data(model).name} is not prepared: dvc repro prepare")
    made = place.job(model, "device=cuda", *overrides).loop()
    made.wrapped.train()
    ten(made)
    return made


def ten(loop: Loop) -> list[Tensor]:
    """The losses of the same ten steps each time, their batches gathered anew."""
    batches = loop.train.epoch(0)
    return [loop.step(batches) for _ in range(min(10, len(loop.train)))]


@pytest.mark.gpu
def test_no_step_waits_for_a_gpu(loop):
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = ten(loop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()


@pytest.mark.gpu
def test_no_step_copies_from_pageable_memory(loop):
    """Which waits, and which the mode above lets pass where it is asked not to wait."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ten(loop)
        torch.cuda.synchronize()
    names = {event.name for event in profile.events()}
    assert names
    assert not {name for name in names if "Pageable" in name}


@pytest.mark.gpu
def test_steps_that_were_made_before_allocate_nothing(loop):
    """Neither memory of the device nor plans of Fourier transforms; both wait for it."""

    def held() -> tuple[int, int]:
        plans = torch.backends.cuda.cufft_plan_cache[torch.cuda.current_device()].size
        return torch.cuda.memory_stats()["num_device_alloc"], plans

    ten(loop)
    before = held()
    ten(loop)
    assert held() == before
