"""A store with two repros of the tiny pipeline, and a browser that looks at it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import analyst
from tests.conftest import copy_of_the_repository, environment, run


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny profile; in the second repro the CNN's learning rate differs, all else is reused."""
    if analyst.chromium() is None:
        pytest.skip("chromium is not installed")
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    params = folder / "params.yaml"
    text = params.read_text().replace("profile: full", "profile: tiny")
    params.write_text(text.replace("language_model: smollm2", "language_model: scratch"))
    run(folder, "git", "commit", "-qam", "tiny")
    for rate in ("lr: 0.004", "lr: 0.02"):
        params.write_text(params.read_text().replace("lr: 0.004", rate, 1))
        done = run(folder, "dvc", "repro")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run(folder, "python", "-m", "pipeline.tracking", "sync")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def store(repository: Path) -> Any:
    """What is in the store, without the server."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{repository}/mlflow.db")


@pytest.fixture(scope="session")
def address(repository: Path) -> Iterator[str]:
    """Where `make ui` says that the runs are."""
    with analyst.ui(repository, environment(repository)) as found:
        yield found


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The page that `make ui` names, opened by somebody who was never there before."""
    with analyst.page(chromium) as opened:
        opened.goto(address)
        yield opened


@pytest.fixture
def keep(page: Any, tmp_path: Path) -> Callable[[str], None]:
    """Keep a screenshot of the page in $SCREENSHOTS."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)

    def keep(name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"mlflow-{name}.png")

    return keep
