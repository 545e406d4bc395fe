"""What a stage logs is read back from a real sqlite store and a real server."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.errors import PipelineError
from pipeline.settings import Tracking
from pipeline.tracking import delivery, surroundings
from pipeline.tracking.__main__ import main
from pipeline.tracking.journal import Journal
from pipeline.tracking.surroundings import store_uri
from tests.tracking.conftest import Server, points, runs, text, wait_for

CONFIG = {
    "optimizer": {"lr": 0.01, "betas": [0.9, 0.999]},
    "name": None,
    "text": "ü, 'quoted'",
    "long": "x" * 7000,
    "hub_token": "hf_abcdefghijklmnopqrstuv",
    "more": {"depth": 4},
}
CARD = {"device": "cpu", "threads": 2}


def log_everything(run: tracking.Run, folder: Path) -> None:
    for step in range(2500):
        run.metrics({"train/loss": 1 / (step + 1)}, step=step)
        time.sleep(0.0005)  # so that it takes as long as the start of the sender
    run.metrics({"validation/accuracy": float("nan"), "validation/loss": float("inf")}, step=1)
    figure = folder / "a figure.txt"
    figure.write_text("first")
    run.artifact(figure, "figures")
    figure.write_text("changed after it was logged")
    sheet = folder / "sheet"
    sheet.mkdir()
    (sheet / "one.txt").write_text("1")
    run.artifact(sheet)
    run.tags({"note": 3, "remote": "https://me:pa55@host/x.git"})


def check_everything(client: Any, experiment: str, folder: Path) -> None:
    (run,) = runs(client, experiment)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "train_cnn"
    assert points(client, run_id, "train/loss") == [(i, 1 / (i + 1)) for i in range(2500)]
    (nan,) = client.get_metric_history(run_id, "validation/accuracy")
    assert nan.value != nan.value
    assert run.data.metrics["validation/loss"] > 1e300
    assert run.data.params["optimizer.lr"] == "0.01"
    assert run.data.params["optimizer.betas"] == "[0.9, 0.999]"
    assert run.data.params["more.depth"] == "4"
    assert run.data.params["name"] == "null"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["truncated"] == "long"
    assert run.data.params["hub_token"] == "***"
    assert run.data.tags["remote"] == "https://host/x.git"
    assert run.data.tags["note"] == "3"
    assert run.data.tags["device.threads"] == "2"
    assert run.data.tags["stage"] == "train_cnn"
    assert "refused" not in run.data.tags
    assert text(client, run_id, "figures/a figure.txt", folder) == "first"
    assert text(client, run_id, "sheet/one.txt", folder) == "1"
    config = text(client, run_id, "config.yaml", folder)
    assert "ü, 'quoted'" in config
    assert "x" * 7000 in config
    assert "abcdefgh" not in config
    assert '"threads": 2' in text(client, run_id, "device.json", folder)
    samples = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    first = min(samples, key=lambda point: point.step)
    assert first.value > 0
    assert run.info.start_time <= first.timestamp < run.info.end_time
    assert run.data.metrics["system/process_memory_usage_megabytes"] > 10


def test_everything_a_stage_logs_is_in_the_sqlite_store(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    run = tracking.start("train_cnn", settings, CONFIG, CARD)
    log_everything(run, tmp_path)
    time.sleep(0.5)
    run.end("FINISHED")
    check_everything(client, settings.experiment, tmp_path)
    found = client.get_experiment_by_name(settings.experiment)
    assert found.artifact_location == str(workspace / "mlartifacts")
    wait_for(lambda: not list((workspace / ".tracking").glob(f"{run.id}*")))


@pytest.mark.slow
def test_everything_a_stage_logs_is_on_the_server(
    server: Server,
    own_workspace: Path,
    settings: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = tracking.start("train_cnn", settings, CONFIG, CARD)
    log_everything(run, tmp_path)
    time.sleep(0.5)
    run.end("FINISHED")
    check_everything(MlflowClient(server.uri), settings.experiment, tmp_path)


def test_disabled_tracking_has_the_same_calls_and_leaves_nothing(own_workspace: Path) -> None:
    body = """
