"""Real stages and their store: it never changes what they compute, and gets all of it later."""

import csv
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.tracking.journal import journals, read
from pipeline.tracking.operations import Metrics
from tests.tracking.conftest import Flaky, Server, fill, points, runs, sync, wait_for
from tests.workspace import BARE, QUICK, Nursery, outputs

TROUBLES = ("absent", "hanging", "500", "locked", "killed", "full")


@dataclass
class Trouble:
    """A store in trouble.

    Attributes:
        begins: the trouble, in the middle of a training; None when it is there from the start.
        ends: the trouble.
    """

    uri: str
    ends: Callable[[], Any]
    begins: Callable[[], Any] | None = None


@pytest.fixture
def trouble(request: pytest.FixtureRequest, own_workspace: Path) -> Iterator[Trouble]:
    from mlflow.tracking import MlflowClient

    with ExitStack() as stack:
        match request.param:
            case "absent" | "killed":
                server = Server(own_workspace)
                stack.callback(server.kill)
                found = Trouble(server.uri, server.start)
                if request.param == "killed":
                    server.start()
                    found.begins = server.kill
            case "hanging" | "500":
                kind = "unanswered" if request.param == "hanging" else "unheard"
                flaky = Flaky(request.getfixturevalue("server").port, kinds=(kind,))
                stack.enter_context(flaky)
                found = Trouble(f"http://127.0.0.1:{flaky.port}", flaky.recover)
            case "locked":
                uri = f"sqlite:///{own_workspace}/mlflow.db"
                MlflowClient(uri).search_experiments()
                lock = sqlite3.connect(own_workspace / "mlflow.db", isolation_level=None)
                stack.callback(lock.close)
                lock.execute("BEGIN EXCLUSIVE")
                found = Trouble(uri, lock.close)
            case "full":
                disk = request.getfixturevalue("disk")
                found = Trouble(f"sqlite:///{disk}/store.db", (disk / "filler").unlink)
                found.begins = lambda: fill(disk)
        yield found


def train(nursery: Nursery, folder: Path, *more: str, **how: Any) -> Any:
    """Start a training of four epochs whose outputs go to `folder`."""
    places = [f"output={folder}/model", f"curve={folder}/curve.csv"]
    return nursery.start("train_rnn", *QUICK["rnn"], *places, *more, DVC_ROOT=str(folder), **how)


