"""One process sends for all stages of a dvc process, and any of them may die."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import tracking
from pipeline.settings import Tracking
from pipeline.tracking import delivery
from pipeline.tracking.sender import leftovers
from tests.tracking.conftest import STAGE, Flaky, points, runs, sync, wait_for
from tests.tracking.test_failures import curve, train

REPOSITORY = Path(__file__).parents[2]

DVC = """
import subprocess, sys
for number, body in enumerate(sys.argv[1:]):
    stage = subprocess.Popen([sys.executable, "-c", body])
    while stage.wait() == 75:  # asks to be run again
        stage = subprocess.Popen([sys.executable, "-c", body])
    print("over", flush=True)
    sys.stdin.readline()
"""


class Dvc:
    """A process named dvc that runs stages one after the other, each when it is told to go on."""

    def __init__(self, folder: Path, experiment: str, *bodies: str, flush: float = 20.0) -> None:
        self._tracking = folder / ".tracking"
        script = folder / "dvc"
        script.write_text(DVC)
        head = STAGE.format(experiment=experiment, flush=flush)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *(head + body for body in bodies)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """What the stages said on stderr."""
        _, errors = self.process.communicate("\n" * 9, timeout=90)
        assert self.process.returncode == 0
        return errors

    def sender(self, besides: tuple[psutil.Process, ...] = ()) -> psutil.Process:
        """The one process that sends, when those that only note their stage's source are gone."""
        place = str(self._tracking)

        def find() -> psutil.Process | None:
            found = [
                process
                for process in psutil.process_iter(["cmdline"])
                if any(word.startswith(place) for word in process.info["cmdline"] or ())
                and process not in besides
            ]
            return found[0] if len(found) == 1 else None

        only: psutil.Process = wait_for(find)
        return only


@pytest.fixture
def experiment(
    workspace: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("DVC_STAGE", "train_cnn")
    return str(request.node.name)


def story(client: Any, experiment: str) -> tuple[Any, list[Any]]:
    """The run of the dvc process, closed, and those of its stages."""

    def closed() -> Any:
        found = [run for run in runs(client, experiment) if run.data.tags["stage"] == "dvc"]
        assert len(found) < 2
        return found and found[0].info.status != "RUNNING" and found[0]

    parent = wait_for(closed)
    children = [run for run in runs(client, experiment) if run.info.run_id != parent.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return parent, children


END = "run.end()\n"
WAIT = "sys.stdin.readline()\n"


@pytest.mark.slow
def test_one_process_sends_for_all_stages_and_when_it_is_killed_another_takes_over(
    workspace: Path, client: Any, experiment: str
) -> None:
    later = (
        "for step in range(30, 60):\n    run.metrics({'train/loss': 1 / (step + 1)}, step=step)\n"
    )
    dvc = Dvc(
        workspace, experiment, train(last=20, end=END), train(last=30, end=WAIT + later + END)
    )
    first = dvc.says()
    sender = dvc.sender()
    assert [dvc.says(), dvc.says()] == ["logged", "over"]
    dvc.go_on()
    second = dvc.says()
    assert dvc.says() == "logged"

    def sent() -> bool:
        known = [run for run in runs(client, experiment) if run.data.tags.get("journal") == second]
        return bool(known) and points(client, known[0].info.run_id, "train/loss") == curve(30)

    wait_for(sent)
    assert dvc.sender() == sender
    sender.kill()
    wait_for(lambda: not sender.is_running())
    dvc.go_on()
    assert dvc.end() == ""
    parent, children = story(client, experiment)
    assert parent.info.status == "FINISHED"
    for run, last in zip(children, (20, 60), strict=True):
        assert run.info.status == "FINISHED"
        assert points(client, run.info.run_id, "train/loss") == curve(last)
        assert run.data.tags["mlflow.source.git.commit"]
        assert run.data.metrics["system/process_memory_usage_megabytes"] > 1
    left = {path.name for path in (workspace / ".tracking").iterdir()}
    assert not left & {first, second}
    assert not [name for name in left if name.startswith("dvc-")]


@pytest.mark.slow
def test_killed_when_all_was_sent_the_next_one_closes_the_parent_and_changes_no_run(
    workspace: Path, client: Any, experiment: str
) -> None:
    dvc = Dvc(workspace, experiment, train(last=20, end=END))
    dvc.says()
    sender = dvc.sender()
    assert [dvc.says(), dvc.says()] == ["logged", "over"]
    sender.kill()
    assert dvc.end() == ""
    sync()
    parent, (run,) = story(client, experiment)
    assert (parent.info.status, run.info.status) == ("FINISHED", "FINISHED")
    assert "error" not in run.data.tags


@pytest.mark.slow
def test_a_run_that_goes_on_in_the_same_dvc_process_and_then_in_another_closes_both_parents(
    workspace: Path, client: Any, experiment: str
) -> None:
    def body(name: str) -> str:
        again = f"Path({str(workspace)!r}) / 'again'"
        first = f"again = {again}\nif not again.exists():\n    again.touch()\n    sys.exit(75)\n"
        return train(last=20, resume=name, end=first + END.replace("()", "('FAILED')"))

    name = "20260101-000000-train_cnn-0"
    dvc = Dvc(workspace, experiment, body(name))
    assert [dvc.says() for _ in range(5)] == [name, "logged"] * 2 + ["over"]
    assert dvc.end() == ""
    story(client, experiment)
    dvc = Dvc(workspace, experiment, train(last=30, resume=name, end=END))
    assert [dvc.says() for _ in range(3)] == [name, "logged", "over"]
    assert dvc.end() == ""

    def over() -> bool:
        parents = [r for r in runs(client, experiment) if r.data.tags["stage"] == "dvc"]
        return len(parents) == 2 and "RUNNING" not in {run.info.status for run in parents}

    wait_for(over)
    (run,) = [r for r in runs(client, experiment) if r.data.tags["stage"] != "dvc"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed"] == "2"
    assert points(client, run.info.run_id, "train/loss") == curve(30)


def test_each_stage_waits_its_own_patience_for_a_store_that_hangs(
    own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train_cnn")
    timed = "import time; begin = time.time(); run.end(); print(time.time() - begin, flush=True)\n"
    with Flaky(0, kinds=("unanswered",)) as flaky:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{flaky.port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        dvc = Dvc(own_workspace, "hangs", *[train(last=5, end=timed)] * 3, flush=1.0)
        waited = []
        for _ in range(3):
            dvc.says()
            assert dvc.says() == "logged"
            waited.append(float(dvc.says()))
            assert dvc.says() == "over"
            dvc.go_on()
        assert dvc.end().count("not in the store yet") == 3
        assert all(1 <= seconds < 4 for seconds in waited)


def test_a_journal_of_another_host_is_that_hosts_while_it_is_written_to(
    own_workspace: Path, settings: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    run = tracking.start("train_cnn", settings, {}, {})
    monkeypatch.undo()
    folder = own_workspace / ".tracking"
    assert leftovers(folder) == []
    os.utime(folder / str(run.id) / "journal.jsonl", (0, 0))
    assert [journal.id for journal, _ in leftovers(folder)] == [run.id]


def test_where_no_process_may_give_way_it_goes_on() -> None:
    """As in gVisor, whose scheduler knows one kind."""
    code = (
        "import os\n"
        "from pipeline.tracking.surroundings import give_way\n"
        "os.sched_setscheduler = lambda *_: os.open('/nowhere', 0)\n"
        "give_way()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
