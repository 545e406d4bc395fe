import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import models
from pipeline.errors import PipelineError
from pipeline.files import digest
from tests.models.conftest import inputs, settings
from tests.models.presets import names, preset

CLASSES = [str(digit) for digit in range(10)]


def image_model(name: str = "simple", **changes) -> models.ImageModel:
    shape = {"channels": 1, "height": 28, "width": 28, "mean": [0.13], "std": [0.31]}
    return models.ImageModel(settings=preset("cnn", name), classes=CLASSES, **shape | changes)


def speech_model(name: str = "gru") -> models.SpeechModel:
    return models.SpeechModel(settings=preset("rnn", name), classes=CLASSES, sample_rate=8000)


def example(description) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if description.model == "cnn":
        return {"images": torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8,
                                        generator=generator)}  # fmt: skip
    return {
        "waveforms": torch.rand(4, 3000, generator=generator) - 0.5,
        "lengths": torch.tensor([3000, 2000, 1000, 80]),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a simple CNN."""
    folder = tmp_path / "cnn"
    folder.mkdir()
    torch.manual_seed(0)
    model, _ = models.build(image_model())
    models.save(folder, model, image_model())
    return folder


def write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Put other weights in a folder, digest and all."""
    save_file(weights, folder / models.WEIGHTS)
    rewrite(folder, sha256=digest(folder / models.WEIGHTS, "sha256"))


def rewrite(folder: Path, **changes: object) -> None:
    content = json.loads((folder / models.DESCRIPTION).read_text())
    (folder / models.DESCRIPTION).write_text(json.dumps(content | changes))


class TestRoundTrip:
    @pytest.mark.parametrize(
        "description",
        [image_model(name) for name in names("cnn")]
        + [speech_model(name) for name in names("rnn")],
        ids=lambda description: f"{description.model}",
    )
    def test_logits_come_back_bit_for_bit(self, description, tmp_path):
        torch.manual_seed(0)
        model, _ = models.build(description)
        model(**example(description))  # moves the batch norms' running statistics
        models.save(tmp_path, model, description)
        loaded = models.load(tmp_path)
        assert not loaded.model.training
        assert loaded.description == description
        assert list(loaded.classes) == CLASSES
        with torch.no_grad():
            before, after = (m(**example(description)) for m in (model.eval(), loaded.model))
        assert torch.equal(before, after)

    def test_a_transformers_too(self, encoder, tmp_path):
        description = models.TextModel(settings=settings(encoder), classes=["negative", "positive"])
        model, tokenizer = models.build(description)
        models.save(tmp_path, model, description, tokenizer)
        loaded = models.load(tmp_path)
        batch = inputs(loaded.tokenizer, "a good film", "a bad book .")
        assert not loaded.model.training
        assert torch.equal(model.eval()(**batch).logits, loaded.model(**batch).logits)

    def test_equal_weights_give_equal_bytes(self, saved, tmp_path):
        torch.manual_seed(0)
        model, _ = models.build(image_model())
        models.save(tmp_path, model, image_model())
        for name in (models.WEIGHTS, models.DESCRIPTION):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()

    def test_loading_leaves_the_random_state_alone(self, saved):
        before = torch.random.get_rng_state()
        models.load(saved)
        assert torch.equal(torch.random.get_rng_state(), before)


class TestDamage:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_flipped_bit_is_noticed(self, saved, seed):
        content = bytearray((saved / models.WEIGHTS).read_bytes())
        generator = random.Random(seed)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (saved / models.WEIGHTS).write_bytes(content)
        with pytest.raises(PipelineError, match=r"model.safetensors is damaged .*train_cnn"):
            models.load(saved)

    @pytest.mark.parametrize("left", [0, 5, 1000])
    def test_truncated_weights_are_noticed_also_when_the_digest_was_made_after(self, saved, left):
        content = (saved / models.WEIGHTS).read_bytes()[:left]
        (saved / models.WEIGHTS).write_bytes(content)
        with pytest.raises(PipelineError, match="is damaged"):
            models.load(saved)
        rewrite(saved, sha256=digest(saved / models.WEIGHTS, "sha256"))
        with pytest.raises(PipelineError, match="is damaged") as caught:
            models.load(saved)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_says_which_stage_makes_it(self, saved):
        (saved / models.WEIGHTS).unlink()
        with pytest.raises(PipelineError, match=r"model.safetensors can't be read .*train_cnn"):
            models.load(saved)
        (saved / models.DESCRIPTION).unlink()
        with pytest.raises(
            PipelineError, match=r"model.json is missing; run `dvc repro train_cnn`"
        ):
            models.load(saved)

    def test_a_missing_weight_is_named(self, saved):
        weights = load_file(saved / models.WEIGHTS)
        del weights["net.4.bias"]
        write_weights(saved, weights)
        with pytest.raises(PipelineError, match=r"net.4.bias is missing, the described .* 10"):
            models.load(saved)

    def test_weights_of_another_architecture_are_named(self, saved):
        torch.manual_seed(0)
        model, _ = models.build(image_model("convnet"))
        write_weights(saved, {k: v.contiguous() for k, v in model.state_dict().items()})
        with pytest.raises(PipelineError, match=r"does not fit model.json: net"):
            models.load(saved)

    def test_a_transformer_without_its_config_is_one_line(self, encoder, tmp_path):
        description = models.TextModel(settings=settings(encoder), classes=["a", "b"])
        model, tokenizer = models.build(description)
        models.save(tmp_path, model, description, tokenizer)
        shutil.move(tmp_path / "config.json", tmp_path / "elsewhere.json")
        with pytest.raises(PipelineError, match="can't be loaded as a text classifier") as caught:
            models.load(tmp_path)
        assert "\n" not in str(caught.value)


class TestDescription:
    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"model": "os.system"},
            {"model": "cnn", "settings": {"name": "os.system"}},
            {"model": "cnn", "settings": {"name": "torchvision", "architecture": 3}},
        ],
    )
    def test_it_can_only_name_what_the_settings_know(self, saved, content):
        rewrite(saved, description=content)
        with pytest.raises(PipelineError, match="does not describe a model of this pipeline"):
            models.load(saved)

    def test_an_architecture_that_is_no_classifier_is_not_called(self, saved):
        valid = image_model("resnet18").model_dump()
        valid["settings"]["architecture"] = "os.system"
        rewrite(saved, description=valid)
        with pytest.raises(PipelineError, match=r"no classifier 'os\.system'"):
            models.load(saved)

    def test_a_file_that_is_not_json_is_one_line(self, saved):
        (saved / models.DESCRIPTION).write_text("{")
        with pytest.raises(PipelineError, match=r"model.json can't be read"):
            models.load(saved)

    def test_a_list_is_not_a_description(self, saved):
        (saved / models.DESCRIPTION).write_text("[]")
        with pytest.raises(PipelineError, match="does not describe a model"):
            models.load(saved)
