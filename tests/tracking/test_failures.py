"""Whatever happens to the store or a process: the stage ends well, nothing is lost or doubled."""

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import tracking
from pipeline.settings import Tracking
from tests.tracking.conftest import (
    Flaky,
    Server,
    fill,
    git,
    points,
    runs,
    stage,
    sync,
    text,
    wait_for,
)

REPOSITORY = Path(__file__).parents[2]

TRAIN = """
run = tracking.start("train_cnn", settings, {"lr": 0.1}, {"device": "cpu"}, id=RESUME)
print(run.id, flush=True)
for step in range(FIRST, LAST):
    run.metrics({"train/loss": 1 / (step + 1)}, step=step)
    time.sleep(PAUSE)
print("logged", flush=True)
"""


def train(
    first: int = 0, last: int = 200, pause: float = 0.01, resume: str | None = None, end: str = ""
) -> str:
    body = TRAIN.replace("FIRST", str(first)).replace("LAST", str(last))
    return body.replace("PAUSE", str(pause)).replace("RESUME", repr(resume)) + end


END = "run.end()\nassert 'mlflow' not in sys.modules\n"


def curve(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / (step + 1)) for step in range(last)]


def check_samples(client: Any, run_id: str) -> None:
    """Samples of the machine are there, each once."""
    found = points(client, run_id, "system/cpu_utilization_percentage")
    assert found
    assert [step for step, _ in found] == list(range(len(found)))


def done(process: subprocess.Popen[str]) -> str:
    """What a stage that must succeed wrote to stderr."""
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return errors


