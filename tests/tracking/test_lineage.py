"""One `dvc repro`, one story: real dvc in a real clone."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.tracking.parents import Graph
from tests.conftest import copy_of_the_repository
from tests.tracking.conftest import Server, git, runs, wait_for

DVC = [sys.executable, "-m", "dvc"]

STAGES = """
import json, os, sys, time, yaml
import pyarrow.parquet
from pathlib import Path
from pipeline import tracking
from pipeline.tracking.provenance import identity
from pipeline.settings import Tracking

settings = Tracking(
    enabled=True, experiment="story", flush_seconds=float(os.environ.get("PATIENCE", 30)),
    system_seconds=0.5, promote=True,
)
params = yaml.safe_load(Path("params.yaml").read_text())
stage = sys.argv[1]
lr = params["train_cnn"]["lr"]
if stage == "train_cnn" and lr == 0:
    sys.exit(1)  # nobody knows that it began
known = Path("resumed")
id = known.read_text() if lr == 7 and stage == "train_cnn" and known.exists() else None
run = tracking.start(stage, settings, params, {"device": "cpu"}, id=id)
if lr == 7 and stage == "train_cnn" and not id:
    known.write_text(run.id)
    run.metrics({"train/loss": lr}, step=0)
    time.sleep(600)  # until all is killed
