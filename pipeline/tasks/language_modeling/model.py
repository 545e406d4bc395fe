"""A Llama: from random weights, or one that is there with adapters of low rank.

Of the latter only the adapters are trained, kept and written, by the names that peft gives them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.batches import Batch, Batches
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.net import DESCRIPTION, WEIGHTS, Net
from pipeline.settings import Training
from pipeline.sources import package_file
from pipeline.task import Forward
from pipeline.tasks.language_modeling.settings import Adapted, Decoder, Facts, Scratch
from pipeline.texts import bpe, gguf

BASE = "base.gguf"
"""What the frozen weights are called in the folder of a model that is served elsewhere."""
END = 0
"""The token between documents."""
AT_ONCE = 512
"""Tokens whose logits are held at the same time."""
PEFT = "base_model.model."
"""What peft puts in front of the names of weights."""


class Said(NamedTuple):
    """What a network says of tokens that it is told afterwards, float32 [n] each.

    Attributes:
        nats: surprise.
        surest: chance of the token that it holds for the likeliest.
        right: whether that is the one.
    """

    nats: Tensor
    surest: Tensor
    right: Tensor


class Frozen(nn.Module):
    """Weights that stay; in a lower precision they are rounded once, not at every step."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._rounded: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` [..., in] times the weights, [..., out]."""
        return F.linear(inputs, self.values(inputs.device.type))

    def values(self, device: str) -> Tensor:
        """In the precision of the moment."""
        if not torch.is_autocast_enabled(device):
            return self.weight
        kind, held = torch.get_autocast_dtype(device), self._rounded
        if held is None or held.dtype != kind or held.device != self.weight.device:
            with torch.inference_mode(False):  # a training may want it too
                held = self._rounded = self.weight.detach().to(kind)
        return held


