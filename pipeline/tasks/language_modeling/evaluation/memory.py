"""What of the training's texts was memorised, and what was forgotten of others."""

from typing import Any

import numpy as np

from pipeline.evaluation.intervals import DRAWS, Floats, Interval, bootstrap
from pipeline.figures.page import Page
from pipeline.tasks.language_modeling.evaluation.study import Study, per_byte
from pipeline.texts.chats import Document, before_last_answer, learnt, plain
from pipeline.texts.tables import movie_reviews

WORDS = 12
"""Of a training document, that a sample begins with."""


def memory(page: Page, study: Study) -> None:
    """What the training took off training documents, beside what it took off others."""
    texts = study.split("train", study.parts.known_documents)
    now = study.reads(texts)
    with study.untouched() as net:
        before = study.reads(texts, net)
    known = np.stack([before.bits - now.bits, now.sizes], axis=1)
    some = len(study.before.bits)
    others = np.stack([study.before.bits - study.read.bits[:some], study.before.sizes], axis=1)
    gap = float(per_byte(known) - per_byte(others))
    span = _gap(known, others, study.settings.seed)
    page.numbers |= {"memory/gap": gap, "memory/gap_low": span.low, "memory/gap_high": span.high}
    page.facts["memory"] = (
        f"the training took {per_byte(known):.3f} bits per byte off the first {len(texts)} "
        f"training documents and {per_byte(others):.3f} off {some} test documents; the "
        f"difference, {gap:.3f} ({span.low:.3f} to {span.high:.3f}), is what was memorised of them"
    )


def _gap(known: Floats, others: Floats, seed: int) -> Interval:
    """95 % bootstrap interval of the difference, each group drawn for itself."""
    generator = np.random.default_rng(seed)
    draws = [
        per_byte(part[generator.integers(len(part), size=(DRAWS, len(part)))])
        for part in (known, others)
    ]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return Interval(float(low), float(high))


def recall(page: Page, study: Study) -> None:
    """The longest run of bytes that samples share with training documents."""
    known = study.split("train", study.parts.ngram_documents)
    # no text has such a byte: what is found lies in one document
    corpus = b"\xff".join(text.encode() for one in known for text in learnt(one))
    begun = [_beginning(one) for one in known[: study.parts.recalled_documents]]
    with study.untouched() as net:
        old = study.writes(begun, net)
    every = study.samples + list(zip(map(plain, begun), old, study.writes(begun), strict=True))
    samples = [("before", beginning, text) for beginning, text, _ in every]
    samples += [("after", beginning, text) for beginning, _, text in every]
    rows = list[dict[str, Any]]()
    for network, beginning, text in samples:
        run = longest_run(text.encode(), corpus)
        row = {"network": network, "beginning": beginning, "bytes": len(run)}
        rows.append(row | {"run": run.decode(errors="replace")})
    page.table("recall", rows, ["network", "beginning", "bytes", "run"])
    before, after = (
        max((row for row in rows if row["network"] == network), key=lambda row: int(row["bytes"]))
        for network in ("before", "after")
    )
    page.numbers |= {"recall/bytes": after["bytes"], "recall/bytes_before": before["bytes"]}
    page.facts["copied"] = (
        f"the longest run that a sample shares with {len(known):,} training documents has "
        f"{after['bytes']} bytes ({before['bytes']} before the training): {after['run']!r:.120}"
    )


def _beginning(document: Document) -> Document:
    """Its first words, or what its last answer is given to."""
    if isinstance(document, str):
        return " ".join(document.split(" ", WORDS)[:WORDS])
    return before_last_answer(document)


def longest_run(text: bytes, corpus: bytes) -> bytes:
    """The first of the longest parts of `text` that stand in `corpus` too."""
    start = size = 0
    for at in range(len(text)):
        while at + size < len(text) and text[at : at + size + 1] in corpus:
            start, size = at, size + 1
    return text[start : start + size]


def forgetting(page: Page, study: Study) -> None:
    """Bits per byte of other texts, before the training and after it."""
    sentences = [text for text, _ in movie_reviews("rotten_tomatoes")[0]]
    generator = np.random.default_rng(study.settings.seed)
    count = min(study.parts.other_sentences, len(sentences))
    some = [sentences[row] for row in generator.choice(len(sentences), count, replace=False)]
    now = study.reads(some)
    with study.untouched() as net:
        before = study.reads(some, net)
    lost = np.stack([now.bits - before.bits, now.sizes], axis=1)
    low, high = bootstrap(lost, study.settings.seed, per_byte)
    values = [float(per_byte(one.pairs)) for one in (before, now)]
    page.numbers |= {
        "forgetting/bits_per_byte": values[1],
        "forgetting/lost": values[1] - values[0],
        "forgetting/lost_low": low,
        "forgetting/lost_high": high,
    }
    page.facts["other texts"] = (
        f"{count} sentences of other film reviews, drawn by seed, took {values[0]:.3f} bits per "
        f"byte before the training and {values[1]:.3f} after it; the difference, "
        f"{values[1] - values[0]:+.3f} ({low:+.3f} to {high:+.3f}), is what was forgotten of them "
        "(or, below zero, learnt)"
    )
