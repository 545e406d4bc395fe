"""The optimizer's arithmetic is torch's, and it does not load torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.training.adamw import AdamW


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


def gradients(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def torchs(net: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.8, 0.95), fused=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_step_has_the_bits_of_torchs_fused_adamw(layout):
    ours, theirs = model().to(memory_format=layout), model().to(memory_format=layout)
    optimizer, reference = AdamW(list(ours.parameters()), 0.1, [0.8, 0.95]), torchs(theirs)
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.lr = 0.01 / (step + 1)
        for group in reference.param_groups:
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()
        reference.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_clipping_is_torchs(norm):
    ours, theirs = model(), model()
    optimizer, reference = AdamW(list(ours.parameters()), 0.1, [0.8, 0.95]), torchs(theirs)
    optimizer.lr = 0.001
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step(norm)
        found = nn.utils.clip_grad_norm_(theirs.parameters(), norm)
        assert 10 < found < 1000
        reference.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", [None, 5.0])
def test_scaled_gradients_move_as_torchs_do_and_overflowed_ones_change_nothing(norm):
    """As with float16: in steps 3 and 4 one of the gradients is infinite."""
    ours, theirs = model(), model()
    optimizer, reference = AdamW(list(ours.parameters()), 0.1, [0.8, 0.95]), torchs(theirs)
    optimizer.lr = 0.001
    scales = []
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5) for _ in range(2)]
    for step in range(12):
        for net, scaler in zip((ours, theirs), scalers, strict=True):
            gradients(net, step)
            for parameter in net.parameters():
                parameter.grad *= scaler.scale(torch.ones(()))
            if step in (3, 4):
                net[3].bias.grad[1] = torch.inf
        before = [p.detach().clone() for p in ours.parameters()]
        scalers[0].step(optimizer, norm)
        if norm:
            scalers[1].unscale_(reference)
            found = nn.utils.clip_grad_norm_(theirs.parameters(), norm)
            assert not found.isfinite() or found > norm
        scalers[1].step(reference)
        for scaler in scalers:
            scaler.update()
        optimizer.zero_grad()
        reference.zero_grad()
        moved = [not torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True)]
        assert set(moved) == {step not in (3, 4)}
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        scales.append(scalers[0].get_scale())
    assert int(optimizer.steps) == 10
    assert min(scales) == 2.0**6 < scales[-1]


def test_sparse_gradients_move_all_rows_as_dense_ones_do():
    """Also rows that were in an earlier batch, and those that were in none."""
    moved = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(50, 8, padding_idx=0, sparse=sparse)
        head = nn.Linear(8, 3)
        before = table.weight.detach().clone()
        optimizer = AdamW([*table.parameters(), *head.parameters()], 0.1, [0.8, 0.95])
        for step in range(12):
            optimizer.lr = 0.01 / (step + 1)
            for micro in range(2):
                words = torch.randint(25, (4, 6), generator=torch.Generator().manual_seed(step))
                head(table(words + 20 * (step % 2) * micro)).square().sum().backward()
            assert table.weight.grad.is_sparse == sparse
            optimizer.step(1.0)
            optimizer.zero_grad()
        assert (table.weight != before)[1:].all()  # all but the padding's
        moved.append([table.weight.detach(), *(p.detach() for p in head.parameters())])
    for dense, sparse in zip(*moved, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-7)


def test_a_restored_state_continues_to_the_same_bits():
    whole, again = model(), model()
    first = AdamW(list(whole.parameters()), 0.1, [0.9, 0.999])
    first.lr = 0.01
    gradients(whole, 0)
    first.step()
    again.load_state_dict(whole.state_dict())
    second = AdamW(list(again.parameters()), 0.1, [0.9, 0.999])
    second.load_state_dict(first.state_dict())
    second.lr = 0.01
    for net, optimizer in ((whole, first), (again, second)):
        gradients(net, 1)
        optimizer.step()
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_and_those_without_a_gradient_stay():
    net = model()
    net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in net.named_parameters()}
    optimizer = AdamW(list(net.parameters()), 0.1, [0.9, 0.999])
    optimizer.lr = 0.1
    gradients(net, 0)
    net[1].bias.grad = None
    optimizer.step()
    changed = {
        name for name, value in net.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed == {"1.weight", "3.weight", "3.bias"}
    optimizer.zero_grad()
    assert net[3].weight.grad is None


def test_a_step_by_fit_does_not_import_torchs_compiler():
    code = (
        "import sys, tempfile\nfrom pathlib import Path\nfrom tests.test_training import *\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    train(Path(folder), configure(STAGE), max_steps=2)\n"
        "print({'torch._dynamo', 'torch._inductor'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "set()"
