"""Every example once, in an order that (seed, epoch) alone decides."""

import time
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.batches import Batches, Ragged, mix, moved

CPU = torch.device("cpu")


def batches(n: int, size: int, **changes) -> Batches:
    return Batches(n, CPU, lambda i, _: ({"x": i}, i % 3), size, **changes)


def jitter(batch, generator):
    x = batch.inputs["x"]
    return batch._replace(inputs={"x": x + torch.rand(len(x), generator=generator)})


sizes = st.tuples(st.integers(1, 200), st.integers(1, 64))


@given(sizes, st.booleans(), st.integers(0, 5))
def test_evaluation_visits_every_example_once(size, by_length, epoch):
    n, batch = size
    lengths = torch.arange(n).flip(0) if by_length else None
    order = batches(n, batch, lengths=lengths).order(epoch)
    assert torch.cat(order).sort().values.tolist() == list(range(n))
    assert len(order) == len(batches(n, batch))


@given(sizes, st.integers(0, 5), st.booleans())
def test_training_batches_are_full_and_without_repeats(size, epoch, by_length):
    n, batch = size
    lengths = torch.randint(1, 50, (n,)) if by_length else None
    data = batches(n, batch, shuffle=True, lengths=lengths)
    order = data.order(epoch)
    assert len(order) == len(data) >= 1
    assert {len(part) for part in order} == {min(n, batch)}
    assert len(torch.cat(order).unique()) == len(torch.cat(order))


@given(sizes, st.integers(0, 2**31 - 1), st.integers(0, 99))
def test_the_order_is_a_function_of_seed_and_epoch(size, seed, epoch):
    n, batch = size
    torch.manual_seed(epoch)
    one = torch.cat(batches(n, batch, shuffle=True, seed=seed).order(epoch))
    two = torch.cat(batches(n, batch, shuffle=True, seed=seed).order(epoch))
    assert torch.equal(one, two)


def test_epochs_and_seeds_differ():
    orders = {
        tuple(torch.cat(batches(50, 5, shuffle=True, seed=seed).order(epoch)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@given(sizes, st.integers(0, 20))
def test_starting_in_the_middle_gives_the_rest_of_the_epoch(size, start):
    n, batch = size
    data = batches(n, batch, shuffle=True, augment=jitter)
    whole = [b.inputs["x"].tolist() for b in data.epoch(2)]
    rest = [b.inputs["x"].tolist() for b in data.epoch(2, start)]
    assert whole[start:] == rest


@given(sizes, st.integers(0, 3), st.integers(0, 9))
def test_gathering_ahead_changes_nothing(size, epoch, start):
    n, batch = size
    now, ahead = (
        [(b.inputs["x"].tolist(), b.targets.tolist()) for b in data.epoch(epoch, start)]
        for data in (
            batches(n, batch, shuffle=True, augment=jitter, ahead=value) for value in (False, True)
        )
    )
    assert now == ahead


def test_an_error_while_gathering_ahead_reaches_the_loop():
    def broken(*_):
        raise OSError("the disk is gone")

    data = Batches(9, CPU, broken, 3, ahead=True)
    with pytest.raises(OSError, match="the disk is gone"):
        next(data.epoch(0))


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_the_order_moves_to_the_device_once_an_epoch(shard, monkeypatch):
    found, moves, to = [], [], Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda *how, **more: moves.append(how) or to(*how, **more))
    data = Batches(
        24, torch.device("meta"), lambda *index: found.append(index) or ({}, 0), 4, shard=shard
    )
    assert len(list(data.epoch(0, 1))) == len(data) - 1
    assert len(moves) == 1
    assert [index.tolist() for index, _ in found] == [
        whole[shard[0] :: shard[1]].tolist() for whole in data.order(0)[1:]
    ]
    assert {(len(index), place.device.type) for index, place in found} == {(4, "meta")}


class Streams:
    """Notes what is asked of CUDA's streams, where there is no CUDA: in order."""

    def __init__(self, patch):
        self.said = []
        self.aside, self.now = (self.stream(name) for name in ("aside", "now"))
        patch.setattr(torch.cuda, "Stream", lambda device: self.aside)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.now)
        patch.setattr(torch.cuda, "stream", self.entered)
        patch.setattr(Tensor, "is_cuda", True, raising=False)
        patch.setattr(Tensor, "record_stream", lambda one, on: self.said.append((one.item(), on)))
        patch.setattr(Tensor, "pin_memory", lambda one: self.said.append("pinned") or one)
        patch.setattr(Tensor, "to", lambda *how, **more: self.moved(*how, **more))

    def stream(self, name):
        one = mock.Mock(spec=["wait_stream", "wait_event", "record_event"])
        one.wait_stream.side_effect = lambda other: self.said.append(f"{name} waits")
        one.wait_event.side_effect = lambda event: self.said.append(f"{name} waits for a copy")
        one.record_event.side_effect = lambda: self.said.append("copied") or mock.Mock()
        return one

    @contextmanager
    def entered(self, stream):
        assert stream is self.aside
        self.said.append("in")
        yield
        self.said.append("out")

    def moved(self, one, device, non_blocking):
        assert (device.type, non_blocking) == ("cuda", True)
        self.said.append("moved")
        return one


def test_on_cuda_batches_are_copied_from_pinned_memory_beside_the_steps(monkeypatch):
    streams = Streams(monkeypatch)
    data = Batches(2, torch.device("cuda"), lambda i, place: ({"x": i}, [place]), 1, ahead=True)
    batches = data.epoch(0)
    next(batches)
    while streams.said.count("out") < 2:  # the thread gathers the second one meanwhile
        time.sleep(0.001)
    gathered = ["in", "copied", "out"]
    first = ["in", "pinned", "moved", "copied", "out"]
    handed = ["now waits for a copy", (0, streams.now), (0, streams.now)]
    said = streams.said.copy()
    assert said[:6] == ["aside waits", *first]
    assert [one for one in said[6:] if one in handed] == handed
    assert [one for one in said[6:] if one in gathered] == gathered
    assert len(list(batches)) == 1


def test_on_a_cpu_nothing_is_pinned_and_there_is_no_stream(monkeypatch):
    streams = Streams(monkeypatch)
    monkeypatch.setattr(Tensor, "to", lambda one, *_, **__: one)
    data = Batches(2, CPU, lambda i, place: ({"x": i}, place), 1, ahead=True)
    assert len(list(data.epoch(0))) == 2
    Ragged(torch.arange(3), torch.tensor([0, 1, 3])).pad(torch.tensor([1, 0]))
    assert streams.said == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gathering_ahead_on_a_stream_gives_the_same_batches():
    device = torch.device("cuda")
    values = torch.randn(512, 3, 64, 64)

    def collate(index, place):
        return {"x": moved(values[index], device)}, place

    data = Batches(512, device, collate, 16, shuffle=True)
    busy = torch.randn(2000, 2000, device=device)
    for one, other in zip(data.epoch(0), replace(data, ahead=True).epoch(0), strict=True):
        busy = (busy @ busy).clamp(-1, 1)  # its own batch is long gathered when it is looked at
        assert torch.equal(one.inputs["x"], other.inputs["x"])
        assert torch.equal(one.targets, other.targets)


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4))
def test_the_shards_of_a_batch_are_the_batch(n, batch, processes):
    whole = batches(n, batch * processes).order(0)
    parts = [batches(n, batch, shard=(rank, processes)).epoch(0) for rank in range(processes)]
    for together, *split in zip(whole, *parts, strict=True):
        found = torch.cat([one.inputs["x"] for one in split])
        assert found.sort().values.tolist() == together.tolist()


