"""What evaluation shows of a transformer: words and attention."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.classification.evaluation import baselines, parts
from pipeline.classification.evaluation.repetition import compare_seeds
from pipeline.classification.evaluation.study import Study, open_study
from pipeline.classification.evaluation.subject import Corruption, Kind, Sizes
from pipeline.evaluation.features import Inputs, Point, depths
from pipeline.figures import depth as figures
from pipeline.figures import evidence
from pipeline.figures.page import Page
from pipeline.figures.sheets import text_sheet
from pipeline.tasks.text_classification.data import cut, tokenised
from pipeline.tasks.text_classification.data_report import read, word_counts
from pipeline.texts import damage
from pipeline.training.net import logits_of

LONGEST = 24
"""Tokens of a sentence whose attention is drawn, at most: more can't be read."""


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers encoder: its longest list of modules."""
    count = model.config.num_hidden_layers  # type: ignore[union-attr]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of {count} layers")
    return list(lists[0])


def points(model: nn.Module, _inputs: Inputs) -> list[Point]:
    """The embeddings and each layer, averaged over the tokens."""

    def mean(states: Tensor, inputs: Inputs) -> Tensor:
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    def after(_args: Sequence[Any], output: Any, inputs: Inputs) -> Tensor:
        return mean(output if isinstance(output, Tensor) else output[0], inputs)

    layers = encoder_layers(model)
    return [
        Point("embeddings", layers[0], lambda args, _output, inputs: mean(args[0], inputs)),
        *(Point(f"layer {number}", layer, after) for number, layer in enumerate(layers, 1)),
    ]


class TokenAttribution(NamedTuple):
    """One text taken apart.

    Attributes:
        tokens: as the tokenizer cut it, without padding.
        scores: float64 [tokens]; what each adds to the logit of `target`, over a text of padding.
        target: class index.
    """

    tokens: list[str]
    scores: NDArray[np.float64]
    target: int


def token_attribution(model: nn.Module, tokenizer: Any, inputs: Inputs) -> TokenAttribution:
    """Attribute the predicted class's logit of one text to its tokens.

    By integrated gradients (Sundararajan et al. 2017). `model` is a transformers classifier,
    `inputs` a batch of one. The baseline keeps the special tokens and puts the padding token's
    embedding in place of every other.
    """
    from captum.attr import IntegratedGradients

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embed = model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        target = int(logits_of(model(**inputs)).argmax())
        point = embed(ids)[0]
        special = torch.isin(ids, ids.new_tensor(tokenizer.all_special_ids))[0]
        padding = embed(ids.new_tensor(tokenizer.pad_token_id or 0))
        baseline = torch.where(special[:, None], point, padding)

    def logit(path: Tensor) -> Tensor:
        output = model(inputs_embeds=path, attention_mask=mask.expand(len(path), -1))
        return logits_of(output)[:, target].float()

    found = IntegratedGradients(logit).attribute(point[None], baseline[None], n_steps=32)
    kept = mask[0].bool()
    tokens = tokenizer.convert_ids_to_tokens(ids[0][kept].tolist())
    scores = found[0].sum(dim=-1)[kept].cpu().double().numpy()
    return TokenAttribution(tokens, scores, target)


def attention_maps(model: nn.Module, inputs: Inputs) -> NDArray[np.float32]:
    """Attention weights float32 [layers, heads, from, to] of one text; rows sum to 1.

    The fused kernels don't return them, so the model attends in plain steps for this one call.
    """
    config: Any = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        with torch.no_grad():
            maps = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]
    return torch.cat([layer.float() for layer in maps]).cpu().numpy()


def left_out(page: Page, study: Study) -> None:
    """What of the test texts the model does not read, for it is beyond its `max_length`."""
    texts, net = study.test.raw, study.subject.net
    found, most = (
        cut(texts, tokenised(texts, net, torch.device("cpu")), net),
        net.settings.max_length,
    )
    found.tell("test", most)
    share, lost = found.texts / found.given, found.lost / max(found.tokens, 1)
    page.numbers |= {"cut/texts": round(share, 6), "cut/tokens": round(lost, 6)}
    if found.texts:
        page.facts[f"longer than transformer.max_length={most} tokens"] = (
            f"{share:.1%} of the texts ({lost:.1%} of their tokens are not read)"
        )


def pictures(page: Page, study: Study) -> None:
    """Which words speak for the answer, and which word attends to which."""
    subject, test, right, name = study.subject, study.test, study.right, study.name
    readable = [i for i, text in enumerate(test.raw) if 6 <= len(text.split()) <= 18]
    hits, misses = [i for i in readable if right[i]], [i for i in readable if not right[i]]
    chosen = [
        next((i for i in hits if test.labels[i] == label), None)
        for label in range(min(len(subject.classes), 3))
    ]
    rows = [i for i in chosen if i is not None] + misses[:2]
    rows = rows or [0]
    sentences = []
    for row in rows:
        inputs = subject.encode([test.raw[row]])
        found = token_attribution(subject.model, subject.net.tokenizer, inputs)
        special = set(subject.net.tokenizer.all_special_tokens)
        kept = [i for i, token in enumerate(found.tokens) if token not in special][:60]
        whole, scores = evidence.join_pieces(
            [found.tokens[i] for i in kept], [found.scores[i] for i in kept]
        )
        verdict = "right" if right[row] else "wrong"
        about = (
            f"test row {row}: {subject.classes[test.labels[row]]}; "
            f"read as {subject.classes[found.target]} ({verdict})"
        )
        sentences.append(evidence.Words(whole, scores, about))
    page.figure(
        "words",
        evidence.word_attribution(sentences, f"{name}: which words speak for the answer"),
        title="Which words the answer comes from",
        text="Red words speak for the answer that was given, blue ones against it; the numbers are "
        "what they add to its logit (integrated gradients against padding). The last sentences "
        "are mistakes: look for the word that led astray.",
        alt="; ".join(f"{one.about}: strongest word {_strongest(one)}" for one in sentences),
    )
    short = next((i for i in rows if len(test.raw[i].split()) <= LONGEST // 2), rows[0])
    inputs = {key: part[:, :LONGEST] for key, part in subject.encode([test.raw[short]]).items()}
    maps = attention_maps(subject.model, inputs)
    tokens = subject.net.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    layers = depths([f"layer {number}" for number in range(1, len(maps) + 1)])
    page.figure(
        "attention",
        figures.attention(
            {
                f"{depth}: {layer}": maps[int(layer.split()[1]) - 1].mean(axis=0)
                for depth, layer in layers.items()
            },
            tokens,
            f"{name}: which word looks at which",
        ),
        title="Attention by depth",
        text=f"Test row {short}; a bright square means that the word of its row looks at the word "
        "of its column, averaged over the heads. Early layers look at neighbours and at the word "
        "itself, late ones gather at few words or at the separators, where nothing is left to ask.",
        alt=f"Attention between {len(tokens)} tokens in {len(layers)} layers of one sentence.",
    )


def _strongest(sentence: evidence.Words) -> str:
    scores = np.abs(np.asarray(sentence.scores))
    return sentence.words[int(scores.argmax())] if len(scores) else "none"


KIND = Kind(
    column="text",
    read=read,
    batches=32,  # a transformer pays for every token
    points=points,
    vectors=baselines.tfidf,
    plain="TF-IDF + logistic regression",
    features=lambda _subject, train, test: baselines.tfidf(train, test),
    sizes=lambda texts, _facts: Sizes("length", word_counts(texts), "words"),
    corruptions=(
        Corruption("typos", "share of the long words", (0, 0.1, 0.25, 0.5), damage.typos),
        Corruption("capitals", "share of the words", (0, 0.5, 1), damage.upper_case),
    ),
    sheet=lambda _subject, texts, captions, title: text_sheet(texts, captions, title),
    pictures=pictures,
    text=str,
)
PARTS = parts.PARTS | {"left out": left_out}
study, repetition = partial(open_study, KIND), partial(compare_seeds, KIND)
