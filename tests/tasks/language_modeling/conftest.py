"""A small Llama in a gguf file, and texts."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.task import find
from pipeline.tasks.language_modeling.settings import Facts
from pipeline.texts import bpe
from pipeline.training import net as nets
from tests.models.presets import preset

TASK = find(name="language_modeling")
TEXTS = ["The film was good, and the end of it was better.\nSee it!", "A bad film.", "Été 1984"] * 4
LAYERS, WIDTH, HEADS, GROUPS, WIDE = 2, 64, 4, 2, 96
SMALL = {"block": 16, "context": 16, "writing": {"tokens": 6, "temperature": 0.8, "seed": 0}}


@pytest.fixture(scope="session")
def facts() -> Facts:
    return Facts(merges=bpe.learn(TEXTS, 300))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, facts: Facts) -> Path:
    """Written by llama.cpp's own library: Q8_0, Q4_1, F16 and F32."""
    import gguf

    path = tmp_path_factory.mktemp("base") / "small.gguf"
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokenizer = bpe.tokenizer(facts.merges)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    size = tokenizer.get_vocab_size()
    writer.add_token_list([tokenizer.id_to_token(token) for token in range(size)])
    writer.add_token_merges(facts.merges.splitlines())
    kinds = gguf.GGMLQuantizationType

    def add(name: str, shape: tuple[int, ...], kind: Any = kinds.F32) -> None:
        values = random.normal(0, 0.1, shape).astype(np.float32) + (len(shape) == 1)
        if kind == kinds.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (size, WIDTH), kinds.Q8_0)
    add("output_norm.weight", (WIDTH,))
    few = WIDTH * GROUPS // HEADS
    for layer in range(LAYERS):
        for name, shape, kind in (
            ("attn_norm", (WIDTH,), kinds.F32), ("ffn_norm", (WIDTH,), kinds.F32),
            ("attn_q", (WIDTH, WIDTH), kinds.Q4_1), ("attn_k", (few, WIDTH), kinds.Q4_1),
            ("attn_v", (few, WIDTH), kinds.Q4_1), ("attn_output", (WIDTH, WIDTH), kinds.F16),
            ("ffn_gate", (WIDE, WIDTH), kinds.Q4_1), ("ffn_up", (WIDE, WIDTH), kinds.Q8_0),
            ("ffn_down", (WIDTH, WIDE), kinds.Q4_1),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapted(base: Path, **changes: Any) -> Any:
    """Settings of a network with adapters of the small Llama."""
    file = {"package": None, "file": str(base), "sha256": sha256(base.read_bytes()).hexdigest()}
    values = {**SMALL, **file, "rank": 2, "alpha": 4, **changes}
    return preset("language_model", "smollm2", **values)


def scratch(**changes: Any) -> Any:
    return preset("language_model", "scratch", **{**SMALL, "layers": 2, "width": 64, **changes})


TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "| trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: Any, facts: Facts) -> Path:
    """A small network with random weights and a chat template, as transformers writes it."""
    return written(tmp_path_factory.mktemp(request.param) / "net", request.param, facts)


def written(folder: Path, kind: str, facts: Facts) -> Path:
    import transformers

    reader = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe.tokenizer(facts.merges),
        bos_token=bpe.END,
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL,
    )
    reader.chat_template = TEMPLATE
    reader.save_pretrained(folder)
    torch.manual_seed(0)
    same = {"vocab_size": len(reader), "bos_token_id": 0, "eos_token_id": reader.eos_token_id}
    if kind == "gpt2":
        config = transformers.GPT2Config(**same, n_positions=64, n_embd=48, n_layer=2, n_head=4)
        made: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            **same, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        made = transformers.LlamaForCausalLM(config)
    for weight in made.parameters():  # else it says nearly the same of everything
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    made.save_pretrained(folder)
    return folder


def pretrained(folder: Path, **changes: Any) -> Any:
    """Settings of a network of that folder."""
    values = {**SMALL, "model": str(folder), "rank": 2, "alpha": 4, **changes}
    return preset("language_model", "folder", **values)


@pytest.fixture(params=["scratch", "adapted"])
def net(request: pytest.FixtureRequest, base: Path, facts: Facts) -> nets.Net:
    """One of each kind."""
    return stirred(adapted(base) if request.param == "adapted" else scratch(), facts)


def stirred(settings: Any, facts: Facts) -> nets.Net:
    """A network as after a training, with adapters that do something."""
    torch.manual_seed(0)
    made = nets.build(TASK, settings, facts)
    stir(made)
    made.module.eval()
    return made


def stir(net: nets.Net) -> None:
    """What is zero at first gets other values."""
    for name, weight in net.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
