"""A decoder in a folder as transformers' `save_pretrained` writes it."""

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import PipelineError
from pipeline.tasks.language_modeling.network.adapters import merged
from pipeline.tasks.language_modeling.network.decoder import LanguageModel
from pipeline.tasks.language_modeling.settings import Decoder
from pipeline.texts.chats import Frame
from pipeline.training import pretrained
from pipeline.training.pretrained import TRUSTED

KEY = "language_model.model"


def read(settings: Decoder, folder: Path) -> LanguageModel:
    """A network with all its weights, in float32 and training mode.

    Raises:
        PipelineError: it is damaged or incomplete, or no causal language model with a fast
            tokenizer.
    """
    with pretrained.opened(folder, "causal language model", "language_model") as transformers:
        llama, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **TRUSTED,
        )
        # a folder on this disk, which needs no revision
        reader = transformers.AutoTokenizer.from_pretrained(folder, **TRUSTED)  # nosec B615
    check_context(settings, llama.config, str(folder))
    if lost := sorted(report["missing_keys"]) + sorted(one[0] for one in report["mismatched_keys"]):
        raise PipelineError(
            f"{KEY}: the weights in {folder} lack {len(lost)} tensors ({lost[0]}, …); they don't "
            "belong to its config.json"
        )
    if not reader.is_fast:
        raise PipelineError(f"{KEY}: {folder} has no tokenizer.json; choose another network")
    tokenizer = reader.backend_tokenizer
    tokenizer.encode_special_tokens = True  # what one is called is text inside a text
    module = LanguageModel(llama.eval(), settings, tokenizer, _frame(reader, llama, folder))
    if not _plain(module):
        raise PipelineError(
            f"{KEY}: {folder} looks ahead, does more to its last states than to multiply them, or "
            f"can't go on from keys and values ({type(llama).__name__}), which is not supported; "
            "choose another network"
        )
    module.train()
    return module


def _plain(module: LanguageModel) -> bool:
    """Whether logits are last states times the head, from a cache too, and no token looks ahead."""
    from transformers import DynamicCache

    if module.llama.get_output_embeddings() is None:
        return False
    ids = torch.arange(6)[None] % module.tokenizer.get_vocab_size()
    with torch.inference_mode():
        wanted = module.llama(input_ids=ids).logits[:, :3].float()
        found = [module.states(ids[:, :3]).last_hidden_state]
        cache = DynamicCache(config=module.llama.config)
        pieces = ids[:, :2], ids[:, 2:3]
        kept = [module.states(one, past_key_values=cache, use_cache=True) for one in pieces]
        found.append(torch.cat([one.last_hidden_state for one in kept], dim=1))
        return all(
            torch.allclose(wanted, module.logits(one), rtol=1e-3, atol=1e-3) for one in found
        )


def _frame(reader: Any, llama: Any, folder: Path) -> Frame:
    ends = getattr(llama.generation_config, "eos_token_id", None)
    found = [reader.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    known = tuple(dict.fromkeys(token for token in found if token is not None))
    if not known:
        raise PipelineError(f"{KEY}: {folder} names no token that ends a text (eos_token)")
    template = reader.chat_template
    return Frame(
        start=known[0] if reader.bos_token_id is None else reader.bos_token_id,
        ends=known,
        template=template.get("default") if isinstance(template, dict) else template,
        names=reader.special_tokens_map,
        special=tuple(one.content for one in reader.added_tokens_decoder.values() if one.special),
    )


def check_context(settings: Decoder, config: Any, where: str) -> None:
    """Make sure that a network of this config takes as many tokens as it is shown.

    Raises:
        PipelineError: it takes fewer.
    """
    most = getattr(config, "max_position_embeddings", None)
    for name, size in (("context", settings.context), ("block", settings.block)):
        if most is not None and size > most:
            raise PipelineError(
                f"language_model.{name}: {size} tokens are more than {where} takes ({most})"
            )


def write(folder: Path, module: LanguageModel) -> None:
    """Write all weights, adapters added to them, and what `transformers.pipeline` needs besides."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    frame, named = module.frame, module.tokenizer.id_to_token
    own = Tokenizer.from_str(module.tokenizer.to_str())
    start = named(frame.start)
    with pretrained.opened(folder, "causal language model", "language_model") as transformers:
        with torch.device("meta"):
            plain = type(module.llama)(module.llama.config)
        plain.load_state_dict(
            {name: one.cpu() for name, one in merged(module.llama).items()}, assign=True
        )
        plain.tie_weights()
        plain.generation_config.bos_token_id = frame.start
        plain.generation_config.eos_token_id = list(frame.ends)
        plain.save_pretrained(folder, max_shard_size="1TB")
        reader = transformers.PreTrainedTokenizerFast(
            tokenizer_object=own,
            bos_token=start,
            eos_token=frame.names.get("eos_token", named(frame.ends[0])),
            extra_special_tokens=list(frame.special),
        )
        reader.chat_template = frame.template
        # each document begins as it did in training
        reader.backend_tokenizer.post_processor = TemplateProcessing(
            single=[start, "$A"], pair=[start, "$A", "$B"], special_tokens=[(start, frame.start)]
        )
        reader.save_pretrained(folder)
