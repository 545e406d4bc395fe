"""Where a network's stages are, what is in them, and where its answers come from."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluation import explain, features
from pipeline.evaluation.similarity import linear_cka
from pipeline.settings import RNN
from pipeline.tasks.speech_classification import model as rnn


class Pictures(nn.Module):
    """Two convolutions (3×3, pool 2, 3×3) and a head."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 64, 3),
        )

    def forward(self, images):
        return self.net(images.float() / 255)


@pytest.fixture(params=["gru", "lstm"])
def sounds(request):
    torch.manual_seed(0)
    config = RNN(cell=request.param, mels=12, hidden=7, layers=2, dropout=0.3, stride=2)
    model = rnn.build(config, sample_rate=8000, classes=4).eval()
    return model, {"waveforms": torch.randn(3, 4000) / 9, "lengths": torch.tensor([4000, 900, 80])}


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    return Pictures().eval(), {"images": images}


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def test_the_stages_of_a_convolutional_network_are_its_last_maps_of_each_size(pictures):
    model, inputs = pictures
    found = features.map_stages(model, inputs)
    assert [stage.shape for stage in found] == [(4, 16, 16), (4, 8, 8), (6, 8, 8)]
    assert [stage.module for stage in found] == [model.net[2], model.net[3], model.net[5]]


def test_features_are_those_of_a_plain_forward_pass(pictures):
    model, inputs = pictures
    where = features.points(model, inputs)
    halves = [{"images": part} for part in inputs["images"].split(3)]
    found = features.capture(model, halves, where)
    assert list(found) == ["4×16×16", "4×8×8", "6×8×8", "head's input", "logits"]
    with torch.no_grad():
        expected = model(**inputs)
        flat = model.net[:7](inputs["images"].float() / 255)
    assert np.allclose(found["logits"], expected, atol=1e-6)
    assert np.allclose(found["head's input"], flat, atol=1e-6)
    assert found["4×16×16"].shape == (6, 4 * 16)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_taken_off_after_an_error(pictures):
    model, inputs = pictures
    where = features.points(model, inputs)
    with pytest.raises(RuntimeError):
        features.capture(model, [{"images": torch.zeros(1, 3, 16, 16)}], where)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_mode_of_the_model_is_put_back(pictures):
    model, inputs = pictures
    model.train()
    before = model.net[1].running_mean.clone()
    features.feature_maps(model, inputs, features.map_stages(model, inputs))
    assert model.training
    assert model.net[1].training
    assert torch.equal(model.net[1].running_mean, before)


def test_the_layers_of_a_recurrent_network_are_means_over_its_true_steps(sounds):
    model, inputs = sounds
    found = features.capture(model, [inputs], features.points(model, inputs))
    assert list(found) == ["log-mel", "convolution", "layer 1", "layer 2", "logits"]
    head = model.head(torch.from_numpy(found["layer 2"])).detach()
    assert np.allclose(head, found["logits"], atol=1e-5)
    assert np.allclose(found["log-mel"].mean(axis=1), 0, atol=1e-5)
    for row, length in enumerate(inputs["lengths"]):
        alone = {
            "waveforms": inputs["waveforms"][row : row + 1, :length],
            "lengths": length[None],
        }
        single = features.capture(model, [alone], features.points(model, alone))
        for name, values in single.items():
            assert np.allclose(values[0], found[name][row], atol=1e-5)