class Norm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019) with frozen weights, in one pass."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.frozen = Frozen(norm.weight.detach())
        self.epsilon: float = norm.variance_epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., width], in the precision of the inputs."""
        weight = self.frozen.values(inputs.device.type)
        return F.rms_norm(inputs, weight.shape, weight, self.epsilon)


class LowRank(nn.Module):
    """A frozen linear map, and a trained one of low rank that is added to it."""

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        wide, high = frozen.in_features, frozen.out_features
        self.frozen = Frozen(frozen.weight.detach())
        self.lora_A = nn.Linear(wide, rank, bias=False)
        self.lora_B = nn.Linear(rank, high, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.share = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        few = self.lora_A(inputs) * self.share
        added: Tensor = self.frozen(inputs)
        # the sum comes with the product: to add it afterwards costs a pass over the output
        return torch.addmm(added.flatten(0, -2), few.flatten(0, -2), self.lora_B.weight.T).view_as(
            added
        )


class LanguageModel(nn.Module):
    """A decoder that is told what comes next, or says so itself."""

    def __init__(self, llama: Any, settings: Decoder) -> None:
        super().__init__()
        self.llama = llama
        self.settings = settings

    def forward(
        self, input_ids: Tensor, lengths: Tensor, document: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        """The surprise at tokens that are told, or new tokens.

        Args:
            input_ids: rows of tokens, int64 [rows, tokens], filled up on the right.
            lengths: of the rows without what fills them up, int64 [rows].
            document: which document a row belongs to, int64 [rows]: 0, 0, 1, …; their last rows are
                gone on with.
            targets: int64 [rows, tokens], the next token of each; negative where it does not count.

        Returns:
            nats float32 [counted] in the order of the rows; without targets new tokens, int64
            [documents, most], filled up with `END`.
        """
        if targets is None:
            return self.write(input_ids, lengths, document)
        states, counted = self.counted(input_ids, targets)
        pairs = zip(states.split(AT_ONCE), counted.split(AT_ONCE), strict=True)
        return torch.cat(
            [F.cross_entropy(self.logits(part), told, reduction="none") for part, told in pairs]
        )

    def counted(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The last states where a target counts, [counted, width], and those targets."""
        states = self.states(input_ids).last_hidden_state
        where = (targets.flatten() >= 0).nonzero()[:, 0]
        return states.flatten(0, 1)[where], targets.flatten()[where]

    def states(self, input_ids: Tensor, **options: Any) -> Any:
        """What transformers' model says of rows of tokens.

        What fills a row up lies behind all that counts, and no token looks ahead: there is no mask.
        """
        states, device = self.llama.model.embed_tokens(input_ids), input_ids.device.type
        if torch.is_autocast_enabled(device) and isinstance(self.settings, Adapted):
            states = states.to(torch.get_autocast_dtype(device))
        return self.llama.model(inputs_embeds=states, **{"use_cache": False, **options})

    def logits(self, states: Tensor) -> Tensor:
        """Float32 [n, vocabulary] of states after the last norm, [n, width]."""
        return self.llama.lm_head(states).float()

    def judge(self, states: Tensor, targets: Tensor) -> Said:
        """What is said of `targets` [n] in `states` [n, width]."""
        parts = []
        for part, told in zip(states.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            chances = self.logits(part).log_softmax(-1)
            best, likeliest = chances.max(-1)
            nats = -chances.gather(1, told[:, None])[:, 0]
            parts.append((nats, best.exp(), (likeliest == told).float()))
        return Said(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def write(self, input_ids: Tensor, lengths: Tensor, document: Tensor) -> Tensor:
        """Go on with the last row of each document; see `forward`."""
        last = [*(document.diff().nonzero()[:, 0]).tolist(), len(document) - 1]
        most = self.settings.writing.tokens
        texts = [list(self._go_on(input_ids[row, : lengths[row]])) for row in last]
        filled = [text + [END] * (most - len(text)) for text in texts]
        return torch.tensor(filled, device=input_ids.device)

    def _go_on(self, prompt: Tensor) -> Iterator[int]:
        """New tokens until `END`. Alone, so that they don't depend on what else is asked."""
        from transformers import DynamicCache

        writing, cache = self.settings.writing, DynamicCache(config=self.llama.config)
        generator = torch.Generator().manual_seed(writing.seed)
        ids = prompt[None, -max(1, self.settings.context - writing.tokens) :]
        for _ in range(writing.tokens):
            # by one token at a time float32 is faster on a CPU, and says the same everywhere
            with torch.autocast(ids.device.type, enabled=False):
                states = self.states(ids, past_key_values=cache, use_cache=True)
                logits = self.logits(states.last_hidden_state[:, -1])[0].cpu()
            if writing.temperature:
                chances = (logits / writing.temperature).softmax(-1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token == END:
                return
            yield token
            ids = torch.full_like(ids[:, :1], token)


def build(settings: Scratch | Adapted, facts: Facts) -> tuple[LanguageModel, Any]:
    """A network, and the `tokenizers.Tokenizer` that it reads with.

    New weights are drawn from torch's global generator.

    Raises:
        PipelineError: the file of the frozen weights is missing or not the expected one.
    """
    if isinstance(settings, Scratch):
        return _scratch(settings, facts)
    return _adapted(settings, _file(settings))


def _scratch(settings: Scratch, facts: Facts) -> tuple[LanguageModel, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, width = bpe.tokenizer(facts.merges), settings.width
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=max(settings.context, settings.block),
        tie_word_embeddings=True,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    return LanguageModel(LlamaForCausalLM(config).train(), settings), tokenizer


def _adapted(settings: Adapted, file: Path) -> tuple[LanguageModel, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    base = gguf.read(file, settings.sha256)
    config = LlamaConfig(**base.config, attn_implementation="sdpa")  # type: ignore[call-arg]
    if settings.context > config.max_position_embeddings:
        raise PipelineError(
            f"language_model.context: {settings.context} tokens are more than {settings.file} "
            f"takes ({config.max_position_embeddings})"
        )
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(values) for name, values in base.weights.items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    llama.load_state_dict(weights, assign=True)
    llama.model.rotary_emb = LlamaRotaryEmbedding(config)
    llama.requires_grad_(False)
    llama.lm_head = Frozen(llama.lm_head.weight)
    llama.model.norm = Norm(llama.model.norm)
    for layer in llama.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, Norm(getattr(layer, name)))
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, LowRank(module, settings.rank, settings.alpha))
    return LanguageModel(llama.train(), settings), base.tokenizer


def _file(settings: Adapted) -> Path:
    if settings.package is None:
        return Path(settings.file)
    return package_file(settings.package, settings.file)


def carried(net: Net) -> dict[str, Path]:
    """Files that a network needs which is served elsewhere, by the name that they get there."""
    return {BASE: _file(net.settings)} if isinstance(net.settings, Adapted) else {}


def save(folder: Path, module: LanguageModel, tokenizer: Any) -> None:
    """Write what was trained, and the tokenizer; equal weights give equal bytes.

    The file of adapters tells the digest of the weights that they belong to.
    """
    from safetensors.torch import save_file

    kept = {name: value.detach().cpu().contiguous() for name, value in _trained(module).items()}
    told = {"format": "pt"}
    if isinstance(module.settings, Adapted):
        told["base_sha256"] = module.settings.sha256
    save_file(kept, folder / WEIGHTS, told)
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> tuple[LanguageModel, Any]:
    """Read what `save` wrote: a network in eval mode, on the CPU.

    The frozen weights are those in the folder, if they are there, or those that the settings name.

    Raises:
        PipelineError: an adapter is missing, has another shape or does nothing; the weights are
            damaged or not those that the adapters belong to.
    """
    from pydantic import TypeAdapter
    from safetensors import SafetensorError, safe_open

    from pipeline.tasks.language_modeling.settings import Model

    content = read_json(folder / DESCRIPTION, "train_language_model")
    settings: Any = TypeAdapter(Model).validate_python(content["settings"])
    if isinstance(settings, Scratch):
        module, tokenizer = _scratch(settings, Facts(**content["facts"]))
    else:
        beside = folder / BASE
        module, tokenizer = _adapted(settings, beside if beside.is_file() else _file(settings))
    wanted, file = _trained(module), folder / WEIGHTS
    again = "run `dvc repro train_language_model` to make it"
    try:
        with safe_open(file, "pt") as opened:
            told = (opened.metadata() or {}).get("base_sha256")
            given = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PipelineError(f"{file} is damaged ({error}); {again}") from error
    if told != getattr(settings, "sha256", None):
        raise PipelineError(
            f"{file} belongs to frozen weights of sha256 {told}, {DESCRIPTION} says "
            f"{getattr(settings, 'sha256', None)}; {again}"
        )
    shapes = [{name: value.shape for name, value in one.items()} for one in (wanted, given)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            raise PipelineError(
                f"{file} does not fit {DESCRIPTION}: {name} is {_shape(shapes[1].get(name))}, the "
                f"described model has {_shape(shapes[0].get(name))}; {again}"
            )
    with torch.no_grad():
        for name, value in given.items():
            wanted[name].copy_(value)
    return module.eval(), tokenizer


def _trained(module: LanguageModel) -> dict[str, Tensor]:
    """The weights that are trained, by the names that they have in a file."""
    start = PEFT if isinstance(module.settings, Adapted) else ""
    return {
        start + name: weight
        for name, weight in module.llama.named_parameters()
        if weight.requires_grad
    }


def _shape(shape: Any) -> str:
    return "missing" if shape is None else "×".join(map(str, shape))


def loss(module: Forward, batch: Batch, _settings: Training) -> Tensor:
    """Mean surprise at the tokens that count, in nats."""
    nats: Tensor = module(**batch.inputs, targets=batch.targets.tokens)
    return nats.mean()


def score(module: Forward, batches: Batches, _settings: Training) -> dict[str, float]:
    """Mean surprise in nats by token, `loss`, and `bits_per_byte`; every byte of a text counts."""
    nats, tokens, size = 0.0, 0, 0
    for batch in batches.epoch(0):
        found = module(**batch.inputs, targets=batch.targets.tokens)
        nats += float(found.double().sum())
        tokens += len(found)
        size += batch.targets.size
    return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}


def answer(output: Tensor, net: Net) -> list[dict[str, str]]:
    """What each text is gone on with."""
    ended = [row[: row.index(END)] if END in row else row for row in output.tolist()]
    return [{"text": net.tokenizer.decode(row)} for row in ended]
