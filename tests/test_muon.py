"""Muon moves matrices as torch's does, filters like matrices, and AdamW moves the rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import PipelineError
from pipeline.training.adamw import AdamW
from pipeline.training.muon import Muon, orthogonal
from tests.test_adamw import gradients

SIDES = st.integers(1, 48)


def model() -> nn.Sequential:
    """Muon takes the second convolution, a wide matrix, and the linear map, a tall one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3), nn.Linear(20, 64),
        nn.Linear(64, 3), nn.Embedding(50, 32),
    )  # fmt: skip


MATRICES = {"2.weight", "3.weight"}


def optimizer(net: nn.Module) -> Muon:
    made = Muon(net, 0.1, [0.8, 0.95])
    made.lr = 0.01
    return made


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 1000))
def test_singular_values_go_through_the_polynomial_and_their_vectors_stay(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ values.diag() @ right
    torch.testing.assert_close(orthogonal(matrix).double(), expected, rtol=0, atol=1e-4)


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonal(torch.zeros(20, 30)).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matrices_and_filters_move_as_torchs_muon_moves_matrices(layout):
    """Which computes in bfloat16, so the two are equal to some 2 %."""
    net = model()
    mine, start = dict(net.named_parameters()), {}
    theirs = {}
    for name in MATRICES:
        start[name] = mine[name].detach().flatten(1).clone()
        theirs[name] = nn.Parameter(start[name].clone())
    net[2].to(memory_format=layout)
    ours = optimizer(net)
    reference = torch.optim.Muon(
        theirs.values(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(10):
        gradients(net, step)
        for name in MATRICES:
            theirs[name].grad = mine[name].grad.flatten(1).clone()
        ours.step()
        reference.step()
        for name in MATRICES:
            moved = theirs[name] - start[name]
            off = mine[name].detach().flatten(1) - theirs[name]
            assert off.norm() < 0.03 * moved.norm()


def test_the_rest_has_the_bits_of_adamw():
    one, other = model(), model()
    reference = AdamW(other.parameters(), 0.1, [0.8, 0.95])
    reference.lr = 0.01
    ours = optimizer(one)
    for step in range(3):
        for net, way in ((one, ours), (other, reference)):
            gradients(net, step)
            way.step()
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    assert {name for (name, a), b in pairs if not torch.equal(a, b)} == MATRICES


def test_scaled_gradients_move_as_others_and_overflowed_ones_change_nothing():
    """As with float16: in step 2 one of the gradients is infinite."""
    plain, scaled = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    ours, also = optimizer(plain), optimizer(scaled)
    for step in range(4):
        gradients(scaled, step)
        for parameter in scaled.parameters():
            parameter.grad *= scaler.scale(torch.ones(()))
        if step == 2:
            scaled[1].bias.grad[1] = torch.inf
        else:
            gradients(plain, step)
            ours.step(5.0)
        scaler.step(also, 5.0)
        scaler.update()
        for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_restored_state_continues_to_the_same_bits():
    whole, again = model(), model()
    first, second = optimizer(whole), optimizer(again)
    gradients(whole, 0)
    first.step()
    again.load_state_dict(whole.state_dict())
    second.load_state_dict(first.state_dict())
    for net, way in ((whole, first), (again, second)):
        gradients(net, 1)
        way.step()
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_and_those_without_a_gradient_stay():
    net = model()
    net[2].requires_grad_(False)
    ours = optimizer(net)
    before = {name: value.clone() for name, value in net.named_parameters()}
    gradients(net, 0)
    net[3].weight.grad = None
    ours.step()
    ours.zero_grad()
    stayed = {n for n, value in net.named_parameters() if torch.equal(value, before[n])}
    assert stayed == {"2.weight", "2.bias", "3.weight"}
    assert all(parameter.grad is None for parameter in net.parameters() if parameter.requires_grad)


def test_the_last_matrix_is_adamws_whatever_its_size():
    net = nn.Sequential(nn.Linear(16, 20, bias=False), nn.Linear(20, 30, bias=False))
    assert [*optimizer(net).momenta] == [net[0].weight]


def test_a_network_without_a_matrix_for_it_is_refused():
    """As adapters of a low rank are none."""
    net = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 64))
    net[2].requires_grad_(False)
    with pytest.raises(PipelineError, match=r"^optimizer\.name is 'muon', and no trained matrix"):
        optimizer(net)