def test_the_layers_of_a_transformer_are_means_over_its_tokens(bert):
    ids = torch.randint(5, 60, (4, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = features.capture(bert, [inputs], features.points(bert, inputs))
    assert list(found) == ["embeddings", "layer 1", "layer 2", "layer 3", "logits"]
    states = bert(**inputs, output_hidden_states=True).hidden_states
    for name, state in zip(found, states, strict=False):
        assert np.allclose(found[name][0], state[0, :5].mean(0).detach(), atol=1e-6)
        assert np.allclose(found[name][1], state[1].mean(0).detach(), atol=1e-6)


def test_an_untrained_copy_has_other_weights_and_the_same_buffers(pictures, bert):
    model, inputs = pictures
    model.register_buffer("mean", torch.tensor(0.3))
    fresh, again = (features.untrained(model, 1) for _ in range(2))
    assert fresh.mean == model.mean
    assert torch.equal(fresh.net[0].weight, again.net[0].weight)
    assert not torch.equal(fresh.net[0].weight, model.net[0].weight)
    assert not fresh.training
    other = features.untrained(bert, 1)
    assert not torch.equal(other.classifier.weight, bert.classifier.weight)
    found = [features.capture(m, [inputs], features.points(m, inputs)) for m in (model, fresh)]
    assert linear_cka(found[0]["6×8×8"], found[1]["6×8×8"]) < 0.99


def test_early_middle_and_late_are_first_middle_and_last():
    assert features.depths(["a", "b", "c", "d", "e"]) == {"early": "a", "middle": "c", "late": "e"}
    assert features.depths(["a", "b"]) == {"early": "a", "late": "b"}
    assert features.depths(["a"]) == {"late": "a"}


def test_a_network_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no stages"):
        features.points(nn.Linear(2, 2), {"numbers": torch.zeros(1, 2)})


def test_integrated_gradients_of_a_linear_function_are_its_terms():
    weights = torch.tensor([2.0, -1.0, 0.5])
    found = explain.integrated_gradients(
        lambda x: x @ weights, torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 0.0])
    )
    assert torch.allclose(found, torch.tensor([2.0, -1.0, 2.0]))


def test_integrated_gradients_agree_with_captum_and_are_complete():
    from captum.attr import IntegratedGradients

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    point, start = torch.randn(6), torch.randn(6)
    ours = explain.integrated_gradients(lambda x: net(x)[:, 0], point, start)
    theirs = IntegratedGradients(net).attribute(point[None], start[None], n_steps=50)[0]
    assert torch.allclose(ours, theirs.float(), atol=1e-4)
    assert ours.sum().item() == pytest.approx((net(point) - net(start)).item(), abs=1e-5)


def test_token_attributions_sum_to_the_change_of_the_logit(bert):
    class Tokens:
        all_special_ids = (0, 1, 2)
        pad_token_id = 0

        def convert_ids_to_tokens(self, ids):
            return [f"t{i}" for i in ids]

    inputs = {
        "input_ids": torch.tensor([[1, 20, 30, 40, 2, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
    }
    found = explain.token_attribution(bert, Tokens(), inputs)
    assert found.tokens == ["t1", "t20", "t30", "t40", "t2"]
    assert found.scores.sum() == pytest.approx(found.total, abs=1e-4)
    assert found.scores[[0, 4]] == pytest.approx(0)
    assert found.target == int(bert(**inputs).logits.argmax())


def test_attention_maps_are_shares(bert):
    before = bert.config._attn_implementation
    inputs = {"input_ids": torch.tensor([[1, 9, 8, 2]]), "attention_mask": torch.ones(1, 4).long()}
    maps = explain.attention_maps(bert, inputs)
    assert maps.shape == (3, 2, 4, 4)
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert bert.config._attn_implementation == before


def test_evidence_over_time_sums_to_the_logits_less_the_bias(sounds):
    model, inputs = sounds
    one = {name: part[:1] for name, part in inputs.items()}
    evidence = explain.evidence_over_time(model, one, model.layers[-1])
    logits = model(**one)[0].detach().numpy()
    assert evidence.shape == (26, 4)
    assert np.allclose(evidence.sum(axis=0), logits - model.head.bias.detach().numpy(), atol=1e-5)


def test_receptive_fields_are_those_of_the_arithmetic(pictures):
    model, inputs = pictures
    shape = inputs["images"]
    assert explain.receptive_field(model, model.net[2], shape) == (3, 3)
    assert explain.receptive_field(model, model.net[3], shape) == (4, 4)
    assert explain.receptive_field(model, model.net[5], shape) == (8, 8)
