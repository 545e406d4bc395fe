"""A recurrent network over log-mel features, from the raw waveform on."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classification.model import answer as answer
from pipeline.classification.model import loss as loss
from pipeline.classification.model import score as score
from pipeline.errors import PipelineError
from pipeline.tasks.speech_classification.settings import Facts, Model

WINDOW_MS = 25
HOP_MS = 10
LOWEST_HZ = 20.0
POWER_FLOOR = 1e-5
"""Far above what 16-bit quantisation leaves in a band (about 1e-8): silence is one finite value."""


class LogMel(nn.Module):
    """Log-mel power spectrum in float32 whatever autocast says: bf16 has too few bits for an FFT.

    Frame i is centred at i hops; what lies before the first and behind the last sample counts as
    zero, so that padding changes nothing.

    Args:
        sample_rate: Hz.
        mels: triangular bands, evenly spaced on the mel scale from 20 Hz to half the sample rate.

    Raises:
        PipelineError: a band is narrower than the resolution of the spectrum.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, mels: int) -> None:
        super().__init__()
        self.samples = sample_rate * WINDOW_MS // 1000
        self.hop = sample_rate * HOP_MS // 1000
        self.fft = 1 << (self.samples - 1).bit_length()
        bands = mel_bands(sample_rate, self.fft, mels)
        if bool((bands.sum(dim=0) == 0).any()):
            raise PipelineError(
                f"rnn.mels: {mels} bands are too many at {sample_rate:,} Hz, some hold no "
                "frequency; take fewer (40 fit)"
            )
        # Both follow from the arguments, so they are not weights.
        self.register_buffer("window", torch.hann_window(self.samples), persistent=False)
        self.register_buffer("bands", bands, persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of float [batch, samples] waveforms with int64 [batch] `lengths`.

        Returns:
            float32 [batch, frames, mels], natural logarithm of the power, and int64 [batch], the
            number of frames that are no padding.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = torch.stft(
                waveforms.float() * inside(waveforms.shape[1], lengths),
                n_fft=self.fft,
                hop_length=self.hop,
                win_length=self.samples,
                window=self.window,
                center=True,
                pad_mode="constant",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            features = (power.transpose(1, 2) @ self.bands + POWER_FLOOR).log()
        return features, 1 + lengths // self.hop


def mel_bands(sample_rate: int, fft: int, mels: int) -> Tensor:
    """Triangular filters, float32 [fft / 2 + 1, mels], on the mel scale of O'Shaughnessy (1987)."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(LOWEST_HZ), mel(sample_rate / 2), mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    frequency = torch.linspace(0, sample_rate / 2, fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequency - low) / (centre - low)
    falling = (high - frequency) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


class Turn(torch.autograd.Function):
    """Turn each sequence of [batch, time, units] round; `turned` as `Bidirectional` takes it.

    Turned twice they are as before, so the gradient is turned alike. A gather's own adds at
    positions, and to do so deterministically CUDA sorts them all first.
    """

    @staticmethod
    def forward(ctx: Any, steps: Tensor, turned: Tensor) -> Tensor:
        """The steps at the positions `turned`."""
        ctx.save_for_backward(turned)
        return steps.gather(1, turned.expand_as(steps))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the steps."""
        return Turn.apply(gradient, *ctx.saved_tensors), None


class Bidirectional(nn.Module):
    """One recurrent layer in both directions over padded sequences.

    Each sequence is turned round inside its own length: on the CPU 1.2 (GRU) to 3 (LSTM) times as
    fast as `pack_padded_sequence`, and the lengths stay on the device.
    """

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], inputs: int, hidden: int) -> None:
        super().__init__()
        self.ahead = cell(inputs, hidden, batch_first=True)
        self.back = cell(inputs, hidden, batch_first=True)

    def forward(self, steps: Tensor, turned: Tensor) -> Tensor:
        """[batch, time, inputs] to [batch, time, 2 × hidden].

        `turned`, int64 [batch, time, 1], holds the positions of the reversed sequences.
        """
        # Under autocast cuDNN computes in fp16, in bf16's too, and nothing scales its gradients.
        with torch.autocast("cuda", enabled=False):
            steps = steps.float() if steps.is_cuda else steps
            ahead = self.ahead(steps)[0]
            back = self.back(Turn.apply(steps, turned))[0]
            return torch.cat([ahead, Turn.apply(back, turned)], dim=-1)


class SpeechClassifier(nn.Module):
    """Log-mel features, a strided convolution, recurrent layers, mean over time, linear head.

    Each clip is standardised over all its frames and bands, so neither loudness nor the other
    clips of the batch change its logits.
    """

    def __init__(self, config: Model, sample_rate: int, classes: int) -> None:
        super().__init__()
        self.features = LogMel(sample_rate, config.mels)
        self.stride = config.stride
        self.front = nn.Conv1d(
            config.mels, config.hidden, kernel_size=5, stride=config.stride, padding=2
        )
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        self.layers = nn.ModuleList(
            Bidirectional(cell, config.hidden if layer == 0 else 2 * config.hidden, config.hidden)
            for layer in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.hidden, classes)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Logits [batch, classes] of waveforms, float in -1..1 [batch, samples], padded at the end.

        `lengths`, int64 [batch], are the samples that count; what lies behind them is ignored.
        """
        features, frames = self.features(waveforms, lengths)
        features = standardise(features, frames)
        steps = F.relu(self.front(features.transpose(1, 2)).transpose(1, 2))
        count = self.count_steps(lengths)
        position = torch.arange(steps.shape[1], device=steps.device)
        turned = torch.where(position < count[:, None], count[:, None] - 1 - position, position)
        for layer in self.layers:
            steps = layer(self.dropout(steps), turned[..., None])
        return self.head(self.dropout(mean_over_time(steps, count)))

    def count_steps(self, lengths: Tensor) -> Tensor:
        """How many steps of the recurrence lie inside clips of so many samples, int64 [batch]."""
        return lengths // self.features.hop // self.stride + 1


def inside(time: int, count: Tensor) -> Tensor:
    """Which of so many positions are among the first `count` of their clip, bool [batch, time]."""
    return torch.arange(time, device=count.device) < count[:, None]


def mean_over_time(states: Tensor, count: Tensor) -> Tensor:
    """[batch, time, units] to [batch, units]: the mean over the first `count` of each clip."""
    return (states * inside(states.shape[1], count)[..., None]).sum(dim=1) / count[:, None]


def standardise(features: Tensor, frames: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the first `frames` of each clip, zero behind them."""
    within = inside(features.shape[1], frames)[..., None]
    count = (frames * features.shape[2])[:, None, None]
    mean = (features * within).sum(dim=(1, 2), keepdim=True) / count
    centred = (features - mean) * within
    variance = centred.square().sum(dim=(1, 2), keepdim=True) / count
    return centred * (variance + 1e-5).rsqrt()


def build(settings: Model, facts: Facts) -> tuple[SpeechClassifier, None]:
    """A classifier with random weights, drawn from torch's global generator.

    Raises:
        PipelineError: more mel bands than the sample rate can tell apart.
    """
    return SpeechClassifier(settings, facts.sample_rate, len(facts.classes)), None
