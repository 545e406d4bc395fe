"""The default store is in the workspace, whatever the workspace is called."""

import sqlite3
from pathlib import Path

from pipeline.tracking.journal import sqlite_uri, store_uri
from pipeline.tracking.store import Store

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
