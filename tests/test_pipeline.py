"""The whole tiny pipeline through DVC in a temporary repository, read back from the store."""

import json
import re
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import copy_of_the_repository, run

STAGES = {
    "prepare@image", "prepare@text", "prepare@audio", "train_cnn", "finetune_transformer",
    "train_rnn", "evaluate@cnn", "evaluate@transformer", "evaluate@rnn",
}  # fmt: skip
TRAINING = {"cnn": "train_cnn", "transformer": "finetune_transformer", "rnn": "train_rnn"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the tiny pipeline ran once."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("profile: full", "profile: tiny"))
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(repository: Path) -> dict[str, Run]:
    """The runs in the store by DVC stage; the parent under the name `parent`."""
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    found = {}
    for experiment in client.search_experiments():
        for one in client.search_runs([experiment.experiment_id]):
            found[one.data.tags.get("dvc.stage", "parent")] = one
    return found


def would_run(repository: Path, *arguments: str) -> set[str]:
    """The stages that `dvc repro` would run now."""
    output = run(repository, "dvc", "repro", "--dry", *arguments)
    assert output.returncode == 0, output.stderr
    return set(re.findall(r"Running stage '([^']+)'", output.stdout))


def test_every_stage_is_a_finished_run_below_one_parent(runs):
    assert set(runs) >= STAGES | {"parent"}
    parent = runs["parent"].info.run_id
    for name in STAGES:
        assert runs[name].info.status == "FINISHED", name
        assert runs[name].data.tags["mlflow.parentRunId"] == parent, name


def test_runs_say_what_made_them(runs, repository):
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    params = yaml.safe_load((repository / "params.yaml").read_text())
    one = runs["train_cnn"]
    assert float(one.data.params["optimizer.lr"]) == params["train_cnn"]["optimizer"]["lr"]
    assert len(one.data.tags["git.commit"]) == 40
    config = yaml.safe_load(
        Path(client.download_artifacts(one.info.run_id, "config.yaml")).read_text()
    )
    assert config["profile"]["max_steps"] == 12
    card = json.loads(Path(client.download_artifacts(one.info.run_id, "device.json")).read_text())
    assert card["libraries"]["torch"]
    assert card["threads"] >= 1


def test_training_runs_hold_metrics_per_step_and_epoch_and_the_test_metrics(runs, repository):
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    for model, stage in TRAINING.items():
        one = runs[stage]
        losses = client.get_metric_history(one.info.run_id, "train/loss")
        assert losses, stage
        assert len({(point.step) for point in losses}) == len(losses)
        metrics = one.data.metrics
        assert {"validation/loss", "validation/accuracy", "time/epoch_seconds"} <= set(metrics)
        expected = json.loads((repository / f"metrics/{model}.json").read_text())
        assert metrics["test/accuracy"] == pytest.approx(expected["accuracy"])


def test_dvc_shows_metrics_plots_and_params(repository):
    metrics = json.loads(run(repository, "dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert set(files) == {f"metrics/{model}.json" for model in TRAINING}
    assert 0 <= files["metrics/cnn.json"]["data"]["accuracy"] <= 1
    shown = run(repository, "dvc", "plots", "show", "--json", "-o", str(repository / "dvc_plots"))
    assert shown.returncode == 0, shown.stderr
    for name in ("plots/train_cnn.csv", "plots/cnn/confusion.csv"):
        assert name in shown.stdout
    assert "profile" in run(repository, "dvc", "params", "diff").stdout


def test_a_second_repro_runs_nothing(repository):
    assert would_run(repository) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("conf/cnn/convnet.yaml", "dropout: ", "dropout: 0.0", {"train_cnn", "evaluate@cnn"}),
        ("conf/rnn/gru.yaml", "dropout: ", "dropout: 0.0", {"train_rnn", "evaluate@rnn"}),
        (
            "conf/text/rotten_tomatoes.yaml", "test: ", "test: 0.3",
            {"prepare@text", "finetune_transformer", "evaluate@transformer"},
        ),
        ("conf/evaluate.yaml", "mistakes: ", "mistakes: 3", {s for s in STAGES if "eval" in s}),
        ("conf/cnn/simple.yaml", "name: ", "name: simple # edited", set()),
        ("conf/tracking/mlflow.yaml", "promote: ", "promote: false", set()),
        ("pipeline/tracking/run.py", "import ", "import os  # edited\nimport ", set()),
        ("pipeline/models/rnn.py", '"""', '"""Edited. ', {"train_rnn", "evaluate@rnn"}),
        ("pipeline/training.py", '"""', '"""Edited. ', set(TRAINING.values())),
    ],
)  # fmt: skip
def test_an_edit_reruns_exactly_what_depends_on_it(repository, file, old, new, expected):
    path = repository / file
    before = path.read_text()
    pattern = re.escape(old) + (r"\S+" if old.endswith(": ") else "")
    try:
        path.write_text(re.sub(pattern, lambda _: new, before, count=1))
        assert path.read_text() != before
        ran = would_run(repository)
        if file == "pipeline/training.py":  # --dry can't know whether the weights will change
            assert expected <= ran
        else:
            assert ran == expected
    finally:
        path.write_text(before)


def test_outputs_are_left_out_of_git(repository):
    status = run(repository, "git", "status", "--porcelain").stdout.split()
    assert set(status[1::2]) <= {"params.yaml", "dvc.lock", "metrics/", "dvc_plots/"}


@pytest.mark.slow
def test_the_same_again_leaves_the_lock_as_it_is(repository):
    before = (repository / "dvc.lock").read_bytes()
    again = run(repository, "dvc", "repro", "-f", PYTHONHASHSEED="7", LC_ALL="C", TZ="Asia/Tokyo")
    assert again.returncode == 0, again.stderr
    assert (repository / "dvc.lock").read_bytes() == before
