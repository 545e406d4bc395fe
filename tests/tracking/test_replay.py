"""What a sender does about a store in an odd state: each journal is sent in this process."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.settings import Tracking
from pipeline.tracking import delivery, surroundings
from pipeline.tracking.__main__ import main
from pipeline.tracking.journal import Journal
from pipeline.tracking.parents import Parent, parent_file, read_parents
from pipeline.tracking.sender import Sender, leftovers
from tests.tracking.conftest import points, runs

Start = Callable[..., tuple[tracking.Run, Journal]]


@pytest.fixture
def start(workspace: Path, settings: Tracking, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Begins runs that nobody sends until the test does."""
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    impatient = settings.model_copy(update={"flush_seconds": 0.0})

    def start(**how: Any) -> tuple[tracking.Run, Journal]:
        run = tracking.start("train_cnn", impatient, **{"config": {"lr": 0.1}, "card": {}, **how})
        assert run.id
        journal = Journal(workspace / ".tracking" / run.id)
        begin = journal.begin()
        assert begin
        journal.note_source(begin, {})
        return run, journal

    return start


def send(journal: Journal, *, dead: bool = True) -> bool:
    """Send for as long as something moves; returns whether the store has all of it.

    Nobody else's journal is looked at, but for what it will have; `dead`: its stage is over.
    """
    begin = journal.begin()
    assert begin
    sender = Sender(journal.folder.parent, begin.uri)
    sender.pending = lambda: (  # type: ignore[method-assign]
        [] if journal.is_complete() else [(journal, begin)]
    )
    if dead:
        journal.is_live = lambda begin: False  # type: ignore[method-assign]
    while sender.step():
        pass
    return journal.is_complete()


def curve(client: Any, run: Any) -> list[int]:
    return [step for step, _ in points(client, run.info.run_id, "train/loss")]


def test_a_value_that_a_resumed_run_has_changed_is_a_tag(
    start: Start, client: Any, settings: Tracking
):
    run, journal = start()
    send(journal)
    start(id=run.id, config={"lr": 0.2, "seed": 1})[0].end()
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert found.data.params == {"lr": "0.1", "seed": "1"}
    assert found.data.tags["changed.lr"] == "0.1 → 0.2"


def test_without_patience_all_is_sent_that_can_be(start: Start, client: Any, settings: Tracking):
    run, journal = start()
    for step in range(4000):
        run.metrics({"train/loss": 1.0, "train/a long name of a metric": 2.0, "x": 3.0}, step=step)
    run.end()
    assert journal.path.stat().st_size > 500_000  # more than is read at once
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert found.info.status == "FINISHED"
    assert len(curve(client, found)) == 4000


def test_what_is_in_a_journal_not_sent_yet_is_waited_for(
    start: Start, client: Any, settings: Tracking
):
    training, first = start()
    training.tags({"weights.md5": "abc"})
    training.end()
    evaluation, second = start()
    evaluation.metrics({"test/accuracy": 0.9}, target="trained:abc")
    evaluation.end()
    assert not send(second)
    assert f"the run of {training.id} is not in the store yet" in second.state().error
    assert send(first)
    assert send(second)
    trained, evaluated = runs(client, settings.experiment)
    assert trained.data.metrics == {"test/accuracy": 0.9}
    assert evaluated.data.tags["trained_by"] == trained.info.run_id


def test_weights_that_nobody_knows_are_not_waited_for(
    start: Start, client: Any, settings: Tracking
):
    pending, _ = start()  # is about other weights
    pending.tags({"weights.md5": "other"})
    evaluation, journal = start()
    evaluation.metrics({"test/accuracy": 0.9}, target="trained:unknown")
    evaluation.end()
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert found.data.tags["trained_by"] == "not found"
    pending.end()


def test_a_run_that_was_deleted_in_the_ui_is_done(start: Start, client: Any, settings: Tracking):
    run, journal = start()
    run.metrics({"train/loss": 1.0})
    assert not send(journal, dead=False)
    (found,) = runs(client, settings.experiment)
    client.delete_run(found.info.run_id)
    run.metrics({"train/loss": 2.0}, step=1)
    run.end()
    assert send(journal)
    assert runs(client, settings.experiment) == []


