"""docs/your-own-task.md is true: whoever follows it has a task that the whole house serves."""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, copy_of_the_repository, environment, run

PAGE = ROOT / "docs/your-own-task.md"
MOST = 250
"""Lines that the page's files may have, blank ones not counted."""
ADDED = ("dvc.yaml", "params.yaml")


def blocks() -> dict[str, str]:
    """The page's files by their path."""
    found = re.findall(r"^`([\w./]+)`\n```\w+\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    return dict(found)


def test_the_blocks_of_the_page_are_whole_files_and_few_lines():
    files = blocks()
    assert PAGE.read_text().count("```") == 2 * len(files)
    for path, text in files.items():
        assert ast.parse(text).body if path.endswith(".py") else yaml.safe_load(text), path
    lines = [line for text in files.values() for line in text.splitlines() if line.strip()]
    assert len(lines) < MOST
    new = [path for path in files if path not in ADDED]
    assert not [path for path in new if (ROOT / path).exists()]


def merged(old: Any, new: Any) -> Any:
    """What is there and what is added to it: mappings by key, lists one behind the other."""
    if isinstance(old, dict):
        return {**old, **{k: merged(old[k], v) if k in old else v for k, v in new.items()}}
    return [*old, *new]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the task of the page, committed; the profile is tiny."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("own"))
    for path, text in blocks().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path in ADDED:
            old = yaml.safe_load((folder / path).read_text())
            text = yaml.safe_dump(merged(old, yaml.safe_load(text)), sort_keys=False)
        (folder / path).write_text(text)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.rmtree(folder / "metrics")
    for words in (["add", "-A"], ["commit", "-qm", "a task of our own"]):
        assert run(folder, "git", *words).returncode == 0
    return folder


@pytest.fixture(scope="module")
def repeated(clone: Path) -> Path:
    """The clone after `dvc repro` of the task's stages."""
    done(clone, "dvc", "repro", "prepare@table", "train_mlp", "evaluate@mlp")
    done(clone, "git", "add", "-A")
    done(clone, "git", "commit", "-qm", "ran")
    done(clone, "python", "-m", "pipeline.tracking", "sync")
    return clone


@pytest.fixture
def store(repeated: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client of the clone's store."""
    from mlflow import MlflowClient

    monkeypatch.chdir(repeated)
    return MlflowClient(f"sqlite:///{repeated}/mlflow.db")


def done(folder: Path, *command: str) -> str:
    ended = run(folder, *command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def latest(store: Any, stage: str) -> Any:
    (experiment,) = store.search_experiments(filter_string="name = 'deep-learning-pipeline'")
    found = store.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'")
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["ruff format --check pipeline stages", "ruff check .", "mypy", "lint-imports --no-cache"],
)
def test_the_walls_stand(clone, command):
    done(clone, *command.split())


@pytest.mark.slow
def test_its_runs_are_tracked_and_its_model_is_registered(store, repeated):
    trained, tested = latest(store, "train_mlp"), latest(store, "evaluate")
    assert (trained.info.status, tested.info.status) == ("FINISHED", "FINISHED")
    assert {"validation/r2", "train/loss", "test/r2"} <= trained.data.metrics.keys()
    numbers = json.loads((repeated / "metrics/mlp.json").read_text())
    assert tested.data.metrics["test/r2"] == numbers["r2"]
    (version,) = store.search_model_versions("name = 'table-regressor'")
    champion = store.get_model_version_by_alias("table-regressor", "champion")
    assert champion.version == version.version
    assert version.tags["trained_by"] == trained.info.run_id


@pytest.mark.slow
def test_the_served_model_answers_a_raw_row(store, repeated, tmp_path):
    """In a process that does not have the clone's code: the model brings its own."""
    code = f"""
import json, mlflow
mlflow.set_tracking_uri("sqlite:///{repeated}/mlflow.db")
folder = mlflow.artifacts.download_artifacts("models:/table-regressor@champion")
rows = json.load(open(f"{{folder}}/input_example.json"))
print(json.dumps([rows, mlflow.pyfunc.load_model(folder).predict(rows)]))
"""
    ended = run(tmp_path, sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr
    (row,), (answer,) = json.loads(ended.stdout.splitlines()[-1])
    assert row.keys() >= {"age", "bmi"}
    assert 0 < answer < 500


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(repeated):
    more = ["profile=full", "training.epochs=200", "training.log_every=1", "tracking=off"]
    start = [sys.executable, "-m", "stages.train_mlp", *more]
    whole = [*start, "output=models/whole/mlp", "curve=plots/whole.csv"]
    done(repeated, *whole)
    broken = [*start, "output=models/broken/mlp", "curve=plots/broken.csv"]
    process = subprocess.Popen(
        broken, cwd=repeated, env=environment(repeated), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 20/"):
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "Resuming after step" in done(repeated, *broken)
    ends = [repeated / "models" / one / "mlp/model.safetensors" for one in ("whole", "broken")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "train_mlp", "evaluate"])
def test_a_run_is_repeated_by_its_id(store, repeated, stage):
    said = done(repeated, "python", "-m", "pipeline.reproduce", latest(store, stage).info.run_id)
    assert said.splitlines()[-1].startswith("identical: "), said


@pytest.mark.slow
def test_the_report_shows_it(repeated):
    for seed in (1, 2):
        done(repeated, "python", "-m", "stages.repeat", "model=mlp", f"again={seed}")
    done(repeated, "python", "-m", "stages.report", "data={mlp: data/table}", "seeds=[1,2]")
    page = (repeated / "reports/report.html").read_text()
    value = json.loads((repeated / "metrics/mlp.json").read_text())["r2"]
    for text in ("MLP on diabetes", "Test r2", f"{value:.4g}".replace("-", "−"), "table-regressor"):
        assert text in page
    for title in ("Learning curves", "Prediction and target", "Target"):
        assert f"<h3>{title}</h3>" in page
    assert "Calibration" not in page
    assert "Equal answers" not in page
    assert "MLP on diabetes" in (repeated / "reports/report.md").read_text()
