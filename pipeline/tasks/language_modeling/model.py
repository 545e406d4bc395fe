"""A decoder: from random weights, or one that is there, with adapters of low rank or without.

Of one with adapters only they are trained, kept and written, by the names that peft gives them.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.settings import Training
from pipeline.sources import package_file
from pipeline.task import Forward
from pipeline.tasks.language_modeling.network import folders
from pipeline.tasks.language_modeling.network.adapters import Frozen, Norm, adapt
from pipeline.tasks.language_modeling.network.decoder import LanguageModel, as_text, causal
from pipeline.tasks.language_modeling.settings import (
    ABOUT,
    Adapted,
    Facts,
    Pretrained,
    Scratch,
    Tuned,
)
from pipeline.texts import bpe, gguf
from pipeline.texts.chats import Frame
from pipeline.training import pretrained
from pipeline.training.batches import Batch, Batches
from pipeline.training.net import DESCRIPTION, WEIGHTS, Net, fill

BASE = "base"
"""What the frozen weights are called in the folder of a model that is served elsewhere."""
PEFT = "base_model.model."
"""What peft puts in front of the names of weights."""


def build(settings: Scratch | Adapted | Pretrained, facts: Facts) -> tuple[LanguageModel, Any]:
    """A network, and the `tokenizers.Tokenizer` that it reads with.

    New weights are drawn from torch's global generator.

    Raises:
        PipelineError: the weights are missing, not the expected ones, damaged, pickled, or those of
            a network that is none of causal language modelling.
    """
    match settings:
        case Adapted():
            module = _adapted(settings, _file(settings))
        case Pretrained():
            module = _pretrained(settings, _folder(settings))
        case Scratch():
            module = _scratch(settings, facts)
    return module, module.tokenizer


def _scratch(settings: Scratch, facts: Facts) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, width = bpe.tokenizer(facts.merges), settings.width
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=max(settings.context, settings.block) + 1,  # see `data.Rows`
        tie_word_embeddings=True,
        attn_implementation=causal(),  # type: ignore[call-arg]
    )
    frame = Frame(start=0, ends=(0,))
    return LanguageModel(LlamaForCausalLM(config).train(), settings, tokenizer, frame)


def _adapted(settings: Adapted, file: Path) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    base = gguf.read(file, settings.sha256, ABOUT.model)
    config = LlamaConfig(**base.config, attn_implementation=causal())  # type: ignore[call-arg]
    folders.check_context(settings, config, settings.file)
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(values) for name, values in base.weights.items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    llama.load_state_dict(weights, assign=True)
    llama.model.rotary_emb = LlamaRotaryEmbedding(config)
    if settings.rank is None:
        llama.tie_weights()
    else:
        adapt(llama, settings.rank, settings.alpha)
        llama.lm_head = Frozen(llama.lm_head.weight)
        llama.model.norm = Norm(llama.model.norm)
        for layer in llama.model.layers:
            for name in ("input_layernorm", "post_attention_layernorm"):
                setattr(layer, name, Norm(getattr(layer, name)))
    return LanguageModel(llama.train(), settings, base.tokenizer, base.frame, settings.sha256)


def _pretrained(settings: Pretrained, folder: Path) -> LanguageModel:
    pretrained.check_digest(folder, settings.sha256, "language_model.sha256")
    module = folders.read(settings, folder)
    if settings.rank is not None:
        module.base = pretrained.identity(folder)
        adapt(module.llama, settings.rank, settings.alpha)
    return module


def _file(settings: Adapted) -> Path:
    if settings.package is None:
        return Path(settings.file)
    return package_file(settings.package, settings.file)


def _folder(settings: Pretrained) -> Path:
    if settings.source == "hub":
        instead = "language_model=smollm2"
        folder = pretrained.download(settings.model, settings.revision, folders.KEY, instead)
    else:
        folder = Path(settings.model)
    pretrained.refuse_incomplete(folder, folders.KEY, "name one that save_pretrained wrote")
    return folder


def carried(net: Net) -> dict[str, Path]:
    """Files that a network needs which is served elsewhere, by the name that they get there."""
    if net.settings.whole:
        return {}
    match net.settings:
        case Adapted():
            return {f"{BASE}.gguf": _file(net.settings)}
        case Pretrained():
            folder = _folder(net.settings)
            paths = {path for name in pretrained.HUB_FILES for path in folder.glob(name)}
            return {f"{BASE}/{path.name}": path for path in sorted(paths)}
    return {}


def save(folder: Path, module: LanguageModel, tokenizer: Any) -> None:
    """Write what was trained, or all, and the tokenizer; equal weights give equal bytes.

    The file of adapters tells the digest of the weights that they belong to.
    """
    from safetensors.torch import save_file

    if module.settings.whole:
        folders.write(folder, module)
        return
    kept = {name: value.detach().cpu().contiguous() for name, value in _trained(module).items()}
    # one entry: of two, safetensors writes either first
    told = {"format": "pt"} if module.base is None else {"base_sha256": module.base}
    save_file(kept, folder / WEIGHTS, told)
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: Path, settings: Any, facts: Facts) -> tuple[LanguageModel, Any]:
    """Read what `save` wrote: a network in eval mode, on the CPU.

    The frozen weights are those in the folder, if they are there, or those that the settings name.

    Raises:
        PipelineError: an adapter is missing, has another shape or does nothing; the weights are
            damaged or not those that the adapters belong to.
    """
    from safetensors import safe_open

    if settings.whole:
        module = folders.read(settings, folder)
        return module.eval(), module.tokenizer
    match settings:
        case Adapted():
            beside = folder / f"{BASE}.gguf"
            module = _adapted(settings, beside if beside.is_file() else _file(settings))
        case Pretrained():
            beside = folder / BASE
            module = _pretrained(settings, beside if beside.is_dir() else _folder(settings))
        case _:
            module = _scratch(settings, facts)
    file, again = folder / WEIGHTS, "run `dvc repro train_language_model` to make it"
    fill(_trained(module), file, again)
    with safe_open(file, "pt") as opened:
        told = (opened.metadata() or {}).get("base_sha256")
    if told != module.base:
        raise PipelineError(
            f"{file} belongs to frozen weights of sha256 {told}, those that {DESCRIPTION} names "
            f"have {module.base}; {again}"
        )
    return module.eval(), module.tokenizer


def _trained(module: LanguageModel) -> dict[str, Tensor]:
    """The weights that are trained, by the names that they have in a file."""
    start = PEFT if isinstance(module.settings, Tuned) else ""
    return {
        start + name: weight
        for name, weight in module.llama.named_parameters()
        if weight.requires_grad
    }


def loss(module: Forward, batch: Batch, _settings: Training) -> Tensor:
    """Mean surprise at the tokens that count, in nats."""
    nats: Tensor = module(**batch.inputs, targets=batch.targets.tokens, count=int(batch.weight))
    return nats.mean()


def score(module: Forward, batches: Batches, _settings: Training) -> dict[str, float]:
    """Mean surprise in nats by token, `loss`, and `bits_per_byte`; every byte of a text counts."""
    nats, tokens, size = 0.0, 0, 0
    for batch in batches.epoch(0):
        found = module(**batch.inputs, targets=batch.targets.tokens, count=int(batch.weight))
        nats += float(found.cpu().double().sum())
        tokens += len(found)
        size += batch.targets.size
    return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}


def answer(output: Tensor, net: Net) -> list[dict[str, str]]:
    """What each text is gone on with."""
    module: Any = net.module
    return [{"text": as_text(row, module, net.settings.writing)} for row in output.tolist()]