if stage in ("words", "prepare", "sounds"):
    folder = Path("data/image" if stage == "prepare" else f"data/{stage}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"rows": int(Path("rows").read_text())}))
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a"]}), folder / "train.parquet")
    run.output(folder)
if stage == "train_cnn":
    run.input(Path("data/image"), "data", "training")
    if lr < 0:
        run.end("FAILED", "lr is below zero")
        sys.exit(1)
    folder = Path("models/cnn")
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep.txt").write_text("sorts before deep/")
    (folder / "deep" / "a.txt").write_text("a")
    (folder / "model.safetensors").write_text(f"weights {lr}")
    run.metrics({"train/loss": lr}, step=1)
    run.output(folder)
if stage == "evaluate":
    run.input(Path("data/image"), "data", "testing")
    run.input(Path("models/cnn"), "model")
    accuracy = 1 - lr
    weights = identity(Path("models/cnn"))[1]
    run.metrics({"test/accuracy": accuracy})
    run.tags({"summary": "cnn"})
    run.metrics({"test/accuracy": accuracy}, target=f"trained:{weights}")
    run.metrics({"test/accuracy": 0.1}, target="beside:cnn baseline: majority class")
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/cnn.json").write_text(json.dumps({"accuracy": accuracy}))
    run.output(Path("metrics/cnn.json"))
run.end()
"""

GRAPH = """
stages:
  prepare:
    cmd: {python} stage.py prepare
    deps: [rows]
    outs: [data/image]
  train_cnn:
    cmd: {python} stage.py train_cnn
    deps: [data/image]
    params: [train_cnn]
    outs: [models/cnn]
  evaluate:
    foreach: [cnn]
    do:
      cmd: {python} stage.py evaluate
      deps: [data/image, "models/${{item}}"]
      metrics:
        - metrics/${{item}}.json:
            cache: false
"""

OTHER = """
  {name}:
    cmd: {python} stage.py {name}
    outs: [data/{name}]
"""


@pytest.fixture
def project(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (clone / "stage.py").write_text(STAGES)
    (clone / "rows").write_text("3")
    (clone / "dvc.yaml").write_text(GRAPH.format(python=sys.executable))
    monkeypatch.setenv("PYTHONPATH", ".")
    # the workers of `dvc queue` call dvc by name
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    with (clone / ".gitignore").open("a") as file:
        file.write("/data/*\n/models/cnn\n")
    dvc(clone, "init", "-q")
    dvc(clone, "config", "core.analytics", "false")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "graph")
    return clone


def dvc(folder: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run([*DVC, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def sync(folder: Path) -> str:
    """Also waits for the senders that are still at work."""
    command = [sys.executable, "-m", "pipeline.tracking", "sync"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def story(folder: Path) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, [run for run in runs(client, "story") if run.data.tags["stage"] == "dvc"]


@pytest.mark.slow
def test_the_parent_tells_what_ran_what_was_reused_and_who_made_it(project: Path) -> None:
    params = project / "params.yaml"
    dvc(project, "repro")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "first results")
    first = params.read_text()
    params.write_text("train_cnn:\n  lr: 0.25\n")
    dvc(project, "repro")
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    params.write_text("train_cnn:\n  lr: -1\n")
    dvc(project, "repro", status=255)
    params.write_text(first)
    assert "from the run cache" not in dvc(project, "repro", "train_cnn")
    dvc(project, "repro", "-f", "-s", "evaluate@cnn")
    print(sync(project))

    client, parents = story(project)
    commit = git(project, "rev-parse", "--short=7", "HEAD").strip()
    assert [run.info.status for run in parents] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert parents[1].info.run_name == f"main {commit}* · train_cnn.lr=0.25"
    assert parents[3].info.run_name == f"main {commit}"
    children = {
        (number, run.info.run_name): run
        for number, parent in enumerate(parents)
        for run in runs(client, "story")
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    beside = [key for key in children if key[1] == "cnn baseline: majority class"]
    assert sorted(number for number, _ in beside) == [0, 1, 3]
    for key in beside:
        assert children.pop(key).info.status == "FINISHED"
    assert set(children) == {
        *((0, "prepare"), (0, "train_cnn"), (0, "evaluate@cnn")),
        *((1, "train_cnn"), (1, "evaluate@cnn")),
        *((2, "train_cnn"), (3, "evaluate@cnn")),
    }
    ids = {key: run.info.run_id for key, run in children.items()}

    prepare, train, evaluate = table(parents[1])
    assert prepare[:2] == ["prepare", "reused"]
    assert ids[0, "prepare"] in prepare[2]
    assert train[:2] == ["train_cnn", "ran"]
    assert ids[1, "train_cnn"] in train[2]
    assert evaluate[:2] == ["evaluate@cnn", "ran"]
    assert evaluate[4] == "test/accuracy 0.7500"
    for name, _what, _run, output, *_rest in (prepare, train, evaluate):
        (out,) = locked[name]["outs"]
        assert output == f"`{out['path']}` {out['md5'][:8]}"
    assert float(train[5]) >= 0
    assert parents[0].data.metrics == {"cnn/test/accuracy": 0.99}
    assert parents[1].data.metrics == {"cnn/test/accuracy": 0.75}
    # DVC took it from its run cache
    reused = table(parents[3])[1]
    assert reused[:2] == ["train_cnn", "reused"]
    assert ids[0, "train_cnn"] in reused[2]

    tested = children[1, "train_cnn"]
    assert client.get_run(tested.info.run_id).data.metrics["test/accuracy"] == 0.75
    again = children[0, "train_cnn"].info.run_id
    assert len(client.get_metric_history(again, "test/accuracy")) == 1
    tags = children[1, "evaluate@cnn"].data.tags
    assert tags["input.data.run_id"] == ids[0, "prepare"]
    assert tags["input.model.run_id"] == ids[1, "train_cnn"]
    assert tags["trained_by"] == ids[1, "train_cnn"]
    assert "`models/cnn`" in tags["mlflow.note.content"]
    (read,) = children[1, "train_cnn"].inputs.dataset_inputs
    assert read.dataset.name == "data/image"
    assert '"image"' in read.dataset.schema
    assert children[2, "train_cnn"].data.tags["error"] == "lr is below zero"
    prepare, train, evaluate = table(parents[2])
    assert prepare[:2] == ["prepare", "reused"]
    assert ids[0, "prepare"] in prepare[2]
    assert train[:2] == ["train_cnn", "failed"]
    # dvc.lock still has what the repro before made of it, with other values
    assert evaluate == ["evaluate@cnn", "not run", "", "", "", ""]
    assert parents[2].data.metrics == {}
    dirty = children[1, "train_cnn"]
    assert dirty.data.tags["mlflow.source.git.dirty"] == "true"
    diff = client.download_artifacts(dirty.info.run_id, "source/uncommitted.diff")
    assert "+  lr: 0.25" in Path(diff).read_text()


@pytest.fixture
def forked(project: Path) -> Path:
    """The project with two more branches, one before the others and one after them."""
    words, sounds = (OTHER.format(name=name, python=sys.executable) for name in ("words", "sounds"))
    graph = (project / "dvc.yaml").read_text().replace("stages:", f"stages:{words}")
    (project / "dvc.yaml").write_text(graph + sounds)
    git(project, "commit", "-q", "-a", "-m", "two more branches")
    return project


@pytest.mark.slow
def test_a_repro_that_failed_tells_what_it_reused_and_what_it_did_not_come_to(forked: Path) -> None:
    params = forked / "params.yaml"
    for rate, target in ((-1, []), (0.5, []), (-1, []), (-2, ["train_cnn"])):
        params.write_text(f"train_cnn:\n  lr: {rate}\n")
        dvc(forked, "repro", *target, status=255 if rate < 0 else 0)
    git(forked, "add", ".")
    git(forked, "commit", "-q", "-m", "results")
    dvc(forked, "exp", "run", "--temp", "-S", "train_cnn.lr=-3", status=255)
    sync(forked)
    _client, parents = story(forked)
    assert [one.info.status for one in parents] == ["FAILED", "FINISHED", *["FAILED"] * 3]
    tables = [table(parent) for parent in parents]
    # also what dvc.lock does not have yet
    names = ["words", "prepare", "train_cnn", "evaluate@cnn", "sounds"]
    assert [[row[0] for row in rows] for rows in tables] == [names] * 5
    assert [[row[1] for row in rows] for rows in tables] == [
        ["ran", "ran", "failed", "not run", "not run"],
        ["reused", "reused", "ran", "ran", "ran"],
        # of what DVC did not come to: what is as it would have made it, and what is not
        ["reused", "reused", "failed", "not run", "reused"],
        ["reused", "reused", "failed", "not run", "reused"],
        ["reused", "reused", "failed", "not run", "reused"],
    ]
    made = [[row[2:4] for row in rows] for rows in tables]
    assert made[2][:2] == made[4][:2] == made[1][:2] == made[0][:2]
    assert "runs/" in made[0][0][0]
    for rows in tables:
        assert {tuple(row[2:]) for row in rows if row[1] == "not run"} <= {("",) * 4}


@pytest.mark.slow
def test_a_repro_that_stopped_where_no_run_tells_of_it_failed(forked: Path) -> None:
    params, rows = forked / "params.yaml", forked / "rows"
    for rate, count, target, status in (
        ("0", "3", [], 255),  # train_cnn has no entry in dvc.lock
        ("0.5", "3", [], 0),
        ("0", "4", [], 255),  # its entry is of the data before
        ("0", "5", ["prepare"], 0),  # that is what was asked for
    ):
        params.write_text(f"train_cnn:\n  lr: {rate}\n")
        rows.write_text(count)
        dvc(forked, "repro", *target, status=status)
    sync(forked)
    _client, parents = story(forked)
    assert [one.info.status for one in parents] == ["FAILED", "FINISHED", "FAILED", "FINISHED"]
    assert [[row[1] for row in table(parent)] for parent in parents] == [
        ["ran", "ran", "not run", "not run", "not run"],
        ["reused", "reused", "ran", "ran", "ran"],
        ["reused", "ran", "not run", "not run", "reused"],
        ["reused", "ran", "not run", "not run", "reused"],
    ]
    assert [one.data.metrics for one in parents] == [{}, {"cnn/test/accuracy": 0.5}, {}, {}]


@pytest.mark.slow
def test_a_repro_that_was_killed_with_all_its_processes_is_closed_by_the_next(
    project: Path,
) -> None:
    (project / "params.yaml").write_text("train_cnn:\n  lr: 7\n")
    cut = subprocess.Popen([*DVC, "repro"], cwd=project, stdout=subprocess.DEVNULL)

    def training() -> list[Any]:
        if not (project / "mlflow.db").exists():  # two that create it would be in each other's way
            return []
        client, parents = story(project)
        found = runs(client, "story") if parents else []
        return [run for run in found if "train/loss" in run.data.metrics]

    (before,) = wait_for(training, 60)
    for process in [psutil.Process(cut.pid), *psutil.Process(cut.pid).children(recursive=True)]:
        process.kill()
    cut.wait()
    dvc(project, "repro")
    sync(project)
    client, (first, second) = story(project)
    assert [first.info.status, second.info.status] == ["KILLED", "FINISHED"]
    assert first.info.end_time >= before.info.start_time
    assert [row[1] for row in table(second)] == ["reused", "ran", "ran"]
    after = client.get_run(before.info.run_id)
    assert after.info.status == "FINISHED"
    assert after.data.tags["resumed"] == "1"
    assert after.data.tags["mlflow.parentRunId"] == second.info.run_id


def test_the_stages_are_those_of_dvc_yaml_each_foreach_and_matrix_expanded(tmp_path: Path) -> None:
    folder = copy_of_the_repository(tmp_path)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("seeds: []", "seeds: [1, 2]"))
    graph = Graph(folder)
    graph.look()
    names = graph.found()["names"]
    assert names[:3] == ["prepare@image", "prepare@text", "prepare@audio"]
    assert "repeat@cnn-2" in names
    assert sorted(names) == sorted(
        re.findall(r"Running stage '(.+)'", dvc(folder, "repro", "--dry", "--force"))
    )
    assert not graph.found()["final"]
    (folder / "dvc.lock").touch()
    assert graph.found()["final"]
    params.unlink()
    graph = Graph(folder)
    graph.look()
    # DVC can't resolve ${common.profile} either
    assert graph.found() == {"names": [], "stages": {}, "unchanged": [], "final": True}


@pytest.mark.slow
def test_a_stage_is_unchanged_while_dvc_lock_has_its_values_and_sources(project: Path) -> None:
    (project / "rows").write_text("4")
    (project / "params.yaml").write_text("train_cnn:\n  lr: 0.01\n")
    dvc(project, "repro")

    def unchanged() -> list[str]:
        graph = Graph(project)
        graph.look()
        return list(graph.found()["unchanged"])

    assert unchanged() == ["evaluate@cnn", "prepare", "train_cnn"]
    (project / "params.yaml").write_text("train_cnn:\n  lr: 0.01\nother: 1\n")
    assert unchanged() == ["evaluate@cnn", "prepare", "train_cnn"]
    (project / "params.yaml").write_text("train_cnn:\n  lr: 0.02\n")
    assert unchanged() == ["evaluate@cnn", "prepare"]
    (project / "rows").write_text("5")
    assert unchanged() == ["evaluate@cnn"]


@pytest.mark.slow
def test_experiments_that_run_in_parallel_have_a_story_each(project: Path) -> None:
    dvc(project, "repro")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "first results")
    for lr in (0.125, 0.25, 0.5):
        dvc(project, "exp", "run", "--queue", "-S", f"train_cnn.lr={lr}")
    dvc(project, "queue", "start", "-j", "3")
    wait_for(lambda: dvc(project, "queue", "status").count("Success") == 3, 120)
    sync(project)
    _client, parents = story(project)
    assert len(parents) == 4
    assert {run.info.status for run in parents} == {"FINISHED"}
    assert {run.data.metrics["cnn/test/accuracy"] for run in parents} == {0.99, 0.875, 0.75, 0.5}
    for parent in parents[1:]:
        assert parent.data.tags["dvc.experiment"] in parent.info.run_name
        assert [row[1] for row in table(parent)] == ["reused", "ran", "ran"]


@pytest.mark.slow
def test_a_parent_that_waited_for_the_store_tells_of_the_whole_graph_too(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    server = Server(tmp_path_factory.mktemp("server")).start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        dvc(project, "repro")
        sync(project)
        server.kill()
        (project / "params.yaml").write_text("train_cnn:\n  lr: 0.25\n")
        monkeypatch.setenv("PATIENCE", "1")
        dvc(project, "repro")
        wait_for(
            lambda: [
                one
                for path in (project / ".tracking").glob("dvc-*")
                if (one := json.loads(path.read_text())["end"])
            ]
        )
        ended = 1000 * time.time()
        server.start()
        sync(project)
        client = MlflowClient(server.uri)
        found = runs(client, "story")
        first, second = (run for run in found if run.data.tags["stage"] == "dvc")
        (prepared,) = (run for run in found if run.info.run_name == "prepare")
        assert prepared.data.tags["mlflow.parentRunId"] == first.info.run_id
        prepare, train, evaluate = table(second)
        assert prepare[:2] == ["prepare", "reused"]
        assert prepared.info.run_id in prepare[2]
        assert [train[1], evaluate[1]] == ["ran", "ran"]
        assert second.info.status == "FINISHED"
        assert second.info.end_time < ended
        assert second.data.metrics == {"cnn/test/accuracy": 0.75}
    finally:
        server.kill()


def table(parent: Any) -> list[list[str]]:
    lines = parent.data.tags["mlflow.note.content"].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
