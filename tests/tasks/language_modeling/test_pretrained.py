"""Networks that transformers wrote, and folders that it reads."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import PipelineError
from pipeline.tasks.language_modeling import model as models
from pipeline.tasks.language_modeling.data import blocks, encode
from pipeline.tasks.language_modeling.writing import stream
from pipeline.training import net as nets
from tests.data.sources import complaint
from tests.models.presets import preset
from tests.tasks.language_modeling.conftest import (
    TASK,
    TEXTS,
    adapted,
    pretrained,
    scratch,
    stirred,
)
from tests.tasks.language_modeling.test_model import nats, saved

IDS = torch.arange(5, 20)[None]
MERGED = {
    "context": 64, "writing": {"tokens": 12, "temperature": 0.0, "seed": 0}, "merge": True,
}  # fmt: skip


def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def logits(net):
    with torch.inference_mode():
        return net.module.logits(net.module.eval().states(IDS).last_hidden_state)


def trained(net):
    return {name for name, one in net.module.named_parameters() if one.requires_grad}


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder, for tests that change it."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


class TestFolder:
    def test_a_network_is_that_of_transformers(self, folder, facts):
        with torch.inference_mode():
            expected = theirs(folder)(IDS).logits
        for rank in (2, None):
            made = nets.build(TASK, pretrained(folder, rank=rank), facts)
            torch.testing.assert_close(logits(made), expected, rtol=0, atol=1e-4)

    def test_it_is_shown_no_more_tokens_than_it_takes(self, folder, facts):
        made = nets.build(TASK, pretrained(folder, block=64, context=64), facts)
        text = " ".join(2 * TEXTS)
        ids = made.tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) > 2 * 64
        assert len(nats(made, [text])) == len(ids)
        rows = blocks([text], made, None)
        inputs, targets = rows.gather(torch.arange(len(rows.sizes)))
        assert inputs["input_ids"].shape[1] == 64
        told = targets.tokens[targets.tokens >= 0].tolist()
        assert told == [*ids, made.module.frame.ends[0]]
        assert len(made.module(**inputs, targets=targets.tokens)) == len(told)

    def test_adapters_stand_beside_each_linear_map_but_the_head(self, folder, facts):
        made = nets.build(TASK, pretrained(folder), facts)
        each = 4 if "gpt2" in str(folder) else 7
        assert len(trained(made)) == 2 * 2 * each
        assert all(".lora_" in name for name in trained(made))
        assert not [name for name in trained(made) if "head" in name]

    def test_peft_reads_the_adapters(self, folder, facts, tmp_path):
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        made = stirred(pretrained(folder), facts)
        weights = load_file(saved(made, tmp_path / "model") / "model.safetensors")
        config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
        peft = get_peft_model(theirs(folder), config)
        assert not set_peft_model_state_dict(peft, weights).unexpected_keys
        with torch.inference_mode():
            torch.testing.assert_close(logits(made), peft.eval()(IDS).logits, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("rank", [2, None])
    def test_one_that_was_written_says_the_same(self, folder, facts, tmp_path, rank):
        made = stirred(pretrained(folder, rank=rank), facts)
        again = nets.load(saved(made, tmp_path / "model"))
        assert torch.equal(nats(again, TEXTS), nats(made, TEXTS))
        assert again.module.frame == made.module.frame

    def test_without_a_rank_all_weights_are_trained_and_written(self, folder, facts, tmp_path):
        made = nets.build(TASK, pretrained(folder, rank=None), facts)
        assert trained(made) == {name for name, _ in made.module.named_parameters()}
        with torch.no_grad():
            for weight in made.module.parameters():
                weight.mul_(1.1)
        written = saved(made, tmp_path / "model")
        own = load_file(written / "model.safetensors")
        assert own.keys() == load_file(folder / "model.safetensors").keys()
        with torch.inference_mode():
            assert torch.equal(theirs(written)(IDS).logits, logits(made))

    def test_other_frozen_weights_are_refused(self, own, facts, tmp_path):
        made = nets.build(TASK, pretrained(own), facts)
        written = saved(made, tmp_path / "model")
        weights = load_file(own / "model.safetensors")
        first = min(weights)
        weights[first] = weights[first] + 1
        save_file(weights, own / "model.safetensors", {"format": "pt"})
        assert "belongs to frozen weights of sha256" in complaint(lambda: nets.load(written))

    def test_elsewhere_the_base_is_taken_from_the_folder(self, own, facts, tmp_path):
        made = stirred(pretrained(own), facts)
        written, expected = saved(made, tmp_path / "model"), nats(made, TEXTS)
        for name, file in models.carried(made).items():
            (written / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, written / name)
        shutil.rmtree(own)
        assert torch.equal(nats(nets.load(written), TEXTS), expected)

    def test_a_digest_is_checked(self, folder, facts):
        found = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        nets.build(TASK, pretrained(folder, sha256=found), facts)
        said = complaint(lambda: nets.build(TASK, pretrained(folder, sha256="0" * 64), facts))
        assert said.startswith("language_model.sha256: ")

    def test_what_is_none_is_one_line(self, own, facts, tmp_path):
        def said(**changes):
            return complaint(lambda: nets.build(TASK, pretrained(own, **changes), facts))

        assert "65 tokens" not in (said(context=64) or "")
        assert "context: 66 tokens are more than" in said(context=66)
        assert "block: 65 tokens are more than" in said(block=65)
        values = json.loads((own / "config.json").read_text())
        evil = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
        (own / "config.json").write_text(json.dumps(values | evil))
        (own / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        assert "can't be loaded as a causal language model" in said()
        assert not (tmp_path / "ran").exists()
        (own / "config.json").write_text(json.dumps(values))
        weights = load_file(own / "model.safetensors")
        torch.save(weights, own / "pytorch_model.bin")
        (own / "model.safetensors").unlink()
        assert "has no *.safetensors (pickled weights are never read)" in said()
        del weights[max(weights)]
        save_file(weights, own / "model.safetensors", {"format": "pt"})
        assert " tensors (" in said()
        (own / "model.safetensors").write_bytes(b"no tensors")
        assert "can't be loaded" in said()
        (own / "config.json").unlink()
        assert f"language_model.model: {own}/config.json is missing" in said()

    def test_what_needs_a_package_that_is_missing_is_one_line(self, own, facts):
        values = json.loads((own / "config.json").read_text())
        quantized = {"quantization_config": {"quant_method": "awq", "bits": 4}}
        (own / "config.json").write_text(json.dumps(values | quantized))
        said = complaint(lambda: nets.build(TASK, pretrained(own), facts))
        assert "can't be loaded as a causal language model" in said

    def test_a_network_that_can_not_go_on_from_a_cache_is_refused(self, own, facts):
        import transformers

        size = json.loads((own / "config.json").read_text())["vocab_size"]
        config = transformers.MambaConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4
        )
        torch.manual_seed(0)
        made = transformers.MambaForCausalLM(config)
        for weight in made.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2)
        made.save_pretrained(own)
        said = complaint(lambda: nets.build(TASK, pretrained(own), facts))
        assert "can't go on from keys and values (MambaForCausalLM)" in said

    def test_a_network_that_looks_ahead_is_refused(self, own, facts):
        import transformers

        size = json.loads((own / "config.json").read_text())["vocab_size"]
        config = transformers.BertConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        )  # fmt: skip
        transformers.BertLMHeadModel(config).save_pretrained(own)
        assert "which is not supported" in complaint(
            lambda: nets.build(TASK, pretrained(own), facts)
        )


def test_offline_the_hub_can_not_be_reached(monkeypatch, tmp_path, facts):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PipelineError, match=r"or choose language_model=smollm2$"):
        nets.build(TASK, preset("language_model", "hub"), facts)


class TestMerged:
    """A folder with all weights, adapters added to them."""

    @pytest.fixture(params=["scratch", "gguf", "folder"])
    def made(self, request, base, folder, facts):
        settings = {
            "scratch": lambda: scratch(**MERGED),
            "gguf": lambda: adapted(base, **MERGED),
            "folder": lambda: pretrained(folder, **MERGED),
        }[request.param]()
        return stirred(settings, facts)

    def test_generates_what_our_own_network_does(self, made, tmp_path):
        import transformers

        expected = "".join(stream(made, "A film"))
        assert expected
        folder = saved(made, tmp_path / "model")
        pipe = transformers.pipeline("text-generation", model=str(folder), dtype=torch.float32)
        (said,) = pipe("A film", max_new_tokens=12, do_sample=False)
        assert said["generated_text"] == "A film" + expected
        again = nets.load(folder)
        assert "".join(stream(again, "A film")) == expected
        ids = [
            one.tokenizer.encode("a <|im_end|> b", add_special_tokens=False).ids
            for one in (again, made)
        ]
        assert ids[0] == ids[1]
        torch.testing.assert_close(nats(again, TEXTS), nats(made, TEXTS), rtol=0, atol=1e-4)

    def test_needs_no_base_and_has_the_same_bytes_again(self, made, tmp_path):
        assert models.carried(made) == {}
        folders = [saved(made, tmp_path / name) for name in ("a", "b")]
        files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
        assert files[0] == files[1]
        again = saved(nets.load(folders[0]), tmp_path / "c")
        assert (again / "model.safetensors").read_bytes() == files[0]["model.safetensors"]

    def test_a_chat_is_answered_as_the_pipeline_answers_it(self, folder, facts, tmp_path):
        import transformers

        made = stirred(pretrained(folder, **MERGED), facts)
        chat = [{"role": "user", "content": "A film?"}]
        expected = "".join(stream(made, {"messages": chat}))
        pipe = transformers.pipeline(
            "text-generation", model=str(saved(made, tmp_path / "model")), dtype=torch.float32
        )
        (said,) = pipe(chat, max_new_tokens=12, do_sample=False)
        assert said["generated_text"][-1] == {"role": "assistant", "content": expected}


@pytest.mark.slow
def test_smollm2_with_adapters_is_merged(tmp_path: Path) -> None:
    import transformers

    writing = {"tokens": 16, "temperature": 0.0, "seed": 0}
    settings = preset("language_model", "smollm2", writing=writing, merge=True)
    net = nets.build(TASK, settings, TASK.settings.Facts(merges=""))
    for name, weight in net.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    net.module.eval()
    folder = saved(net, tmp_path / "model")
    pipe = transformers.pipeline("text-generation", model=str(folder), dtype=torch.float32)
    for beginning in ("This movie is", [{"role": "user", "content": "What is 2 + 2?"}]):
        raw = beginning if isinstance(beginning, str) else {"messages": beginning}
        expected = "".join(stream(net, raw))
        (said,) = pipe(beginning, max_new_tokens=16, do_sample=False, return_full_text=False)
        assert said["generated_text"] == expected
    inputs = encode(["This movie is"], nets.load(folder))
    assert torch.equal(inputs["input_ids"], encode(["This movie is"], net)["input_ids"])
