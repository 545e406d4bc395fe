"""A run is repeated wherever its project lies, and whatever was changed in it."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.tracking.reader import Reader
from tests.conftest import copy_of_the_repository, run
from tests.tracking.test_provenance import HOSTILE
from tests.workspace import BARE, workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a folder of a larger repository, with prepared data and small settings."""
    folder = tmp_path_factory.mktemp("mono") / "projects/dl"
    folder.mkdir(parents=True)
    shutil.rmtree(copy_of_the_repository(folder) / ".git")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    params["train_rnn"]["training"]["batch_size"] = 32
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "docs/latin.txt").write_bytes("fête\n".encode("latin-1"))
    (folder / "conf/big.txt").write_text("small\n")
    top = folder.parents[1]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "start"]):
        start(top, "git", *words)
    shutil.copytree(workspace(tmp_path_factory.getbasetemp()) / "data/audio", folder / "data/audio")
    return folder


def start(folder: Path, *command: str) -> str:
    done = run(folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def at(place: str, project: Path, folder: Path) -> Path:
    """The project in a working tree of another kind, below `folder`."""
    if place == "sub-folder":
        return project
    top = project.parents[1]
    command = {
        "linked worktree": ("git", "worktree", "add", "-q", "--detach", str(folder / "tree")),
        "shallow clone": ("git", "clone", "-q", "--depth", "1", f"file://{top}", "tree"),
    }[place]
    start(top if "worktree" in command else folder, *command)
    shutil.copytree(project / "data/audio", folder / "tree/projects/dl/data/audio")
    return folder / "tree/projects/dl"


def change(project: Path) -> None:
    """What a diff can hold, one part of it in the code that runs."""
    with (project / "docs/images/mlflow.png").open("ab") as picture:
        picture.write(b"x")
    (project / "docs/latin.txt").write_bytes("fÊte\n".encode("latin-1"))
    (project / "conf/big.txt").write_text("".join(f"{n:50}\n" for n in range(100_000)))
    preset = project / "conf/rnn/gru.yaml"
    preset.write_text(preset.read_text().replace("hidden: ", "hidden: 1"))


def store(project: Path) -> Reader:
    return Reader(f"sqlite:///{project}/mlflow.db")


def repeated(project: Path, stage: str) -> str:
    """The answer about the newest run of a stage."""
    start(project, "python", "-m", "pipeline.tracking", "sync")
    done = run(project, "python", "-m", "pipeline.reproduce", store(project).runs(stage)[-1])
    return (done.stdout or done.stderr).splitlines()[-1]


@pytest.mark.parametrize("place", ["sub-folder", "linked worktree", "shallow clone"])
def test_a_training_with_all_kinds_of_changes(place, project, tmp_path, monkeypatch):
    folder = at(place, project, tmp_path)
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(HOSTILE)))
    for number, (key, value) in enumerate(HOSTILE.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    change(folder)
    try:
        start(folder, "python", "-m", "stages.train_rnn")
    finally:
        start(folder, "git", "checkout", "-q", ".")
    assert repeated(folder, "train_rnn").startswith("identical: the outputs and ")
    recorded = store(folder).read(store(folder).runs("train_rnn")[-1])
    assert len(recorded.diff) > 5_000_000
    assert recorded.config["rnn"]["hidden"] > 100
    assert len(start(folder, "git", "worktree", "list").splitlines()) <= 2


def test_in_a_tree_of_another_owner_it_says_what_it_lacks(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    done = run(project, "python", "-m", "stages.train_rnn")
    refused = f"fatal: detected dubious ownership in repository at '{project.parents[1]}'"
    assert done.stderr.count(refused) == 1
    assert f"has no commit ({refused}), so its code can't be restored" in repeated(
        project, "train_rnn"
    )


def test_an_experiment_an_evaluation_and_a_report_in_a_sub_folder(project):
    start(
        project, "dvc", "exp", "run", "--temp", "-S", "train_rnn.optimizer.lr=0.0123", "train_rnn"
    )
    assert repeated(project, "train_rnn").startswith("identical: the outputs and ")
    parent = store(project).store.find("stage", "dvc")[-1]
    assert parent.data.tags["params.changed"] == "train_rnn.optimizer.lr=0.0123"
    start(project, "python", "-m", "stages.train_rnn")
    start(project, "python", "-m", "stages.evaluate", "model=rnn", *BARE)
    said = start(project, "python", "-m", "stages.report", "~data.cnn", "~data.transformer")
    assert "| rnn " in said
    assert (project / "reports/report.html").exists()
