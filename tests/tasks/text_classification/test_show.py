"""What is seen in a transformer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.evaluation import features
from pipeline.figures.page import Page
from pipeline.tasks.text_classification import show
from tests.evaluation import networks
from tests.tasks.text_classification.test_data import net


@pytest.fixture(scope="module")
def bert():
    return networks.bert()


def test_the_layers_of_a_transformer_are_means_over_its_tokens(bert):
    ids = torch.randint(5, 60, (4, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = features.capture(bert, [inputs], show.points(bert, inputs))
    assert list(found) == ["embeddings", "layer 1", "layer 2", "layer 3", "logits"]
    states = bert(**inputs, output_hidden_states=True).hidden_states
    for name, state in zip(found, states, strict=False):
        assert np.allclose(found[name][0], state[0, :5].mean(0).detach(), atol=1e-6)
        assert np.allclose(found[name][1], state[1].mean(0).detach(), atol=1e-6)


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
    found = show.token_attribution(bert, Tokens(), inputs)
    assert found.tokens == ["t1", "t20", "t30", "t40", "t2"]
    assert found.target == int(bert(**inputs).logits.argmax())
    padded = {**inputs, "input_ids": torch.tensor([[1, 0, 0, 0, 2, 0]])}
    logits = [bert(**one).logits[0, found.target].item() for one in (inputs, padded)]
    assert found.scores.sum() == pytest.approx(logits[0] - logits[1], abs=1e-4)
    assert found.scores[[0, 4]] == pytest.approx(0)


@pytest.mark.parametrize(
    ("most", "numbers", "facts"),
    [
        (
            6,
            {"cut/texts": 0.5, "cut/tokens": 0.4},
            {
                "longer than transformer.max_length=6 tokens": "50.0% of the texts (40.0% of their "
                "tokens are not read)"
            },
        ),
        (10, {"cut/texts": 0, "cut/tokens": 0}, {}),
    ],
)
def test_what_the_model_does_not_read_is_on_its_page(tmp_path, capsys, most, numbers, facts):
    page, raw = Page(tmp_path), ["a good film", "one two three four five six seven eight"]
    study = SimpleNamespace(subject=SimpleNamespace(net=net(most)), test=SimpleNamespace(raw=raw))
    show.PARTS["left out"](page, study)
    assert (page.numbers, page.facts) == (numbers, facts)
    assert ("1 of 2 test texts (50.0%) are longer than" in capsys.readouterr().out) == bool(facts)


def test_attention_maps_are_shares(bert):
    before = bert.config._attn_implementation
    inputs = {"input_ids": torch.tensor([[1, 9, 8, 2]]), "attention_mask": torch.ones(1, 4).long()}
    maps = show.attention_maps(bert, inputs)
    assert maps.shape == (3, 2, 4, 4)
    assert np.allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert bert.config._attn_implementation == before
