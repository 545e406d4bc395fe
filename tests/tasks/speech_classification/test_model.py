import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import PipelineError
from pipeline.task import find
from pipeline.tasks.speech_classification import model as rnn
from pipeline.tasks.speech_classification.settings import Facts
from pipeline.training import net as nets
from tests.models.presets import names, preset

RATE = 8000


def build(name: str = "gru", classes: int = 10, rate: int = RATE, **changes) -> nn.Module:
    facts = Facts(classes=[str(number) for number in range(classes)], sample_rate=rate)
    torch.manual_seed(0)
    return rnn.build(preset("rnn", name, **changes), facts)[0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


class TestLogMel:
    def test_a_clip_of_n_hops_gives_n_plus_one_frames(self):
        features, frames = rnn.LogMel(RATE, 40)(noise(2, 800), torch.tensor([800, 79]))
        assert features.shape == (2, 11, 40)
        assert frames.tolist() == [11, 1]

    @pytest.mark.parametrize("rate", [8000, 16000])
    @pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
    def test_a_tone_is_loudest_in_the_band_around_its_frequency(self, rate, hertz):
        tone = torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)[None]
        features, _ = rnn.LogMel(rate, 40)(tone, torch.tensor([rate]))
        mel = [2595 * math.log10(1 + f / 700) for f in (rnn.LOWEST_HZ, hertz, rate / 2)]
        expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 41 - 1
        assert features[0, 50].argmax().item() == pytest.approx(expected, abs=1)

    def test_silence_is_a_finite_floor(self):
        features, _ = rnn.LogMel(RATE, 40)(torch.zeros(1, 800), torch.tensor([800]))
        assert features.unique().item() == pytest.approx(math.log(rnn.POWER_FLOOR), rel=1e-6)

    def test_it_is_computed_in_float32_under_autocast(self):
        layer, clip, length = rnn.LogMel(RATE, 40), noise(1, 1600), torch.tensor([1600])
        with torch.autocast("cpu", torch.bfloat16):
            features, _ = layer(clip, length)
        assert features.dtype == torch.float32
        assert torch.equal(features, layer(clip, length)[0])

    def test_more_bands_than_the_spectrum_resolves_are_refused(self):
        with pytest.raises(PipelineError, match=r"rnn.mels: 200 bands are too many at 8,000 Hz"):
            rnn.LogMel(RATE, 200)