import sys
from pathlib import Path
from pipeline import tracking
from pipeline.settings import Tracking
settings = Tracking(
    enabled=False, experiment="x", flush_seconds=20.0, system_seconds=1.0, promote=True
)
run = tracking.start("s", settings, {}, {})
run.metrics({"a": 1.0}, step=1)
run.tags({"a": 1}), run.artifact(Path("none")), run.output(Path("none"))
run.input(Path("none"), "data"), run.sync(), run.end("FAILED", "x")
assert run.id is None and "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", body], check=True)
    assert not list(own_workspace.iterdir())


def test_what_cannot_be_read_is_a_warning(
    own_workspace: Path,
    settings: Tracking,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    settings = settings.model_copy(update={"flush_seconds": 0.0})
    run = tracking.start("train_cnn", settings, {}, {})
    for content in ("{", "[]", '{"splits": {"train": {}}}'):
        data = own_workspace / "data"
        data.mkdir(exist_ok=True)
        (data / "dataset.json").write_text(content)
        run.input(data, "data")
    (data / "dataset.json").write_text("{}")
    (data / "train.parquet").write_text("no Parquet")
    run.input(data, "data")
    run.artifact(own_workspace / "nothing.png")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all("is not logged" in line for line in lines)
    run.end()


def test_a_journal_that_cannot_be_created_is_one_clear_line(
    own_workspace: Path, settings: Tracking
) -> None:
    (own_workspace / ".tracking").write_text("in the way")
    with pytest.raises(PipelineError, match=r"\.tracking/.* can't be written .*enabled=false"):
        tracking.start("s", settings, {}, {})


def test_a_lock_that_can_no_longer_be_taken_ends_no_stage(
    own_workspace: Path,
    settings: Tracking,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    settings = settings.model_copy(update={"flush_seconds": 0.0})
    run = tracking.start("train_cnn", settings, {}, {})
    # as after a fault the system lets no file be opened to write
    Path(surroundings.lock(own_workspace / ".tracking", store_uri()).lock_file).mkdir()
    run.sync()
    run.end()
    assert "make sync" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sync"], ["drop", "http://127.0.0.1:9"], ["moved"]])
def test_a_disk_that_can_only_be_read_is_one_line_of_each_command(
    command: list[str],
    disk: Path,
    settings: Tracking,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)
    monkeypatch.setattr(Journal, "is_live", lambda *_: False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    work = disk / "work"
    monkeypatch.setenv("DVC_ROOT", str(work))
    work.mkdir()
    tracking.start("s", settings.model_copy(update={"flush_seconds": 0.0}), {}, {}).end()
    if command == ["moved"]:
        work = work.rename(disk / "elsewhere")
        monkeypatch.setenv("DVC_ROOT", str(work))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    capsys.readouterr()
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {work}/.tracking: [Errno 30] Read-only file system")


@pytest.mark.slow  # a killed stage has one too
def test_a_run_beside_is_one_run_of_its_own_with_its_metrics(workspace, client, settings):
    run = tracking.start("evaluate", settings, {}, {})
    for _ in range(2):
        run.metrics({"test/accuracy": 0.25}, target="beside:cnn baseline: majority class")
    run.metrics({"test/accuracy": 0.75})
    run.end("FINISHED")
    found = {one.info.run_name: one for one in runs(client, settings.experiment)}
    assert set(found) == {"evaluate", "cnn baseline: majority class"}
    beside = found["cnn baseline: majority class"]
    assert points(client, beside.info.run_id, "test/accuracy") == [(0, 0.25)]
    assert beside.data.tags["beside"] == found["evaluate"].info.run_id
    assert {one.info.status for one in found.values()} == {"FINISHED"}
