"""A decoder of transformers that is told what comes next, or says so itself."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks.language_modeling.network.adapters import Norm
from pipeline.tasks.language_modeling.settings import Decoder, Writing
from pipeline.texts.chats import Frame

AT_ONCE = 512
"""Tokens whose logits are held at the same time."""
CAUSAL = "sdpa_without_mask"
"""Torch's fused attention. For `sdpa` transformers looks in each pass whether rows are packed, and
waits for the device to say so."""


class Judged(NamedTuple):
    """What a network says of tokens that it is told afterwards, float32 [n] each.

    Attributes:
        nats: surprise.
        surest: chance of the token that it holds for the likeliest.
        right: whether that is the one.
    """

    nats: Tensor
    surest: Tensor
    right: Tensor


class LanguageModel(nn.Module):
    """A decoder that is told what comes next, or says so itself.

    Attributes:
        llama: of transformers; any causal language model.
        settings: what it was built from.
        tokenizer: a `tokenizers.Tokenizer`.
        frame: what it expects around texts.
        base: hex digest of the weights that adapters belong to.
    """

    def __init__(
        self, llama: Any, settings: Decoder, tokenizer: Any, frame: Frame, base: str | None = None
    ) -> None:
        super().__init__()
        self.llama = llama
        self.settings = settings
        self.tokenizer = tokenizer
        self.frame = frame
        self.base = base

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        document: Tensor,
        targets: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """The surprise at tokens that are told, or new tokens.

        Args:
            input_ids: rows of tokens, int64 [rows, tokens], filled up on the right.
            lengths: of the rows without what fills them up, int64 [rows].
            document: which document a row belongs to, int64 [rows]: 0, 0, 1, …; their last rows are
                gone on with.
            targets: int64 [rows, tokens], the next token of each; negative where it does not count.
            count: how many count; who knows it need not wait for the device to say so.

        Returns:
            nats float32 [counted] in the order of the rows; without targets new tokens, int64
            [documents, most], filled up with the first of the frame's `ends`.
        """
        if targets is None:
            return self.write(input_ids, lengths, document)
        states, counted = self.counted(input_ids, targets, count)
        pairs = zip(states.split(AT_ONCE), counted.split(AT_ONCE), strict=True)
        return torch.cat(
            [F.cross_entropy(self.logits(part), told, reduction="none") for part, told in pairs]
        )

    def counted(
        self, input_ids: Tensor, targets: Tensor, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last states where a target counts, [counted, width], and those targets."""
        states = self.states(input_ids).last_hidden_state
        counts = targets.flatten() >= 0
        found = counts.nonzero() if count is None else counts.nonzero_static(size=count)
        where = found[:, 0]
        return states.flatten(0, 1)[where], targets.flatten()[where]

    def states(self, input_ids: Tensor, **options: Any) -> Any:
        """What transformers' model says of rows of tokens.

        What fills a row up lies behind all that counts, and no token looks ahead: there is no mask.
        """
        states, device = self.llama.get_input_embeddings()(input_ids), input_ids.device.type
        if torch.is_autocast_enabled(device) and isinstance(
            getattr(self.llama.base_model, "norm", None), Norm
        ):
            states = states.to(torch.get_autocast_dtype(device))
        return self.llama.base_model(inputs_embeds=states, **{"use_cache": False, **options})

    def logits(self, states: Tensor) -> Tensor:
        """Float32 [n, vocabulary] of states after the last norm, [n, width]."""
        return self.llama.get_output_embeddings()(states).float()

    def judge(self, states: Tensor, targets: Tensor) -> Judged:
        """What is said of `targets` [n] in `states` [n, width]."""
        parts = []
        for part, told in zip(states.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            chances = self.logits(part).log_softmax(-1)
            best, likeliest = chances.max(-1)
            nats = -chances.gather(1, told[:, None])[:, 0]
            parts.append((nats, best.exp(), (likeliest == told).float()))
        return Judged(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def write(self, input_ids: Tensor, lengths: Tensor, document: Tensor) -> Tensor:
        """Go on with the last row of each document; see `forward`."""
        last = [*(document.diff().nonzero()[:, 0]).tolist(), len(document) - 1]
        writing, end = self.settings.writing, self.frame.ends[0]
        texts = [list(self.go_on(input_ids[row, : lengths[row]], writing)) for row in last]
        filled = [text + [end] * (writing.tokens - len(text)) for text in texts]
        return torch.tensor(filled, device=input_ids.device)

    def go_on(self, prompt: Tensor, writing: Writing) -> Iterator[int]:
        """New tokens until one of the frame's `ends`, or until what they say has a word to stop at.

        Alone, so that they don't depend on what else is asked. Of a long prompt the last tokens are
        read that leave place for the new ones in the context.
        """
        from transformers import DynamicCache

        cache, near = DynamicCache(config=self.llama.config), list[int]()
        generator = torch.Generator().manual_seed(writing.seed)
        # no token is shorter than a byte; before the first of these one may be cut
        reach = 4 + max((len(word.encode()) for word in writing.stop), default=0)
        room = self.settings.context - writing.tokens
        if len(prompt) > room:
            print(
                f"warning: of a beginning of {len(prompt)} tokens the last {room} are read; "
                f"{writing.tokens} new ones fill up the context of {self.settings.context}",
                file=sys.stderr,
            )
        ids = prompt[None, -room:]
        for _ in range(writing.tokens):
            # by one token at a time float32 is faster on a CPU, and says the same everywhere
            with torch.autocast(ids.device.type, enabled=False):
                states = self.states(ids, past_key_values=cache, use_cache=True)
                logits = self.logits(states.last_hidden_state[:, -1])[0].cpu()
            if writing.temperature:
                chances = _nucleus((logits / writing.temperature).softmax(-1), writing.top_p)
                token = int(torch.multinomial(chances, 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token in self.frame.ends:
                return
            yield token
            near = [*near, token][-reach:]
            if writing.stop and any(word in self.tokenizer.decode(near) for word in writing.stop):
                return
            ids = torch.full_like(ids[:, :1], token)


def causal() -> str:
    """The name `CAUSAL`, which transformers then knows; it makes no mask for a name of ours."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    return CAUSAL


def _nucleus(chances: Tensor, share: float) -> Tensor:
    """Without the unlikely tokens [n] that are left when the others have this share together."""
    if share == 1:
        return chances
    ordered, order = chances.sort(descending=True, stable=True)
    left = ordered.cumsum(0) - ordered < share
    return torch.zeros_like(chances).scatter(0, order[left], ordered[left])


def as_text(tokens: list[int], module: LanguageModel, writing: Writing) -> str:
    """New tokens as a text, up to where it ends."""
    end = module.frame.ends[0]
    text: str = module.tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
    found = [text.index(word) for word in writing.stop if word in text]
    return text[: min(found, default=len(text))]
