"""The default store is in the workspace, whatever the workspace is called."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipeline import tracking
from pipeline.errors import PipelineError
from pipeline.settings import Tracking
from pipeline.tracking import delivery, surroundings
from pipeline.tracking.__main__ import main
from pipeline.tracking.journal import Journal, journals
from pipeline.tracking.sender import Sender, sync
from pipeline.tracking.store import Store
from pipeline.tracking.surroundings import escaped, sqlite_uri, store_uri

NAME = "a%41 #ü+;?b=c&%"


def test_the_store_of_an_oddly_named_workspace_is_in_it(tmp_path, monkeypatch):
    root = tmp_path / NAME
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(store_uri(), root)
    run = store.client.create_run(store.experiment("x"))
    store.client.log_text(run.info.run_id, "hello", "notes/a.txt")
    (tmp_path / "b.txt").write_text("world")
    store.file(run.info.run_id, tmp_path / "b.txt", "notes")
    listed = [file.path for file in store.client.list_artifacts(run.info.run_id, "notes")]
    assert listed == ["notes/a.txt", "notes/b.txt"]
    got = [
        Path(store.client.download_artifacts(run.info.run_id, file)).read_text() for file in listed
    ]
    assert got == ["hello", "world"]
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "b.txt"}
    assert {path.name for path in root.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}
    with sqlite3.connect(root / "mlflow.db") as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run.info.run_id,)]


def test_a_plain_path_is_written_as_it_is(tmp_path):
    assert sqlite_uri(tmp_path / "mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


def test_who_sends_to_a_store_is_not_locked_out_of_it(tmp_path):
    (tmp_path / ".tracking").mkdir()
    behind = pytest.raises(MlflowException, match="credential")  # what comes behind the lock
    with surroundings.lock(tmp_path / ".tracking", "databricks"), behind:
        Store("databricks", tmp_path)


def seen(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a workspace, in which the test goes on."""
    copy = folder.with_name(f"{folder.name}-copy ü")
    shutil.copytree(folder, copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    return copy


def test_the_store_of_a_copied_workspace_writes_nothing_to_the_original(
    tmp_path, empty_store, monkeypatch, capsys
):
    old = tmp_path / "wörk"
    old.mkdir()
    shutil.copy(empty_store, old)
    (tmp_path / "a.txt").write_text("a")
    store = Store(sqlite_uri(old / "mlflow.db"), old)
    run_id = store.client.create_run(store.experiment("x")).info.run_id
    store.file(run_id, tmp_path / "a.txt", "")
    store.client.set_tag(run_id, "other", f"{old}/mlartifacts2")
    new, before = copied(old, monkeypatch), seen(old)
    said = f"{new} was {old} when its runs were recorded, and nothing is sent there; `python -m"
    with pytest.raises(PipelineError) as error:
        Store(store_uri(), new)
    assert str(error.value).startswith(said)
    capsys.readouterr()
    assert main(["ui"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")

    assert main(["moved"]) == 0
    assert "2 values of" in capsys.readouterr().out
    assert main(["moved"]) == 0
    (backup,) = new.glob("mlflow.db.2*")
    moved = Store(store_uri(), new)
    (tmp_path / "a.txt").write_text("new")
    moved.file(moved.client.create_run(moved.experiment("x")).info.run_id, tmp_path / "a.txt", "")
    run = moved.client.get_run(run_id)
    assert run.info.artifact_uri == f"{escaped(new)}/mlartifacts/{run_id}/artifacts"
    assert run.data.tags["other"] == f"{old}/mlartifacts2"
    assert sorted(path.read_text() for path in new.rglob("a.txt")) == ["a", "new"]
    assert seen(old) == before
    with sqlite3.connect(backup) as one, sqlite3.connect(old / "mlflow.db") as other:
        assert list(one.iterdump()) == list(other.iterdump())


def test_journals_of_a_copied_workspace_wait_until_it_is_told(
    tmp_path, empty_store, monkeypatch, capsys
):
    old = tmp_path / "work"
    old.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(old))
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    monkeypatch.setattr(Journal, "is_live", lambda *_: False)
    settings = Tracking(
        enabled=True, experiment="x", flush_seconds=0.1, system_seconds=1, promote=False
    )
    run = tracking.start("train_cnn", settings, {}, {})
    (tmp_path / "a.txt").write_text("a")
    run.artifact(tmp_path / "a.txt")
    run.end()
    new, before = copied(old, monkeypatch), seen(old)
    shutil.copy(empty_store, new)
    assert sync(new / ".tracking") == 0
    capsys.readouterr()
    assert main(["sync"]) == 1
    assert f": it was recorded in {old}; after a move `python -m" in capsys.readouterr().out
    tracking.start("train_cnn", settings, {}, {}).end()  # the copy's own
    assert seen(old) == before
    capsys.readouterr()
    assert main(["moved"]) == 0
    assert capsys.readouterr().out.endswith(f"those of {new} now; 2 run(s) are pending\n")
    assert main(["sync"]) == 0
    assert len(Store(store_uri(), new).find("stage", "train_cnn")) == 2
    assert [path.read_text() for path in (new / "mlartifacts").rglob("a.txt")] == ["a"]
    assert seen(old) == before


def test_a_copy_leaves_what_the_original_has_on_a_common_server_alone_until_it_is_told(
    tmp_path, empty_store, monkeypatch, capsys
):
    old, uri = tmp_path / "work", sqlite_uri(tmp_path / "common.db")
    shutil.copy(empty_store, tmp_path / "common.db")
    old.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(old))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    process = {"pid": os.getpid(), "created": surroundings.created(os.getpid())}
    dvc = {"stage": "train", "command": ["dvc", "repro"], "process": process}
    monkeypatch.setattr(surroundings, "dvc", lambda: dvc)
    settings = Tracking(
        enabled=True, experiment="x", flush_seconds=0.1, system_seconds=1, promote=False
    )
    run = tracking.start("train_cnn", settings, {}, {})
    (journal,) = [journal for journal, _ in journals(old / ".tracking")]
    journal.note_source(journal.begin(), {})
    run.metrics({"train/loss": 1.0})
    sender = Sender(old / ".tracking", uri)
    assert sender.step()
    store = Store(uri, old)
    new = copied(old, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(surroundings, "is_alive", lambda *_: False)  # also for the copy
    monkeypatch.setattr("pipeline.tracking.journal.is_alive", lambda *_: False)
    monkeypatch.setattr("pipeline.tracking.parents.is_alive", lambda *_: False)

    def found() -> list[tuple[str, str]]:
        runs = store.client.search_runs([store.experiment("x")])
        return sorted((run.data.tags["stage"], run.info.status) for run in runs)

    dvc.clear()
    tracking.start("prepare", settings, {}, {}).end()  # the copy's own, and newer
    tracking.start("train_cnn", settings, {}, {}, id=run.id).end()  # goes on as a run of its own
    capsys.readouterr()
    assert main(["sync"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "2 run(s) sent, 1 pending",
        f"{new}/.tracking/{run.id} for {uri}: it was recorded in {old}; after a move "
        "`python -m pipeline.tracking moved` makes it this folder's, in a copy "
        f"`python -m pipeline.tracking drop {uri}` deletes it",
    ]
    running = [("dvc", "RUNNING"), ("prepare", "FINISHED"), ("train_cnn", "FINISHED")]
    assert found() == [*running, ("train_cnn", "RUNNING")]
    assert main(["moved"]) == 0
    assert main(["sync"]) == 0
    assert [status for _, status in found()] == ["KILLED", "FINISHED", "FINISHED", "KILLED"]
    assert not list((new / ".tracking").glob("dvc-*.json"))


@pytest.mark.parametrize("content", [b"", b"not a database"])
def test_a_store_that_is_none_is_not_moved(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "mlflow.db").write_bytes(content)
    assert main(["moved"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/mlflow.db can't be read: ")
    assert (tmp_path / "mlflow.db").read_bytes() == content
