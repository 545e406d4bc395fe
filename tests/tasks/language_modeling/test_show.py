"""What is measured of a language model."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.tasks.language_modeling import show
from pipeline.tasks.language_modeling.data import documents
from tests.tasks.language_modeling.conftest import TEXTS, stir
from tests.test_training import STAGE, configure

LONG = [" ".join(TEXTS), *TEXTS[:3]]


@pytest.fixture(scope="module")
def hardware():
    return configure(STAGE)


@pytest.fixture
def study(net, hardware):
    parts = SimpleNamespace(compared_documents=3, depth_documents=4)
    settings = SimpleNamespace(seed=0, parts=parts, model="language_model")
    return show.Study(net, settings, hardware, [], LONG)


def test_every_token_is_read_once_and_every_byte_counted(study):
    found = study.read
    whole = [one.ids for one in study.net.tokenizer.encode_batch(LONG)]
    assert [part.tolist() for part in found.tokens] == whole
    assert found.sizes.tolist() == [len(text.encode()) for text in LONG]
    long = show._token_bytes(study.net)
    assert [int(long[part].sum()) for part in found.tokens] == found.sizes.tolist()
    half = study.net.settings.context // 2
    assert all((part[half:] >= half).all() for part in found.before)


def test_bits_are_those_of_the_loss(study):
    inputs, targets = documents(LONG, study.net).gather(torch.arange(len(LONG)))
    with torch.inference_mode():
        nats = float(study.net.module(**inputs, targets=targets.tokens).double().sum())
    assert study.read.bits.sum() == pytest.approx(nats / math.log(2), rel=1e-6)


def test_the_mean_score_is_minus_the_headline(study):
    numbers = show._numbers(study.read, 0)
    assert show._score(study.read).mean() == pytest.approx(-numbers["bits_per_byte"])
    assert numbers["bits_per_byte_low"] < numbers["bits_per_byte"] < numbers["bits_per_byte_high"]


def test_the_network_before_its_training_is_only_borrowed(study):
    after = study.read.bits
    if any(isinstance(one, show.LowRank) for one in study.net.module.modules()):
        with study.untouched():
            before = study.reads(LONG).bits
        stir(study.net)  # other adapters, the same base
        with study.untouched():
            assert study.reads(LONG).bits == pytest.approx(before)
        stirred = study.reads(LONG).bits
        assert not np.allclose(stirred, before)
    else:
        with study.untouched() as net:
            assert net.module is not study.net.module
        assert study.reads(LONG).bits == pytest.approx(after)


def test_the_read_out_of_the_last_layer_is_the_network_itself(study):
    found = show._by_depth(study.net, TEXTS[:3], LONG, study.hardware)
    assert found[max(found)] == pytest.approx(float(show._per_byte(study.read.pairs)), rel=1e-5)


def test_a_linear_map_is_found():
    torch.manual_seed(0)
    states, weights = torch.randn(400, 6), torch.randn(6, 6)
    fitted = show._fitted(states, states @ weights + 3)
    torch.testing.assert_close(fitted(states), states @ weights + 3, rtol=0.02, atol=0.05)
