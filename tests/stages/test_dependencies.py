"""What dvc.yaml says a stage depends on, against what its code imports."""

import ast
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.task import Task, tasks

ROOT = Path(__file__).parents[2]
PASSED = {
    "checks", "config", "conf_files", "environment", "errors", "files", "hydra_guard", "interrupts",
    "launcher", "machine", "nested", "schema", "settings", "stage", "streams", "task", "tracking",
    "yaml_files",
}  # fmt: skip
"""Of `pipeline`, what every stage passes through and what changes no output."""
TYPES = {"pipeline.evaluation.intervals"}
"""Imported for types alone."""
PINNED = {"pipeline.sources"}
"""Where nothing is prepared, only what finds a file is called, and the file's digest is checked."""


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imported(module: str) -> set[str]:
    """The project's modules that a module imports, anywhere but for type checkers."""
    found, file = set[str](), file_of(module)
    nodes: list[ast.AST] = [ast.parse(file.read_text())] if file else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if file_of(one) else node.module for one in inner}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {one for one in found if file_of(one)}


def reached(roots: set[str]) -> set[str]:
    found, todo = set[str](), [*roots]
    while todo:
        module = todo.pop()
        above = module.split(".")
        passed = above[0] == "pipeline" and (len(above) == 1 or above[1] in PASSED)
        if module in found or passed or above[-1] == "settings":
            continue
        found.add(module)
        todo += imported(module)
    return found


def roots(task: Task) -> dict[str, set[str]]:
    """By stage, where the code of a task begins to run."""
    about, name = task.about, f"pipeline.tasks.{task.name}"
    trains = {f"{name}.data", f"{name}.model"}
    return {
        f"prepare@{about.data}": {"stages.prepare", f"{name}.prepare", f"{name}.data_report"},
        about.stage: {f"stages.{about.stage}", "pipeline.training.stage", *trains},
        f"evaluate@{about.model}": {"stages.evaluate", f"{name}.show", *trains},
    }


@pytest.fixture(scope="module")
def dependencies() -> dict[str, list[Path]]:
    with Repo(str(ROOT)) as repo:
        return {
            stage.addressing: [Path(dep.fs_path) for dep in stage.deps]
            for stage in repo.index.stages
        }


@pytest.mark.parametrize("task", tasks(), ids=str)
def test_a_stage_depends_on_all_that_it_imports(task, dependencies):
    for stage, begin in roots(task).items():
        files = {module: file_of(module) for module in reached(begin)}
        assert len(files) > 5, stage
        missing = {
            module
            for module, file in files.items()
            if file and not {file, *file.parents} & {*dependencies[stage]}
        }
        prepares = stage.startswith("prepare@")
        assert missing <= (TYPES if prepares else TYPES | PINNED), stage


def test_the_report_depends_on_what_it_imports_and_on_what_tasks_are_called(dependencies):
    named = {f"pipeline.tasks.{task.name}.settings" for task in tasks()}
    for module in reached({"stages.report"}) | named:
        file = file_of(module)
        assert file
        assert {file, *file.parents} & {*dependencies["report"]}, module
