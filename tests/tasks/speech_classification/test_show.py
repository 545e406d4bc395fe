"""What is seen in a network of sounds."""

import numpy as np
import pytest
import torch

from pipeline.evaluation import features
from pipeline.tasks.speech_classification import show
from pipeline.tasks.speech_classification.model import build
from pipeline.tasks.speech_classification.settings import Facts, Model


@pytest.fixture(params=["gru", "lstm"])
def sounds(request):
    torch.manual_seed(0)
    config = Model(cell=request.param, mels=12, hidden=7, layers=2, dropout=0.3, stride=2)
    model = build(config, Facts(classes=list("abcd"), sample_rate=8000))[0].eval()
    return model, {"waveforms": torch.randn(3, 4000) / 9, "lengths": torch.tensor([4000, 900, 80])}


def test_the_layers_of_a_recurrent_network_are_means_over_its_true_steps(sounds):
    model, inputs = sounds
    found = features.capture(model, [inputs], show.points(model, inputs))
    assert list(found) == ["log-mel", "convolution", "layer 1", "layer 2", "logits"]
    head = model.head(torch.from_numpy(found["layer 2"])).detach()
    assert np.allclose(head, found["logits"], atol=1e-5)
    assert np.allclose(found["log-mel"].mean(axis=1), 0, atol=1e-5)
    for row, length in enumerate(inputs["lengths"]):
        alone = {
            "waveforms": inputs["waveforms"][row : row + 1, :length],
            "lengths": length[None],
        }
        single = features.capture(model, [alone], show.points(model, alone))
        for name, values in single.items():
            assert np.allclose(values[0], found[name][row], atol=1e-5)


def test_evidence_over_time_sums_to_the_logits_less_the_bias(sounds):
    model, inputs = sounds
    one = {name: part[:1] for name, part in inputs.items()}
    evidence = show.evidence_over_time(model, one)
    logits = model(**one)[0].detach().numpy()
    assert evidence.shape == (26, 4)
    assert np.allclose(evidence.sum(axis=0), logits - model.head.bias.detach().numpy(), atol=1e-5)
