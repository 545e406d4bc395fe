"""The logged model answers raw inputs in a fresh process; the registry moves the champion."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from mlflow.exceptions import MlflowException
from pydantic import TypeAdapter

from pipeline import tracking
from pipeline.files import digest
from pipeline.settings import Tracking
from pipeline.task import find
from pipeline.tracking.models import register
from pipeline.tracking.operations import Register
from pipeline.tracking.store import Store
from pipeline.training import net as nets
from pipeline.training.net import Net
from tests.tracking.answers import fresh, log, logged
from tests.tracking.conftest import runs

DIGITS = [str(digit) for digit in range(10)]


def picture(kind: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(file, kind)
    return file.getvalue()


def image_model() -> Net:
    torch.manual_seed(0)
    task = find(name="image_classification")
    facts = {"channels": 1, "height": 28, "width": 28, "mean": [0.5], "std": [0.5]}
    return nets.build(
        task,
        TypeAdapter(task.settings.Model).validate_python({"name": "simple"}),
        task.settings.Facts(classes=DIGITS, **facts),
    )


@pytest.mark.slow
def test_an_image_model_takes_png_and_jpeg_bytes_and_arrays_in_a_fresh_process(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    example = base64.b64encode(picture()).decode()
    folder = log(settings, image_model(), example, tmp_path, lr=0.1)
    (found,) = runs(client, settings.experiment)
    assert "refused" not in found.data.tags, found.data.tags["refused"]
    model = logged(client, settings.experiment)
    assert model.status == "READY"
    assert model.name == "train_cnn"
    assert model.params["lr"] == "0.1"
    assert [metric.key for metric in model.metrics] == ["validation/accuracy"]
    place = Path(model.artifact_location)
    files = {file.name for file in place.rglob("*") if file.is_file()}
    assert {"MLmodel", "input_example.json", "model.safetensors", "served.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".bin", ".pyc"))]
    pinned = (place / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in [
        line.partition("+")[0] for line in pinned
    ]
    assert "device.device: cpu" in (place / "MLmodel").read_text()

    run = tracking.start("evaluate", settings, {}, {})
    table = tmp_path / "predictions.parquet"
    pa.parquet.write_table(pa.table({"score": [1.0, 0.0]}), table)
    weights = digest(folder / "model.safetensors")
    run.metrics({"test/accuracy": 0.5}, target=f"trained:{weights}")
    measures = {"test/accuracy": 0.5, "test/top+2": 0.4, "test/f1/7": 0.3}
    run.register("image-classifier", weights, "d", "t", table, measures, promote=True, capped=False)
    run.end()
    _, evaluated = runs(client, settings.experiment)
    assert "refused" not in evaluated.data.tags, evaluated.data.tags["refused"]
    assert evaluated.data.tags["registered.image-classifier"] == "1"
    assert evaluated.data.tags["trained_by"] == found.info.run_id
    version = client.get_model_version_by_alias("image-classifier", "champion")
    measured = {key: value for key, value in version.tags.items() if key.startswith("test/")}
    assert measured == {"test/accuracy": "0.5", "test/top_2": "0.4"}
    measured = client.get_logged_model(model.model_id).metrics
    assert {m.key: m.value for m in measured} == {"validation/accuracy": 0.5, "test/accuracy": 0.5}
    for key in ("validation/accuracy", "test/accuracy"):
        assert len(client.get_metric_history(found.info.run_id, key)) == 1

    arrays = "[np.full((28, 28), 200, np.uint8), np.full((1, 28, 28), 200)]"
    raw = [picture(), picture("JPEG")]
    answers = fresh(workspace, "image-classifier@champion", raw, arrays)
    assert len(answers) == 6
    expected = nets.load(folder).module(torch.full((1, 1, 28, 28), 200, dtype=torch.uint8))
    chances = expected.softmax(1)[0].tolist()
    for answer in answers:
        assert answer["label"] == DIGITS[int(np.argmax(chances))]
        assert list(answer["probabilities"].values()) == pytest.approx(chances, abs=1e-5)


class TestRegistry:
    name = "text-classifier"

    @pytest.fixture
    def store(self, workspace: Path) -> Store:
        return Store(f"sqlite:///{workspace}/mlflow.db", workspace)

    def evaluate(
        self,
        store: Store,
        folder: Path,
        weights: str,
        wrong: set[int],
        data: str,
        promote: bool = True,
        capped: bool = False,
        test: str = "",
    ) -> dict[str, str]:
        """Register a model that gets the rows `wrong` of 100 wrong; returns the tags it gets."""
        client = store.client
        place = store.experiment("registry")
        trained = client.create_run(place).info.run_id
        client.log_metric(trained, "test/accuracy", 1 - len(wrong) / 100)
        model = client.create_logged_model(place, "rnn", trained)
        client.finalize_logged_model(model.model_id, "READY")
        run_id = client.create_run(place).info.run_id
        table = folder / f"{weights}.parquet"
        score = [float(row not in wrong) for row in range(100)]
        pa.parquet.write_table(pa.table({"score": score}), table)
        record = Register(
            name=self.name,
            weights=weights,
            data=data,
            test=test or data,
            file="",
            metrics={"test/accuracy": 1 - len(wrong) / 100},
            promote=promote,
            capped=capped,
        )
        version = register(store, run_id, trained, table, record)
        # the answer may have been lost: asked again it changes nothing
        assert register(store, run_id, trained, table, record) == version
        assert version
        return dict(client.get_model_version(self.name, version).tags)

    def alias(self, store: Store, alias: str = "champion") -> str:
        return str(store.client.get_model_version_by_alias(self.name, alias).version)

    def test_the_champion_moves_only_for_a_better_one_or_other_data(
        self, store: Store, tmp_path: Path
    ) -> None:
        self.evaluate(store, tmp_path, "one", set(range(20)), "a")
        assert self.alias(store) == "1"
        tags = self.evaluate(store, tmp_path, "two", set(range(16)), "a")  # 4 to 0: p = 0.125
        assert (self.alias(store), self.alias(store, "candidate")) == ("1", "2")
        assert (tags["paired.better"], tags["paired.p"]) == ("4", "0.125")
        assert tags["decision"] == (
            "version 1 stays champion against 2: "
            "2 does better on 4 test examples, 1 on 0, paired test p = 0.125"
        )
        champion = store.client.get_model_version(self.name, "1")
        assert champion.tags["decision.2"] == tags["decision"]
        tags = self.evaluate(store, tmp_path, "three", set(range(10)), "a", promote=False)
        assert self.alias(store) == "1"
        assert "promotion is off" in tags["decision"]
        tags = self.evaluate(store, tmp_path, "four", {*range(10), 99}, "a")  # 10 to 1
        assert self.alias(store) == "4"
        assert (tags["paired.p"], tags["compared_to"]) == ("0.0117188", "1")
        assert (tags["test/accuracy"], tags["data.digest"]) == ("0.89", "a")
        assert "version 4 follows 1 as champion" in tags["decision"]
        tags = self.evaluate(store, tmp_path, "tiny", set(), "c", capped=True)
        assert self.alias(store) == "4"
        assert tags["decision"] == "version 4 stays champion: 5 is of a capped profile"
        tags = self.evaluate(store, tmp_path, "five", set(range(50)), "b")
        assert self.alias(store) == "6"
        assert "the data changed" in tags["decision"]
        model = store.client.get_logged_model(tags["model"].removeprefix("models:/"))
        assert {metric.key: metric.value for metric in model.metrics} == {"test/accuracy": 0.5}
        assert len(store.client.search_model_versions(f"name = '{self.name}'")) == 6

    def test_other_training_data_do_not_make_a_champion_on_the_same_test_split(
        self, store: Store, tmp_path: Path
    ) -> None:
        self.name = "trained-on-more"
        self.evaluate(store, tmp_path, "more-1", set(range(20)), "a", test="t")
        tags = self.evaluate(store, tmp_path, "more-2", set(range(40)), "b", test="t")
        assert (self.alias(store), tags["paired.worse"]) == ("1", "20")
        assert tags["test.digest"] == "t"
        # one that was registered before there was a digest of the test split
        store.client.delete_model_version_tag(self.name, "1", "test.digest")
        tags = self.evaluate(store, tmp_path, "more-3", set(range(40)), "a", test="t")
        assert (self.alias(store), tags["compared_to"]) == ("1", "1")

    def test_an_older_model_evaluated_again_is_no_candidate_and_lost_predictions_no_obstacle(
        self, store: Store, tmp_path: Path
    ) -> None:
        self.name = "lost"
        first = self.evaluate(store, tmp_path, "one", set(range(20)), "a")
        tags = self.evaluate(store, tmp_path, "two", set(range(30)), "a")
        record = Register(
            name=self.name, weights="one", data="a", test="a", file="", metrics={}, promote=True,
            capped=False,
        )  # fmt: skip
        again = store.client.create_run(store.experiment("registry")).info.run_id
        assert register(store, again, first["trained_by"], tmp_path / "one.parquet", record) == "1"
        assert (self.alias(store), self.alias(store, "candidate")) == ("1", "2")
        place = store.client.get_run(again).info.artifact_uri
        shutil.rmtree(place.removeprefix("file://"))
        record = replace(record, weights="two")
        table = tmp_path / "two.parquet"
        run_id = store.client.create_run(store.experiment("registry")).info.run_id
        assert register(store, run_id, tags["trained_by"], table, record) == "2"
        decision = store.client.get_model_version(self.name, "2").tags["decision"]
        assert decision == "version 1 stays champion: its predictions are gone"


@pytest.mark.parametrize("kind", ["file", pytest.param("server", marks=pytest.mark.slow)])
def test_a_version_is_of_its_store_whichever_store_was_opened_last(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    file = f"sqlite:///{workspace}/mlflow.db"
    store = Store(request.getfixturevalue("server").uri if kind == "server" else file, workspace)
    with pytest.raises(MlflowException):
        Store("http://127.0.0.1:9", tmp_path)
    registry = TestRegistry()
    registry.name = "elsewhere"
    tags = registry.evaluate(store, tmp_path, "one", set(), "a")
    version = store.client.get_model_version("elsewhere", "1")
    place = store.client.get_logged_model(tags["model"].removeprefix("models:/")).artifact_location
    assert store.client.get_model_version_download_uri("elsewhere", "1") == place
    assert version.run_id == tags["trained_by"]
