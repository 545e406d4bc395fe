"""What a served model of sounds takes."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.settings import Tracking
from pipeline.sounds.wav import read_wav, resample
from pipeline.task import find
from pipeline.tasks.speech_classification.data import sound
from pipeline.tasks.speech_classification.settings import Facts, Model
from pipeline.training import net as nets
from tests.tracking.answers import fresh, log, logged


def wav(rate: int, seconds: float = 0.3) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        writer.writeframes((tone * 20000).astype("<i2").tobytes())
    return file.getvalue()


def test_a_path_is_told_from_base64() -> None:
    with pytest.raises(ValueError, match=r"base64 text here, not 'digits/7\.wav'; of a file"):
        sound("digits/7.wav", 8000)


@pytest.mark.parametrize("content", [b"", b"RIFF", wav(8000)[:60], wav(1000)])
def test_bytes_that_are_no_clip(content) -> None:
    with pytest.raises(ValueError, match=r"^the clip: "):
        sound(content, 8000)


@pytest.mark.parametrize("raw", [["a"], [None], [{}], [], [[0.1]], [float("nan")], [1j]], ids=str)
def test_values_that_are_no_samples(raw) -> None:
    with pytest.raises(ValueError, match=r"^a sound "):
        sound(raw, 8000)


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_clip_is_what_the_preparation_makes_of_it(width) -> None:
    samples = np.frombuffer(wav(16000)[44:], "<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, width, 16000, 0, "NONE", ""))
        high = samples.astype("<i4") << 16
        packed = high.view(np.uint8).reshape(-1, 4)[:, 4 - width :]
        writer.writeframes((packed + (128 if width == 1 else 0)).astype(np.uint8).tobytes())
    read, rate = read_wav(file.getvalue(), "x")
    (prepared,) = resample([read], rate, 8000)
    assert (sound(file.getvalue(), 8000) * 32768 == prepared).all()
    assert prepared[200:2000] == pytest.approx(samples[400:4000:2], abs=600)


def test_a_speech_model_takes_wav_bytes_of_any_rate_and_arrays(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Model(cell="gru", mels=16, hidden=8, layers=1, dropout=0.0, stride=2)
    facts = Facts(classes=["no", "yes"], sample_rate=8000)
    net = nets.build(find(name="speech_classification"), model, facts)
    log(settings, net, base64.b64encode(wav(8000)).decode(), tmp_path)
    model_id = logged(client, settings.experiment).model_id
    arrays = "[np.zeros(2400, np.int16), np.zeros(2400)]"
    answers = fresh(workspace, model_id, [wav(8000), wav(16000)], arrays)
    same, resampled, text, silence, float_silence, example = (
        answer["probabilities"]["yes"] for answer in answers
    )
    assert [text, example] == pytest.approx([same, same])
    assert same == pytest.approx(resampled, abs=0.05)
    assert silence == pytest.approx(float_silence)
