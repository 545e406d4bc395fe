"""What a language model says of documents, and what the parts of its evaluation share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import Floats, Integers, bootstrap
from pipeline.prepared import SplitName, read_split
from pipeline.settings import Evaluate
from pipeline.tasks.language_modeling.data import TASK, documents, encode
from pipeline.tasks.language_modeling.model import answer
from pipeline.tasks.language_modeling.network.adapters import LowRank
from pipeline.tasks.language_modeling.network.decoder import LanguageModel
from pipeline.tasks.language_modeling.settings import Parts
from pipeline.texts.chats import Document, before_last_answer, from_table, plain
from pipeline.training import net as nets
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

BATCH = 8
"""Documents that are read at once."""
PROMPTS = (
    "This movie is",
    "The best thing about this film was the",
    "I would not recommend it to anyone, because",
)


class Read(NamedTuple):
    """What a network says of documents.

    Attributes:
        bits: of each document.
        sizes: its bytes.
        tokens: those of each that count, [documents] of [tokens].
        nats, surest, right: of each token, see `decoder.Judged`.
        before: tokens that the network saw before each.
    """

    bits: Floats
    sizes: Floats
    tokens: list[Integers]
    nats: list[Floats]
    surest: list[Floats]
    right: list[Floats]
    before: list[Integers]

    @property
    def pairs(self) -> Floats:
        """Bits and bytes of each document, [n, 2]."""
        return np.stack([self.bits, self.sizes], axis=1)

    def first(self, most: int) -> "Read":
        """Of the first documents."""
        parts: Any = (part[:most] for part in self)
        return Read(*parts)


@dataclass
class Study:
    """What the parts share.

    Attributes:
        net: the trained network, on the hardware's device.
        settings: of the stage.
        hardware: what it computes on.
        curve: rows of the learning curve's table.
        texts: the test documents.
    """

    net: Net
    settings: Evaluate
    hardware: Hardware
    curve: Sequence[Mapping[str, str]]
    texts: list[Document]

    @property
    def parts(self) -> Parts:
        """Switches and sizes."""
        return self.settings.parts

    @property
    def name(self) -> str:
        """What figures call the model."""
        return self.settings.model

    @cached_property
    def read(self) -> Read:
        """The test documents, by the trained network."""
        return self.reads(self.texts)

    @cached_property
    def before(self) -> Read:
        """The first of them, by the network before its training."""
        with self.untouched() as net:
            return self.reads(self.texts[: self.parts.compared_documents], net)

    @contextmanager
    def untouched(self) -> Iterator[Net]:
        """The network before its training."""
        adapters = [one for one in self.net.module.modules() if isinstance(one, LowRank)]
        if not adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                net = nets.build(self.net.task, self.net.settings, self.net.facts)
            net.module.to(self.hardware.device).eval()
            yield net
            return
        shares = [one.share for one in adapters]
        for one in adapters:
            one.share = 0.0
        try:
            yield self.net
        finally:
            for one, share in zip(adapters, shares, strict=True):
                one.share = share

    def reads(self, texts: Sequence[Document], net: Net | None = None) -> Read:
        """What a network says of every token of some documents."""
        net, device = net or self.net, self.hardware.device
        rows = documents(texts, net)
        long = rows.tokens.offsets[rows.first].diff()
        found: dict[int, tuple[Any, ...]] = {}
        for index in long.argsort(stable=True).split(BATCH):
            inputs, targets = rows.gather(index)
            ids, wanted = inputs["input_ids"].to(device), targets.tokens.to(device)
            with torch.inference_mode(), self.hardware.autocast():
                parts = decoder(net).judge(*decoder(net).counted(ids, wanted))
            counted = targets.tokens >= 0
            place = counted.nonzero()[:, 1] + 1
            document = inputs["document"].repeat_interleave(counted.sum(1))
            counts = document.bincount(minlength=len(index)).tolist()
            told = [targets.tokens[counted], *parts, place]
            each = zip(*(part.cpu().split(counts) for part in told), strict=True)
            for number, values in zip(index.tolist(), each, strict=True):
                found[number] = tuple(value.numpy() for value in values)
        tokens, nats, surest, right, before = (
            [found[number][part] for number in range(len(texts))] for part in range(5)
        )
        nats = [part.astype(np.float64) for part in nats]
        bits = np.array([part.sum() / log(2) for part in nats])
        return Read(bits, rows.sizes.double().numpy(), tokens, nats, surest, right, before)

    @cached_property
    def samples(self) -> list[tuple[str, str, str]]:
        """Beginnings, and what is written after them before the training and after it.

        Of chats those of the first test documents.
        """
        chats = [one for one in self.texts if not isinstance(one, str)][: len(PROMPTS)]
        asked: list[Document] = [before_last_answer(one) for one in chats]
        asked = asked or [*PROMPTS]
        with self.untouched() as net:
            before = self.writes(asked, net)
        return list(zip(map(plain, asked), before, self.writes(asked), strict=True))

    def writes(self, beginnings: Sequence[Document], net: Net | None = None) -> list[str]:
        """What texts or chats are gone on with by a network."""
        net, device = net or self.net, self.hardware.device
        asked = [one if isinstance(one, str) else {"messages": one} for one in beginnings]
        inputs = {name: value.to(device) for name, value in encode(asked, net).items()}
        with torch.inference_mode(), self.hardware.autocast():
            return [one["text"] for one in answer(net.module(**inputs), net)]

    def split(self, split: SplitName, most: int) -> list[Document]:
        """The first documents of a split."""
        return from_table(read_split(Path(self.settings.data), split, TASK)[1].slice(0, most))


def open_study(net: Net, settings: Any, hardware: Hardware, curve: Any) -> Study:
    """A network and the test documents.

    Raises:
        PipelineError: the data set is missing, damaged or another one than the network's.
    """
    card, table = read_split(Path(settings.data), "test", TASK)
    if card.facts != net.facts:
        raise PipelineError(
            f"{settings.weights} was trained on other texts than {settings.data} has; train it "
            "on these first"
        )
    net.module.to(hardware.device).eval()
    return Study(net, settings, hardware, curve, from_table(table))


def decoder(net: Net) -> LanguageModel:
    """The network itself."""
    model: Any = net.module
    return model


def per_byte(pairs: Floats) -> Floats:
    """Bits per byte of documents by their bits and bytes [..., n, 2]."""
    sums = pairs.sum(axis=-2)
    return sums[..., 0] / sums[..., 1]


def score(found: Read) -> Floats:
    """Of each document; their mean is minus the bits per byte of all, so long ones weigh more."""
    return -found.bits / found.sizes.mean()


def numbers(found: Read, seed: int) -> dict[str, float]:
    """The headline, its interval, and what else there is of all documents together."""
    low, high = bootstrap(found.pairs, seed, per_byte)
    nats = np.concatenate(found.nats)
    return {
        "bits_per_byte": float(per_byte(found.pairs)),
        "bits_per_byte_low": low,
        "bits_per_byte_high": high,
        "loss": float(nats.mean()),
        "bytes_per_token": float(found.sizes.sum() / len(nats)),
        "examples": len(found.bits),
    }
