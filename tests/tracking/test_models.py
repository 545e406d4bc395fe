"""The logged model answers raw inputs in a fresh process; the registry moves the champion."""

import io
import json
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import models, tracking
from pipeline.files import digest
from pipeline.settings import RNN, SimpleCNN, Tracking
from pipeline.tracking.registry import Comparison
from tests.tracking.conftest import runs

DIGITS = [str(digit) for digit in range(10)]


def png(shade: int = 200) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), shade, np.uint8)).save(file, "PNG")
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
    settings = RNN(cell="gru", mels=16, hidden=8, layers=1, dropout=0.0)
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
given = [*raw, *json.loads(sys.argv[3])[:1], *eval(sys.argv[4])]
import pipeline
assert "/work/" not in pipeline.__file__ and "tests" not in pipeline.__file__, pipeline.__file__
assert "hydra" not in sys.modules
print(json.dumps(model.predict(given)))
"""


def fresh(workspace: Path, model_id: str, raw: list[bytes], arrays: str) -> list[dict[str, Any]]:
    """What the model answers in a process that does not have this project."""
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


def test_an_image_model_takes_png_bytes_and_arrays_in_a_fresh_process(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    folder = image_model(tmp_path / "models" / "cnn")
    run = tracking.start("train_cnn", settings, {"lr": 0.1}, {"device": "cpu"})
    run.metrics({"validation/accuracy": 0.5}, step=3)
    run.output(folder)
    run.model(folder, "image", DIGITS, png())
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

    arrays = "[np.full((28, 28), 200, np.uint8), np.full((1, 28, 28), 200)]"
    answers = fresh(workspace, model.model_id, [png()], arrays)
    assert len(answers) == 4
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
    same, resampled, text, silence, float_silence = (a["probabilities"]["yes"] for a in answers)
    assert same == pytest.approx(text)
    assert same == pytest.approx(resampled, abs=0.05)
    assert silence == pytest.approx(float_silence)


class TestRegistry:
    def predictions(self, path: Path, labels: list[int], wrong: set[int]) -> Path:
        guesses = [1 - label if row in wrong else label for row, label in enumerate(labels)]
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(pa.table({"label": labels, "prediction": guesses}), path)
        return path

    def evaluate(
        self, settings: Tracking, folder: Path, seed: int, wrong: set[int], data: str, **more: bool
    ) -> None:
        """Train and evaluate one model that gets the rows `wrong` wrong."""
        cnn = image_model(folder / str(seed) / "models" / "cnn", seed)
        run = tracking.start("train_cnn", settings, {"seed": seed}, {})
        run.output(cnn)
        run.model(cnn, "image", DIGITS, png())
        run.end()
        labels = [row % 2 for row in range(100)]
        table = self.predictions(folder / str(seed) / "predictions.parquet", labels, wrong)
        run = tracking.start("evaluate", settings, {}, {})
        weights = digest(cnn / "model.safetensors")
        run.metrics({"test/accuracy": 1 - len(wrong) / 100}, target=f"trained:{weights}")
        run.register(
            self.name,
            weights=weights,
            data=data,
            predictions=table,
            metrics={"test/accuracy": 1 - len(wrong) / 100},
            promote=more.get("promote", True),
        )
        run.end()

    name = "image-classifier"

    def champion(self, client: Any, alias: str = "champion") -> str:
        return str(client.get_model_version_by_alias(self.name, alias).version)

    def test_the_champion_moves_only_for_a_better_one_or_other_data(
        self, workspace: Path, settings: Tracking, client: Any, tmp_path: Path
    ) -> None:
        self.evaluate(settings, tmp_path, 1, set(range(20)), "a")
        assert self.champion(client) == "1"
        self.evaluate(settings, tmp_path, 2, set(range(16)), "a")  # 4 to 0: p = 0.125
        assert self.champion(client) == "1"
        assert self.champion(client, "candidate") == "2"
        tags = client.get_model_version(self.name, "2").tags
        assert tags["mcnemar.better"] == "4"
        assert tags["mcnemar.p"] == "0.125"
        assert "version 1 stays champion against 2: on 4 test examples" in tags["decision"]
        assert client.get_model_version(self.name, "1").tags["decision.2"] == tags["decision"]
        self.evaluate(settings, tmp_path, 3, set(range(10)), "a", promote=False)
        assert self.champion(client) == "1"
        self.evaluate(settings, tmp_path, 4, {*range(10), 99}, "a")  # 10 to 1: p = 0.0117
        assert self.champion(client) == "4"
        tags = client.get_model_version(self.name, "4").tags
        assert tags["mcnemar.p"] == "0.0117188"
        assert tags["compared_to"] == "1"
        assert tags["test/accuracy"] == "0.89"
        assert tags["data.digest"] == "a"
        self.evaluate(settings, tmp_path, 5, set(range(50)), "b")
        assert self.champion(client) == "5"
        decision = client.get_model_version(self.name, "5").tags["decision"]
        assert "the test data changed" in decision
        model = client.get_logged_model(client.get_model_version(self.name, "5").model_id)
        assert {metric.key: metric.value for metric in model.metrics} == {"test/accuracy": 0.5}


@given(better=st.integers(0, 200), worse=st.integers(0, 200))
def test_the_exact_mcnemar_test_is_the_binomial_test(better: int, worse: int) -> None:
    from scipy.stats import binomtest

    p = Comparison(better, worse).p
    total = better + worse
    assert p == pytest.approx(binomtest(better, total).pvalue if total else 1.0)
