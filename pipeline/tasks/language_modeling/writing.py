"""A text, piece by piece, while it is written."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipeline.tasks.language_modeling.data import encode
from pipeline.tasks.language_modeling.network.decoder import as_text
from pipeline.tasks.language_modeling.settings import Writing
from pipeline.training.net import Net


def stream(net: Net, beginning: Any, **how: Any) -> Iterator[str]:
    """What a text or chat is gone on with; the pieces together are the text of `answer`.

    Args:
        net: a language model.
        beginning: as `data.encode` takes one.
        how: settings of `Writing` in the place of the network's own.

    Raises:
        ValueError: such a setting is none, `tokens` fill the context, or the beginning is no text
            and no chat.
    """
    module: Any = net.module
    writing = Writing.model_validate({**net.settings.writing.model_dump(), **how})
    writing.refuse_more_than(net.settings.context)
    inputs = encode([beginning], net)
    prompt, tokens, told = inputs["input_ids"][-1, : inputs["lengths"][-1]], list[int](), 0
    device = next(module.parameters()).device
    with torch.inference_mode():
        for token in module.go_on(prompt.to(device), writing):
            tokens.append(token)
            text = as_text(tokens, module, writing)
            sure = len(text) - _unsure(text, writing.stop)
            if sure > told:
                yield text[told:sure]
                told = sure
    yield as_text(tokens, module, writing)[told:]


def _unsure(text: str, stop: Sequence[str]) -> int:
    """Letters at its end that the next token may still change: a cut one, the start of a stop."""
    cut = len(text) - len(text.rstrip("\ufffd"))
    starts = (word[:size] for word in stop for size in range(1, len(word)))
    return max(cut, *(len(start) for start in starts if text.endswith(start)), 0)