def test_a_store_that_was_wiped_before_the_end_gets_everything_again(
    start: Start, client: Any, settings: Tracking
):
    run, journal = start()
    for step in range(5):
        run.metrics({"train/loss": 1.0}, step=step)
    assert not send(journal, dead=False)
    (found,) = runs(client, settings.experiment)
    client.delete_run(found.info.run_id)  # as if the store had been replaced
    client._tracking_client.store._hard_delete_run(found.info.run_id)
    run.end()  # all else is in the store that was
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert found.info.status == "FINISHED"
    assert curve(client, found) == list(range(5))


def test_what_answered_in_place_of_the_store_is_forgotten(
    start: Start, client: Any, settings: Tracking, monkeypatch: pytest.MonkeyPatch
):
    run, journal = start()
    run.end()
    with monkeypatch.context() as other:  # as MLflow reads `{}`
        other.setattr("pipeline.tracking.store.Store.find_or_create", lambda *_: "")
        assert not send(journal)
    assert send(journal)
    assert len(runs(client, settings.experiment)) == 1


def test_a_store_that_was_wiped_before_it_had_the_run_gets_it(
    start: Start, client: Any, settings: Tracking, workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    run, journal = start()
    run.metrics({"train/loss": 1.0})
    run.end()
    with monkeypatch.context() as down:
        down.setattr("mlflow.tracking.MlflowClient.create_run", lambda *_, **__: 1 / 0)
        assert not send(journal)
    with sqlite3.connect(workspace / "mlflow.db") as database:
        database.execute("DELETE FROM experiments WHERE name = ?", [settings.experiment])
    database.close()
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert curve(client, found) == [0]


def test_a_run_that_goes_on_with_another_store_is_whole_there(
    start: Start,
    client: Any,
    settings: Tracking,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from mlflow.tracking import MlflowClient

    shutil.copy(empty_store, tmp_path / "other.db")
    run, journal = start()
    run.metrics({"train/loss": 1.0}, step=0)
    assert not send(journal, dead=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    again, _ = start(id=run.id)
    again.metrics({"train/loss": 1.0}, step=1)
    again.end()
    assert send(journal)
    other = MlflowClient(f"sqlite:///{tmp_path}/other.db")
    (found,) = runs(other, settings.experiment)
    assert found.info.status == "FINISHED"
    assert curve(other, found) == [0, 1]
    assert len(runs(client, settings.experiment)) == 1


def test_damaged_notes_of_what_a_stage_runs_from_and_below_are_as_none(
    start: Start, client: Any, settings: Tracking, monkeypatch: pytest.MonkeyPatch
):
    dvc: dict[str, Any] = {"stage": "train", "process": {"pid": 0, "created": 0.5}}
    monkeypatch.setattr(surroundings, "dvc", lambda: dvc)
    run, journal = start()
    run.end()
    begin = journal.begin()
    assert begin
    path, whole = parent_file(journal.folder.parent, begin), asdict(Parent(begin))
    strange: list[Any] = [[], 3, None, {}, {"begin": 3}, {"begin": {}}, {**whole, "new": 1}]
    damaged = ({"process": process} for process in (None, 3, {}, {"pid": 0}))
    strange += [{**whole, "begin": {**vars(begin), "dvc": one}} for one in damaged]
    for text in ("", "{", "\0", *map(json.dumps, strange)):
        path.write_text(text)
        assert read_parents(journal.folder.parent, begin.uri) == []
    for text in ("", "{", "\0", "[]", "3", "null", "{}"):
        (journal.folder / "source.json").write_text(text)
        assert journal.source(begin) == {}
    (journal.folder / "source.json").write_text('{"start": 1, "dirty": true}')
    assert send(journal)
    (found,) = [one for one in runs(client, settings.experiment) if "journal" in one.data.tags]
    assert (found.data.params, "refused" in found.data.tags) == ({"lr": "0.1"}, False)
    assert not path.exists()


def test_what_no_encoding_has_is_stored_escaped(
    start: Start, client: Any, settings: Tracking, tmp_path: Path
):
    odd = os.fsdecode(b"a\xff")  # as Python reads such a name
    (tmp_path / odd).write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / odd).write_text("text")
    run, journal = start(config={"where": odd, odd: 1})
    run.tags({"where": [odd], "smile": "\N{GRINNING FACE}", odd: 1})
    run.metrics({odd: 1.0, "train/loss": 1.0})
    run.input(tmp_path / odd, odd)
    run.output(tmp_path / odd)
    run.artifact(tmp_path / odd, odd)
    run.artifact(tmp_path / "folder")
    run.artifact(tmp_path / "folder", target=f"beside:{odd}")
    run.end("FAILED", odd)
    assert send(journal)
    found = {one.info.run_name: one for one in runs(client, settings.experiment)}
    assert set(found) == {"train_cnn", "a\\udcff"}
    one = found["train_cnn"]
    assert one.data.params["where"] == one.data.tags["error"] == "a\\udcff"
    assert one.data.tags["smile"] == "\N{GRINNING FACE}"
    listed = client.list_artifacts(one.info.run_id, "a\\udcff")
    assert [file.path for file in listed] == ["a\\udcff/a\\udcff"]


def test_what_stands_for_a_dvc_process_is_dropped_with_its_last_journal(
    start: Start, client: Any, settings: Tracking, monkeypatch: pytest.MonkeyPatch
):
    dvc = {"stage": "train", "command": [], "process": {"pid": 0, "created": 1.5}}
    monkeypatch.setattr(surroundings, "dvc", lambda: dvc)
    stages = [start(), start()]
    (_, first), (_, second) = stages
    begin = second.begin()
    assert begin
    path, live = parent_file(first.folder.parent, begin), [first.id, second.id]
    monkeypatch.setattr(Journal, "is_live", lambda self, _: self.id in live)
    assert Sender(first.folder.parent, begin.uri).step()
    live.remove(first.id)
    assert main(["drop", begin.uri]) == 0
    assert (first.folder.exists(), second.folder.exists(), path.exists()) == (False, True, True)
    live.remove(second.id)
    assert main(["drop", begin.uri]) == 0
    assert (second.folder.exists(), path.exists()) == (False, False)
    for run, _ in stages:
        run.end()


@pytest.mark.parametrize("deleted_by", ["the sender", "drop"])
def test_a_journal_that_a_kill_left_half_deleted_is_not_pending_and_is_deleted(
    deleted_by: str,
    start: Start,
    client: Any,
    settings: Tracking,
    monkeypatch: pytest.MonkeyPatch,
):
    run, journal = start()
    run.end()
    assert send(journal)
    for path in (journal.path, journal.folder / "state.json"):
        path.unlink()
    place = journal.folder.parent
    begin = journal.begin()
    assert begin
    Sender(place, begin.uri).step()
    assert journal.folder.exists()  # this stage lives: somebody has deleted the file by hand
    monkeypatch.setattr(Journal, "is_live", lambda self, _: False)
    assert leftovers(place) == []
    if deleted_by == "drop":
        assert main(["drop", begin.uri]) == 0
    else:
        Sender(place, begin.uri).step()
    assert not journal.folder.exists()
    assert len(runs(client, settings.experiment)) == 1


@pytest.mark.parametrize("when", ["at an epoch", "at the end"])
def test_what_git_refuses_to_say_is_said_once_and_is_a_tag(when, start, client, settings, capsys):
    run, journal = start()
    journal.note_source(journal.begin(), {"refused": "fatal: not yours"})
    if when == "at an epoch":
        run.sync()
        run.sync()
    run.end()
    assert capsys.readouterr().err.count("git says: fatal: not yours\n") == 1
    assert send(journal)
    (found,) = runs(client, settings.experiment)
    assert found.data.tags["source.git"] == "fatal: not yours"


def test_what_git_refuses_is_said_though_a_sender_takes_the_end_at_once(start, monkeypatch, capsys):
    run, journal = start()
    journal.note_source(journal.begin(), {"refused": "fatal: not yours"})
    monkeypatch.setattr(Journal, "is_complete", lambda _: True)
    run.end()
    assert "git says: fatal: not yours\n" in capsys.readouterr().err
