"""Batches by index from data that is already on the device.

Per-example loading is the usual reason for slow training on small inputs: here a split is a few
tensors, and a batch is one gather. The order of an epoch is a function of (seed, epoch) and of
nothing else, so a run can be resumed at any step and repeats for any number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        inputs: the model's keyword arguments.
        targets: what its loss needs besides: labels int64 [batch], say.
        weight: what its mean loss counts for in an optimizer step over several batches, such as the
            number of examples or of tokens; known to the host.
        whole: the weight of the batches of all processes together.
    """

    inputs: dict[str, Tensor]
    targets: Any
    weight: float
    whole: float


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one flat tensor.

    Attributes:
        values: all sequences end to end, [total], on the device.
        offsets: int64 [n + 1], on the CPU; sequence i is `values[offsets[i]:offsets[i + 1]]`.
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, sequences: Sequence[NDArray[Any]], device: torch.device) -> "Ragged":
        """Arrays of one dimension and type, one after the other."""
        ends = np.cumsum([0, *map(len, sequences)])
        return cls(torch.from_numpy(np.concatenate(sequences)).to(device), torch.from_numpy(ends))

    def pad(self, index: Tensor, value: int = 0) -> tuple[Tensor, Tensor]:
        """Gather sequences `index`, on the CPU, into [batch, longest]; and their lengths [batch].

        Shorter ones are filled up with `value`. The host does not wait for the device: it knows the
        lengths.
        """
        device = self.values.device
        lengths = self.offsets[index + 1] - self.offsets[index]
        position = torch.arange(int(lengths.max()), device=device)
        starts, lengths = moved(self.offsets[index], device), moved(lengths, device)
        inside = position < lengths[:, None]
        where = (starts[:, None] + position) * inside
        return self.values[where].masked_fill(~inside, value), lengths


def moved(values: Tensor, device: torch.device) -> Tensor:
    """What is on the CPU, on a device: from pinned memory, so that the host does not wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batches:
    """The batches of one split.

    Attributes:
        examples: number of examples in the split.
        device: where the batches are made.
        collate: maps an index, int64 [batch], on the CPU and the same on the device, to the model's
            inputs and the targets.
        batch_size: examples per batch and process.
        shuffle: whether the order changes with every epoch; an incomplete last batch is then left
            out, so that every optimizer step averages over the same number of examples.
        seed: decides the order and the augmentation.
        lengths: int64 [n] on the CPU; given, batches hold sequences of similar length.
        weights: float [n] on the CPU, what each example counts for; one each where not given.
        augment: changes a training batch; draws from the given generator only.
        shard: (rank, processes) for data-parallel training.
        ahead: whether a thread gathers the next batch meanwhile, as pays for data on the disk; on
            CUDA on a stream of its own, so that copies don't wait for the kernels of a step.
    """

    examples: int
    device: torch.device
    collate: Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Any]]
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    lengths: Tensor | None = None
    weights: Tensor | None = None
    augment: Callable[[Batch, torch.Generator], Batch] | None = None
    shard: tuple[int, int] = (0, 1)
    ahead: bool = False

    def __len__(self) -> int:
        """Batches per epoch and process."""
        size = self.batch_size * self.shard[1]
        if self.shuffle and self.examples >= size:
            return self.examples // size
        return -(-self.examples // size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch `start` on, on the device."""
        batches = self._gather(epoch, start)
        if not self.ahead:
            yield from batches
            return
        aside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if aside:
            aside.wait_stream(torch.cuda.current_stream(self.device))

        def gather() -> tuple[Batch, torch.cuda.Event | None] | None:
            with torch.cuda.stream(aside) if aside else nullcontext():
                batch = next(batches, None)
                return batch and (batch, aside.record_event() if aside else None)

        with ThreadPoolExecutor(1) as worker:
            coming = worker.submit(gather)
            while made := coming.result():
                coming = worker.submit(gather)
                batch, copied = made
                if copied:
                    now = torch.cuda.current_stream(self.device)
                    now.wait_event(copied)
                    for one in tree_leaves(batch):
                        if isinstance(one, Tensor) and one.is_cuda:
                            one.record_stream(now)  # or its memory is taken for a later batch
                yield batch

    def order(self, epoch: int) -> list[Tensor]:
        """The example indices of each batch of all processes together: int64, on the CPU.

        Without `shuffle` and `lengths` this is the split's own order. With `lengths`, a shuffled
        order is sorted by length inside windows of 50 batches, which leaves almost no padding and
        still mixes the examples (the habit of transformers' `group_by_length`).
        """
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        size = self.batch_size * self.shard[1]
        if self.shuffle:
            index = torch.randperm(self.examples, generator=generator)
        else:
            index = torch.arange(self.examples)
        if self.lengths is not None:
            window = 50 * size if self.shuffle else self.examples
            index = torch.cat(
                [part[self.lengths[part].argsort(stable=True)] for part in index.split(window)]
            )
        batches = list(index.split(size))[: len(self)]
        if self.shuffle and self.lengths is not None:
            # Otherwise a window would be trained on from its shortest to its longest example.
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        return batches

    def _gather(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, processes = self.shard
        order = self.order(epoch)
        places = indices = [whole[rank::processes] for whole in order]
        if self.device.type != "cpu":  # at once: the batches then need no copy of their own
            sizes = [len(index) for index in indices]
            places = list(moved(torch.cat(indices), self.device).split(sizes))
        for number in range(start, len(order)):
            index, whole = indices[number], order[number]
            found = self.collate(index, places[number])
            batch = Batch(*found, self._weight(index), self._weight(whole))
            if self.augment is not None:
                numbers = (self.seed, epoch, number, *([rank] if rank else []))
                generator = torch.Generator(self.device).manual_seed(mix(*numbers))
                batch = self.augment(batch, generator)
            yield batch

    def _weight(self, index: Tensor) -> float:
        return float(len(index) if self.weights is None else self.weights[index].sum())


def mix(*numbers: int) -> int:
    """One 63-bit seed from several small numbers (SplitMix64's finalizer over a running sum)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