def test_targets_are_what_the_task_makes_of_them_and_change_with_their_inputs():
    def collate(index, _):
        return {"x": index}, [{"boxes": [[i, i + 1]] * (i % 3)} for i in index.tolist()]

    def mirror(batch, generator):
        turned = [{"boxes": [[-b, -a] for a, b in one["boxes"]]} for one in batch.targets]
        return batch._replace(inputs={"x": -batch.inputs["x"]}, targets=turned)

    plain = Batches(20, CPU, collate, 6, shuffle=True)
    for one, other in zip(
        plain.epoch(1), replace(plain, augment=mirror, ahead=True).epoch(1), strict=True
    ):
        assert torch.equal(one.inputs["x"], -other.inputs["x"])
        for ours, theirs in zip(one.targets, other.targets, strict=True):
            assert ours["boxes"] == [[-b, -a] for a, b in theirs["boxes"]]
        assert (one.weight, one.whole) == (other.weight, other.whole) == (6, 6)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_a_batch_knows_its_weight_and_that_of_all_processes_together(n, batch, processes, weighed):
    weights = torch.arange(1.0, n + 1) if weighed else None
    of_each = torch.ones(n) if weights is None else weights
    shards = [(rank, processes) for rank in range(processes)]
    parts = [batches(n, batch, weights=weights, shard=shard) for shard in shards]
    for together in zip(*(part.epoch(0) for part in parts), strict=True):
        for one in together:
            assert one.weight == float(of_each[one.inputs["x"]].sum())
            assert one.whole == sum(other.weight for other in together)
    assert sum(one.weight for part in parts for one in part.epoch(0)) == float(of_each.sum())


def test_batches_by_length_hold_almost_no_padding():
    lengths = torch.randint(5, 60, (2000,), generator=torch.Generator().manual_seed(0))
    order = batches(2000, 32, shuffle=True, lengths=lengths).order(0)
    used = sum(int(lengths[part].sum()) for part in order)
    padded = sum(int(lengths[part].max()) * len(part) for part in order)
    assert padded < 1.05 * used


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=9))
def test_ragged_pads_what_it_holds(rows):
    lengths = torch.tensor([len(row) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ragged = Ragged(torch.tensor([value for row in rows for value in row]), offsets)
    index = torch.arange(len(rows)).flip(0)
    padded, got = ragged.pad(index, -1)
    assert got.tolist() == lengths.flip(0).tolist()
    for row, values in zip(reversed(rows), padded.tolist(), strict=True):
        assert values == row + [-1] * (len(values) - len(row))


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4))
def test_mixed_seeds_fit_torch_and_depend_on_the_order(numbers):
    assert 0 <= mix(*numbers) < 2**63
    if numbers != numbers[::-1]:
        assert mix(*numbers) != mix(*reversed(numbers))
