"""Whatever ends a training, the next start ends it with the bytes of one that nothing ended."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.task import find
from tests.conftest import copy_of_the_repository, environment, run
from tests.workspace import QUICK, STAGES, Ended, Nursery, Stage, outputs

TIMED = ("time/", "memory/", "system/")
PLACES = {
    "half a checkpoint": "torch._C:PyTorchFileWriter.write_record:before:7",
    "a checkpoint without its name": "pipeline.training.checkpoint:digest:before:1",
    "in an epoch": "pipeline.training.loop:Loop.step:after:20",
    "in validation": "pipeline.training.modules:score:before:1",
    "between epochs": "pipeline.training.loop:Loop.end_epoch:after:1",
    "with a checkpoint written": "pipeline.training.loop:Loop.save:after:1",
    "after the last epoch": "pipeline.training.modules:load:before:2",
    "with the curve written": "pipeline.training.net:save:before:1",
    "with half the model written": "pipeline.training.net:digest:before:1",
    "with all outputs written": "pipeline.tracking.run:Run.end:after:1",
}
"""Where it is killed: each start comes a little further than the one before.

The first call of `modules.load` is for the state that a start goes on from.
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tracking store and of the training states."""
    return tmp_path_factory.mktemp("root")


class Training:
    """One training of a model, in a folder of its own."""

    def __init__(self, nursery: Nursery, root: Path, folder: Path, model: str, *more: str) -> None:
        self.nursery, self.root, self.folder, self.model = nursery, root, folder, model
        self.experiment = f"{model} {folder.name}"
        self.command = [
            STAGES[model], *QUICK[model], "threads=1", f"output={folder}/model",
            f"curve={folder}/curve.csv", f"tracking.experiment='{self.experiment}'", *more,
        ]  # fmt: skip

    def start(self, *more: str, **how: Any) -> Stage:
        return self.nursery.start(*self.command, *more, **how, DVC_ROOT=str(self.root))

    def run(self, *more: str, **how: Any) -> Ended:
        return self.start(*more, **how).wait()

    def states(self) -> list[Path]:
        """Saved states of this stage, also those of other configs."""
        return sorted((self.root / ".checkpoints").glob(f"{STAGES[self.model]}-*"))

    def is_over(self) -> bool:
        """Whether nothing is left of it but its outputs: killed then, it was not interrupted."""
        mine = [
            state for state in self.states()
            if (identity := state / "identity.json").exists()  # or it was killed before that
            and str(self.folder) in identity.read_text()
        ]  # fmt: skip
        return (self.folder / "model").exists() and not mine

    def outputs(self) -> dict[str, bytes]:
        return outputs(self.folder)

    def runs(self) -> list[Any]:
        """Its runs in the store."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        found = client.get_experiment_by_name(self.experiment)
        return list(client.search_runs([found.experiment_id])) if found else []

    def points(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every point of every metric that repeats, doubled ones included."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        names = client.get_run(run_id).data.metrics
        return {
            name: sorted((p.step, p.value) for p in client.get_metric_history(run_id, name))
            for name in names
            if not name.startswith(TIMED)
        }


UNTRACKED = "tracking=off"


@pytest.fixture(scope="module")
def uninterrupted(nursery, root, tmp_path_factory) -> Any:
    """Trains each model once, with or without tracking, and remembers it."""
    done: dict[tuple[str, ...], Training] = {}

    def get(model: str, *more: str) -> Training:
        if (model, *more) not in done:
            folder = tmp_path_factory.mktemp("uninterrupted")
            training = Training(nursery, root, folder, model, *more)
            ended = training.run()
            assert ended.status == 0, ended.output
            done[(model, *more)] = training
        return done[(model, *more)]

    return get


def check_run(training: Training, reference: Training) -> None:
    """It is one run with every point of the uninterrupted one, once."""
    end = time.monotonic() + 60
    while {run.info.status for run in training.runs()} != {"FINISHED"}:
        assert time.monotonic() < end, training.runs()  # killed while it waited for its sender
        time.sleep(0.2)
    (whole,) = reference.runs()
    assert len(training.runs()) == 1, [run.to_dictionary() for run in training.runs()]
    (ran,) = training.runs()
    assert (ran.info.status, whole.info.status) == ("FINISHED", "FINISHED")
    assert training.points(ran.info.run_id) == reference.points(whole.info.run_id)


EACH = list(PLACES)
FEW = ["half a checkpoint", "with half the model written", "with all outputs written"]
"""A place of each kind: with half a state, with some of the outputs, with all but the record."""


@pytest.mark.parametrize(
    ("model", "places"),
    [
        pytest.param("cnn", FEW, id="few"),
        *(pytest.param(model, EACH, id=model, marks=pytest.mark.slow) for model in STAGES),
    ],
)
def test_killed_at_one_place_after_the_other(model, places, nursery, root, uninterrupted, tmp_path):
    reference = uninterrupted(model, UNTRACKED)
    training = Training(nursery, root, tmp_path, model, UNTRACKED)
    before = training.states()
    for place in places:
        ended = training.run(kill=PLACES[place])
        assert ended.status == -signal.SIGKILL, f"{place}: {ended.output}"
    last = training.run()
    assert "its outputs are taken" in last.output
    assert training.outputs() == reference.outputs()
    assert training.states() == before
    assert sorted(os.listdir(tmp_path)) == ["curve.csv", "model"]


@pytest.mark.slow
def test_the_killed_training_is_one_run_without_gaps_or_doubled_points(
    nursery, root, uninterrupted, tmp_path
):
    reference = uninterrupted("rnn")
    training = Training(nursery, root, tmp_path, "rnn")
    for place in (
        "pipeline.training.loop:Loop.step:after:20",
        "pipeline.tracking.run:Run.end:after:1",
    ):
        assert training.run(kill=place).status == -signal.SIGKILL
    ended = training.run()
    assert ended.status == 0, ended.output
    assert training.outputs() == reference.outputs()
    check_run(training, reference)
    assert int(training.runs()[0].data.tags["resumed"]) == 1
    assert "resumed" not in reference.runs()[0].data.tags


MARKS = ["", "Using device", "Using precision", *(f"epoch {epoch}/4" for epoch in (1, 2, 3, 4))]


def kill_at_random(training: Training, number: int, times: int, moments: random.Random) -> int:
    """Kill it up to `times` times, then let it end. Returns how often it was alive to be killed."""
    killed = 0
    for _ in range(times):
        stage = training.start()
        stage.wait_for(moments.choice(MARKS))
        time.sleep(moments.uniform(0, 0.4))
        stage.kill(number)
        if stage.wait().status == 0 or training.is_over():
            return killed
        killed += 1
    ended = training.run()
    assert ended.status == 0, ended.output
    return killed


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGKILL, 20), (signal.SIGTERM, 10)])
@pytest.mark.parametrize("model", STAGES)
def test_ended_at_random_moments(model, number, wanted, nursery, root, uninterrupted, tmp_path):
    """SIGTERM mostly twice in a row: what the first start journaled must not pass for the whole."""
    reference, moments, killed = uninterrupted(model), random.Random(model), 0
    for count in range(2 * wanted):
        training = Training(nursery, root, tmp_path / f"{number:d}-{count}", model)
        times = 2 if number == signal.SIGTERM else moments.randint(1, 4)
        killed += kill_at_random(training, number, times, moments)
        assert training.outputs() == reference.outputs(), count
        check_run(training, reference)
        if killed >= wanted:
            return
    raise AssertionError(f"only {killed} of the moments came before the end")


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_asked_to_end_it_saves_says_so_and_continues(
    number, status, nursery, root, uninterrupted, tmp_path
):
    training = Training(nursery, root, tmp_path, "cnn", UNTRACKED)
    stage = training.start()
    stage.wait_for("epoch 1/4")
    stage.kill(number)
    ended = stage.wait()
    assert ended.status == status
    last = ended.output.splitlines()[-1]
    assert last.startswith("train_cnn: stopped at step ")
    assert f"the state is saved in {root}/.checkpoints/train_cnn-" in last
    step = last.split()[4]
    assert f"Resuming after step {step} of 60" in training.run().output
    assert training.outputs() == uninterrupted("cnn", UNTRACKED).outputs()


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("pipeline.tasks.image_classification.data:load", marks=pytest.mark.slow),
        "pipeline.training.net:save",
    ],
)
def test_asked_to_end_outside_the_loop_it_ends_at_once(
    place, nursery, root, uninterrupted, tmp_path
):
    training = Training(nursery, root, tmp_path, "cnn", UNTRACKED)
    ended = training.run(kill=f"{place}:before:1:TERM")
    assert ended.status == 143
    assert ended.output.splitlines()[-1] == "train_cnn: ended by SIGTERM"
    assert not (tmp_path / "model").exists()
    assert training.run().status == 0
    assert training.outputs() == uninterrupted("cnn", UNTRACKED).outputs()