class TestPadding:
    @settings(max_examples=30, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=5),
        extra=st.integers(0, 3000),
        cell=st.sampled_from(["gru", "lstm"]),
        layers=st.integers(1, 2),
        stride=st.integers(1, 4),
    )
    def test_what_lies_behind_a_clip_does_not_change_its_logits(
        self, lengths, extra, cell, layers, stride
    ):
        model = build(cell, layers=layers, stride=stride, hidden=8).eval()
        size = torch.tensor(lengths)
        batch = noise(len(lengths), max(lengths) + extra)  # noise behind the clips, not zeros
        together = model(batch, size)
        for row, length in enumerate(lengths):
            alone = model(batch[row : row + 1, :length], size[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)

    def test_what_lies_inside_a_clip_does(self):
        model, clip, length = build().eval(), noise(1, 4000), torch.tensor([4000])
        changed = clip.clone()
        changed[:, 3000:] = noise(1, 1000, seed=1) * 5
        assert (model(clip, length) - model(changed, length)).abs().max() > 1e-3

    def test_both_directions_are_those_of_torchs_packed_bidirectional_layer(self):
        torch.manual_seed(0)
        ours = rnn.Bidirectional(nn.GRU, 3, 4)
        theirs = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        state = dict(ours.ahead.state_dict())
        state |= {f"{name}_reverse": value for name, value in ours.back.state_dict().items()}
        theirs.load_state_dict(state)
        steps, count, time = noise(2, 5, 3), torch.tensor([5, 3]), torch.arange(5)
        inside = time < count[:, None]
        turned = torch.where(inside, count[:, None] - 1 - time, time)[..., None]
        packed = nn.utils.rnn.pack_padded_sequence(steps, count, batch_first=True)
        expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
        torch.testing.assert_close(ours(steps, turned) * inside[..., None], expected)


class TestTurn:
    def turned(self) -> torch.Tensor:
        count, time = torch.tensor([5, 3, 1]), torch.arange(5)
        return torch.where(time < count[:, None], count[:, None] - 1 - time, time)[..., None]

    def test_its_gradient_is_that_of_a_gather_to_the_bit(self):
        steps, seen, turned = noise(3, 5, 4).requires_grad_(), noise(3, 5, 4, seed=1), self.turned()
        ours, theirs = rnn.Turn.apply(steps, turned), steps.gather(1, turned.expand_as(steps))
        assert torch.equal(ours, theirs)
        ours, theirs = (torch.autograd.grad(one, steps, seen)[0] for one in (ours, theirs))
        assert torch.equal(ours, theirs)

    def test_its_gradients_are_right_and_have_some_themselves(self):
        steps = noise(3, 5, 2).double().requires_grad_()
        function = lambda steps: rnn.Turn.apply(steps, self.turned()).square()  # noqa: E731
        assert torch.autograd.gradcheck(function, steps)
        assert torch.autograd.gradgradcheck(function, steps)

    def test_no_backward_pass_adds_at_positions(self):
        """To do so deterministically CUDA sorts them."""
        model, names = build(), set()

        class Seen(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                names.add(func.overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        with Seen():
            model(noise(2, 2000), torch.tensor([2000, 1000])).sum().backward()
        assert "gather" in names
        assert not [name for name in names if "scatter" in name or "index_put" in name]


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_on_cuda_the_recurrence_is_in_float32_without_autocast(cell, monkeypatch):
    """On tensors without data, which need no GPU; but cuDNN's own part does."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    seen = []

    def recurrence(steps, state, weights, *_):
        seen.append((steps.dtype, weights[0].dtype, torch.is_autocast_enabled("cuda")))
        return steps.new_empty(*steps.shape[:2], 4), state, state

    monkeypatch.setattr(torch._VF, cell.__name__.lower(), recurrence)
    with FakeTensorMode(), torch.device("cuda"), torch.autocast("cuda", torch.bfloat16):
        steps, turned = torch.zeros(2, 5, 3) @ torch.zeros(3, 3), torch.zeros(2, 5, 1).long()
        states = rnn.Bidirectional(cell, 3, 4)(steps, turned)
    assert (steps.dtype, states.dtype) == (torch.bfloat16, torch.float32)
    assert seen == [(torch.float32, torch.float32, False)] * 2


class TestSpeechClassifier:
    def test_the_default_has_132_970_weights(self):
        front, gru, head = 96 * (40 * 5 + 1), 3 * 96 * (96 + 96 + 2), 10 * (2 * 96 + 1)
        assert (
            sum(parameter.numel() for parameter in build().parameters())
            == front + 2 * gru + head
            == 132_970
        )

    def test_loudness_does_not_change_the_answer(self):
        model, clip, length = build().eval(), noise(1, 4000), torch.tensor([4000])
        torch.testing.assert_close(model(clip, length), model(clip * 4, length), rtol=0, atol=0.01)

    @pytest.mark.parametrize("samples", [1, 40, 79, 80])
    def test_a_clip_shorter_than_a_window_gives_finite_logits(self, samples):
        assert build()(noise(1, samples), torch.tensor([samples])).isfinite().all()

    def test_digital_silence_gives_finite_logits_and_gradients(self):
        model = build()
        model(torch.zeros(2, 800), torch.tensor([800, 400])).sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    @pytest.mark.parametrize("name", names("rnn"))
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_gradients_of_every_preset_reach_every_weight(self, name, precision):
        model = build(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(noise(4, 4000), torch.tensor([4000, 3000, 2000, 160]))
        nn.functional.cross_entropy(logits.float(), torch.arange(4)).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0

    def test_thirty_steps_tell_rising_tones_from_falling_ones(self):
        """Only the order in time differs, so mean features alone could not."""
        model = build(classes=2, hidden=24)
        time = torch.arange(4000) / RATE
        start = torch.linspace(300, 600, 16)[:, None]
        rising = torch.sin(2 * math.pi * (start * time + 1500 * time.square())) * 0.3
        clips = torch.cat([rising, rising.flip(1)]) + noise(32, 4000) * 0.01
        labels, lengths = torch.arange(32) // 16, torch.full((32,), 4000)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(clips, lengths), labels).backward()
            optimizer.step()
        assert (model.eval()(clips, lengths).argmax(dim=1) == labels).all()

    @pytest.mark.parametrize("name", names("rnn"))
    def test_saved_its_logits_come_back_bit_for_bit(self, name, tmp_path):
        facts = Facts(classes=["no", "yes"], sample_rate=RATE)
        net = nets.build(find(name="speech_classification"), preset("rnn", name), facts)
        nets.save(tmp_path, net)
        loaded = nets.load(tmp_path)
        assert not loaded.module.training
        assert (loaded.settings, loaded.facts) == (net.settings, net.facts)
        clips, lengths = noise(4, 3000), torch.tensor([3000, 2000, 1000, 80])
        with torch.no_grad():
            before, after = (one(clips, lengths) for one in (net.module.eval(), loaded.module))
        assert torch.equal(before, after)

    def test_the_seed_decides_the_weights(self):
        first, second = build().state_dict(), build().state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