class TestServer:
    @pytest.mark.slow
    def test_absent_then_killed_then_silent_it_gets_every_point_once(
        self, own_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.tracking import MlflowClient

        server = Server(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        before = done(stage(REPOSITORY, train(end=END), "absent", flush=0.5))
        (line,) = before.splitlines()
        assert "records of this run are not in the store yet" in line
        assert "make sync" in line
        assert str(own_workspace / ".tracking") in line
        assert "0 run(s) sent, 1 pending" in sync(status=1)
        server.start()
        try:
            body = train(last=3000, end=END)
            running = stage(REPOSITORY, body, "killed", MLFLOW_HTTP_REQUEST_TIMEOUT="1")
            assert running.stdout
            running.stdout.readline()
            log = own_workspace / ".tracking" / "sender.log"
            client = MlflowClient(server.uri)
            wait_for(lambda: runs(client, "killed"))
            # the next stage sends what was left
            wait_for(lambda: [run.info.status for run in runs(client, "absent")] == ["FINISHED"])
            server.kill()
            time.sleep(2)
            server.start()
            (run,) = wait_for(lambda: runs(client, "killed"))
            have = len(points(client, run.info.run_id, "train/loss"))
            wait_for(lambda: len(points(client, run.info.run_id, "train/loss")) > have)
            said = log.read_text()
            server.stop_answering()
            # it will get to what it was sent, and what was sent again as no answer came
            wait_for(lambda: "timeout" in log.read_text().removeprefix(said).lower())
            server.answer_again()
            assert done(running) == ""
            sync()
            for name, last in (("absent", 200), ("killed", 3000)):
                (run,) = runs(client, name)
                assert run.info.status == "FINISHED"
                assert points(client, run.info.run_id, "train/loss") == curve(last)
            check_samples(client, run.info.run_id)
            assert not list((own_workspace / ".tracking").glob("*/journal.jsonl"))
        finally:
            server.kill()

    @pytest.mark.slow
    def test_answers_that_get_lost_or_are_500_double_nothing(
        self,
        server: Server,
        own_workspace: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: Tracking,
    ) -> None:
        from mlflow.tracking import MlflowClient

        with Flaky(server.port) as flaky:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{flaky.port}")
            # by chance many requests in a row fail, with longer and longer pauses between them
            patient = settings.model_copy(update={"flush_seconds": 120.0})
            run = tracking.start("train_cnn", patient, {"lr": 0.1}, {})
            for step, value in curve(300):
                run.metrics({"train/loss": value}, step=step)
                time.sleep(0.005)
            figure = tmp_path / "figure.txt"
            figure.write_text("drawn")
            run.artifact(figure, "figures")
            run.end()
        assert flaky.failures > 5
        client = MlflowClient(server.uri)
        (found,) = runs(client, settings.experiment)
        assert found.info.status == "FINISHED"
        assert "refused" not in found.data.tags
        assert points(client, found.info.run_id, "train/loss") == curve(300)
        check_samples(client, found.info.run_id)
        assert text(client, found.info.run_id, "figures/figure.txt", tmp_path) == "drawn"

    @pytest.mark.slow
    def test_one_that_answers_500_for_long_is_a_warning_and_gets_every_point_later(
        self, server: Server, own_workspace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.tracking import MlflowClient

        with Flaky(server.port, kinds=("unheard",)) as flaky:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{flaky.port}")
            errors = done(stage(REPOSITORY, train(last=50, end=END), "500 for long", flush=5.0))
            assert "not in the store yet" in errors
            assert flaky.failures > 1
            client = MlflowClient(server.uri)
            assert runs(client, "500 for long") == []
            flaky.recover()
            sync()
        (run,) = runs(client, "500 for long")
        assert run.info.status == "FINISHED"
        assert points(client, run.info.run_id, "train/loss") == curve(50)
        check_samples(client, run.info.run_id)

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["variables", "address"])
    def test_a_password_opens_one_behind_a_guard_and_is_kept_nowhere(
        self, server: Server, own_workspace: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        from mlflow.tracking import MlflowClient

        name, password = f"guarded by {how}", "p4ssw0rd-of-the-team"
        with Flaky(server.port, password=password) as guard:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{guard.port}")
            errors = done(stage(REPOSITORY, train(last=20, end=END), name, flush=1.0))
            assert "not in the store yet" in errors
            if how == "variables":
                monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            else:
                address = f"http://team:{password}@127.0.0.1:{guard.port}"
                monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            failed = "run.end('FAILED', 'to keep its journal')\n"
            assert done(stage(REPOSITORY, train(last=20, end=failed), name)) == ""
            kept = [path for path in own_workspace.rglob("*") if path.is_file()]
            assert kept
            assert [path for path in kept if password.encode() in path.read_bytes()] == []
            sync()
        found = runs(MlflowClient(server.uri), name)
        assert len(found) == 2
        for run in found:
            assert points(MlflowClient(server.uri), run.info.run_id, "train/loss") == curve(20)
            assert password not in str(run.data.tags | run.data.params)

    @pytest.mark.slow
    def test_a_password_in_the_address_outlives_the_opening_of_another_store(
        self, server: Server, own_workspace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Flaky(server.port, password="x") as guard:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://team:x@127.0.0.1:{guard.port}")
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            body = f"""
from contextlib import suppress
from pipeline.tracking.store import MlflowException, Store
with suppress(MlflowException):
    Store("http://127.0.0.1:9", Path.cwd())
store = Store("http://127.0.0.1:{guard.port}", Path.cwd())
print("seen:", [one.name for one in store.client.search_experiments()], file=sys.stderr)
"""
            said = done(stage(own_workspace, body, "none", PYTHONPATH=str(REPOSITORY)))
            assert "'Default'" in said.partition("seen:")[2]

    def test_one_that_never_comes_back_costs_the_patience_and_no_more(
        self, own_workspace: Path, settings: Tracking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Flaky(0, kinds=("unanswered",)) as flaky:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{flaky.port}")
            begin = time.monotonic()
            errors = done(stage(REPOSITORY, train(last=20, end=END), "x", flush=1.0))
            assert "not in the store yet" in errors
            assert time.monotonic() - begin < 15


class TestSqlite:
    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [6, 60])
    def test_locked_for_longer_than_a_request_waits_it_gets_every_point_once(
        self,
        seconds: float,
        workspace: Path,
        settings: Tracking,
        client: Any,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        name = f"locked for {seconds} s"
        impatient = settings.model_copy(update={"flush_seconds": 0.5, "experiment": name})
        run = tracking.start("train_cnn", impatient, {}, {})
        for step, value in curve(20):
            run.metrics({"train/loss": value}, step=step)
        (found,) = wait_for(lambda: runs(client, name))
        wait_for(lambda: points(client, found.info.run_id, "train/loss"))
        lock = sqlite3.connect(workspace / "mlflow.db", isolation_level=None, timeout=60)
        lock.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        for step, value in curve(50)[20:]:
            run.metrics({"train/loss": value}, step=step)
        run.end()
        assert "make sync" in capfd.readouterr().err
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        lock.execute("ROLLBACK")
        lock.close()
        (found,) = wait_for(lambda: [r for r in runs(client, name) if r.info.status == "FINISHED"])
        assert len(runs(client, name)) == 1
        assert points(client, found.info.run_id, "train/loss") == curve(50)
        check_samples(client, found.info.run_id)

    @pytest.mark.slow
    @pytest.mark.parametrize(("when", "last"), [("at the start", 20), ("in mid-run", 2000)])
    def test_a_full_disk_is_a_warning(
        self,
        own_workspace: Path,
        disk: Path,
        monkeypatch: pytest.MonkeyPatch,
        when: str,
        last: int,
    ) -> None:
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{disk}/store.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

        def stored() -> list[tuple[int, float]]:
            found = runs(MlflowClient(uri), "full") if (disk / "store.db").exists() else []
            return points(MlflowClient(uri), found[0].info.run_id, "train/loss") if found else []

        if when == "at the start":
            fill(disk)
        running = stage(REPOSITORY, train(last=last, end=END), "full", flush=2.0)
        if when == "in mid-run":
            wait_for(stored)
            fill(disk)
        assert "not in the store yet" in done(running)
        before = len(stored())
        assert before < last
        assert (before > 0) == (when == "in mid-run")
        (disk / "filler").unlink()
        sync()
        assert stored() == curve(last)
        (run,) = runs(MlflowClient(uri), "full")
        assert run.info.status == "FINISHED"
        check_samples(MlflowClient(uri), run.info.run_id)


class TestKilled:
    def test_a_killed_stage_is_closed_as_killed_and_resumed_without_gaps_or_doubles(
        self, workspace: Path, settings: Tracking, client: Any
    ) -> None:
        name = settings.experiment
        end = "run.metrics({'a': 1.0}, target='beside:baseline')\nprint('beside', flush=True)\n"
        end += "time.sleep(60)"
        process = stage(REPOSITORY, train(last=120, pause=0.0, end=end), name)
        assert process.stdout
        journal = process.stdout.readline().strip()
        assert process.stdout.readline() == "logged\n"
        assert process.stdout.readline() == "beside\n"
        process.kill()
        process.wait()
        wait_for(lambda: [r.info.status for r in runs(client, name)] == ["KILLED"] * 2)
        assert [r for r in runs(client, name) if "error" in r.data.tags]
        with (workspace / ".tracking" / journal / "journal.jsonl").open("a") as file:
            file.write('{"op":"metrics","t":1,"val')  # as kill -9 may leave it
        # the checkpoint is older than the last point
        done(stage(REPOSITORY, train(80, 200, 0.0, journal, END), name))
        found = {run.info.run_name: run for run in runs(client, name)}
        run = found.pop("train_cnn")
        assert list(found) == ["baseline"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["resumed"] == "1"
        assert "error" not in run.data.tags
        assert points(client, run.info.run_id, "train/loss") == curve(200)
        check_samples(client, run.info.run_id)
        wait_for(lambda: not (workspace / ".tracking" / journal).exists())

    @pytest.mark.slow
    def test_a_stage_killed_with_its_sender_is_closed_by_the_next(
        self, workspace: Path, settings: Tracking, client: Any
    ) -> None:
        name = settings.experiment
        process = stage(REPOSITORY, train(last=50, pause=0.0, end="time.sleep(60)"), name)
        assert process.stdout
        process.stdout.readline()
        wait_for(lambda: runs(client, name))
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.wait()
        done(stage(REPOSITORY, train(last=3, end=END), name))
        ended = wait_for(
            lambda: [r for r in runs(client, name) if r.info.status == "KILLED"], seconds=30
        )
        assert points(client, ended[0].info.run_id, "train/loss") == curve(50)
        assert "ended without a word" in ended[0].data.tags["error"]
        assert len(runs(client, name)) == 2

    def test_a_killed_sender_is_replaced_at_the_end_of_the_epoch(
        self, workspace: Path, settings: Tracking, client: Any
    ) -> None:
        run = tracking.start("train_cnn", settings, {}, {})
        run.metrics({"train/loss": 1.0}, step=0)
        place = str(workspace / ".tracking")

        def senders() -> list[psutil.Process]:
            return [
                process
                for process in psutil.process_iter(["cmdline"])
                if any(word.startswith(place) for word in process.info["cmdline"] or ())
            ]

        def none_left() -> bool:
            for process in senders():
                process.kill()
            return not senders()

        wait_for(senders)
        wait_for(none_left)
        run.metrics({"train/loss": 0.5}, step=1)
        run.sync()
        run.end()
        (found,) = runs(client, settings.experiment)
        assert points(client, found.info.run_id, "train/loss") == curve(2)
        check_samples(client, found.info.run_id)


class TestTogether:
    @pytest.mark.slow
    def test_four_at_once_on_a_fresh_store_lose_nothing(self, own_workspace: Path) -> None:
        from mlflow.tracking import MlflowClient

        names = ["one", "one", "one", "two"]
        together = [stage(REPOSITORY, train(last=150, end=END), name) for name in names]
        assert [done(process) for process in together] == [""] * 4
        client = MlflowClient(f"sqlite:///{own_workspace}/mlflow.db")
        found = [*runs(client, "one"), *runs(client, "two")]
        assert len(runs(client, "one")) == 3
        assert len(runs(client, "two")) == 1
        assert len(client.search_experiments()) == 3
        for run in found:
            assert run.info.status == "FINISHED"
            assert points(client, run.info.run_id, "train/loss") == curve(150)
            check_samples(client, run.info.run_id)

    @pytest.mark.slow
    def test_two_clones_share_a_server(
        self, server: Server, settings: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.tracking import MlflowClient

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        name = settings.experiment
        clones = [tmp_path / "first", tmp_path / "second"]
        together = [
            stage(REPOSITORY, train(last=100, end=END), name, DVC_ROOT=str(clone))
            for clone in clones
            for _ in range(2)
        ]
        assert [done(process) for process in together] == [""] * 4
        client = MlflowClient(server.uri)
        assert len(runs(client, name)) == 4
        for run in runs(client, name):
            assert points(client, run.info.run_id, "train/loss") == curve(100)


class TestSecrets:
    TOKEN = "s3cr3t-t0ken-value"

    @pytest.fixture
    def store(self, clone: Path) -> Iterator[Path]:
        (clone / "params.yaml").write_text("train_cnn:\n  lr: 0.01\n  hub:\n    api_key: old\n")
        git(clone, "commit", "-qam", "with a key")
        git(clone, "remote", "add", "origin", f"https://me:{self.TOKEN}@host/team/repo.git")
        changed = f"train_cnn:\n  lr: 0.02\n  hub:\n    api_key: {self.TOKEN}\n"
        (clone / "params.yaml").write_text(changed)
        (clone / "pipeline" / "errors.py").write_text(f'PASSWORD = "{self.TOKEN}"\nlr = 0.5\n')
        (clone / "notes.txt").write_text(self.TOKEN)
        return clone

    def test_no_token_of_remote_config_or_diff_is_anywhere(
        self, store: Path, empty_store: Path
    ) -> None:
        from mlflow.tracking import MlflowClient

        body = f"""
config = {{"hub": {{"api_key": "{self.TOKEN}", "url": "https://me:{self.TOKEN}@host/x"}}}}
run = tracking.start("train_cnn", settings, config, {{}})
run.end("FAILED", "can't read https://me:{self.TOKEN}@host/x")
"""
        # the stage imports what the diff changed
        shutil.copy(empty_store, store)
        (store / "pipeline" / "errors.py").open("a").write("class PipelineError(Exception): ...\n")
        done(stage(store, body, "secret", MY_TOKEN=self.TOKEN))
        client = MlflowClient(f"sqlite:///{store}/mlflow.db")
        (run,) = runs(client, "secret")
        assert run.info.status == "FAILED"
        assert run.data.tags["error"] == "can't read https://host/x"
        assert run.data.tags["mlflow.source.git.repoURL"] == "https://host/team/repo.git"
        assert run.data.tags["mlflow.source.git.dirty"] == "true"
        assert run.data.params["hub.api_key"] == "***"
        diff = text(client, run.info.run_id, "source/uncommitted.diff", store.parent)
        assert "lr: 0.02" in diff
        assert 'PASSWORD = "***"' in diff
        assert "+    api_key: ***" in diff
        assert "notes.txt" in text(client, run.info.run_id, "source/untracked.txt", store.parent)
        places = [store / "mlflow.db", store / ".tracking", store / "mlartifacts"]
        files = [f for place in places for f in [place, *place.rglob("*")] if f.is_file()]
        assert len(files) > 5
        for file in files:
            assert self.TOKEN.encode() not in file.read_bytes(), file