@pytest.mark.slow
def test_an_edited_config_starts_anew_and_says_why(nursery, root, tmp_path):
    edit = ["optimizer.lr=0.03", "training.epochs=2"]
    plain = Training(nursery, root, tmp_path / "plain", "cnn", UNTRACKED)
    assert plain.run(*edit).status == 0
    edited = Training(nursery, root, tmp_path / "edited", "cnn", UNTRACKED)
    first = ["optimizer.lr=0.04", "training.epochs=2"]
    edited.run(*first, kill="pipeline.training.loop:Loop.save:after:1")
    ended = edited.run(*edit)
    assert "is of another run (config.optimizer.lr: 0.04 → 0.03)" in ended.output
    assert "starting anew" in ended.output
    assert "Resuming" not in ended.output
    assert edited.outputs() == plain.outputs()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_state_is_noticed_and_the_one_before_continued(
    damage, nursery, root, uninterrupted, tmp_path
):
    training = Training(nursery, root, tmp_path, "cnn", UNTRACKED)
    before = training.states()
    training.run(kill="pipeline.training.loop:Loop.save:after:2")
    (states,) = set(training.states()) - set(before)
    newest = max(states.glob("*.pt"))
    if damage == "truncated":
        os.truncate(newest, newest.stat().st_size // 2)
    else:
        content = bytearray(newest.read_bytes())
        content[len(content) // 3] ^= 4
        newest.write_bytes(content)
    ended = training.run()
    assert f"warning: {newest} is damaged; going back to the state before" in ended.output
    assert "Resuming after step 15 of 60" in ended.output
    assert training.outputs() == uninterrupted("cnn", UNTRACKED).outputs()


@pytest.mark.slow
@pytest.mark.parametrize("model", STAGES)
def test_a_truncated_split_is_one_line(model, nursery, root, tmp_path):
    modality = find(model=model).about.data
    data = shutil.copytree(nursery.folder / "data" / modality, tmp_path / modality)
    os.truncate(data / "train.parquet", 1000)
    training = Training(nursery, root, tmp_path, model, UNTRACKED, f"data={data}")
    ended = training.run()
    assert ended.status == 1
    line = ended.output.splitlines()[-1]
    assert line.startswith(f"error: {data}/train.parquet is not the file that dataset.json")
    assert line.endswith(f"run `dvc repro -f prepare@{modality}`")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts, or enlarges, a file system of that many kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes: int) -> Path:
        options = f"size={kilobytes}k" + (",remount" if folder.is_mount() else "")
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this machine does not let root mount a file system")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


FULL = r"error: {}\S* can't be written: the disk is full \([\d,]+ bytes free, .+ needed\); free"


def test_a_disk_that_is_full_of_states_keeps_the_latest(disk, nursery, uninterrupted, tmp_path):
    small = disk(1500)
    training = Training(nursery, small, tmp_path, "cnn", UNTRACKED)
    ended = training.run()
    assert ended.status == 1
    line = ended.output.splitlines()[-1]
    assert re.match(FULL.format(f"{small}/.checkpoints/train_cnn-"), line), ended.output
    assert re.search(r"about [\d,]{7,} bytes needed", line)
    assert "epoch 2/4" in ended.output
    disk(20_000)
    assert "Resuming after step" in training.run().output
    assert training.outputs() == uninterrupted("cnn", UNTRACKED).outputs()


@pytest.mark.parametrize("which", ["output", pytest.param("curve", marks=pytest.mark.slow)])
def test_a_disk_without_room_for_the_outputs_loses_no_step(
    which, disk, nursery, root, uninterrupted, tmp_path
):
    small = disk(100 if which == "output" else 4)
    name = "model" if which == "output" else "curve.csv"
    training = Training(nursery, root, tmp_path, "cnn", UNTRACKED, f"{which}={small}/{name}")
    if which == "curve":
        (small / "filler").write_bytes(bytes(4096))
    ended = training.run()
    assert ended.status == 1
    assert re.match(FULL.format(f"{small}/{name}"), ended.output.splitlines()[-1]), ended.output
    assert set(os.listdir(small)) <= {"filler"}
    disk(20_000)
    assert "Resuming after step 60 of 60" in training.run().output
    shutil.move(small / name, tmp_path / name)
    assert training.outputs() == uninterrupted("cnn", UNTRACKED).outputs()


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_disk_without_room_for_the_data_is_one_line(modality, disk, nursery, root):
    small = disk(60)
    ended = nursery.run(
        "prepare", f"modality={modality}", "profile=tiny", UNTRACKED, f"output={small}/data",
        DVC_ROOT=str(root),
    )  # fmt: skip
    assert ended.status == 1
    assert re.match(FULL.format(f"{small}/data"), ended.output.splitlines()[-1]), ended.output
    assert os.listdir(small) == []


@pytest.mark.slow
def test_a_disk_without_room_for_the_figures_is_one_line(
    disk, nursery, root, uninterrupted, tmp_path
):
    trained, small = uninterrupted("cnn", UNTRACKED).folder, disk(200)
    ended = nursery.run(
        "evaluate", "model=cnn", f"weights={trained}/model", f"curve={trained}/curve.csv",
        f"plots={small}/plots", f"metrics={tmp_path}/cnn.json", UNTRACKED, DVC_ROOT=str(root),
    )  # fmt: skip
    assert ended.status == 1
    assert re.match(FULL.format(f"{small}/plots"), ended.output.splitlines()[-1]), ended.output
    assert os.listdir(small) == []
    assert not (tmp_path / "cnn.json").exists()


@pytest.mark.slow
def test_out_of_memory_in_a_step_says_what_to_lower(nursery, root, tmp_path):
    training = Training(nursery, root, tmp_path, "cnn", UNTRACKED, "precision=fp32")
    large = ["training.batch_size=160", "cnn.channels=[256,256]"]
    ended = training.run(*large, memory=600_000_000)
    assert ended.status == 1
    line = ended.output.splitlines()[-1]
    assert line.startswith("error: out of memory on cpu with batches of 160 examples ("), line
    assert line.endswith(
        "lower training.batch_size and raise training.accumulate by the same factor"
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    params["train_cnn"]["tracking"] = "off"
    for stage in STAGES.values():
        params[stage]["training"] |= {"epochs": 60, "batch_size": 64}
    params["finetune_transformer"]["training"]["batch_size"] = 16
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    profile = folder / "conf/profile/tiny.yaml"
    profile.write_text(profile.read_text().replace("max_steps: 12", "max_steps: 60"))
    return folder


@pytest.fixture(scope="module")
def lock(repository: Path) -> Callable[[str], bytes]:
    """dvc.lock once a stage has run without interruption."""

    def after(stage: str) -> bytes:
        ended = run(repository, "dvc", "repro", stage)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return (repository / "dvc.lock").read_bytes()

    return after


class TestDVC:
    """`dvc repro` in a repository of its own, where the uninterrupted pipeline ran before."""

    def start(self, repository: Path, stage: str) -> tuple[subprocess.Popen[str], int]:
        """A forced `dvc repro` of one stage, and the stage's process once it has saved a state."""
        dvc = subprocess.Popen(
            ["dvc", "repro", "--force", "--single-item", stage],
            cwd=repository, env=environment(repository), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while time.monotonic() < end and dvc.poll() is None:
            for state in repository.glob(f".checkpoints/{stage}-*/*-*.pt"):
                return dvc, int((state.parent / "pid").read_text())
            time.sleep(0.005)
        raise AssertionError(dvc.communicate()[0])

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    @pytest.mark.parametrize("stage", STAGES.values())
    def test_killed_and_run_again_it_leaves_the_lock_of_an_uninterrupted_run(
        self, stage, repository, lock
    ):
        before = lock(stage)
        dvc, pid = self.start(repository, stage)
        os.kill(pid, signal.SIGKILL)
        said, _ = dvc.communicate()
        assert dvc.returncode != 0, said
        again = run(repository, "dvc", "repro", "--force", "--single-item", stage)
        assert again.returncode == 0, again.stderr
        assert re.search(r"Resuming after step \d+ of 60", again.stdout)
        assert (repository / "dvc.lock").read_bytes() == before
        assert not list(repository.glob(".checkpoints/*"))

    @pytest.mark.slow
    @pytest.mark.parametrize("dies", [False, True])
    def test_a_stage_that_outlives_its_dvc_is_waited_for_and_its_work_is_taken(
        self, repository, lock, dies
    ):
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
        before, known = lock("train_rnn"), len(runs(client, "train_rnn"))
        dvc, pid = self.start(repository, "train_rnn")
        os.kill(pid, signal.SIGSTOP)
        dvc.kill()
        dvc.wait()
        second = subprocess.Popen(
            ["dvc", "repro", "--force", "--single-item", "train_rnn"],
            cwd=repository, env=environment(repository), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = ""
        while "waiting for its end" not in said:
            said += second.stdout.readline()
            assert second.poll() is None, said
        assert f"another process ({pid}) is running train_rnn with this config" in said
        os.kill(pid, signal.SIGKILL if dies else signal.SIGCONT)
        rest, _ = second.communicate()
        assert second.returncode == 0, rest
        assert ("Resuming after step" in rest) is dies
        assert ("its outputs are taken" in rest) is not dies
        assert (repository / "dvc.lock").read_bytes() == before
        assert not list(repository.glob(".checkpoints/*"))
        done = run(repository, "python", "-m", "pipeline.tracking", "sync")
        assert done.returncode == 0, done.stdout
        trained = runs(client, "train_rnn")
        assert len(trained) == known + 1
        assert {one.info.status for one in trained} == {"FINISHED"}
        parent = client.get_run(trained[0].data.tags["mlflow.parentRunId"])
        assert (parent.info.status, parent.data.tags["dvc.command"]) == (
            "FINISHED", "dvc repro --force --single-item train_rnn",
        )  # fmt: skip


def runs(client: Any, stage: str) -> list[Any]:
    """All runs of a stage, the newest first."""
    places = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(places, f"tags.stage = '{stage}'"))
