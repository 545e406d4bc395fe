"""What evaluation shows of a network of sounds: evidence over time."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.classification.data.examples import Raw
from pipeline.classification.evaluation import baselines
from pipeline.classification.evaluation.parts import PARTS as PARTS
from pipeline.classification.evaluation.repetition import compare_seeds
from pipeline.classification.evaluation.study import Study, open_study
from pipeline.classification.evaluation.subject import Corruption, Kind, Sizes, Subject
from pipeline.evaluation.features import Inputs, Point, hooks
from pipeline.figures import evidence
from pipeline.figures.page import Page
from pipeline.figures.sheets import Caption, spectrogram_sheet
from pipeline.figures.style import shorten
from pipeline.sounds import damage, wav
from pipeline.tasks.speech_classification.data_report import seconds_of
from pipeline.tasks.speech_classification.model import (
    SpeechClassifier,
    mean_over_time,
    standardise,
)
from pipeline.training.net import logits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 2000
"""Points that a waveform is resampled to for the probe of the raw input."""


def points(network: nn.Module, _inputs: Inputs) -> list[Point]:
    """Log-mel features, the convolution and each layer, averaged over the steps inside a clip."""
    model = cast(SpeechClassifier, network)

    def spectrum(_args: Sequence[Any], output: Any, _inputs: Inputs) -> Tensor:
        features, frames = output
        return mean_over_time(standardise(features, frames), frames)

    def after(_args: Sequence[Any], output: Tensor, inputs: Inputs) -> Tensor:
        return mean_over_time(output, model.count_steps(inputs["lengths"]))

    def convolved(args: Sequence[Any], output: Tensor, inputs: Inputs) -> Tensor:
        return after(args, functional.relu(output).transpose(1, 2), inputs)

    return [
        Point("log-mel", model.features, spectrum),
        Point("convolution", model.front, convolved),
        *(Point(f"layer {number}", layer, after) for number, layer in enumerate(model.layers, 1)),
    ]


def evidence_over_time(model: SpeechClassifier, inputs: Inputs) -> NDArray[np.float32]:
    """What each moment adds to each class's logit: float32 [steps, classes], for one clip.

    Last hidden state times the gradient of the logit: as the head is linear in the mean of these
    states this is exact, and sums over time to the logit less the head's bias.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[0]

    with torch.enable_grad(), hooks([(model.layers[-1], keep)]):
        logits = logits_of(model(**inputs))[0].float()
    gradients = [torch.autograd.grad(logit, seen[0], retain_graph=True)[0] for logit in logits]
    parts = [(gradient * seen[0]).detach().float().sum(dim=-1)[0] for gradient in gradients]
    return torch.stack(parts, dim=1).cpu().numpy()


def pictures(page: Page, study: Study) -> None:
    """The spectrogram, and the evidence for each class gathered over time."""
    subject, test, guesses, name = study.subject, study.test, study.guesses, study.name
    model = cast(SpeechClassifier, subject.model)
    hits, misses = np.flatnonzero(study.right), np.flatnonzero(~study.right)
    labels = dict.fromkeys(test.labels[hits].tolist())
    rows = [int(next(i for i in hits if test.labels[i] == label)) for label in list(labels)[:2]]
    rows = (rows + [int(i) for i in misses[:2]])[:3] or [0]
    clips = []
    for row in rows:
        inputs = subject.encode([test.raw[row]])
        picture = spectrograms(subject, [test.raw[row]])[0]
        gathered = evidence_over_time(model, inputs)
        seconds = len(test.raw[row]) / subject.net.facts.sample_rate
        true, guess = subject.classes[test.labels[row]], subject.classes[guesses[row]]
        about = f"row {row}: {shorten(true, 10)}, read as {shorten(guess, 10)}"
        clips.append(evidence.Clip(picture, gathered, seconds, about))
    page.figure(
        "evidence",
        evidence.evidence(clips, subject.classes, f"{name}: evidence for each class over time"),
        title="When it makes up its mind",
        text="Above, the log-mel spectrogram as the network gets it; below, what the hidden states "
        "have added to each class's logit up to that moment, the three likeliest classes in "
        "colour. Where a line rises steeply the sound above it told the classes apart.",
        alt="; ".join(clip.about for clip in clips),
    )


def spectrograms(subject: Subject, waves: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The standardised log-mel spectrum that the network gets, float32 [bands, frames] each."""
    model = cast(SpeechClassifier, subject.model)
    found = []
    for wave in waves:
        with torch.no_grad():
            features, frames = model.features(**subject.encode([wave]))
        found.append(standardise(features, frames)[0].cpu().numpy().T)
    return found


def _stretched(waves: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    places = np.linspace(0, 1, SAMPLES)
    # one sample alone has no middle
    longer = [wave if len(wave) > 1 else np.resize(wave, 2) for wave in waves]
    return np.stack([np.interp(places, np.linspace(0, 1, len(one)), one) for one in longer])


def _mean_spectra(subject: Subject, *splits: Raw) -> tuple[Any, ...]:
    first = points(subject.model, {})[:1]
    means = [subject.features(waves, first)[first[0].name] for waves in splits]
    return baselines.standardise(means[0], means[1])


def _sheet(subject: Subject, waves: Raw, captions: Sequence[Caption], title: str) -> "Figure":
    seconds = seconds_of(waves, subject.net.facts).tolist()
    return spectrogram_sheet(spectrograms(subject, waves), seconds, captions, title)


KIND = Kind(
    column="audio",
    read=wav.read,
    batches=8,  # a recurrence pays for each batch as much as for its longest clip
    points=points,
    vectors=lambda *splits: tuple(_stretched(waves) for waves in splits),
    plain="mean log-mel + logistic regression",
    features=_mean_spectra,
    sizes=lambda waves, facts: Sizes("duration", seconds_of(waves, facts), "s"),
    corruptions=(
        Corruption("noise", "signal-to-noise ratio in dB", (math.inf, 30, 20, 10, 0), damage.hiss),
        Corruption("speed", "times as fast", (1, 0.7, 0.85, 1.15, 1.3), damage.tempo),
    ),
    sheet=_sheet,
    pictures=pictures,
)
study, repetition = partial(open_study, KIND), partial(compare_seeds, KIND)
