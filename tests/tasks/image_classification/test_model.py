import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import PipelineError
from pipeline.tasks.image_classification import model as cnn
from pipeline.tasks.image_classification.settings import Facts, TorchVision
from tests.models.presets import names, preset


def build(name: str, channels=1, height=28, width=28, classes=10, **changes) -> cnn.ImageClassifier:
    facts = Facts(
        classes=[str(number) for number in range(classes)], channels=channels, height=height,
        width=width, mean=[0.13] * channels, std=[0.31] * channels,
    )  # fmt: skip
    torch.manual_seed(0)
    return cnn.build(preset("cnn", name, **changes), facts)[0]


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class TestSimple:
    def test_it_is_one_3x3_convolution_relu_pooling_and_a_linear_head(self):
        conv, relu, pool, _, head = build("simple").net
        assert conv.weight.shape == (16, 1, 3, 3)
        assert conv.padding == (0, 0)
        assert isinstance(relu, nn.ReLU)
        assert pool.kernel_size == 2
        assert head.weight.shape == (10, 16 * 13 * 13)

    def test_it_has_as_many_weights_as_its_preset_says(self):
        assert weights(build("simple")) == 160 + 27_050 == 27_210

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from([1, 3]), st.integers(4, 40), st.integers(4, 40), st.integers(2, 5))
    def test_the_head_fits_any_input(self, channels, height, width, classes):
        model = build("simple", channels, height, width, classes)
        assert model(images(2, channels, height, width)).shape == (2, classes)


class TestLayers:
    def test_at_10x10_the_head_takes_6_by_6_by_64(self):
        first, _, second, *_, head = build("layers", channels=3, height=10, width=10).net
        assert first.weight.shape == (32, 3, 3, 3)
        assert second.weight.shape == (64, 32, 3, 3)
        assert head.in_features == 6 * 6 * 64
        assert weights(build("layers", channels=3, height=10, width=10)) == 42_442

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from([1, 3]), st.integers(5, 20), st.integers(5, 20), st.integers(2, 5))
    def test_the_head_fits_any_input(self, channels, height, width, classes):
        model = build("layers", channels, height, width, classes)
        assert model(images(2, channels, height, width)).shape == (2, classes)


class TestConvNet:
    def test_it_has_72_666_weights_on_digits(self):
        assert weights(build("convnet")) == 72_666

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from([1, 3]), st.integers(4, 40), st.integers(4, 40))
    def test_it_takes_any_size_that_its_poolings_leave_something_of(self, channels, height, width):
        model = build("convnet", channels, height, width, classes=3)
        assert model(images(2, channels, height, width)).shape == (2, 3)

    def test_twelve_steps_tell_two_simple_patterns_apart(self):
        model = build("convnet", classes=2)
        pictures, labels = images(32, 1, 28, 28), torch.arange(32) % 2
        pictures[labels == 1, :, :, 14:] //= 4
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pictures), labels).backward()
            optimizer.step()
        accuracy = (model.eval()(pictures).argmax(dim=1) == labels).float().mean()
        assert accuracy == 1


class TestTorchVision:
    def test_resnet18_is_adapted_to_one_channel_and_ten_classes(self):
        net = build("resnet18").net
        assert net.conv1.weight.shape == (64, 1, 7, 7)
        assert net.conv1.bias is None
        assert net.fc.weight.shape == (10, 512)
        assert weights(net) == 11_175_370

    @pytest.mark.parametrize(
        "architecture", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet"]
    )
    def test_others_answer_with_logits_while_training_too(self, architecture):
        model = build("resnet18", 1, 64, 48, 3, architecture=architecture)
        assert model(images(2, 1, 64, 48)).shape == (2, 3)

    def test_a_misspelt_name_is_answered_with_the_nearest(self):
        with pytest.raises(PipelineError, match=r"no classifier 'resnet81'; .*resnet18"):
            build("resnet18", architecture="resnet81")

    def test_a_name_that_is_no_classifier_is_refused(self):
        with pytest.raises(PipelineError, match="no classifier 'fcn_resnet50'"):
            build("resnet18", architecture="fcn_resnet50")

    def test_an_architecture_that_needs_larger_images_says_so_in_one_line(self):
        with pytest.raises(PipelineError, match="alexnet can't take images of 28×28") as caught:
            build("resnet18", architecture="alexnet")
        assert "\n" not in str(caught.value)

    def test_building_leaves_the_model_in_training_mode(self):
        assert all(module.training for module in build("resnet18").modules())

    def test_the_settings_name_an_architecture_and_nothing_else(self):
        assert set(TorchVision.model_fields) == {"name", "architecture"}


class TestEveryPreset:
    @pytest.mark.parametrize("name", names("cnn"))
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_gradients_reach_every_weight(self, name, precision):
        model = build(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(images(8, 1, 28, 28))
        nn.functional.cross_entropy(logits.float(), torch.arange(8)).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
        assert model.net[0].weight.grad.abs().sum() > 0 if name != "resnet18" else True

    @pytest.mark.parametrize("name", names("cnn"))
    def test_the_seed_decides_the_weights(self, name):
        first, second = build(name).state_dict(), build(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize(
        ("name", "least"), [("simple", "4×4"), ("layers", "5×5"), ("convnet", "4×4")]
    )
    def test_images_that_are_too_small_are_refused_with_the_least_size(self, name, least):
        with pytest.raises(PipelineError, match=f"cnn={name} needs images of at least {least}"):
            build(name, height=3, width=28)


class TestStandardisation:
    def test_pixels_come_out_with_the_given_mean_and_deviation_removed(self):
        model = cnn.ImageClassifier(nn.Identity(), mean=[0.2, 0.4], std=[0.1, 0.5])
        pixels = torch.full((1, 2, 1, 1), 51, dtype=torch.uint8)
        assert model(pixels).flatten().tolist() == pytest.approx([0.0, -0.4], abs=1e-6)

    def test_a_constant_channel_gives_numbers(self):
        model = cnn.ImageClassifier(nn.Identity(), mean=[1.0], std=[0.0])
        assert (
            model(torch.full((1, 1, 2, 2), 254, dtype=torch.uint8)).flatten().tolist() == [-1] * 4
        )
