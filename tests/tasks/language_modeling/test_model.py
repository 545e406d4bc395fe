"""Adapters, what is written of them, and what the network says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.tasks.language_modeling import model as models
from pipeline.tasks.language_modeling.data import documents, encode
from pipeline.tasks.language_modeling.prepare import prepare
from pipeline.texts import gguf as files
from pipeline.training import net as nets
from pipeline.training.batches import Batch
from tests.data.sources import source
from tests.stages.conftest import start
from tests.tasks.language_modeling.conftest import (
    TASK,
    TEXTS,
    adapted,
    scratch,
    stir,
    stirred,
)


def nats(net: nets.Net, texts: list[str]) -> torch.Tensor:
    inputs, targets = documents(texts, net).gather(torch.arange(len(texts)))
    with torch.inference_mode():
        return net.module(**inputs, targets=targets.tokens)


def saved(net: nets.Net, folder: Path) -> Path:
    folder.mkdir()
    nets.save(folder, net)
    return folder


class TestGguf:
    def test_tensors_are_those_of_the_formats_own_library(self, base):
        import gguf

        found = files._parsed(base.read_bytes())
        reader = gguf.GGUFReader(base)
        for tensor in reader.tensors:
            if "attn_q" in tensor.name or "attn_k" in tensor.name:
                continue  # which are turned
            parts = tensor.name.removesuffix(".weight").split(".")
            name = files._NAMES[parts[-1]]
            name = f"model.layers.{parts[1]}.{name}" if parts[0] == "blk" else name
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert (found.weights[f"{name}.weight"] == expected).all(), tensor.name

    def test_the_network_is_that_of_transformers_own_reader(self, base, facts):
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name)
        ours = nets.build(TASK, adapted(base), facts)
        ids = torch.arange(5, 20)[None]
        with torch.inference_mode():
            said = ours.module.logits(ours.module.eval().states(ids).last_hidden_state)
            torch.testing.assert_close(said, theirs(ids).logits, rtol=0, atol=1e-4)

    def test_another_file_is_refused(self, base, facts, tmp_path):
        other = tmp_path / "other.gguf"
        other.write_bytes(base.read_bytes()[:-1] + b"?")
        settings = adapted(base, file=str(other))
        with pytest.raises(
            PipelineError, match=r"^language_model\.sha256: .* has sha256"
        ) as caught:
            nets.build(TASK, settings, facts)
        assert str(caught.value).isprintable()

    def test_what_is_no_such_file_is_refused(self, facts, tmp_path):
        other = tmp_path / "other.gguf"
        other.write_bytes(b"GGUF and nothing behind it")
        with pytest.raises(PipelineError, match=r"^language_model\.file: .* is no Llama"):
            nets.build(TASK, adapted(other), facts)
        with pytest.raises(PipelineError, match=r"nowhere can't be read"):
            nets.build(TASK, adapted(other, file=str(tmp_path / "nowhere")), facts)


class TestAdapters:
    def test_before_the_training_they_change_nothing(self, base, facts):
        fresh = nets.build(TASK, adapted(base), facts)
        plain = nats(fresh, TEXTS)
        stir(fresh)
        assert not torch.allclose(nats(fresh, TEXTS), plain)

    def test_nothing_else_is_trained(self, base, facts):
        fresh = nets.build(TASK, adapted(base), facts)
        trained = [name for name, one in fresh.module.named_parameters() if one.requires_grad]
        assert len(trained) == 2 * 2 * 7
        assert all("lora_" in name for name in trained)

    def test_a_network_that_was_written_says_the_same(self, net, tmp_path):
        again = nets.load(saved(net, tmp_path / "model"))
        assert torch.equal(nats(again, TEXTS), nats(net, TEXTS))
        assert again.tokenizer.to_str() == net.tokenizer.to_str()

    def test_only_they_are_written(self, base, facts, tmp_path):
        made = nets.build(TASK, adapted(base), facts)
        folder = saved(made, tmp_path / "model")
        assert {path.name for path in folder.iterdir()} == {
            "model.json", "model.safetensors", "tokenizer.json",
        }  # fmt: skip
        assert all(".lora_" in name for name in load_file(folder / "model.safetensors"))

    def test_peft_reads_them(self, base, facts, tmp_path):
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        made = stirred(adapted(base), facts)
        weights = load_file(saved(made, tmp_path / "model") / "model.safetensors")
        plain = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name)
        theirs = get_peft_model(plain, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
        assert not set_peft_model_state_dict(theirs, weights).unexpected_keys
        ids = torch.arange(5, 20)[None]
        with torch.inference_mode():
            said = made.module.logits(made.module.eval().states(ids).last_hidden_state)
            torch.testing.assert_close(said, theirs.eval()(ids).logits, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("fault", ["missing", "renamed", "base", "empty"])
    def test_without_them_nothing_is_loaded(self, base, facts, tmp_path, fault):
        made = stirred(adapted(base), facts)
        folder = saved(made, tmp_path / "model")
        file = folder / "model.safetensors"
        weights, told = load_file(file), {"base_sha256": made.settings.sha256}
        first = min(weights)
        if fault == "missing":
            del weights[first]
        elif fault == "renamed":
            weights = {name.removeprefix(models.PEFT): one for name, one in weights.items()}
        elif fault == "base":
            told = {"base_sha256": "0" * 64}
        else:
            weights = {}
        save_file(weights, file, told)
        described = json.loads((folder / "model.json").read_text())
        described["sha256"] = nets.digest(file, "sha256")
        (folder / "model.json").write_text(json.dumps(described))
        with pytest.raises(PipelineError, match=r"(does not fit|belongs to frozen)") as caught:
            nets.load(folder)
        assert str(caught.value).isprintable()

    def test_have_the_same_bytes_each_time_they_are_written(self, base, facts, tmp_path):
        made = stirred(adapted(base), facts)
        folders = [saved(made, tmp_path / str(number)) for number in range(12)]
        assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1

    def test_the_digest_of_a_model_is_also_that_of_its_base(self, base, facts, tmp_path):
        other = tmp_path / "other.gguf"
        content = bytearray(base.read_bytes())
        content[-1] ^= 1
        other.write_bytes(content)
        digests = set()
        for file in (base, other):
            torch.manual_seed(0)
            made = nets.build(TASK, adapted(file), facts)
            folder = saved(made, tmp_path / file.stem)
            digests.add(nets.digest(folder / "model.safetensors"))
        assert len(digests) == 2

    def test_elsewhere_the_base_is_taken_from_the_folder(self, base, facts, tmp_path):
        file = shutil.copy(base, tmp_path / "moved.gguf")
        made = stirred(adapted(Path(file)), facts)
        folder = saved(made, tmp_path / "model")
        expected = nats(made, TEXTS)
        for name, carried in models.carried(made).items():
            shutil.copy(carried, folder / name)
        Path(file).unlink()
        assert torch.equal(nats(nets.load(folder), TEXTS), expected)


def test_without_a_rank_all_weights_of_a_gguf_file_are_trained(base, facts, tmp_path):
    file, data, output = tmp_path / "own.gguf", tmp_path / "language", tmp_path / "model"
    shutil.copy(base, file)
    (tmp_path / "raw").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / f"raw/{number}.txt").write_text(f"{text} {number}")
    texts = source("language", kind="folder", folder=str(tmp_path / "raw"))
    prepared.write(data, TASK.name, prepare(texts, 0, None), 0)
    settings = adapted(file, rank=None)
    start(
        tmp_path, "train_language_model", "language_model.rank=null", "language_model.package=null",
        f"language_model.file={file}", f"language_model.sha256={settings.sha256}",
        "language_model.block=16", "language_model.context=16", "language_model.writing.tokens=6",
        "precision=fp32", f"data={data}", f"output={output}", f"curve={tmp_path}/curve.csv",
    )  # fmt: skip
    before = nets.build(TASK, settings, facts)
    file.unlink()  # which is needed no more
    made = nets.load(output)
    weights, old = (dict(one.module.named_parameters()) for one in (made, before))
    assert weights.keys() == old.keys()
    assert not [name for name, weight in weights.items() if torch.equal(weight, old[name])]
    before.module.eval()
    assert nats(made, TEXTS).mean() < nats(before, TEXTS).mean() - 0.1
    with torch.inference_mode():
        said = models.answer(made.module(**encode(["A film"], made)), made)
    assert said[0]["text"]


class TestSaid:
    def test_no_token_sees_another_document_or_what_fills_up(self, net):
        together = nats(net, TEXTS[:3])
        alone = torch.cat([nats(net, [text]) for text in TEXTS[:3]])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        changed = nats(net, [TEXTS[0], "x y z", TEXTS[2]])
        first = len(nats(net, TEXTS[:1]))
        torch.testing.assert_close(changed[:first], together[:first], rtol=0, atol=1e-5)

    def test_no_token_sees_what_comes(self, net):
        whole, part = nats(net, ["A bad film. A good"]), nats(net, ["A bad film."])
        assert len(part) < len(whole) <= net.settings.context
        torch.testing.assert_close(whole[: len(part)], part, rtol=0, atol=1e-5)

    def test_they_are_the_cross_entropy_of_all_logits(self, net):
        ids = torch.tensor([[0, *net.tokenizer.encode("A bad film.").ids]])
        with torch.inference_mode():
            logits = net.module.llama(input_ids=ids).logits
        expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
        torch.testing.assert_close(nats(net, ["A bad film."]), expected, rtol=0, atol=1e-5)
        states, told = net.module.counted(ids[:, :-1], ids[:, 1:])
        said = net.module.judge(states.detach(), told)
        torch.testing.assert_close(said.nats, expected, rtol=0, atol=1e-5)
        best = logits[0, :-1].softmax(-1).max(-1)
        torch.testing.assert_close(said.surest, best.values, rtol=0, atol=1e-5)
        assert said.right.tolist() == (best.indices == ids[0, 1:]).float().tolist()


class TestLoss:
    def test_batches_of_a_step_weigh_by_their_tokens(self, net):
        """As `Loop.step` weighs them: the gradient is that of one large batch."""
        rows = documents(TEXTS[:5], net)

        def batch(*index: int) -> Batch:
            inputs, targets = rows.gather(torch.tensor(index))
            count = float((targets.tokens >= 0).sum())
            return Batch(inputs, targets, count, count)

        def gradients(*batches: Batch) -> dict[str, torch.Tensor]:
            net.module.zero_grad()
            total = sum(one.whole for one in batches)
            for one in batches:
                (models.loss(net.module, one, None) * (one.weight / total)).backward()
            named = net.module.named_parameters()
            return {name: one.grad.clone() for name, one in named if one.grad is not None}

        whole, parts = gradients(batch(0, 1, 2, 3, 4)), gradients(batch(0, 1), batch(2, 3, 4))
        assert whole
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


class TestWriting:
    def answers(self, net: nets.Net, *texts: str) -> list[str]:
        with torch.inference_mode():
            found = models.answer(net.module(**encode(list(texts), net)), net)
        return [one["text"] for one in found]

    def test_repeats_to_the_byte_and_alone(self, net):
        prompts = ["A film", "The end of it was"]
        together = self.answers(net, *prompts)
        assert together == self.answers(net, *prompts)
        assert together == [self.answers(net, one)[0] for one in prompts]
        assert any(together)

    def test_the_seed_decides(self, facts):
        def drawn(seed: int) -> list[str]:
            writing = {"tokens": 12, "temperature": 1.0, "seed": seed}
            return self.answers(stirred(scratch(writing=writing), facts), "A film")

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)

    def test_without_temperature_the_likeliest_token_is_taken(self, facts):
        made = stirred(scratch(writing={"tokens": 3, "temperature": 0.0, "seed": 0}), facts)
        ids = [0, *made.tokenizer.encode("A film").ids]
        start = len(ids)
        with torch.inference_mode():
            for _ in range(3):
                logits = made.module.llama(input_ids=torch.tensor([ids])).logits
                ids.append(int(logits[0, -1].argmax()))
        expected = ids[start:]
        expected = expected[: expected.index(0)] if 0 in expected else expected
        assert self.answers(made, "A film") == [made.tokenizer.decode(expected)]

    def test_goes_on_with_the_end_of_a_long_text(self, net):
        assert len(self.answers(net, " ".join(TEXTS))) == 1
        assert len(self.answers(net, "")) == 1
