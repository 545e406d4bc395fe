"""Tokens and what is made of them: surprise, samples, places, calibration, damage."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Any

import numpy as np

from pipeline.evaluation.calibration import BINS, calibration_error, reliability
from pipeline.evaluation.intervals import Integers, bootstrap
from pipeline.figures.curves import reliability_diagram
from pipeline.figures.page import Page
from pipeline.figures.style import BLUE, MUTED, ORANGE, canvas
from pipeline.figures.tokens import Passage, surprise
from pipeline.tasks.language_modeling.evaluation.study import Study, per_byte
from pipeline.texts import damage
from pipeline.texts.chats import ANSWERS, Document
from pipeline.training.net import Net

SHOWN, EXCERPT = 2, 110
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token that is a byte, in the vocabularies of SentencePiece."""
PLACES = (0, 16, 64, 256, 1024)
"""Edges of what a token has before it."""
DAMAGES: dict[str, tuple[str, tuple[float, ...], Callable[[Sequence[str], float, int], Any]]] = {
    "typos": ("share of the long words", (0, 0.1, 0.25, 0.5), damage.typos),
    "capitals": ("share of the words", (0, 0.5, 1), damage.upper_case),
}


def surprises(page: Page, study: Study) -> None:
    """Two documents coloured token by token, before and after the training."""
    passages = []
    for row in range(min(SHOWN, len(study.before.bits))):
        for label, found in (("before", study.before), ("after", study.read)):
            shown = _pieces(study.net, found.tokens[row][:EXCERPT])
            bits = found.nats[row][:EXCERPT] / log(2)
            about = f"test row {row}, {label} training: {bits.mean():.2f} bits by token"
            passages.append(Passage(shown, bits.tolist(), about))
    page.figure(
        "surprise",
        surprise(passages, f"{study.name}: surprise, token by token"),
        title="What surprises it",
        text="The deeper the colour, the more bits a token took after those before it; the deepest "
        "stands for 12 and more. Below each other: the network before its training, and after it. "
        "What grows pale is what was learnt of these texts.",
        alt="; ".join(one.about for one in passages),
    )


def _pieces(net: Net, tokens: Integers) -> list[str]:
    return [net.tokenizer.decode([int(token)]) for token in tokens]


def writing(page: Page, study: Study) -> None:
    """What is written after fixed beginnings, before and after the training."""
    rows = study.samples
    how = study.net.settings.writing
    page.show(
        f"What it writes: up to {how.tokens} tokens at temperature {how.temperature:g}, seed "
        f"{how.seed}",
        ["Beginning", "Before training", "After"],
        [[" ".join(cell.split()) for cell in row] for row in rows],
    )
    columns = ["beginning", "before", "after"]
    page.table("writing", (dict(zip(columns, row, strict=True)) for row in rows), columns)


