"""Byte-pair encodings (Sennrich et al. 2016; over bytes, as GPT-2's), told by their merges."""

import json
from collections.abc import Iterable
from typing import Any

END = "<|endoftext|>"
"""Token 0: stands between documents."""


def learn(texts: Iterable[str], size: int) -> str:
    """The merges of an encoding of `size` tokens at most, a pair on each line."""
    from tokenizers import trainers

    encoding = tokenizer("")
    encoding.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            initial_alphabet=_alphabet(),
            show_progress=False,
        ),
    )
    return "\n".join(" ".join(pair) for pair in json.loads(encoding.to_str())["model"]["merges"])


def tokenizer(merges: str) -> Any:
    """The `tokenizers.Tokenizer` of these merges; `END` inside a text is text."""
    pairs = [(first, second) for first, second in (line.split(" ") for line in merges.splitlines())]
    tokens = dict.fromkeys([END, *_alphabet(), *(first + second for first, second in pairs)])
    return encoder({token: number for number, token in enumerate(tokens)}, pairs)


def encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]], digits: bool = False) -> Any:
    """A `tokenizers.Tokenizer` over bytes; `digits` makes a token of each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocabulary, merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.encode_special_tokens = True
    return made


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
