"""Every example once, in an order that (seed, epoch) alone decides."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.batches import Batches, Ragged, mix

CPU = torch.device("cpu")


def batches(n: int, size: int, **changes) -> Batches:
    return Batches(n, CPU, lambda i: ({"x": i}, i % 3), size, **changes)


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
    def broken(index):
        raise OSError("the disk is gone")

    data = Batches(9, CPU, broken, 3, ahead=True)
    with pytest.raises(OSError, match="the disk is gone"):
        next(data.epoch(0))


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4))
def test_the_shards_of_a_batch_are_the_batch(n, batch, processes):
    whole = batches(n, batch * processes).order(0)
    parts = [batches(n, batch, shard=(rank, processes)).epoch(0) for rank in range(processes)]
    for together, *split in zip(whole, *parts, strict=True):
        found = torch.cat([one.inputs["x"] for one in split])
        assert found.sort().values.tolist() == together.tolist()


def test_targets_are_what_the_task_makes_of_them_and_change_with_their_inputs():
    def collate(index):
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