def places(page: Page, study: Study) -> None:
    """Bits per byte by what stands before a token, and by the document's length."""
    found = study.read
    long = _token_bytes(study.net)
    sizes = long[np.concatenate(found.tokens)]
    bits, place = np.concatenate(found.nats) / log(2), np.concatenate(found.before)
    edges = [*PLACES[:-1], max(PLACES[-1], int(place.max()) + 1)]
    groups = np.digitize(place, edges) - 1
    by_place = [
        (f"{low}–{high - 1}", float(bits[groups == at].sum() / sizes[groups == at].sum()))
        for at, (low, high) in enumerate(pairwise(edges))
        if (groups == at).any()
    ]
    limits = np.quantile(found.sizes, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(limits, found.sizes)
    by_size = []
    for at in range(4):
        part = found.pairs[quarter == at]
        if len(part):
            name = f"{int(part[:, 1].min()):,}–{int(part[:, 1].max()):,}"
            by_size.append((name, float(per_byte(part)), bootstrap(part, 0, per_byte)))
    figure = canvas(8, 3)
    left, right = figure.subplots(1, 2, sharey=True)
    left.bar([name for name, _ in by_place], [value for _, value in by_place], color=BLUE)
    left.set(xlabel="tokens seen before", ylabel="bits per byte")
    values = np.array([value for _, value, _ in by_size])
    ends = np.array([list(span) for *_, span in by_size])
    reach = np.abs(ends.T - values)
    right.bar([name for name, *_ in by_size], values, color=ORANGE, yerr=reach, ecolor=MUTED)
    right.set_xlabel("bytes of the document, a quarter of them each")
    right.tick_params(axis="x", labelsize=7)
    page.figure(
        "places",
        figure,
        title="Bits by place and by length",
        text="Left: the more of a document the network has seen, the less its next token takes; "
        "where that ends, more context is of no use. Right: short documents take more, because "
        "more of them is beginning.",
        alt="; ".join(f"after {name} tokens {value:.2f}" for name, value in by_place),
    )
    rows = [{"kind": "tokens before", "group": n, "bits_per_byte": v} for n, v in by_place]
    rows += [{"kind": "bytes", "group": n, "bits_per_byte": v} for n, v, _ in by_size]
    page.table("places", rows, ["kind", "group", "bits_per_byte"])


def _token_bytes(net: Net) -> Integers:
    """Bytes of each token: in a byte-level vocabulary a letter stands for a byte."""
    size, letters = net.tokenizer.get_vocab_size(), '"ByteLevel"' in net.tokenizer.to_str()
    names = [net.tokenizer.id_to_token(token) or "" for token in range(size)]
    if letters:
        return np.array([len(name) for name in names])
    return np.array([1 if BYTE.fullmatch(name) else len(name.replace("▁", " ").encode())
                     for name in names])  # fmt: skip


def calibration(page: Page, study: Study) -> None:
    """How often the likeliest next token is the one, by its chance."""
    surest, right = (
        np.concatenate(part).astype(np.float64) for part in (study.read.surest, study.read.right)
    )
    table = reliability(surest, right)
    error = calibration_error(table)
    page.numbers |= {"ece": error, "accuracy": float(right.mean())}
    page.figure(
        "reliability",
        reliability_diagram(table, None, [error], f"{study.name}: calibration"),
        title="Is it as sure as it should be?",
        text=f"The likeliest next token is the one in {right.mean():.1%} of {len(right):,} cases, "
        f"and its mean chance is {surest.mean():.1%}. The expected calibration error, in {BINS} "
        f"bins, is {error:.1%}.",
        alt=f"Accuracy against confidence of next tokens; expected calibration error {error:.1%}.",
    )
    rows = [dict(zip(table._fields, row, strict=True)) for row in zip(*table, strict=True)]
    page.table("reliability", rows, ["confidence", "accuracy", "examples"])


def robustness(page: Page, study: Study) -> None:
    """Bits per byte of damaged documents."""
    most, seed = study.parts.damaged_documents, study.settings.seed
    whole = study.read.first(most)
    rows: list[dict[str, Any]] = []
    for name, (_, levels, hurt) in DAMAGES.items():
        for level in levels:
            found = study.reads(_hurt(study.texts[:most], hurt, level, seed)) if level else whole
            value, span = float(per_byte(found.pairs)), bootstrap(found.pairs, seed, per_byte)
            row = {"kind": name, "severity": level, "bits_per_byte": value}
            rows.append(row | {"low": span.low, "high": span.high})
        page.numbers[f"robustness/{name}"] = value
    figure = canvas(6.4, 2.9)
    panels = figure.subplots(1, len(DAMAGES), sharey=True)
    for axes, (name, (unit, *_)) in zip(panels, DAMAGES.items(), strict=True):
        own = [row for row in rows if row["kind"] == name]
        at, values = [row["severity"] for row in own], [row["bits_per_byte"] for row in own]
        axes.fill_between(
            at, [r["low"] for r in own], [r["high"] for r in own], color=BLUE, alpha=0.16, lw=0
        )
        axes.plot(at, values, color=BLUE, marker="o")
        axes.set_title(name)
        axes.set_xlabel(unit, fontsize=8)
        axes.grid(axis="y")
    panels[0].set_ylabel("bits per byte")
    page.figure(
        "robustness",
        figure,
        title="What damage costs",
        text=f"The first {len(whole.bits)} test documents with misspelt words, or with words in "
        "capitals; bands are 95 % intervals over documents. Fewer documents than the headline has.",
        alt="; ".join(f"{r['kind']} {r['severity']:g}: {r['bits_per_byte']:.2f}" for r in rows),
    )
    page.table("robustness", rows, ["kind", "severity", "bits_per_byte", "low", "high"])


def _hurt(
    texts: Sequence[Document], hurt: Callable[..., list[str]], level: float, seed: int
) -> list[Document]:
    """Damaged texts; of chats what is not measured is damaged."""
    damaged = iter(hurt([text for one in texts for text in _hurtable(one)], level, seed))
    return [
        next(damaged)
        if isinstance(one, str)
        else [
            said if said["role"] == ANSWERS else {**said, "content": next(damaged)} for said in one
        ]
        for one in texts
    ]


def _hurtable(document: Document) -> list[str]:
    if isinstance(document, str):
        return [document]
    return [message["content"] for message in document if message["role"] != ANSWERS]
