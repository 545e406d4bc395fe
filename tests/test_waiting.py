"""No step waits for the device: nothing that it computes is fetched before `log_losses`."""

from collections.abc import Callable
from typing import Any
from unittest import mock

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


def net(model: str, name: str, **facts: Any) -> nets.Net:
    task = find(model=model)
    facts = task.settings.Facts(classes=CLASSES, **facts)
    return nets.build(task, preset(model, name), facts)


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
    return net("cnn", "convnet", **facts), batches(
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

    return net("rnn", "gru", sample_rate=8000), batches(device, inputs, lengths=lengths)


def sentences(device: torch.device) -> tuple[nets.Net, Batches]:
    lengths = torch.arange(64) // 3 + 4  # some batches have padding, some none
    words = ragged(lengths, device)

    def inputs(index: Tensor) -> dict[str, Tensor]:
        ids, sizes = words.pad(index)
        mask = torch.arange(ids.shape[1], device=device) < sizes[:, None]
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    return net("transformer", "minilm"), batches(device, inputs, lengths=lengths)


def loop_of(make: Make, hardware: Hardware) -> Loop:
    nowhere = Checkpoints(None)  # type: ignore[arg-type]
    made, train = make(hardware.device)
    return Loop(
        made.module, train, train, made.task.model, TRAINING, OPTIMIZER, hardware, 0, nowhere,
        lambda metrics, step: None,
    )  # fmt: skip


MAKES = {"image_classification": images, "speech_classification": clips}
MAKES |= {"text_classification": sentences}
every_model = pytest.mark.parametrize("make", [MAKES[t.name] for t in tasks() if t.name in MAKES])


class NothingIsFetched(TorchDispatchMode):
    """Raises where the host asks for a number, a truth or a count that a tensor holds."""

    asks = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_model
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_step_does_not_wait_for_a_gpu(make, precision):
    """The gathering of its batch included."""
    loop = loop_of(
        make, configure(STAGE.model_copy(update={"device": "cuda", "precision": precision}))
    )
    epoch = loop.train.epoch(0)
    loop.step(epoch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [loop.step(epoch) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()
