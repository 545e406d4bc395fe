"""What can't be read or repeated is said in one line that names the store."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.reproduce.__main__ import main as reproduce
from pipeline.settings import Tracking
from pipeline.tracking.__main__ import main
from pipeline.tracking.reader import Reader
from pipeline.tracking.store import Store
from pipeline.tracking.surroundings import sqlite_uri, store_uri


@pytest.fixture
def store(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(workspace / "mlflow.db"))
    return Store(store_uri(), workspace)


def said(run_id: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert reproduce([run_id]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def made(store: Store, experiment: str, status: str = "", **tags: str) -> str:
    run_id: str = store.client.create_run(store.experiment(experiment), tags=tags).info.run_id
    if status:
        store.client.log_text(run_id, "a: 1\n", "config.yaml")
        store.client.log_text(run_id, "{}\n", "device.json")
        store.client.set_terminated(run_id, status)
    return run_id


def test_each_run_that_can_not_be_repeated_is_one_line(
    store: Store, settings: Tracking, capsys: pytest.CaptureFixture[str]
) -> None:
    x, place = settings.experiment, store.uri
    foreign, failed = made(store, x), made(store, x, "FAILED", stage="train_cnn")
    running = made(store, x, "RUNNING", stage="train_cnn")
    lines = {
        "0123": f"run 0123 is not on {place}; `make ui` shows the runs there, `make sync` sends",
        "../x": f"run '../x' can't be read from {place}: Invalid value",
        foreign: f"run {foreign} of the experiment {x} was not made by a stage of this project",
        failed: f"run {failed} is FAILED; only a finished run can be compared",
        running: f"run {running} is RUNNING; only a finished run can be compared; if it has ended",
    }
    for run_id, line in lines.items():
        assert said(run_id, capsys).startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://me:hunter2@127.0.0.1:9", "the store http://127.0.0.1:9 can't be opened: API "),
        ("other://x", "the store other://x can't be opened: "),
        ("sqlite:///{folder}/text.db", "can't be opened: (sqlite3.DatabaseError) file is not a"),
    ],
)
def test_a_store_that_can_not_be_opened_is_one_line(
    uri: str, why: str, tmp_path: Path, own_workspace: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    line = said("0123", capsys)
    assert why in line
    assert "hunter2" not in line


def test_a_store_of_an_older_schema_is_one_line_with_the_command(
    store: Store, tmp_path: Path, monkeypatch, capsys
) -> None:
    shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '728d730b5ebd'")
    uri = f"sqlite:///{tmp_path}/old.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    line = f"{uri} is of another version of MLflow; if that is an older one, make a backup and run"
    assert said("0123", capsys) == f"error: {line}: mlflow db upgrade {uri}"
    assert main(["ui", "--port", "0"]) == 1
    assert capsys.readouterr().err == f"error: {line}: mlflow db upgrade {uri}\n"
    with pytest.raises(PipelineError, match="is of another version"):
        Reader().runs("train_cnn")
