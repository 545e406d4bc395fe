"""What is computed on a device without float64, as MPS is, goes to the CPU before it is widened."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pipeline.tasks.language_modeling import model as language_model
from pipeline.tasks.language_modeling.evaluation import depths, heads
from pipeline.tasks.text_classification.show import token_attribution
from pipeline.training.batches import Batch
from tests.evaluation import networks


class OnMps(Tensor):
    """A tensor that is on MPS, and so is what is computed of it, until it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        for one in tree_leaves(found):
            if isinstance(one, OnMps) and one.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def on_mps(*size: int) -> Any:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).as_subclass(OnMps)


def test_the_device_has_no_float64_and_the_cpu_has():
    with pytest.raises(TypeError, match="float64"):
        (on_mps(3) + 1).double()
    assert (on_mps(3) + 1).cpu().double().dtype == torch.float64


def test_a_language_model_is_scored():
    nats = on_mps(7)

    batch = Batch({}, SimpleNamespace(tokens=None, size=5), 7, 7)
    batches: Any = SimpleNamespace(epoch=lambda _number: [batch])
    model: Any = lambda targets, count: nats  # noqa: E731
    found = language_model.score(model, batches, None)  # type: ignore[arg-type]
    assert found["loss"] == pytest.approx(float(nats.cpu().double().mean()))


def test_states_are_fitted_to_those_of_the_last_layer():
    states, last = on_mps(40, 4), on_mps(40, 4) * 2 + 1
    told = depths._fitted(states, last)(states)
    assert isinstance(told, Tensor)
    torch.testing.assert_close(told.cpu(), last.cpu(), atol=0.05, rtol=0)


def test_heads_that_copy_are_found():
    assert len(heads._induction(on_mps(2, 3, 8, 8), 4)) == 3


def test_words_are_attributed():
    tokenizer = SimpleNamespace(
        all_special_ids=(0, 1, 2), pad_token_id=0, convert_ids_to_tokens=lambda ids: list(ids)
    )
    ids = torch.tensor([[1, 20, 30, 2]]).as_subclass(OnMps)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert token_attribution(networks.bert(), tokenizer, inputs).scores.shape == (4,)
