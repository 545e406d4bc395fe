"""Weights that a detector of torchvision starts from."""

import re
from pathlib import Path
from pickle import UnpicklingError  # nosec B403
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.files import digest, refuse_other
from pipeline.tasks.object_detection.settings import Weights

PREDICTORS = {
    "fcos_resnet50_fpn": re.compile(r"head\.classification_head\.cls_logits\."),
    "ssdlite320_mobilenet_v3_large": re.compile(
        r"head\.classification_head\.module_list\.\d+\.1\."
    ),
    "fasterrcnn_resnet50_fpn": re.compile(r"roi_heads\.box_predictor\."),
}
"""The layers that say which class: never of a file, whose classes are others."""


def take(net: Any, architecture: str, weights: Weights) -> None:
    """Put the weights of a file into a detector of torchvision, all but its `PREDICTORS`.

    Raises:
        PipelineError: the file can't be read, is not the expected one, or is of another network.
    """
    path, where = Path(weights.file), f"detector.weights: {weights.file}"
    try:
        found = digest(path, "sha256")
    except OSError as error:
        raise PipelineError(f"{where} can't be read ({error.strerror}); correct it") from error
    refuse_other(path, found, weights.sha256, "detector.weights")
    last = PREDICTORS[architecture]
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if not last.match(name)}
    except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise PipelineError(f"{where} is no file of weights ({reason:.80}); name one") from error
    try:
        lacks, more = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shape = str(error).splitlines()[1].strip()
        raise PipelineError(f"{where} is not of {architecture}: {shape}") from error
    # torchvision's own files are of frozen norms, which count no batches
    lacks = [one for one in lacks if not last.match(one) and "num_batches" not in one]
    if lacks or more:
        raise PipelineError(
            f"{where} is not of {architecture}: it lacks {len(lacks)} of its tensors and has "
            f"{len(more)} others, such as {(lacks + more)[0]}"
        )
