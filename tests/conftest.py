"""What several test modules share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.measure import ROOT as ROOT
from bench.measure import copy_of_the_repository as copy_of_the_repository
from pipeline import conf_files, config
from pipeline.settings import Profile, Stage, Tracking

# before torch is loaded: workers with more threads than there are cores wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

BRIEF = {"probe_train": 30, "probe_test": 20, "pictured": 10, "damaged": 10, "suspected": 4}
"""Sizes of the parts of an evaluation that take long."""
TOGETHER = ("tests/evaluation/", "tests/stages/", "tests/tracking/")
"""Folders whose files share what takes seconds to make: one worker has all of a folder."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """That of `--dist loadfile`, but for the folders of `TOGETHER`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folders = (folder for folder in TOGETHER if nodeid.startswith(folder))
            return next(folders, super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 300 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Puts a path of a new workspace into its DVC cache, which lies outside and is linked to.

    The workspace is the working directory; the cache is `tmp_path / "cache"`.
    """
    from dvc.repo import Repo

    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    with Repo.init(no_scm=True) as repo, repo.config.edit() as edited:
        edited["cache"] = {"type": ["symlink"], "dir": str(tmp_path / "cache")}
    with Repo() as repo:
        yield repo.add


@cache
def schemas() -> dict[str, Any]:
    """The settings class of each stage."""
    from pipeline.settings import Evaluate, Prepare, Repeat, Report
    from pipeline.task import of_a_model, tasks, with_parts, with_sources

    return {
        "prepare": with_sources(Prepare),
        "evaluate": with_parts(of_a_model(Evaluate)),
        "repeat": of_a_model(Repeat),
        "report": Report,
        **{task.about.stage: task.settings.Train for task in tasks()},
    }


def composed(stage: str, *argv: str) -> list[tuple[Any, config.Written]]:
    """What the body of a stage is given for a command line, once for each job of a sweep."""
    found: list[tuple[Any, config.Written]] = []
    schema = schemas()[stage]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path.cwd())  # where the tests are, afterwards
        patch.setattr(sys, "argv", [stage, *argv])
        config.main(stage, schema, lambda *given: found.append(given))
    return found


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/, used in the place of the project's, and one of params.yaml beside it."""
    shutil.copytree(conf_files.CONF, tmp_path / "conf")
    shutil.copy(conf_files.PARAMS, tmp_path)
    for name, value in {"CONF": "conf", "PARAMS": "params.yaml", "ROOT": "."}.items():
        monkeypatch.setattr(conf_files, name, tmp_path / value)
    return tmp_path / "conf"


def stage_settings(**changes: Any) -> Stage:
    """Settings of a stage that computes on the CPU and keeps no records."""
    values = {
        "seed": 0, "device": "cpu", "precision": "fp32", "threads": 1, "deterministic": True,
        "profile": Profile(max_examples=None, max_steps=None),
        "tracking": Tracking(
            enabled=False, experiment="x", flush_seconds=1, system_seconds=1, promote=False
        ),
    }  # fmt: skip
    return Stage(**{**values, **changes})


def stages_of(about: Any) -> tuple[str, str, str]:
    """What DVC calls the stages of a task."""
    return f"prepare@{about.data}", about.stage, f"evaluate@{about.model}"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user in a fresh shell: this Python first on the path, no leftovers."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "HYDRA_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    author = {f"GIT_{who}_{what}": "test@example.org" if what == "EMAIL" else "test"
              for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}  # fmt: skip
    return {
        **keep,
        "PATH": path,
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder.parent),
        **author,
        **more,
    }


def run(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, in `folder`; its output is text."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store without runs, to be copied: MLflow takes seconds to make one."""
    from pipeline.tracking import store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    store._create(file)
    return file


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts stages of the shared workspace; see tests/workspace.py."""
    from tests.workspace import Nursery, workspace

    nursery = Nursery(workspace(tmp_path_factory.getbasetemp()), tmp_path_factory.mktemp("logs"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One headless Chromium for all tests: playwright's driver starts once in a process."""
    from tests.browser import analyst

    if analyst.chromium() is None:
        pytest.skip("chromium is not installed")
    with analyst.browser() as browser:
        yield browser