@pytest.fixture(scope="module")
def untracked(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the training writes that no store hears of."""
    folder = tmp_path_factory.mktemp("untracked")
    ended = train(nursery, folder, "tracking=off").wait()
    assert ended.status == 0, ended.output
    return outputs(folder)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES, indirect=True)
def test_whatever_the_store_does_the_weights_are_the_same_and_it_gets_the_curve_later(
    trouble: Trouble, untracked: dict[str, bytes], nursery: Nursery, own_workspace: Path
) -> None:
    from mlflow.tracking import MlflowClient

    folder, experiment = own_workspace, own_workspace.name

    def loss() -> list[tuple[int, float]]:
        client = MlflowClient(trouble.uri)
        found = runs(client, experiment)
        return points(client, found[0].info.run_id, "train/loss") if found else []

    def error() -> list[str]:
        return [text for one, _ in journals(folder / ".tracking") if (text := one.state().error)]

    stage = train(
        nursery, folder, f"tracking.experiment={experiment}", "tracking.flush_seconds=1",
        kill="pipeline.training.loop:Loop.end_epoch:after:2:STOP",  # until what follows happened
        MLFLOW_TRACKING_URI=trouble.uri, MLFLOW_HTTP_REQUEST_TIMEOUT="1",
    )  # fmt: skip
    try:
        wait_for(lambda: psutil.Process(stage.pid).status() == psutil.STATUS_STOPPED, 60)
        if trouble.begins:
            before = wait_for(loss, 60)
            trouble.begins()
        else:
            before = []
            wait_for(error, 60)
        assert "epoch 2/4" in stage.output()
        assert "epoch 3/4" not in stage.output()
    finally:
        stage.kill(signal.SIGCONT)
        ended = stage.wait()
    assert ended.status == 0, ended.output
    assert "epoch 4/4" in ended.output
    assert outputs(folder) == untracked
    (warning,) = (line for line in ended.output.splitlines() if line.startswith("tracking:"))
    assert re.search(r"tracking: [1-9]\d* records of this run are not in the store yet", warning)
    ((journal, _),) = journals(folder / ".tracking")
    assert f"they are kept in {journal.folder}, and the next stage or `make sync`" in warning

    wait_for(lambda: not senders(folder), 90)
    assert not journal.is_complete()
    trouble.ends()
    if before:
        assert loss() == before
    assert sync().splitlines()[-1] == "1 run(s) sent, 0 pending"
    (run,) = runs(MlflowClient(trouble.uri), experiment)
    assert run.info.status == "FINISHED"
    assert "refused" not in run.data.tags
    check_curve(loss(), folder / "curve.csv")
    assert run.data.params["training.epochs"] == "4"
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name.endswith("data/audio")
    client, made_by = MlflowClient(trouble.uri), f"source_run_id = '{run.info.run_id}'"
    (model,) = client.search_logged_models([run.info.experiment_id], made_by)
    assert model.status == "READY"
    assert not journal.folder.exists()


def senders(folder: Path) -> list[psutil.Process]:
    """Processes that send the journals of that workspace."""
    place = str(folder / ".tracking")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(place) for word in process.info["cmdline"] or ())
    ]


def check_curve(found: list[tuple[int, float]], curve: Path) -> None:
    """Every second step and the last of each epoch is there, once, and gives the epoch's mean."""
    rows = list(csv.DictReader(curve.read_text().splitlines()))
    assert len(rows) == 4
    first = 0
    for row in rows:
        last = int(row["step"])
        wanted = [step for step in range(first + 1, last + 1) if step % 2 == 0 or step == last]
        mine = [(step, value) for step, value in found if first < step <= last]
        assert [step for step, _ in mine] == wanted
        losses = sum(
            value * (step - before)
            for (step, value), before in zip(mine, [first, *wanted], strict=False)
        )
        assert losses / (last - first) == pytest.approx(float(row["train_loss"]))
        first = last
    assert max(step for step, _ in found) == first


@pytest.mark.slow
def test_what_was_logged_is_forced_to_the_disk_at_the_end_of_each_epoch(
    nursery: Nursery, own_workspace: Path
) -> None:
    """The second time, by when the journal has the second epoch's validation, it is killed."""
    ended = train(nursery, own_workspace, kill="pipeline.tracking.journal:Log.sync:before:2").wait()
    assert ended.status == -signal.SIGKILL, ended.output
    ((journal, _),) = journals(own_workspace / ".tracking")
    logged = [one for one, _ in read(journal.path) if isinstance(one, Metrics)]
    assert sum("validation/loss" in one.values for one in logged) == 2
    assert "validation/loss" in logged[-1].values
    wait_for(lambda: not senders(own_workspace), 90)


@pytest.mark.slow
def test_a_better_model_becomes_champion_unless_promotion_is_off(
    nursery: Nursery, own_workspace: Path
) -> None:
    from mlflow.tracking import MlflowClient

    folder = own_workspace

    def run(stage: str, *arguments: str) -> None:
        ended = nursery.run(stage, *arguments, "threads=1", DVC_ROOT=str(folder))
        assert ended.status == 0, ended.output
        assert "tracking:" not in ended.output

    def evaluate(name: str, *more: str) -> None:
        run(
            "evaluate", "model=cnn", *BARE, f"weights={folder}/{name}/model",
            f"curve={folder}/{name}/curve.csv", f"plots={folder}/{name}/plots",
            f"metrics={folder}/{name}/metrics.json", *more,
        )  # fmt: skip

    def aliases() -> dict[str, int]:
        return dict(client.get_registered_model("image-classifier").aliases)

    for name, epochs in (("worse", 1), ("better", 4)):
        run(
            "train_cnn", *QUICK["cnn"], f"training.epochs={epochs}",
            f"output={folder}/{name}/model", f"curve={folder}/{name}/curve.csv",
        )  # fmt: skip
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    evaluate("worse")
    assert aliases() == {"candidate": 1, "champion": 1}
    evaluate("better", "tracking.promote=false")
    assert aliases() == {"candidate": 2, "champion": 1}
    tags = client.get_model_version("image-classifier", "2").tags
    assert tags["decision"] == "champion stays: promotion is off (tracking.promote)"
    evaluate("better")
    assert aliases() == {"candidate": 2, "champion": 2}
    tags = client.get_model_version("image-classifier", "2").tags
    assert tags["decision"].startswith("version 2 follows 1 as champion: 2 does better on ")
