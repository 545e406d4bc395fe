"""A Llama in a gguf file, as llama.cpp writes them: settings, weights, tokenizer.

transformers reads such files in 19 s, gguf's own reader in 4; this takes one.
"""

import hashlib
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.files import refuse_other
from pipeline.texts import bpe
from pipeline.texts.chats import Frame

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
_TEXT, _LIST = 8, 9
_ALIGNMENT = 32
_CONTROL = 3
"""The kind of tokens that are no text."""
_BLOCK = 32
"""Weights that share a scale."""

_NAMES = {
    "token_embd": "model.embed_tokens",  # nosec B105
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


Floats = NDArray[np.float32]


class Base(NamedTuple):
    """What a file holds.

    Attributes:
        config: keyword arguments of `transformers.LlamaConfig`.
        weights: named as `transformers.LlamaForCausalLM` names them.
        tokenizer: a `tokenizers.Tokenizer`; what a special token is called is text inside a text.
        frame: what it expects around them.
    """

    config: dict[str, Any]
    weights: dict[str, Floats]
    tokenizer: Any
    frame: Frame


def read(path: Path, sha256: str, key: str) -> Base:
    """Read a file that has this digest; the settings `key` name both.

    Raises:
        PipelineError: the file is missing, another one, or of a kind that is not known here.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PipelineError(
            f"{key}.file: {path} can't be read ({error.strerror}); correct the setting"
        ) from error
    refuse_other(path, hashlib.sha256(content).hexdigest(), sha256, f"{key}.sha256")
    try:
        return _parsed(content)
    except (LookupError, ValueError, struct.error) as error:
        raise PipelineError(
            f"{key}.file: {path} is no Llama in Q4_1, Q8_0, F16 or F32 with a tokenizer "
            f"over bytes ({type(error).__name__}: {error}); choose another file"
        ) from error


def _parsed(content: bytes) -> Base:
    fields, places, start = _header(content)
    kind = fields["general.architecture"]
    if kind != "llama":
        raise ValueError(f"its architecture is {kind}")
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    weights = {}
    for name, (shape, type_, offset) in places.items():
        parts = name.removesuffix(".weight").split(".")
        values = _values(content, start + offset, shape, type_)
        if parts[0] == "blk":
            if parts[2] in heads:  # llama.cpp turns pairs of neighbours, transformers halves
                turned = values.reshape(heads[parts[2]], -1, 2, values.shape[1]).swapaxes(1, 2)
                values = turned.reshape(values.shape)
            weights[f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"] = values
        else:
            weights[f"{_NAMES[parts[0]]}.weight"] = values
    config = {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }
    return Base(config, weights, _tokenizer(fields), _frame(fields))


def _tokenizer(fields: dict[str, Any]) -> Any:
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"its tokenizer is {'/'.join(kind)}")
    tokens = fields["tokenizer.ggml.tokens"]
    if tokens[0] != bpe.END:
        raise ValueError(f"its first token is {tokens[0]}, not {bpe.END}")
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    return bpe.encoder({token: n for n, token in enumerate(tokens)}, merges, digits=True)


def _frame(fields: dict[str, Any]) -> Frame:
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type", [])
    end = fields.get("tokenizer.ggml.eos_token_id", 0)
    return Frame(
        start=0,
        ends=(0, end) if end else (0,),
        template=fields.get("tokenizer.chat_template"),
        names={"bos_token": tokens[0], "eos_token": tokens[end]},
        special=tuple(one for one, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL),
    )


def _header(content: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Fields; shape, type and offset of each tensor; where the first of them starts."""
    place = 0

    def take(code: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from("<" + code, content, place)
        place += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal place
        size = take("Q")
        place += size
        return content[place - size : place].decode()

    def value(type_: int) -> Any:
        if type_ == _TEXT:
            return text()
        if type_ == _LIST:
            of, count = take("I"), take("Q")
            return [value(of) for _ in range(count)]
        return take(_SCALARS[type_])

    if (take("4s"), take("I")) != (b"GGUF", 3):
        raise ValueError("it is no gguf file of version 3")
    tensors, fields = take("Q"), take("Q")
    found = {text(): value(take("I")) for _ in range(fields)}
    places = {
        text(): ([take("Q") for _ in range(take("I"))][::-1], take("I"), take("Q"))
        for _ in range(tensors)
    }
    step = found.get("general.alignment", _ALIGNMENT)
    return found, places, -(-place // step) * step


def _values(content: bytes, start: int, shape: list[int], type_: int) -> Floats:
    """One tensor; types by their numbers in gguf."""
    count = int(np.prod(shape))
    if type_ in (0, 1):
        kind = np.float16 if type_ else np.float32
        return np.frombuffer(content, kind, count, start).astype(np.float32).reshape(shape)
    size = {3: 20, 8: 34}[type_]  # bytes of a block
    blocks = np.frombuffer(content, np.uint8, count // _BLOCK * size, start).reshape(-1, size)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if type_ == 8:
        values = blocks[:, 2:].view(np.int8) * scale
    else:
        low = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
        packed = blocks[:, 4:]
        values = np.concatenate([packed & 15, packed >> 4], axis=1) * scale + low
    return values.astype(np.float32, copy=False).reshape(shape)
