"""Any encoder that transformers' `AutoModelForSequenceClassification` can load."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.classification.model import answer as answer
from pipeline.classification.model import loss as loss
from pipeline.classification.model import score as score
from pipeline.errors import PipelineError
from pipeline.sources import package_folder
from pipeline.tasks.text_classification.settings import Facts, Model
from pipeline.training import pretrained
from pipeline.training.pretrained import TRUSTED

BY_DEVICE = "by_device"
"""What transformers calls the attention that follows the device."""


def build(config: Model, facts: Facts) -> tuple[nn.Module, Any]:
    """A classifier on a pretrained encoder, and its tokenizer.

    The new head (everything, with `pretrained: false`) is drawn from torch's global generator.

    Returns:
        A `transformers.PreTrainedModel` in float32 that maps `input_ids` and `attention_mask`,
        int64 [batch, tokens], to an output with `logits` [batch, classes]; and the tokenizer.

    Raises:
        PipelineError: the weights are missing, not the expected ones, damaged or of an unknown
            architecture, the Hub can't be reached, or `max_length` is more than the encoder takes.
    """
    folder, names = _locate(config), facts.classes
    if config.pretrained:
        pretrained.check_digest(folder, config.sha256, "transformer.sha256")
    with _transformers(folder) as transformers:
        settings = transformers.AutoConfig.from_pretrained(
            folder,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            **TRUSTED,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **TRUSTED)
        _check_length(config, settings, tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            settings.pad_token_id = tokenizer.pad_token_id
        auto = transformers.AutoModelForSequenceClassification
        if not config.pretrained:
            model = auto.from_config(settings, dtype=torch.float32, trust_remote_code=False)
            return _with_dropout(_attending(model), config), tokenizer
        model, report = auto.from_pretrained(
            folder,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head for other classes gives way to a new one
            output_loading_info=True,
            **TRUSTED,
        )
    _check_encoder_is_whole(config, folder, model.base_model_prefix, report)
    return _with_dropout(_attending(model.train()), config), tokenizer


def _attending(model: Any) -> Any:
    """The model, attending by what is faster on the device that it is on; a few know one way only.

    On a CPU the backward pass of torch's fused attention takes 21 ms a layer, against 2 to 4 for
    16 × 64 tokens (12 heads of 32), and up to 512 tokens the fused one wins at no length.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(BY_DEVICE, _attend)
        AttentionMaskInterface.register(BY_DEVICE, _mask)
        model.set_attn_implementation(BY_DEVICE)
    return model


def is_fused(device: torch.device) -> bool:
    """Whether attention is torch's fused one on a device, or plain matrix products."""
    return device.type != "cpu"


def _attend(layer: nn.Module, query: torch.Tensor, *others: Any, **options: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = sys.modules[type(layer).__module__].eager_attention_forward  # each architecture's own
    attend = sdpa_attention_forward if is_fused(query.device) else plain
    return attend(layer, query, *others, **options)


def _mask(
    *, attention_mask: torch.Tensor | None, device: torch.device, **options: Any
) -> torch.Tensor | None:
    """The mask of either; the fused one's is made without a look at whether the batch has padding.

    transformers looks, and saves the mask if there is none, but the host waits for the device then.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    if is_fused(device) and attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    make = sdpa_mask if is_fused(device) else eager_mask
    return make(attention_mask=attention_mask, device=device, **options)


def _with_dropout(model: nn.Module, config: Model) -> nn.Module:
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return model


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write what `transformers.pipeline(model=folder)` needs, the same bytes for equal weights."""
    if tokenizer.is_fast:
        # Set by whichever call came last, and written into tokenizer.json.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    with _transformers(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load(folder: Path, _settings: Model, _facts: Facts) -> tuple[nn.Module, Any]:
    """Read what `save` wrote: the model in eval mode on the CPU, and the tokenizer.

    Raises:
        PipelineError: a file is missing or damaged, or the weights don't fit the config.
    """
    with _transformers(folder) as transformers:
        # a folder on this disk, which needs no revision
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **TRUSTED)  # nosec B615
        auto = transformers.AutoModelForSequenceClassification
        model, report = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **TRUSTED,
        )
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise PipelineError(
            f"{folder}/model.safetensors does not fit config.json ({wrong[0]} is missing or not "
            "expected); train the model again"
        )
    return _attending(model.eval()), tokenizer


def _locate(config: Model) -> Path:
    """The folder with the encoder's files."""
    if config.source == "hub":
        return pretrained.download(
            config.name, config.revision, "transformer.name", "transformer=minilm"
        )
    if config.source == "folder":
        folder = Path(config.name)
        advice = "set transformer.name to a folder that save_pretrained wrote"
    else:
        package = package_folder(config.name)
        if package is None:
            raise PipelineError(
                f"transformer.name: no Python package {config.name!r} is installed; "
                "run `make` again or choose transformer=hub or transformer=folder"
            )
        folder = package / "model"
        advice = "the package holds no model; choose another"
    pretrained.refuse_incomplete(folder, "transformer.name", advice, config.pretrained)
    return folder


def _check_length(config: Model, settings: Any, tokenizer: Any) -> None:
    limits = [tokenizer.model_max_length, getattr(settings, "max_position_embeddings", None)]
    most = min(limit for limit in limits if limit)
    if config.max_length > most:
        raise PipelineError(
            f"transformer.max_length: {config.max_length} tokens are more than {config.name} "
            f"takes ({most})"
        )


def _check_encoder_is_whole(
    config: Model, folder: Path, prefix: str, report: dict[str, Any]
) -> None:
    """Refuse weights that would leave part of the encoder random.

    A pooler belongs to the head in some architectures, so it may be new.
    """
    lost = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    lost = {key for key in lost if key.startswith(f"{prefix}.") and ".pooler." not in key}
    if lost:
        raise PipelineError(
            f"transformer.name: the weights in {folder} lack {len(lost)} of the encoder's tensors "
            f"({min(lost)}, …); they don't belong to the config.json of {config.name}"
        )


def _transformers(folder: Path) -> AbstractContextManager[Any]:
    return pretrained.opened(folder, "text classifier", "transformer")
