"""A recorded run, whichever way it was started, runs again to the same bits, or says why not."""

import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.reproduce import restore, verdict
from pipeline.reproduce.__main__ import main, reproduce
from pipeline.reproduce.verdict import Result
from pipeline.tracking.reader import Reader
from pipeline.tracking.store import Store
from tests.conftest import copy_of_the_repository, run
from tests.workspace import workspace


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A repository with an empty store, small settings committed."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    shutil.copy(empty_store, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    params["train_rnn"]["training"]["batch_size"] = 32
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    conf = folder / "conf/tracking/mlflow.yaml"
    # a sender gives way to other tests
    conf.write_text(conf.read_text().replace("flush_seconds: 20", "flush_seconds: 120"))
    commit = run(folder, "git", "commit", "-qam", "small")
    assert commit.returncode == 0, commit.stderr
    return folder


@pytest.fixture
def spoken(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its prepared clips, where no test has left some."""
    folder = "data/audio"
    if not (repository / folder).exists():
        clips = workspace(tmp_path_factory.getbasetemp()) / folder
        shutil.copytree(clips, repository / folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A csv file outside of it."""
    file = tmp_path / "texts.csv"
    rows = (f"a {('bad', 'good')[row % 2]} film of {row} minutes,{row % 2}" for row in range(60))
    file.write_text("\n".join(["text,label", *rows]))
    return str(file)


@pytest.fixture(autouse=True)
def _in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def latest(repository: Path, stage: str) -> str:
    return Reader(f"sqlite:///{repository}/mlflow.db").runs(stage)[-1]


def start(repository: Path, *command: str, **variables: str) -> None:
    done = run(repository, *command, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


def answer(run_id: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and last line of `make reproduce`, its output before that checked to be clean."""
    status = main([run_id])
    out, err = capfd.readouterr()
    return status, (out + err).splitlines()[-1]


def worktrees(repository: Path) -> int:
    return len(run(repository, "git", "worktree", "list").stdout.splitlines())


@pytest.mark.parametrize(
    ("stage", "place", "edited", "key", "overrides"),
    [
        ("prepare", "texts", ("text/csv.yaml", "test: 0.", "test: 0.3"), "text.file",
         ["modality=text", "text=csv"]),
        pytest.param("train_rnn", "spoken", ("rnn/gru.yaml", "hidden: ", "hidden: 1"), "data",
                     ["optimizer.lr=0.003"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_run_by_hand_with_uncommitted_changes_and_a_variable(
    stage, place, edited, key, overrides, repository, request, capfd, monkeypatch
):
    given, (name, old, new) = request.getfixturevalue(place), edited
    preset = repository / "conf" / name
    committed = preset.read_text()
    preset.write_text(committed.replace(old, new))
    try:
        start(
            repository, "python", "-m", f"stages.{stage}", "seed=3", *overrides,
            f"{key}=${{oc.env:PLACE}}", PLACE=given,
        )  # fmt: skip
    finally:
        preset.write_text(committed)
    run_id = latest(repository, stage)
    recorded = Reader().read(run_id)
    assert f"+{new}".encode() in recorded.diff
    assert recorded.config["seed"] == 3
    assert "${oc.env:PLACE}" in str(recorded.config)
    status, said = answer(run_id, capfd)
    assert status == 1
    assert said.startswith(f"error: {key}: ")
    assert "'PLACE' not found" in said
    monkeypatch.setenv("PLACE", given)
    status, said = answer(run_id, capfd)
    assert status == 0
    assert said.startswith("identical: the outputs and ")
    assert worktrees(repository) == 1
    assert preset.read_text() == committed


@pytest.mark.slow
def test_a_run_that_does_not_wait_for_the_store(repository, spoken, capfd):
    start(repository, "python", "-m", "stages.train_rnn", "tracking.flush_seconds=0.1")
    start(repository, "python", "-m", "pipeline.tracking", "sync")
    run_id = latest(repository, "train_rnn")
    points = sum(map(len, Reader().series(run_id).values()))
    assert main([run_id]) == 0
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"identical: the outputs and {points} points of metrics are equal to the bit"


@pytest.mark.slow
def test_a_preparation_by_dvc_repro(repository, capfd):
    start(repository, "dvc", "repro", "prepare@text")
    status, said = answer(latest(repository, "prepare"), capfd)
    assert status == 0
    assert said.startswith("identical: the outputs and ")


@pytest.mark.slow
def test_a_training_by_dvc_repro_with_its_data_in_dvcs_cache_only(repository, capfd):
    start(repository, "dvc", "repro", "train_rnn")
    start(repository, "git", "add", "dvc.lock")
    start(repository, "git", "commit", "-qm", "lock")
    start(repository, "dvc", "repro", "-f", "-s", "train_rnn")
    shutil.rmtree(repository / "data/audio")
    status = main([latest(repository, "train_rnn")])
    out = capfd.readouterr().out
    assert "data/audio: DVC has it" in out
    assert status == 0
    assert out.splitlines()[-1].startswith("identical: the outputs and ")


@pytest.mark.slow
def test_a_training_whose_data_is_nowhere_makes_it_again(repository, capfd):
    start(repository, "dvc", "repro", "train_rnn")
    shutil.rmtree(repository / "data/audio")
    cache = repository / ".dvc/cache"
    cache.rename(repository / "away")
    try:
        status = main([latest(repository, "train_rnn")])
    finally:
        (repository / "away").rename(cache)
    out = capfd.readouterr().out
    assert "data/audio: is made again" in out
    assert status == 0
    assert out.splitlines()[-1].startswith("identical: the outputs and ")
    assert worktrees(repository) == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], ["--temp"]], ids=["in the workspace", "in a copy"])
def test_an_experiment(where, repository, capfd):
    start(
        repository, "dvc", "exp", "run", *where, "-S", "train_rnn.optimizer.lr=0.0123",
        "-S", "train_rnn.rnn=lstm", "train_rnn",
    )  # fmt: skip
    start(repository, "git", "checkout", "-q", ".")
    run_id = latest(repository, "train_rnn")
    assert Reader().read(run_id).config["rnn"]["cell"] == "lstm"
    status, said = answer(run_id, capfd)
    assert status == 0, said
    assert said.startswith("identical: the outputs and ")


@pytest.mark.slow
def test_an_evaluation(repository, capfd):
    start(repository, "dvc", "repro", "evaluate@rnn")
    status, said = answer(latest(repository, "evaluate"), capfd)
    assert status == 0, said
    assert said.startswith("identical: ")
    baselines = Store(f"sqlite:///{repository}/mlflow.db", repository).find("stage", "evaluate")
    baseline = next(run for run in baselines if "beside" in run.data.tags)
    status, said = answer(baseline.info.run_id, capfd)
    assert status == 1
    assert f"take the id of that: {baseline.data.tags['beside']}" in said


@pytest.mark.slow
def test_another_thread_count_is_told_as_the_reason(repository, spoken, capfd, monkeypatch):
    start(repository, "python", "-m", "stages.train_rnn", "threads=1")
    run_id = latest(repository, "train_rnn")
    restored = restore._restored

    def other(before):
        config, reasons = restored(before)
        return {**config, "threads": 2}, reasons

    monkeypatch.setattr(restore, "_restored", other)
    shutil.rmtree(repository / "models/rnn")  # its weights are on the store only
    result = reproduce(run_id)
    capfd.readouterr()
    assert result.verdict == "within tolerance"
    assert result.same_bytes is False
    assert 0 < max(result.tensors.values()) < 0.1
    assert "threads: 1 → 2" in result.reasons


def test_a_repetition_whose_records_are_pending_is_not_compared(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "base.yaml").write_text("hydra: {}\n")
    (conf / "prepare.yaml").write_text("defaults: [base]\n")
    for package in ("stages", "pipeline"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "stages/prepare.py").write_text("")
    (tmp_path / "pipeline/tracking.py").write_text(
        "import sys\nprint('0 run(s) sent, 1 pending')\nsys.exit(int(sys.argv[1] == 'sync'))\n"
    )
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with pytest.raises(PipelineError, match=r"does not have all .*\(0 run\(s\) sent, 1 pending\)"):
        restore._run_stage("prepare", {}, tmp_path, "sqlite:///none.db")


class TestAnswers:
    def compared(self, before, after) -> Result:
        result = Result(same_bytes=None)
        verdict._compare_series({"train/loss": before}, {"train/loss": after}, result)
        return result

    def test_equal_points_are_identical_also_where_they_are_nan(self):
        points = [(1, 0.5), (2, math.nan)]
        assert self.compared(points, list(points)).verdict == "identical"

    def test_small_differences_are_within_tolerance_and_measured(self):
        result = self.compared([(1, 0.5), (2, 0.4)], [(1, 0.5), (2, 0.401)])
        assert result.verdict == "within tolerance"
        assert result.parts_at == (2, "train/loss", 0.4, 0.401)
        assert "train/loss parts at step 2 (0.4 → 0.401); metrics differ by 0.001 at most" in str(
            result
        )

    def test_large_differences_name_the_first_step_and_the_reasons(self):
        result = self.compared([(1, 2.5), (2, 2.4), (3, 2.0)], [(1, 2.5), (2, 2.5), (3, 9.0)])
        result.reasons = ["threads: 1 → 2"]
        assert result.verdict == "different"
        assert str(result).startswith("different: train/loss parts at step 2 (2.4 → 2.5)")
        assert str(result).endswith("may be why: threads: 1 → 2")

    def test_a_missing_point_is_a_difference_said_in_words(self):
        result = self.compared([(1, 0.5), (2, 0.4), (3, 0.3)], [(1, 0.5), (4, 0.2)])
        assert result.verdict == "different"
        assert result.points == 1
        assert str(result).startswith(
            "different: train/loss parts at step 2 (0.4 → no point); metrics differ by 0 at most "
            "(of 0.01); 3 points are missing in one of the two"
        )

    def test_values_that_are_no_numbers_are_said_in_words(self):
        result = self.compared(
            [(1, math.nan), (2, 1.0), (3, -math.inf), (4, 1e308)],
            [(1, 0.5), (2, math.inf), (3, 1.0), (4, -1e308)],
        )
        result.tensors = {"bias": None, "weight": 0.5}
        assert result.verdict == "different"
        assert "(not a number → 0.5)" in str(result)
        assert "4 points differ by no finite number" in str(result)
        assert "1 tensors have other shapes or are not finite (bias)" in str(result)
        for first, word in [(math.inf, "infinite"), (-math.inf, "minus infinite")]:
            assert f"({word} → 0.5)" in str(self.compared([(1, first)], [(1, 0.5)]))
        for text in (str(result), str(self.compared([(1, math.inf)], [(1, -math.inf)]))):
            assert not re.search(r"\b(nan|inf)\b", text)

    def test_metrics_of_one_run_only_are_named_and_not_compared(self):
        result = Result(same_bytes=None)
        ours = {"train/loss": [(1, 0.5)], "test/accuracy": [(0, 0.9)]}
        verdict._compare_series(ours, {"train/loss": [(1, 0.5)]}, result)
        assert str(result) == (
            "identical: 1 points of metrics are equal to the bit; not compared: only one of the "
            "two has test/accuracy"
        )

    def test_equal_outputs_without_metrics_claim_no_metrics(self):
        assert str(Result(same_bytes=True)) == "identical: the outputs are equal to the bit"

    def test_other_prepared_data_is_never_nearly_the_same(self):
        result = self.compared([(1, 0.5)], [(1, 0.5)])
        result.same_bytes, result.nearly, result.differ = False, False, ["data/image"]
        assert result.verdict == "different"
        assert "other bytes in data/image" in str(result)

    def test_other_bytes_with_the_same_metrics_are_not_identical(self):
        result = self.compared([(1, 0.5)], [(1, 0.5)])
        result.same_bytes = False
        assert result.verdict == "within tolerance"


class TestErrors:
    def line(self, run_id, capfd) -> str:
        assert main([run_id]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        return line

    def test_an_unknown_run_is_one_line(self, capfd):
        assert "error: run 0123 is not on sqlite:" in self.line("0123", capfd)

    def test_without_a_run_id_it_says_how_to_call_it(self, capfd):
        assert main([]) == 2
        assert "python -m pipeline.reproduce <MLflow run id>" in capfd.readouterr().err

    def test_a_run_that_failed_can_not_be_compared(self, repository, capfd):
        store = Store(f"sqlite:///{repository}/mlflow.db", repository)
        made = store.client.create_run(store.experiment("pipeline"), tags={"stage": "failed"})
        for name in ("config.yaml", "device.json"):
            store.client.log_text(made.info.run_id, "{}", name)
        store.close(made.info.run_id, "FAILED", made.info.start_time)
        line = self.line(made.info.run_id, capfd)
        assert line.endswith("is FAILED; only a finished run can be compared")

    def test_a_run_that_the_store_has_only_in_part(self, repository, capfd):
        store = Store(f"sqlite:///{repository}/mlflow.db", repository)
        made = store.client.create_run(store.experiment("pipeline"), tags={"stage": "unsent"})
        line = self.line(made.info.run_id, capfd)
        assert "has no config.yaml or device.json on the store; if it is not sent yet, `mak" in line
