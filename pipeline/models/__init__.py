"""Models in folders that say what they hold: safetensors weights and `model.json`.

    model.json         the architecture's settings, the input's shape, the classes, the digest of
                       the weights
    model.safetensors  float32 weights
    …                  a transformer's config and tokenizer, as `transformers` reads them

Loading runs no pickle and calls nothing that a file names: the settings classes below are all
there is to choose from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.files import digest, read_json, write_json
from pipeline.models import cnn, rnn, transformer
from pipeline.settings import CNN, RNN, Settings, Transformer

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
STAGES = {"cnn": "train_cnn", "transformer": "finetune_transformer", "rnn": "train_rnn"}

Count = Annotated[int, Field(gt=0)]
Classes = Annotated[list[str], Field(min_length=2)]
PerChannel = Annotated[list[float], Field(min_length=1)]


class ImageModel(Settings):
    """What it takes to build a CNN; `mean` and `std` are per channel, of pixels in 0..1."""

    model: Literal["cnn"] = "cnn"
    settings: CNN
    classes: Classes
    channels: Count
    height: Count
    width: Count
    mean: PerChannel
    std: PerChannel


class TextModel(Settings):
    """What it takes to build a transformer."""

    model: Literal["transformer"] = "transformer"
    settings: Transformer
    classes: Classes


class SpeechModel(Settings):
    """What it takes to build an RNN; the sample rate is in Hz."""

    model: Literal["rnn"] = "rnn"
    settings: RNN
    classes: Classes
    sample_rate: Count


Description = Annotated[ImageModel | TextModel | SpeechModel, Field(discriminator="model")]


@dataclass(frozen=True)
class Loaded:
    """A trained model: in eval mode, on the CPU; a tokenizer where it reads text."""

    model: nn.Module
    description: ImageModel | TextModel | SpeechModel
    tokenizer: Any = None

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        return self.description.classes


def build(description: ImageModel | TextModel | SpeechModel) -> tuple[nn.Module, Any]:
    """The described model with its initial weights, and its tokenizer (None without one).

    Raises:
        PipelineError: see `cnn.build`, `rnn.build` and `transformer.build`.
    """
    match description:
        case ImageModel():
            net: nn.Module = cnn.build(
                description.settings,
                channels=description.channels,
                height=description.height,
                width=description.width,
                classes=len(description.classes),
                mean=description.mean,
                std=description.std,
            )
            return net, None
        case SpeechModel():
            net = rnn.build(
                description.settings,
                sample_rate=description.sample_rate,
                classes=len(description.classes),
            )
            return net, None
        case TextModel():
            return transformer.build(description.settings, description.classes)


def save(
    folder: Path,
    model: nn.Module,
    description: ImageModel | TextModel | SpeechModel,
    tokenizer: Any = None,
) -> None:
    """Write a model into an existing folder; equal weights give equal bytes.

    Args:
        folder: usually the one that `files.new_directory` yields.
        model: unwrapped, on any device.
        description: what the model was built from.
        tokenizer: of a transformer.
    """
    if isinstance(description, TextModel):
        transformer.save(folder, model, tokenizer)
    else:
        from safetensors.torch import save_file

        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / WEIGHTS)
    write_json(
        folder / DESCRIPTION,
        {"description": description.model_dump(), "sha256": digest(folder / WEIGHTS, "sha256")},
    )


def load(folder: Path) -> Loaded:
    """Read a folder that `save` wrote. The global random state is left as it was.

    Raises:
        PipelineError: a file is missing, damaged, or does not belong to the others.
    """
    again = f"run `dvc repro {STAGES.get(folder.name, '--all-pipelines')}` to make it"
    content = read_json(folder / DESCRIPTION, STAGES.get(folder.name, "--all-pipelines"))
    try:
        description = TypeAdapter[ImageModel | TextModel | SpeechModel](
            Description
        ).validate_python(content["description"])
        expected = str(content["sha256"])
    except (ValidationError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{folder / DESCRIPTION} does not describe a model of this pipeline "
            f"({_reason(error)}); {again}"
        ) from error
    weights = folder / WEIGHTS
    try:
        found = digest(weights, "sha256")
    except OSError as error:
        raise PipelineError(f"{weights} can't be read ({error.strerror}); {again}") from error
    if found != expected:
        raise PipelineError(
            f"{weights} is damaged or belongs to another model: its sha256 is {found}, "
            f"{DESCRIPTION} says {expected}; {again}"
        )
    with torch.random.fork_rng(devices=[]):
        if isinstance(description, TextModel):
            model, tokenizer = transformer.load(folder)
            return Loaded(model, description, tokenizer)
        model, _ = build(description)
    _fill(model, weights, again)
    return Loaded(model.eval(), description)


def _fill(model: nn.Module, weights: Path, again: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        raise PipelineError(f"{weights} is damaged ({error}); {again}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise PipelineError(
                f"{weights} does not fit {DESCRIPTION}: {name} is {_shape(given.get(name))}, "
                f"the described model has {_shape(wanted.get(name))}; {again}"
            )
    model.load_state_dict(state)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a number"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'description'}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
