"""What every folder of `pipeline/tasks/` keeps, whatever its task is."""

import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import prepared
from pipeline.checks import measured, refuse_shared_names
from pipeline.figures.page import Page, fill
from pipeline.figures.style import look
from pipeline.task import Task, tasks
from pipeline.training import loop, modules, net
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import Hardware, configure
from stages.evaluate import PREDICTIONS, check_predictions
from tests.conftest import BRIEF, composed
from tests.evaluation.conftest import DATA

ROWS, BATCH, STEPS = 32, 8, 6


class StoppedError(Exception):
    """Ends a training in its middle."""


def settings(stage: str, *overrides: str) -> Any:
    """What params.yaml and conf/ say for a stage, with some overrides."""
    common = ["profile=tiny", "tracking=off", "device=cpu", "precision=fp32", "threads=1"]
    ((found, _),) = composed(stage, *common, *overrides)
    return found


def small(task: Task, folder: Path) -> list[str]:
    """What makes the task's network a small one, where its tests say so."""
    if find_spec(f"tests.tasks.{task.name}") is None:
        return []
    return getattr(import_module(f"tests.tasks.{task.name}"), "small", lambda _: [])(folder)


class House:
    """A task with a little of its default data."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.data = task, folder / task.about.data
        asked = settings("prepare", f"modality={task.about.data}")
        made = task.prepare.prepare(getattr(asked, task.about.data), asked.seed, ROWS)
        prepared.write(self.data, task.name, made, asked.seed)
        self.card = prepared.read_card(self.data, task.name)
        smaller = small(task, folder / "small")
        self.train = settings(task.about.stage, f"training.batch_size={BATCH}", *smaller)
        self.hardware: Hardware = configure(self.train)

    def build(self) -> net.Net:
        torch.manual_seed(0)
        return net.build(self.task, getattr(self.train, self.task.about.model), self.card.facts)

    def load(self, split: prepared.SplitName, one: net.Net, **order: Any) -> Any:
        device = self.hardware.device
        return self.task.data.load(
            self.data, split, one, batch_size=BATCH, device=device, **order, **self.train.loading
        )

    def fit(self, one: net.Net, states: Path, log: Callable[..., None] = lambda *_: None) -> Any:
        asked = self.train.training.model_copy(update={"log_every": 1, "save_minutes": 1e-9})
        return loop.Loop(
            one.module,
            self.load("train", one, shuffle=True, seed=0),
            self.load("validation", one),
            task=self.task.model,
            settings=asked,
            optimizer=self.train.optimizer,
            hardware=self.hardware,
            seed=0,
            checkpoints=Checkpoints(states),
            log=log,
            max_steps=STEPS,
        ).fit()

    def score(self, one: net.Net) -> dict[str, float]:
        batches = self.load("train", one)
        return modules.score(
            one.module, batches, self.task.model, self.train.training, self.hardware
        )


@pytest.fixture(scope="module", params=tasks(), ids=lambda task: task.name)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    threads = torch.get_num_threads()
    yield House(request.param, tmp_path_factory.mktemp("house"))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained(house: House, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The network after a few steps, the progress, and the scores before."""
    one = house.build()
    one.module.to(house.hardware.device)
    before = house.score(one)
    progress = house.fit(one, tmp_path_factory.mktemp("states"))
    return one, progress, before


def test_no_two_tasks_have_one_name():
    refuse_shared_names()


def test_the_facts_are_read_as_they_were_written(house):
    found = json.loads((house.data / prepared.CARD).read_text())["facts"]
    assert house.card.facts.model_dump(mode="json") == found
    assert isinstance(house.card.facts, house.task.settings.Facts)


def test_a_few_steps_lower_the_loss_and_every_score_is_a_number(house, trained):
    one, progress, before = trained
    after = house.score(one)
    assert after["loss"] < before["loss"]
    assert after.keys() == before.keys()
    assert house.train.training.monitor in after
    assert all(isinstance(value, float) for value in after.values())
    columns = [f"validation_{name}" for name in after]
    assert list(progress.curve[-1])[:4] == ["epoch", "step", "lr", "train_loss"]
    assert list(progress.curve[-1])[4:] == columns


def test_encode_gives_what_load_gives(house):
    one = house.build()
    batches = house.task.data.load(
        house.data, "validation", one, batch_size=1, device=torch.device("cpu"),
        **house.train.loading,
    )  # fmt: skip
    place = [index.tolist() for index in batches.order(0)].index([0])
    loaded = next(batches.epoch(0, place)).inputs
    example = json.loads(json.dumps(house.task.data.example(house.data)))
    encoded = house.task.data.encode([example], one)
    assert encoded.keys() == loaded.keys()
    for name, values in loaded.items():
        assert torch.equal(encoded[name], values), name


def test_a_network_that_was_saved_answers_the_same(house, trained, tmp_path):
    one, _, _ = trained
    (tmp_path / "model").mkdir()
    net.save(tmp_path / "model", one)
    again = net.load(tmp_path / "model")
    assert again.facts == one.facts
    inputs = house.task.data.encode([house.task.data.example(house.data)], one)
    answers = []
    for each in (one, again):
        each.module.eval()
        with torch.inference_mode():
            answers.append(house.task.model.answer(each.module(**inputs), each))
    assert len(answers[0]) == 1
    assert json.loads(json.dumps(answers[0])) == answers[1]


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(house, trained, tmp_path):
    whole, _, _ = trained

    def stop(metrics: dict[str, float], step: int) -> None:
        if step == STEPS // 2 and "train/loss" in metrics:
            raise StoppedError

    with pytest.raises(StoppedError):
        house.fit(house.build(), tmp_path, stop)
    again = house.build()
    assert house.fit(again, tmp_path).step == STEPS
    for name, values in again.module.state_dict().items():
        assert torch.equal(values, whole.module.state_dict()[name]), name


def test_every_part_of_the_evaluation_measures_and_draws(house, trained, tmp_path):
    one, progress, _ = trained
    about = house.task.about
    asked = settings(
        "evaluate", f"model={about.model}", f"data={house.data}", f"plots={tmp_path}/plots",
        f"metrics={tmp_path}/m.json",
    )  # fmt: skip
    brief: dict[str, int | bool] = {**BRIEF}
    if about.data in DATA:  # tests/evaluation draws the other parts of a classifier
        brief |= {name: False for name, on in asked.parts if on is True}
    switches = asked.parts.model_copy(
        update={name: value for name, value in brief.items() if hasattr(asked.parts, name)}
    )
    asked = asked.model_copy(update={"parts": switches})
    curve = [{name: str(value) for name, value in row.items()} for row in progress.curve]
    with look():
        study = house.task.show.study(one, asked, house.hardware, curve)
        found = fill(tmp_path, house.task.show.PARTS, study, switches)
    numbers = measured(house.task, "PARTS", found)
    ends = [numbers[f"{about.headline}{end}"] for end in ("_low", "", "_high")]
    assert ends == sorted(ends)
    assert about.headline in about.watched
    assert numbers["examples"] == house.card.splits["test"].rows
    check_predictions(tmp_path / PREDICTIONS, house.task, numbers["examples"])
    listed = [figure["file"] for figure in json.loads((tmp_path / "figures.json").read_text())]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(listed)


def test_the_data_report_draws_and_counts(house, tmp_path):
    page = Page(tmp_path)
    with look():
        counts = house.task.data_report.data_report(house.data, house.card, page)
        page.close("data")
    assert counts
    assert page.findings
    assert json.loads((tmp_path / "figures.json").read_text())
    assert (tmp_path / "findings.json").exists()
