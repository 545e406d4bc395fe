"""Whatever kills an evaluation, nothing half-written is left and the next start writes it whole."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import write_json
from tests.data.sources import contents
from tests.workspace import BARE, QUICK, STAGES, Nursery

pytestmark = pytest.mark.slow  # tests/test_files.py has what keeps the outputs whole

SMALL = [
    f"parts.{name}={size}"
    for name, size in {"probe_train": 60, "probe_test": 30, "pictured": 20, "damaged": 20}.items()
]
SUBJECT = "pipeline.classification.evaluation.subject:Subject"
PLACES = {
    "while the test split is predicted": f"{SUBJECT}.logits:before:1",
    "between the tables": "pipeline.figures.page:Page.table:before:2",
    "in a figure": "matplotlib.figure:Figure.savefig:after:2",
    "while the probes are fitted": "pipeline.classification.evaluation.depth:probes:before:1",
    "with all figures drawn": "pipeline.figures.page:Page.close:after:1",
    "with the earlier figures moved aside": "pathlib:Path.rename:after:1",
    "before the metrics": "stages.evaluate:write_json:before:1",
    "with the metrics written under another name": "pathlib:Path.write_text:after:3",
    "with all outputs written": "pipeline.tracking.run:Run.end:before:1",
}
"""Where it is killed: each start comes a little further than the one before."""


class Evaluation:
    """Evaluations of one model, in a folder of its own."""

    def __init__(
        self, nursery: Nursery, model: str, weights: Path, folder: Path, parts: list[str]
    ) -> None:
        self.nursery, self.folder = nursery, folder
        self.command = [
            "evaluate", f"model={model}", f"weights={weights}/model", f"curve={weights}/curve.csv",
            f"plots={folder}/plots", f"metrics={folder}/metrics/model.json", "tracking=off",
            "threads=1", *parts,
        ]  # fmt: skip
        self.variables = {"DVC_ROOT": str(weights)}

    def start(self, **how: Any) -> Any:
        return self.nursery.start(*self.command, **how, **self.variables)

    def leave_earlier_results(self) -> None:
        for file in ("plots/predictions.parquet", "plots/old.png"):
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text("earlier")
        write_json(self.folder / "metrics" / "model.json", {"accuracy": 0.5, "accuracy_high": 0.6})

    def outputs(self) -> dict[str, dict[str, str]]:
        """Digests of the figures and of the metrics that are there under their own names."""
        return {
            "plots": contents(self.folder / "plots"),
            "metrics": {
                name: digest for name, digest in contents(self.folder / "metrics").items()
                if not name.startswith(".")
            },
        }  # fmt: skip

    def everything(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        )


@pytest.fixture(scope="module")
def trained(nursery, tmp_path_factory) -> Callable[[str], Path]:
    """Trains each model once."""
    done: dict[str, Path] = {}

    def get(model: str) -> Path:
        if model not in done:
            folder = done[model] = tmp_path_factory.mktemp(model)
            ended = nursery.run(
                STAGES[model], *QUICK[model], "training.epochs=1", "threads=1", "tracking=off",
                f"output={folder}/model", f"curve={folder}/curve.csv", DVC_ROOT=str(folder),
            )  # fmt: skip
            assert ended.status == 0, ended.output
        return done[model]

    return get


@pytest.fixture
def evaluation(nursery, trained, tmp_path) -> Callable[..., tuple[Evaluation, Evaluation]]:
    """One to be killed, and one that has run without interruption."""

    def get(model: str, parts: list[str]) -> tuple[Evaluation, Evaluation]:
        killed, whole = (
            Evaluation(nursery, model, trained(model), tmp_path / name, parts)
            for name in ("killed", "whole")
        )
        ended = whole.start().wait()
        assert ended.status == 0, ended.output
        return killed, whole

    return get


def check_nothing_is_half_written(killed: Evaluation, *whole: dict[str, dict[str, str]]) -> None:
    for kind, files in killed.outputs().items():
        assert files in [{}, *(one[kind] for one in whole)], kind


@pytest.mark.parametrize("model", STAGES)
def test_killed_at_one_place_after_the_other_the_next_gives_the_same_bytes(model, evaluation):
    killed, whole = evaluation(model, SMALL)
    killed.leave_earlier_results()
    earlier = killed.outputs()
    for place, where in PLACES.items():
        ended = killed.start(kill=where).wait()
        assert ended.status == -signal.SIGKILL, f"{place}: {ended.output}"
        check_nothing_is_half_written(killed, earlier, whole.outputs())
    assert killed.start().wait().status == 0
    assert killed.outputs() == whole.outputs()
    assert killed.everything() == whole.everything()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", STAGES)
def test_killed_at_20_random_moments_the_next_gives_the_same_bytes(model, evaluation):
    killed, whole = evaluation(model, BARE)
    moments, seconds = random.Random(model), 5.0
    for number in range(20):
        if number % 2:
            killed.leave_earlier_results()
        earlier = killed.outputs()
        stage = killed.start()
        time.sleep(moments.uniform(0, seconds))
        stage.kill()
        stage.wait()
        check_nothing_is_half_written(killed, earlier, whole.outputs())
        ended = killed.start().wait()
        assert ended.status == 0, ended.output
        seconds = ended.seconds
        assert killed.outputs() == whole.outputs(), number
        assert killed.everything() == whole.everything(), number
        shutil.rmtree(killed.folder)
