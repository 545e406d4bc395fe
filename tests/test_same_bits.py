"""The same config and data give the same bytes, whatever else is different."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.files import digest
from tests.conftest import copy_of_the_repository, environment, run
from tests.workspace import QUICK, STAGES, outputs

pytestmark = pytest.mark.slow  # tests/golden compares every loss in this process

OTHERWISE = {
    "PYTHONHASHSEED": "7",
    "LC_ALL": "tr_TR.UTF-8",
    "LANG": "C",
    "TZ": "Asia/Tokyo",
    "OMP_NUM_THREADS": "2",
}


def short(model: str) -> list[str]:
    """A training of two epochs."""
    chosen = [one for one in QUICK[model] if not one.startswith("training.epochs")]
    return [STAGES[model], *chosen, "training.epochs=2", "threads=1"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", STAGES)
def test_twice_is_the_same_also_over_the_leftovers_of_another_run(
    model, precision, nursery, tmp_path
):
    chosen = [*short(model), "tracking=off", f"precision={precision}"]
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        places = [f"output={folder}/model", f"curve={folder}/curve.csv"]
        if folder.name == "b":
            other = nursery.run(*chosen, *places, "seed=5", DVC_ROOT=str(folder))
            assert other.status == 0, other.output
            (folder / "model" / "leftover.txt").write_text("of an earlier run")
            assert outputs(folder)["model.safetensors"] != found[0]["model.safetensors"]
        ended = nursery.run(*chosen, *places, DVC_ROOT=str(folder))
        assert ended.status == 0, ended.output
        found.append(outputs(folder))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model", "off"),
    [
        ("rnn", "tracking=off"),
        ("cnn", "tracking.enabled=false"),
        ("transformer", "tracking.enabled=false"),
    ],
)
def test_hash_seed_locale_time_zone_cwd_and_tracking_change_nothing(model, off, nursery, tmp_path):
    """Without tracking nothing is left but the outputs, and mlflow is not even imported."""
    stage, *overrides = short(model)
    here, there = tmp_path / "here", tmp_path / "there"
    plain = run(
        nursery.folder, sys.executable, "-X", "importtime", "-m", f"stages.{stage}", *overrides,
        f"output={here}/model", f"curve={here}/curve.csv", off, DVC_ROOT=str(here),
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    listed = re.findall(r"^import time:.*\| +([\w.]+)$", plain.stderr, re.MULTILINE)
    imported = {module.partition(".")[0] for module in listed}
    assert imported > {"torch", "hydra", "pipeline"}
    assert "mlflow" not in imported
    assert {path.name for path in here.iterdir()} <= {"model", "curve.csv", ".checkpoints"}
    other = subprocess.run(
        [
            *(sys.executable, "-m", f"stages.{stage}", *overrides),
            *(f"output={there}/model", f"curve={there}/curve.csv"),
        ],
        cwd=tmp_path, capture_output=True, text=True,
        env={
            **environment(nursery.folder, **OTHERWISE), "PYTHONPATH": str(nursery.folder),
            "DVC_ROOT": str(there),
        },
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    # tracked: the sender of a busy machine may have sent nothing yet
    assert {"mlflow.db", ".tracking"} & {path.name for path in there.iterdir()}
    assert outputs(here) == outputs(there)


@pytest.mark.timeout(1800)
def test_by_hand_in_another_order_at_once_and_by_dvc_without_a_cache(tmp_path):
    """All of the pipeline: data, weights, curves, metrics."""
    folder = copy_of_the_repository(tmp_path / "repository")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.rmtree(folder / "metrics")  # those of all tasks are in git
    variables = {**OTHERWISE, "OMP_WAIT_POLICY": "passive"}
    rounds = [
        [f"prepare modality={modality}" for modality in ("audio", "image", "text")],
        reversed(STAGES.values()),
        [f"evaluate model={model}" for model in reversed(STAGES)],
    ]
    for stages in rounds:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", *f"stages.{stage} tracking=off".split()],
                cwd=folder, env=environment(folder, **variables),
            )
            for stage in stages
        ]  # fmt: skip
        assert [process.wait() for process in started] == [0, 0, 0]
    by_hand = contents(folder)
    assert {path.split("/")[0] for path in by_hand} == {"data", "models", "plots", "metrics"}
    for name in ("data", "models", "plots", "metrics"):
        subprocess.run(["rm", "-r", str(folder / name)], check=True)
    for again in ([], ["--force", "--no-run-cache"]):
        done = run(folder, "dvc", "repro", *again, *(f"evaluate@{model}" for model in STAGES))
        assert done.returncode == 0, done.stderr
        assert contents(folder) == by_hand


def contents(folder: Path) -> dict[str, str]:
    """Digest of every output."""
    return {
        str(path.relative_to(folder)): digest(path)
        for name in ("data", "models", "plots", "metrics")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }
