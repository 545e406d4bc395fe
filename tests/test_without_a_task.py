"""A task can be taken out: what is left of the house does not know that it was there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.task import Task, tasks
from tests.conftest import copy_of_the_repository, run

TASKS = tasks()


def without(value: Any, names: set[str], places: tuple[str, ...]) -> Any:
    """YAML without the entries of these names and the paths in these places."""

    def goes(entry: Any) -> bool:
        return entry in names or any(f"{entry}/".startswith(f"{place}/") for place in places)

    if isinstance(value, dict):
        return {k: without(v, names, places) for k, v in value.items() if not goes(k)}
    if isinstance(value, list):
        return [
            without(one, names, places) for one in value if isinstance(one, dict) or not goes(one)
        ]
    return value


def take_out(task: Task, folder: Path) -> None:
    """Delete all that a task has in a copy of the repository."""
    about = task.about
    for own in (f"pipeline/tasks/{task.name}", f"conf/{about.data}", f"conf/{about.model}"):
        shutil.rmtree(folder / own)
    shutil.rmtree(folder / "tests/tasks" / task.name, ignore_errors=True)
    for own in (f"conf/{about.stage}.yaml", f"stages/{about.stage}.py"):
        (folder / own).unlink()
    names = {about.data, about.model, about.stage}
    places = (
        f"data/{about.data}", f"models/{about.model}", f"pipeline/tasks/{task.name}",
        f"plots/{about.model}",
        f"plots/data/{about.data}", f"plots/{about.stage}.csv",
    )  # fmt: skip
    for file in ("dvc.yaml", "params.yaml"):
        left = without(yaml.safe_load((folder / file).read_text()), names, places)
        if "plots" in left:
            left["plots"] = [plot for plot in left["plots"] if all(p["y"] for p in plot.values())]
        (folder / file).write_text(yaml.safe_dump(left, sort_keys=False))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_the_rest_stays_whole_and_green(task, tmp_path):
    folder = copy_of_the_repository(tmp_path / "house")
    take_out(task, folder)
    others = [other for other in TASKS if other != task]
    tests = [f"tests/tasks/{other.name}" for other in others]
    tests = ["tests/test_any_task.py", *(one for one in tests if (folder / one).exists())]
    commands = [
        ["ruff", "check", "."],
        ["mypy"],
        ["lint-imports", "--no-cache"],
        ["dvc", "stage", "list"],
        ["python", "-m", "stages.report", "--cfg", "job", "--resolve"],
        *(["python", "-m", "stages.prepare", f"modality={other.about.data}", "--cfg", "job"]
          for other in others),
        ["python", "-m", "pytest", "-q", "-x", *tests],
    ]  # fmt: skip
    for command in commands:
        ended = run(folder, *command)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    listed = run(folder, "dvc", "stage", "list", "--name-only").stdout
    assert not {task.about.stage, f"prepare@{task.about.data}"} & {*listed.split()}
