"""A trained model, and how it is shown raw examples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import models
from pipeline.data.prepared import read_card
from pipeline.errors import PipelineError
from pipeline.evaluation.examples import Raw, Task, take
from pipeline.evaluation.features import Inputs, Point, capture, points
from pipeline.evaluation.predictions import refuse_non_finite


@dataclass(frozen=True)
class Subject:
    """A trained model, and how to show it raw examples.

    Attributes:
        task: what it reads.
        model: in evaluation mode.
        classes: names of the classes.
        device: where the model is.
        batch_size: examples per forward pass.
        autocast: makes the context of mixed precision, once for each pass over a split.
        tokenizer: of a model of texts, as `max_length`, the tokens a text is cut to.
        sample_rate: Hz, of a model of sounds.
    """

    task: Task
    model: nn.Module
    classes: list[str]
    device: torch.device
    batch_size: int
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    tokenizer: Any = None
    max_length: int = 512
    sample_rate: int | None = None

    @classmethod
    def read(
        cls,
        weights: Path,
        data: Path,
        device: torch.device,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> "Subject":
        """Load the trained model of one folder, to be shown the data set of another.

        Raises:
            PipelineError: one of them is missing or damaged, or their classes differ.
        """
        card, loaded = read_card(data), models.load(weights)
        if list(loaded.classes) != card.classes:
            raise PipelineError(
                f"{weights} knows the classes {', '.join(loaded.classes)}, {data} has "
                f"{', '.join(card.classes)}; train the model on this data first"
            )
        return cls(
            task=card.task,
            model=loaded.model.to(device),
            classes=card.classes,
            device=device,
            batch_size=batch_size,
            autocast=autocast,
            tokenizer=loaded.tokenizer,
            max_length=getattr(loaded.description.settings, "max_length", 0),
            sample_rate=card.sample_rate or None,
        )

    def encode(self, raw: Raw) -> Inputs:
        """The model's inputs for raw examples, as the data modules make them."""
        if self.task == "image":
            return {"images": torch.from_numpy(raw).to(self.device)}
        if self.task == "text":
            found = self.tokenizer(
                list(raw),
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            return {name: found[name].to(self.device) for name in ("input_ids", "attention_mask")}
        waves = [torch.from_numpy(wave) for wave in raw]
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return {"waveforms": padded.to(self.device), "lengths": lengths.to(self.device)}

    def batches(self, raw: Raw) -> list[NDArray[np.int64]]:
        """Row numbers of batches that hold examples of similar length."""
        order, size = np.arange(len(raw)), self.batch_size
        if self.task != "image":
            order = np.argsort([len(example) for example in raw], kind="stable")
            # Several batches: one of all lengths would be half padding. A recurrence pays for each
            # batch as much as for its longest clip, a transformer for every token.
            parts = 8 if self.task == "audio" else 32
            size = min(size, max(16, -(-len(raw) // parts)))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def logits(self, raw: Raw) -> NDArray[np.float32]:
        """Logits float32 [n, classes] of raw examples, in their order.

        Raises:
            PipelineError: a logit is not finite.
        """
        logits = self.features(raw, [])["logits"]
        refuse_non_finite(logits)
        return logits

    def features(
        self, raw: Raw, where: Sequence[Point] | None = None, model: nn.Module | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Features at all stages (or `where`) and `logits`, in the order of the examples.

        `model` is another model of the same kind to take them from.
        """
        model = model or self.model
        rows = self.batches(raw)
        inputs = (self.encode(take(raw, part)) for part in rows)
        if where is None:
            where = points(model, self.encode(take(raw, [0])))
        found = capture(model, inputs, where, self.autocast())
        back = np.argsort(np.concatenate(rows), kind="stable")
        return {name: values[back] for name, values in found.items()}

    def chunks(self, raw: Raw) -> Iterator[Raw]:
        """The raw examples in their own order, a batch at a time."""
        for start in range(0, len(raw), self.batch_size):
            yield raw[start : start + self.batch_size]
