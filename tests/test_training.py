"""The loop learns, stops, resumes to the very bits, and says what went wrong."""

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from pipeline import interrupts
from pipeline.classification import model as classifier
from pipeline.classification.settings import ClassifierTraining
from pipeline.errors import PipelineError
from pipeline.files import digest
from pipeline.settings import Optimizer, Training
from pipeline.training import modules
from pipeline.training.adamw import schedule
from pipeline.training.batches import Batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import configure
from pipeline.training.loop import Loop
from pipeline.training.modules import score
from tests.conftest import stage_settings

CPU = torch.device("cpu")
TRAINING = ClassifierTraining(
    epochs=3, batch_size=8, accumulate=1, schedule="cosine", warmup=0.1, clip_norm=1.0,
    label_smoothing=0.0, patience=None, monitor="accuracy", log_every=2, save_minutes=60,
    compile=None,
)  # fmt: skip
OPTIMIZER = Optimizer(name="adamw", lr=0.05, weight_decay=0.01, betas=[0.9, 0.99])
STAGE = stage_settings()


@pytest.fixture(scope="module")
def hardware():
    return configure(STAGE)


def net(seed: int = 0, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(seed)

    class Net(nn.Sequential):
        def forward(self, points):
            return super().forward(points)

    return Net(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))


def split(n: int, seed: int, batch_size: int = 8, shuffle: bool = False) -> Batches:
    """Points in the plane; the class says on which side of a line they lie."""
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    labels = (points.sum(1) > 0).long()

    def collate(_, index):
        return {"points": points[index]}, labels[index]

    return Batches(n, CPU, collate, batch_size, shuffle=shuffle, seed=3)


def train(folder: Path, hardware, model=None, log=None, data=None, task=classifier, **changes):
    model = model or net()
    progress = Loop(
        model,
        data or split(64, 1, shuffle=True, batch_size=changes.get("batch_size", 8)),
        split(40, 2),
        task=task,
        settings=TRAINING.model_copy(update=changes),
        optimizer=OPTIMIZER.model_copy(update={"lr": changes.pop("lr", 0.05)}),
        hardware=hardware,
        seed=5,
        checkpoints=Checkpoints(folder),
        log=log or (lambda metrics, step: None),
        max_steps=changes.pop("max_steps", None),
    ).fit()
    return model, progress


def scores(model: nn.Module, batches: Batches, hardware) -> dict[str, float]:
    return score(model, batches, classifier, TRAINING, hardware)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_fit_learns_a_separable_problem(tmp_path, hardware):
    model, progress = train(tmp_path, hardware, epochs=10)
    assert progress.best > 0.95
    assert scores(model, split(200, 9), hardware)["accuracy"] > 0.9


def test_the_same_seed_gives_the_same_bits(tmp_path, hardware):
    first, one = train(tmp_path / "a", hardware)
    second, two = train(tmp_path / "b", hardware)
    assert same(first, second)
    assert one.curve == two.curve


class Logged:
    """Collects what is logged, and asks the loop to end when a step has been logged."""

    def __init__(self, end_at: int | None = None) -> None:
        self.points: dict[tuple[str, int], float] = {}
        self.end_at = end_at

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self.points |= {
            (name, step): value
            for name, value in metrics.items()
            if not name.startswith(("time/", "memory/"))
        }


def interrupt_after(step: int, batches: Batches, accumulate: int, monkeypatch) -> Batches:
    """The same batches, the signal arriving while the given step's last batch is gathered."""
    calls = itertools.count(1)

    def collate(*index):
        if next(calls) == step * accumulate:
            monkeypatch.setattr(interrupts, "_pending", 15)
        return batches.collate(*index)

    return dataclasses.replace(batches, collate=collate)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(step=st.integers(1, 23), accumulate=st.integers(1, 3), log_every=st.integers(1, 7))
