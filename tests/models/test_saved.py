import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import PipelineError
from pipeline.files import digest
from pipeline.task import find
from pipeline.training import net as nets
from tests.models.presets import names, preset

TASK = find(name="image_classification")
FACTS = {
    "classes": [str(digit) for digit in range(10)], "channels": 1, "height": 28, "width": 28,
    "mean": [0.13], "std": [0.31],
}  # fmt: skip


def build(name: str = "simple") -> nets.Net:
    torch.manual_seed(0)
    return nets.build(TASK, preset("cnn", name), TASK.settings.Facts(**FACTS))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a simple CNN."""
    folder = tmp_path / "cnn"
    folder.mkdir()
    nets.save(folder, build())
    return folder


def write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Put other weights in a folder, digest and all."""
    save_file(weights, folder / nets.WEIGHTS)
    rewrite(folder, sha256=digest(folder / nets.WEIGHTS, "sha256"))


def rewrite(folder: Path, **changes: object) -> None:
    content = json.loads((folder / nets.DESCRIPTION).read_text())
    (folder / nets.DESCRIPTION).write_text(json.dumps(content | changes))


class TestRoundTrip:
    @pytest.mark.parametrize("name", names("cnn"))
    def test_logits_come_back_bit_for_bit(self, name, tmp_path):
        net = build(name)
        images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
        net.module(images)  # moves the batch norms' running statistics
        nets.save(tmp_path, net)
        loaded = nets.load(tmp_path)
        assert not loaded.module.training
        assert (loaded.task, loaded.settings, loaded.facts) == (TASK, net.settings, net.facts)
        with torch.no_grad():
            before, after = (one(images) for one in (net.module.eval(), loaded.module))
        assert torch.equal(before, after)

    def test_equal_weights_give_equal_bytes(self, saved, tmp_path):
        nets.save(tmp_path, build())
        for name in (nets.WEIGHTS, nets.DESCRIPTION):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()

    def test_loading_leaves_the_random_state_alone(self, saved):
        before = torch.random.get_rng_state()
        nets.load(saved)
        assert torch.equal(torch.random.get_rng_state(), before)


class TestDamage:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_flipped_bit_is_noticed(self, saved, seed):
        content = bytearray((saved / nets.WEIGHTS).read_bytes())
        generator = random.Random(seed)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (saved / nets.WEIGHTS).write_bytes(content)
        with pytest.raises(PipelineError, match=r"model.safetensors is damaged .*train_cnn"):
            nets.load(saved)

    @pytest.mark.parametrize("left", [0, 5, 1000])
    def test_truncated_weights_are_noticed_also_when_the_digest_was_made_after(self, saved, left):
        content = (saved / nets.WEIGHTS).read_bytes()[:left]
        (saved / nets.WEIGHTS).write_bytes(content)
        with pytest.raises(PipelineError, match="is damaged"):
            nets.load(saved)
        rewrite(saved, sha256=digest(saved / nets.WEIGHTS, "sha256"))
        with pytest.raises(PipelineError, match="is damaged") as caught:
            nets.load(saved)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_says_which_stage_makes_it(self, saved):
        (saved / nets.WEIGHTS).unlink()
        with pytest.raises(PipelineError, match=r"model.safetensors can't be read .*train_cnn"):
            nets.load(saved)
        (saved / nets.DESCRIPTION).unlink()
        with pytest.raises(
            PipelineError, match=r"model.json is missing; run `dvc repro train_cnn`"
        ):
            nets.load(saved)

    def test_a_missing_weight_is_named(self, saved):
        weights = load_file(saved / nets.WEIGHTS)
        del weights["net.4.bias"]
        write_weights(saved, weights)
        with pytest.raises(PipelineError, match=r"net.4.bias is missing, the described .* 10"):
            nets.load(saved)

    def test_weights_of_another_architecture_are_named(self, saved):
        state = build("convnet").module.state_dict
        write_weights(saved, {k: v.contiguous() for k, v in state().items()})
        with pytest.raises(PipelineError, match=r"does not fit model.json: net"):
            nets.load(saved)


class TestDescription:
    def test_it_is_the_task_the_settings_the_facts_and_the_digest(self, saved):
        content = json.loads((saved / nets.DESCRIPTION).read_text())
        assert content.pop("sha256") == digest(saved / nets.WEIGHTS, "sha256")
        settings = preset("cnn", "simple").model_dump()
        assert content == {"task": "image_classification", "settings": settings, "facts": FACTS}

    @pytest.mark.parametrize("key", ["task", "settings", "facts", "sha256"])
    def test_without_a_part_it_is_none(self, saved, key):
        content = json.loads((saved / nets.DESCRIPTION).read_text())
        del content[key]
        (saved / nets.DESCRIPTION).write_text(json.dumps(content))
        with pytest.raises(PipelineError, match="does not describe a model of this pipeline"):
            nets.load(saved)

    @pytest.mark.parametrize(
        "content",
        [
            {"task": "os.system"},
            {"task": "../image_classification"},
            {"task": ""},
            {"task": None},
            {"settings": {"name": "os.system"}},
            {"settings": {"name": "torchvision", "architecture": 3}},
            {"facts": {}},
            {"facts": FACTS | {"channels": 1e9}},
        ],
    )
    def test_it_can_only_name_what_the_settings_know(self, saved, content):
        rewrite(saved, **content)
        with pytest.raises(PipelineError, match="does not describe a model of this pipeline"):
            nets.load(saved)

    def test_an_architecture_that_is_no_classifier_is_not_called(self, saved):
        rewrite(saved, settings={"name": "torchvision", "architecture": "os.system"})
        with pytest.raises(PipelineError, match=r"no classifier 'os\.system'"):
            nets.load(saved)

    def test_a_file_that_is_not_json_is_one_line(self, saved):
        (saved / nets.DESCRIPTION).write_text("{")
        with pytest.raises(PipelineError, match=r"model.json can't be read"):
            nets.load(saved)

    def test_a_list_is_not_a_description(self, saved):
        (saved / nets.DESCRIPTION).write_text("[]")
        with pytest.raises(PipelineError, match="does not describe a model"):
            nets.load(saved)
