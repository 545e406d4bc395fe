"""A network with all that it takes to use it, and its folder.

    model.json         the task, the network's settings, the facts of its data, the digest of the
                       weights
    model.safetensors  float32 weights
    …                  what the task adds: a transformer's config and tokenizer, say

Loading runs no pickle and calls nothing that a file names: the settings classes of the tasks are
all there is to choose from.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pipeline.errors import PipelineError
from pipeline.files import digest, read_json, write_json
from pipeline.task import Task, find, tasks

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        task: what it does.
        settings: what it was built from, the task's `Model`.
        facts: of the data it was built for, the task's `Facts`.
        module: the network itself.
        tokenizer: of transformers, where it reads text.
    """

    task: Task
    settings: Any
    facts: Any
    module: nn.Module
    tokenizer: Any = None


def build(task: Task, settings: Any, facts: Any) -> Net:
    """A network with its initial weights, drawn from torch's global generator.

    Raises:
        PipelineError: no such network, or none that takes such data.
    """
    return Net(task, settings, facts, *task.model.build(settings, facts))


def save(folder: Path, net: Net) -> None:
    """Write a network into an existing folder, usually the one that `files.new_directory` yields.

    Equal weights give equal bytes.
    """
    if hasattr(net.task.model, "save"):
        net.task.model.save(folder, net.module, net.tokenizer)
    else:
        from safetensors.torch import save_file

        state = {n: tensor.cpu().contiguous() for n, tensor in net.module.state_dict().items()}
        save_file(state, folder / WEIGHTS)
    write_json(
        folder / DESCRIPTION,
        {
            "task": net.task.name,
            "settings": net.settings.model_dump(mode="json"),
            "facts": net.facts.model_dump(mode="json"),
            "sha256": digest(folder / WEIGHTS, "sha256"),
        },
    )


def load(folder: Path) -> Net:
    """Read a folder that `save` wrote: a network in eval mode, on the CPU.

    The global random state is left as it was.

    Raises:
        PipelineError: a file is missing, damaged, or does not belong to the others.
    """
    stages = {task.about.model: task.about.stage for task in tasks()}
    stage = stages.get(folder.name, "--all-pipelines")
    again = f"run `dvc repro {stage}` to make it"
    content = read_json(folder / DESCRIPTION, stage)
    try:
        task = find(name=str(content["task"]))
        settings = TypeAdapter(task.settings.Model).validate_python(content["settings"])
        facts = task.settings.Facts.model_validate_json(json.dumps(content["facts"]))
        expected = str(content["sha256"])
    except (ValidationError, LookupError, TypeError) as error:
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
        if hasattr(task.model, "load"):
            return Net(task, settings, facts, *task.model.load(folder, settings, facts))
        net = build(task, settings, facts)
    fill(net.module.state_dict(), weights, again)
    net.module.eval()
    return net


def file_bytes(raw: bytes | str) -> bytes:
    """The bytes of a file that a user sent as such or, as JSON has to, as base64 text.

    Raises:
        ValueError: the text is no base64.
    """
    if isinstance(raw, bytes):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except ValueError:
        raise ValueError(
            f"a string is base64 text here, not {raw[:20]!r}; of a file, give the bytes"
        ) from None


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or transformers' `ModelOutput`."""
    return output if isinstance(output, Tensor) else output["logits"]


def fill(wanted: dict[str, Tensor], weights: Path, again: str) -> None:
    """Read all weights, by name, from a safetensors file.

    Raises:
        PipelineError: the file is damaged or of another network; `again` says how to make it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(weights)
    except SafetensorError as error:
        raise PipelineError(f"{weights} is damaged ({error}); {again}") from error
    for name in sorted(wanted.keys() | state.keys()):
        given, described = (_shape(one.get(name)) for one in (state, wanted))
        if given != described:
            raise PipelineError(
                f"{weights} does not fit {DESCRIPTION}: {name} is {given}, the described model has "
                f"{described}; {again}"
            )
    with torch.no_grad():
        for name, value in state.items():
            wanted[name].copy_(value)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'description'}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