def test_a_training_stopped_at_any_step_resumes_to_the_same_bits(
    tmp_path_factory, hardware, step, accumulate, log_every
):
    folder = tmp_path_factory.mktemp("resume")
    changes = {"accumulate": accumulate, "log_every": log_every}
    steps = 3 * (8 // accumulate)
    step = min(step, steps)
    whole, log = Logged(), Logged()
    uninterrupted, _ = train(folder / "whole", hardware, log=whole, **changes)
    data = split(64, 1, shuffle=True)
    stopped = pytest.raises(interrupts.Interrupted, match=f"step {step} of {steps}")
    with pytest.MonkeyPatch.context() as patch, stopped:
        stopping = interrupt_after(step, data, accumulate, patch)
        train(folder / "part", hardware, log=log, data=stopping, **changes)
    resumed, progress = train(folder / "part", hardware, net(seed=99), log=log, **changes)
    assert same(uninterrupted, resumed)
    assert log.points == whole.points
    assert len(progress.curve) == 3


@pytest.mark.parametrize(("seconds", "steps"), [(3600, [8, 56, 96]), (3.5, [8, 41, 73, 96])])
def test_dear_saves_wait_until_they_are_a_small_share_of_the_time(
    tmp_path, hardware, monkeypatch, seconds, steps
):
    """An epoch of 8 steps takes a second here, and a save 0.29."""
    now, saved, save = [0.0], [], Checkpoints.save
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("pipeline.training.checkpoint.time", clock, raising=False)

    def tick(seconds):
        now[0] += seconds

    def noted(states, step, state):
        saved.append(step)
        save(states, step, state)

    def logged(metrics, step):
        tick("time/epoch_seconds" in metrics)
        if ends and step == 40:
            raise InterruptedError

    def digested(*file):
        tick(0.29)
        return digest(*file)

    monkeypatch.setattr(Checkpoints, "save", noted)
    monkeypatch.setattr("pipeline.training.checkpoint.digest", digested)
    changes = {"epochs": 12, "save_minutes": seconds / 60}
    ends = False
    whole, _ = train(tmp_path / "whole", hardware, log=logged, **changes)
    assert saved == steps
    ends = True
    with pytest.raises(InterruptedError):
        train(tmp_path / "part", hardware, log=logged, **changes)
    again, _ = train(tmp_path / "part", hardware, net(seed=99), **changes)
    assert same(whole, again)


def test_resuming_after_the_last_epoch_only_loads_the_best_weights(tmp_path, hardware):
    first, _ = train(tmp_path, hardware)
    logged = Logged()
    again, _ = train(tmp_path, hardware, net(seed=7), log=logged)
    assert same(first, again)
    assert logged.points == {}


def words(n: int = 64, rows: int = 50) -> tuple[nn.Module, Batches]:
    """Sums of five words; the class says whether the first comes before the middle of the list."""
    torch.manual_seed(0)

    class Bag(nn.Sequential):
        def forward(self, words):
            return super().forward(words)

    model = Bag(nn.Embedding(rows, 8), nn.Flatten(), nn.Linear(40, 2))
    index = torch.randint(rows, (n, 5), generator=torch.Generator().manual_seed(1))
    labels = (index[:, 0] > rows // 2).long()

    def collate(_, rows):
        return {"words": index[rows]}, labels[rows]

    return model, Batches(n, CPU, collate, 8, shuffle=True, seed=3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_sparse_gradient_trains_and_resumes_as_a_dense_one(
    tmp_path, hardware, monkeypatch, accumulate
):
    def run(folder: str, sparse_from: int, stop_at: int | None = None) -> nn.Module:
        monkeypatch.setattr(modules, "SPARSE_FROM", sparse_from)
        model, data = words()
        if stop_at:
            data = interrupt_after(stop_at, data, accumulate, monkeypatch)
        Loop(
            model, data, words()[1], task=classifier,
            settings=TRAINING.model_copy(update={"accumulate": accumulate}), optimizer=OPTIMIZER,
            hardware=hardware, seed=5, checkpoints=Checkpoints(tmp_path / folder),
            log=lambda metrics, step: None,
        ).fit()  # fmt: skip
        assert model[0].sparse == (sparse_from <= 50)
        return model

    dense, sparse = run("dense", 51), run("sparse", 50)
    for a, b in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(interrupts.Interrupted):
        run("again", 50, stop_at=5)
    monkeypatch.setattr(interrupts, "_pending", None)
    assert same(run("again", 50), sparse)


@pytest.mark.slow  # the compiler needs half a minute
def test_a_compiled_model_learns_the_same(tmp_path, hardware):
    eager, one = train(tmp_path / "a", hardware, net(dropout=0))
    compiled, two = train(tmp_path / "b", hardware, net(dropout=0), compile="default")
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert [row["validation_accuracy"] for row in one.curve] == pytest.approx(
        [row["validation_accuracy"] for row in two.curve], abs=0.03
    )


def test_the_compiler_too_is_told_to_be_deterministic(tmp_path, hardware, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    monkeypatch.setattr(torch._inductor.config, "deterministic", False)
    train(tmp_path, hardware, compile="default", max_steps=1)
    assert torch._inductor.config.deterministic


class Replayed(torch.autograd.Function):
    """Gives its output and gradients where the last ones lie, as a CUDA graph does."""

    @staticmethod
    def forward(ctx, places, call, *parameters):
        with torch.enable_grad():
            ctx.output = call()
        ctx.places, ctx.parameters = places, parameters
        return Replayed.put(places, "output", ctx.output)

    @staticmethod
    def backward(ctx, gradient):
        found = enumerate(torch.autograd.grad(ctx.output, ctx.parameters, gradient))
        return None, None, *(Replayed.put(ctx.places, place, value) for place, value in found)

    @staticmethod
    def put(places, place, value):
        return places.setdefault(place, torch.empty_like(value)).copy_(value.detach()).detach()


class Recorded(nn.Module):
    """What `torch.compile(mode="reduce-overhead")` makes of a module on a GPU."""

    def __init__(self, module, mode):
        super().__init__()
        assert mode == "reduce-overhead"
        self.module, self.places = module, {}

    def forward(self, **inputs):
        call = lambda: self.module(**inputs)  # noqa: E731
        return Replayed.apply(self.places, call, *self.module.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_cuda_graphs_that_write_over_losses_and_gradients_change_nothing(
    accumulate, tmp_path, hardware, monkeypatch
):
    """The network gives its loss itself, as torchvision's detectors do."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(dropout=0)

        def forward(self, points, labels):
            return nn.functional.cross_entropy(self.net(points), labels)

    task = SimpleNamespace(
        loss=lambda module, batch, _: module(**batch.inputs, labels=batch.targets),
        score=lambda module, batches, settings: {"accuracy": 0.5},
    )
    monkeypatch.setattr(torch, "compile", Recorded)
    runs = []
    for mode in (None, "reduce-overhead"):
        log = Logged()
        more = {"task": task, "accumulate": accumulate, "compile": mode}
        runs.append((train(tmp_path / str(mode), hardware, Own(), log, **more)[0], log))
    (eager, one), (recorded, two) = runs
    losses = [key for key in one.points if key[0] == "train/loss"]
    assert len(losses) > 2
    assert [one.points[key] for key in losses] == [two.points[key] for key in losses]
    assert same(eager, recorded)


@pytest.mark.parametrize("repeat", [True, False])
def test_cudnn_tries_its_kernels_only_where_shapes_repeat(repeat, tmp_path):
    data = split(64, 1, shuffle=True)
    data = data if repeat else dataclasses.replace(data, lengths=torch.arange(64))
    try:
        fast = configure(STAGE.model_copy(update={"deterministic": False}))
        train(tmp_path, fast, data=data, max_steps=1)
        assert torch.backends.cudnn.benchmark == repeat
    finally:
        configure(STAGE)


def test_accumulated_small_batches_equal_one_large_batch(tmp_path, hardware):
    small, _ = train(tmp_path / "a", hardware, net(dropout=0), batch_size=8, accumulate=4)
    large, _ = train(tmp_path / "b", hardware, net(dropout=0), batch_size=32, accumulate=1)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_best_epoch_is_kept_not_the_last(tmp_path, hardware):
    logged = Logged()
    model, progress = train(
        tmp_path, hardware, log=logged, epochs=8, lr=2.0, schedule="constant", clip_norm=None
    )
    found = [row["validation_accuracy"] for row in progress.curve]
    assert progress.best == max(found)
    assert scores(model, split(40, 2), hardware)["accuracy"] == max(found)


def test_patience_ends_a_training_that_gets_no_better(tmp_path, hardware):
    _, progress = train(tmp_path, hardware, epochs=50, patience=2)
    found = [row["validation_accuracy"] for row in progress.curve]
    assert len(found) < 50
    assert max(found[-2:]) <= max(found[:-2])


def test_max_steps_caps_the_steps_and_ends_the_schedule_there(tmp_path, hardware):
    logged = Logged()
    _, progress = train(tmp_path, hardware, log=logged, max_steps=11, log_every=1)
    assert progress.step == 11
    rates = [v for (name, _), v in sorted(logged.points.items(), key=lambda p: p[0][1])
             if name == "train/lr"]  # fmt: skip
    assert len(rates) == 11
    assert rates[-1] < 0.02 * max(rates) + 1e-3


def test_a_loss_that_is_not_finite_names_epoch_step_and_learning_rate(tmp_path, hardware):
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(PipelineError, match=r"loss is nan at epoch 1, step 1 \(learning rate 0.01"):
        train(tmp_path, hardware, model)


def test_more_accumulation_than_batches_is_an_error(tmp_path, hardware):
    with pytest.raises(PipelineError, match=r"training.accumulate=9 .* split has 8"):
        train(tmp_path, hardware, accumulate=9)


def test_out_of_memory_says_what_to_lower(tmp_path, hardware):
    class Greedy(nn.Linear):
        def forward(self, points):
            return super().forward(torch.empty(2**50, 2))

    with pytest.raises(PipelineError, match=r"out of memory on cpu with batches of 8 .*batch_size"):
        train(tmp_path, hardware, Greedy(2, 2))


@given(
    total=st.integers(1, 500),
    kind=st.sampled_from(["linear", "cosine", "constant"]),
    warmup=st.floats(0, 0.99),
)
def test_the_schedule_rises_then_falls_between_zero_and_one(total, kind, warmup):
    values = [schedule(step, total, kind, warmup) for step in range(total)]
    peak = values.index(max(values))
    assert all(0 < value <= 1 for value in values)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_scores_count_every_example_once(hardware):
    class Constant(nn.Module):
        def forward(self, points):
            return torch.tensor([0.0, 1.0]).expand(len(points), 2)

    data = split(41, 4)
    found = scores(Constant(), data, hardware)
    ones = float(torch.cat([batch.targets for batch in data.epoch(0)]).float().mean())
    assert found["accuracy"] == pytest.approx(ones)
    assert found["loss"] == pytest.approx(math.log(1 + math.e) - ones)


class Line(nn.Linear):
    """Three numbers to one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(3, 1)

    def forward(self, numbers):
        return super().forward(numbers).squeeze(1)


LINEAR = Training(
    **{name: getattr(TRAINING, name) for name in Training.model_fields if name != "monitor"},
    monitor="r2",
)


def rows(n: int, batch_size: int, shuffle: bool = True) -> Batches:
    """Rows that count for one to nine each; what is asked of each is in a dictionary of its own."""
    draw = torch.Generator().manual_seed(1)
    numbers = torch.randn(n, 3, generator=draw)
    wanted = numbers @ torch.tensor([1.0, -2.0, 0.5]) + torch.randn(n, generator=draw)
    weights = torch.randint(1, 10, (n,), generator=draw).float()

    def collate(index, _):
        each = zip(wanted[index].tolist(), weights[index].tolist(), strict=True)
        return {"numbers": numbers[index]}, [{"value": v, "weight": w} for v, w in each]

    return Batches(n, CPU, collate, batch_size, shuffle=shuffle, seed=3, weights=weights)


def squares(module, batch, _settings):
    """Mean squared error over what the rows count for."""
    value, weight = (
        torch.tensor([one[name] for one in batch.targets]) for name in ("value", "weight")
    )
    return ((module(**batch.inputs) - value).square() * weight).sum() / weight.sum()


def determination(module, batches, settings):
    losses = [float(squares(module, batch, settings)) for batch in batches.epoch(0)]
    loss = sum(losses) / len(losses)
    return {"loss": loss, "r2": 1 - loss / 6.25}  # the variance that the rows are drawn with


def train_line(folder: Path, hardware, size=8, model=None, score=determination, **changes):
    model, logged = model or Line(), Logged()
    progress = Loop(
        model, rows(48, size), rows(20, 20, shuffle=False),
        task=SimpleNamespace(loss=squares, score=score),
        settings=LINEAR.model_copy(update=changes), optimizer=OPTIMIZER, hardware=hardware, seed=5,
        checkpoints=Checkpoints(folder), log=logged,
    ).fit()  # fmt: skip
    return model, progress, logged.points


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_step_over_batches_of_unequal_weight_is_one_over_all_their_rows(
    tmp_path, hardware, accumulate
):
    weights = {batch.weight for batch in rows(48, 8).epoch(0)}
    assert len(weights) > 3
    parts, _, ours = train_line(tmp_path / "a", hardware, 8, accumulate=accumulate, log_every=1)
    whole, _, theirs = train_line(tmp_path / "b", hardware, 8 * accumulate, log_every=1)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_targets_need_not_be_tensors(tmp_path, hardware):
    _, progress, _ = train_line(tmp_path, hardware, epochs=20)
    assert progress.curve[0]["validation_r2"] < 0.3 < 0.6 < progress.best


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("r2", [-3.0, -1.0, -2.0], -1.0),
        ("loss", [3.0, 1.0, 2.0], -1.0),
        ("loss", [-1.0, -3.0, -2.0], 3.0),
    ],
    ids=["negative", "falling", "falling and negative"],
)
def test_the_best_epoch_is_that_of_the_best_score_whatever_its_sign_and_direction(
    tmp_path, hardware, monitor, values, best
):
    kept = []

    def scripted(module, batches, settings):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return {monitor: values[len(kept) - 1]}

    model = Line()
    changes = {"monitor": monitor, "patience": 1, "epochs": 9}
    _, progress, points = train_line(tmp_path, hardware, 8, model, scripted, **changes)
    assert (progress.best, progress.best_step, progress.epoch) == (best, 12, 3)
    assert [row[f"validation_{monitor}"] for row in progress.curve] == values
    assert [points[f"validation/{monitor}", step] for step in (6, 12, 18)] == values
    assert all(torch.equal(kept[1][name], value) for name, value in model.state_dict().items())
    assert not torch.equal(kept[1]["weight"], kept[2]["weight"])


def with_frozen_layer() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    model.register_buffer("scale", torch.ones(1))
    return model


def test_frozen_weights_are_not_copied_not_saved_and_not_lost(tmp_path, hardware):
    model = with_frozen_layer()
    frozen = model[0].weight.clone()
    train(tmp_path / "whole", hardware, model)
    assert torch.equal(model[0].weight, frozen)
    state = Checkpoints(tmp_path / "whole").load()
    assert set(state["model"]) == set(state["best"]) == {"3.weight", "3.bias", "scale"}


def test_a_training_with_frozen_weights_resumes_to_the_same_bits(tmp_path, hardware):
    whole = with_frozen_layer()
    train(tmp_path / "whole", hardware, whole)

    def stop(metrics, step):
        if step == 10 and "train/loss" in metrics:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "parts", hardware, with_frozen_layer(), stop, save_minutes=1e-9)
    again = with_frozen_layer()
    train(tmp_path / "parts", hardware, again)
    for name, values in again.state_dict().items():
        assert torch.equal(values, whole.state_dict()[name]), name
