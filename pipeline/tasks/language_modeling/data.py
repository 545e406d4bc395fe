"""Prepared documents in batches, raw texts as inputs: rows of tokens, none from two documents.

Of a chat the messages of the assistant are learnt and measured; all else is context.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import PipelineError
from pipeline.prepared import SplitName, first_row, read_split
from pipeline.texts.chats import (
    Document,
    Message,
    Part,
    before_last_answer,
    chat,
    from_table,
    learnt,
    parts,
)
from pipeline.training.batches import Batches, Ragged, moved
from pipeline.training.net import Net

TASK = "language_modeling"
NOTHING, ANSWER, ENDING = 0, 1, 2
"""What a token is: context, learnt and measured, or learnt only."""

Integers = NDArray[np.int32]
Pair = tuple[Integers, Integers]
"""Tokens, and of each what it is, or what it is measured by."""


class Targets(NamedTuple):
    """What a batch is measured by.

    Attributes:
        tokens: the next token of each, int64 [rows, tokens]; -1 where it does not count.
        size: bytes of what counts.
    """

    tokens: Tensor
    size: int


class Rows(NamedTuple):
    """Documents cut into rows.

    Attributes:
        tokens: of each row, and one more that only the last token of a row is measured by, unless
            the network takes no more.
        targets: of each of these the next one, -1 where it does not count; int32 [tokens].
        first: of each example the first of its rows, [examples + 1].
        sizes: bytes of each example that count.
    """

    tokens: Ragged
    targets: Tensor
    first: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, examples: Sequence[list[Pair]], sizes: Sequence[int]) -> "Rows":
        """The rows of each example, and its bytes that count; on the CPU."""
        every = [row for rows in examples for row in rows]
        return cls(
            Ragged.of([ids for ids, _ in every], torch.device("cpu")),
            torch.from_numpy(np.concatenate([after for _, after in every])),
            torch.from_numpy(np.cumsum([0, *map(len, examples)])),
            torch.tensor(sizes),
        )

    def gather(self, index: Tensor) -> tuple[dict[str, Tensor], Targets]:
        """Examples `index` [n] as inputs and targets."""
        counts = self.first[index + 1] - self.first[index]
        document = torch.repeat_interleave(torch.arange(len(index)), counts)
        start = torch.repeat_interleave(self.first[index] - counts.cumsum(0) + counts, counts)
        rows = start + torch.arange(len(document))
        ids, sizes = self.tokens.pad(rows)
        targets, _ = Ragged(self.targets, self.tokens.offsets).pad(rows, -1)
        inputs = {
            "input_ids": ids.long(),
            "lengths": sizes,
            "document": moved(document, ids.device),
        }
        return inputs, Targets(targets.long(), int(self.sizes[index].sum()))

    @property
    def counted(self) -> Tensor:
        """How many tokens of each example count, int64 [examples]."""
        ends = F.pad((self.targets >= 0).cumsum(0), (1, 0))
        return ends[self.tokens.offsets[self.first]].diff()

    @property
    def longest(self) -> Tensor:
        """How many tokens the longest row of each example has, int64 [examples]."""
        lengths = self.tokens.offsets.diff().numpy()
        return torch.from_numpy(np.maximum.reduceat(lengths, self.first[:-1].numpy()))


def load(
    folder: Path,
    split: SplitName,
    net: Net,
    *,
    device: torch.device,
    shuffle: bool = False,
    tokens: int | None = None,
    **how: Any,
) -> Batches:
    """Batches of one split, of examples of like length.

    With `shuffle`, for training, an example is a row: a document, or one of the blocks that it is
    cut into, and its end is learnt too, or that of each answer; a block in which nothing is learnt
    is left out; the first documents are taken that have as many `tokens`, prompts counted too, or
    all. Without, it is a document with all its rows. `how` is what `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read, or has a chat that the template of the network's
            tokenizer does not take.
    """
    _, table = read_split(folder, split, TASK)
    texts = from_table(table)
    rows = blocks(texts, net, tokens) if shuffle else documents(texts, net)
    on_device = rows._replace(
        tokens=Ragged(rows.tokens.values.to(device), rows.tokens.offsets),
        targets=rows.targets.to(device),
    )
    return Batches(
        len(rows.sizes),
        device,
        lambda index, _: on_device.gather(index),
        shuffle=shuffle,
        lengths=rows.longest,
        weights=rows.counted.double(),
        **how,
    )


def documents(texts: Sequence[Document], net: Net) -> Rows:
    """Whole documents: each token that counts does so once, after half a row of others or more.

    A row has the tokens that the network sees at once, at most; the next one begins half a row on.
    One in which nothing counts is left out, unless the document has no other.

    Raises:
        PipelineError: the template of the network's tokenizer does not take a chat.
    """
    most, examples = net.settings.context, list[list[Pair]]()
    for pairs in _prepared(texts, net):
        every = list[Pair]()
        for ids, kinds in pairs:
            after = _after(ids, kinds == ANSWER)
            starts = range(0, max(len(ids) - 1 - most // 2, 1), most // 2)
            rows = [_row(ids, after, at, most, net) for at in starts]
            for _, counted in rows[1:]:
                counted[: most // 2] = -1
            every += rows
        examples.append([row for row in every if (row[1] >= 0).any()] or every[:1])
    sizes = [sum(len(text.encode()) for text in learnt(one)) for one in texts]
    return Rows.of(examples, sizes)


def blocks(texts: Sequence[Document], net: Net, tokens: int | None) -> Rows:
    """What is trained on, see `load`: each row an example, cut where the last one ends.

    Raises:
        PipelineError: the template of the network's tokenizer does not take a chat.
    """
    size, examples, left, chats, long = net.settings.block, [], tokens, 0, 0
    for one, pairs in zip(texts, _prepared(texts, net, ended=True), strict=False):
        chats += not isinstance(one, str)
        long += not isinstance(one, str) and any(len(ids) > size + 1 for ids, _ in pairs)
        for ids, kinds in pairs:
            after = _after(ids, kinds != NOTHING)
            examples += [
                [_row(ids, after, at, size, net)]
                for at in range(0, len(ids) - 1, size)
                if (after[at : at + size] >= 0).any()
            ]
        if left is not None and (left := left - sum(len(ids) - 1 for ids, _ in pairs)) <= 0:
            break
    if long:
        print(f"{long} of {chats} chats are cut at language_model.block={size}", flush=True)
    return Rows.of(examples, [0] * len(examples))


def encode(raw: Sequence[Any], net: Net) -> dict[str, Tensor]:
    """Texts or chats as `input_ids` [n, tokens], `lengths` [n] and `document` [n], int64, uncut.

    Raises:
        ValueError: one is no text, no `{"prompt": …}` and no `{"messages": […]}`; the template of
            the network's tokenizer does not take a chat.
    """
    asked: list[Document] = []
    for each in raw:
        if not isinstance(each, str | dict):
            raise ValueError(f"a text is a string, not {type(each).__name__}")
        asked.append(each if isinstance(each, str) else chat(each))
    examples = [[(ids, np.full_like(ids, -1))] for [(ids, _)] in _tokens(asked, net, asked=True)]
    return Rows.of(examples, [0] * len(asked)).gather(torch.arange(len(asked)))[0]


def example(folder: Path) -> str | dict[str, list[Message]]:
    """The first text of the validation split; of a chat what its last answer is given to."""
    row = first_row(folder)
    if (messages := row.get("messages")) is None:
        text: str = row["text"]
        return text
    return {"messages": before_last_answer(messages)}


def _tokens(
    texts: Sequence[Document], net: Net, *, asked: bool = False, ended: bool = False
) -> Iterator[list[Pair]]:
    """The tokens of each list of each document's `parts`, and what each of them is.

    `asked` begins an answer, `ended` has the end of each list that is not ended yet.
    """
    module: Any = net.module
    for at in range(0, len(texts), 256):
        pieces = []
        for row, one in enumerate(texts[at : at + 256], at):
            try:
                pieces.append(parts(one, module.frame, asked=asked))
            except ValueError as error:
                raise ValueError(f"row {row}: {error}") from error
        lists = [one for each in pieces for one in each]
        words = [part.text for one in lists for part in one if part.kind != "special"]
        encoded = iter(net.tokenizer.encode_batch(words, add_special_tokens=False))
        for each in pieces:
            yield [_told_apart(one, encoded, net, ended) for one in each]


def _told_apart(pieces: list[Part], encoded: Iterator[Any], net: Net, ended: bool) -> Pair:
    """The tokens of these pieces, and what each of them is.

    An answer's ending is the token behind it, and all up to one that ends it, if such a one comes
    before somebody else speaks.
    """
    module: Any = net.module
    frame = module.frame
    # a template begins as its network is used to
    begun = bool(pieces) and pieces[0].kind == "special"
    ids, kinds = ([], []) if begun else ([frame.start], [NOTHING])
    behind: int | None = None  # where an answer stopped that has not ended
    for part in pieces:
        special, start = part.kind == "special", len(ids)
        own = [net.tokenizer.token_to_id(part.text)] if special else next(encoded).ids
        ids += own
        kinds += [ANSWER if part.kind == "answer" else NOTHING] * len(own)
        if part.kind == "answer":
            behind = len(ids)
            continue
        if own and start == behind:
            kinds[start] = ENDING
        if part.kind == "message":
            behind = None
        elif behind is not None and special and own[0] in frame.ends:
            kinds[behind:] = [ENDING] * (len(ids) - behind)
            behind = None
    if ended and behind is not None:
        ids.append(frame.ends[0])
        kinds[behind:] = [ENDING] * (len(ids) - behind)
    return np.array(ids, np.int32), np.array(kinds, np.int32)


def _prepared(texts: Sequence[Document], net: Net, *, ended: bool = False) -> Iterator[list[Pair]]:
    try:
        yield from _tokens(texts, net, ended=ended)
    except ValueError as error:
        raise PipelineError(
            f"the prepared texts, {error}; mend it or choose another language_model"
        ) from error


def _after(ids: Integers, counts: Any) -> Integers:
    """The next token of each where that one counts, else -1."""
    return np.append(np.where(counts[1:], ids[1:], -1), -1).astype(np.int32)


def _row(ids: Integers, after: Integers, at: int, size: int, net: Net) -> Pair:
    """`size` tokens with what they are measured by, and one more where the network takes it."""
    module: Any = net.module
    most = getattr(module.llama.config, "max_position_embeddings", None)
    told = after[at : at + size + 1].copy()
    told[size:] = -1  # the next token is in another row
    return ids[at : at + size + 1][:most], told[:most]
