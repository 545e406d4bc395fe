"""The same training with another seed: compared with the model, removed, and off by default."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline.errors import PipelineError
from pipeline.task import tasks
from stages import repeat
from tests.conftest import ROOT, copy_of_the_repository
from tests.stages.test_places import chosen_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repeat")


@pytest.fixture
def places(prepared: Path, trained: Path, folder: Path) -> list[str]:
    """The command line for a model of seed 0 that is there already."""
    return [
        "model=cnn", f"data={prepared}/image", f"weights={trained}/cnn",
        f"trained={folder}/seeds/cnn-1/cnn", f"metrics={folder}/cnn-1.json",
    ]  # fmt: skip


@pytest.mark.parametrize("beside", ["thesis.txt", pytest.param(None, marks=pytest.mark.slow)])
def test_another_seed_is_trained_compared_and_removed(call, places, folder, beside):
    around = folder / "seeds" / "cnn-1"
    if beside:
        around.mkdir(parents=True)
        (around / beside).write_text("years of work")
    said = call("repeat", "again=1", *places)
    numbers = json.loads((folder / "cnn-1.json").read_text())
    assert 0 < numbers["cka/early"] <= 1
    assert 0 <= numbers["p_value"] <= 1
    assert numbers["difference_low"] <= numbers["difference"] <= numbers["difference_high"]
    assert 0 <= numbers["agreement"] < 1
    assert f"test accuracy {numbers['accuracy']:.4f}" in said
    if beside:
        assert [path.name for path in around.iterdir()] == [beside]
        (around / beside).unlink()
        around.rmdir()
    assert not around.exists()


@pytest.mark.parametrize("path", ["a, b", "it's", "[a", "a=b", "a\\"])
def test_any_path_reaches_the_training_as_it_is(monkeypatch, path):
    started: list[str] = []

    def start(command: list[str], **_: Any) -> Any:
        started.extend(command)
        raise PipelineError("enough")

    settings = chosen_by("repeat").model_copy(update={"data": path})
    monkeypatch.setattr(repeat.subprocess, "Popen", start)
    with pytest.raises(PipelineError, match="enough"):
        repeat._train(settings, str)
    assert chosen_by("train_cnn", *started[3:]).data == path


def test_the_models_own_seed_is_refused(call, places):
    error = call("repeat", "again=0", *places, fails=True)
    assert error.startswith("error: report.seeds has 0, which is common.seed")


def test_a_training_that_fails_ends_the_stage_with_its_own_line(call, places):
    failing = "overrides=['optimizer.lr=-1']"
    error = call("repeat", "again=2", failing, *places, fails=True)
    assert error.startswith("error: optimizer.lr (command line) is -1")


def test_dvc_has_a_stage_for_each_model_and_seed_and_none_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_of_the_repository(tmp_path / "repository"))

    def below_the_report() -> set[str]:
        with Repo() as repo:
            (report,) = (one for one in repo.index.stages if one.addressing == "report")
            names = {one.addressing for one in repo.index.graph.successors(report)}
            listed = {one.addressing for one in repo.index.stages}
        repeats = {name for name in names if name.startswith("repeat@")}
        assert {name for name in listed if name.startswith("repeat")} == repeats
        return repeats

    assert below_the_report() == set()
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("seeds: []", "seeds: [1, 2]"))
    assert below_the_report() == {
        f"repeat@{task.about.model}-{seed}" for task in tasks() for seed in (1, 2)
    }


def test_an_edit_of_what_compares_two_models_repeats():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    deps = stages["repeat"]["deps"]
    for task in tasks():
        folder = f"pipeline/tasks/{task.name}"
        measures = stages["evaluate"]["foreach"][task.about.model]["measures"]
        own = f"{folder}/evaluation" if measures == folder else measures
        wanted = {f"{folder}/show.py", *([own] if (ROOT / own).exists() else [])}
        assert wanted <= set(deps), task.name
