"""What the preparation draws of documents: lengths, bytes per token, repeats, samples."""

from pathlib import Path

import numpy as np

from pipeline.evaluation import audit
from pipeline.figures.page import Page
from pipeline.figures.sheets import Caption, text_sheet
from pipeline.figures.style import CYCLE, LINES, canvas, percent
from pipeline.prepared import SPLITS, Card, read_split
from pipeline.texts import bpe

ROWS = {"train": 4000, "validation": 1000, "test": 1000}
"""The first documents of each split, in which near duplicates are sought, at most."""
NEAR = 0.8
"""Cosine above which two documents count as nearly the same."""
SHOWN, ENCODED = 8, 500


def data_report(folder: Path, card: Card, page: Page) -> dict[str, float]:
    """Look through prepared documents; figures, tables and findings go to `page`.

    Returns:
        Counts for tracking: documents, bytes, bytes per token, near duplicates.

    Raises:
        PipelineError: a split is missing or damaged.
    """
    texts = {split: read_split(folder, split, card.task)[1]["text"].to_pylist() for split in SPLITS}
    sizes = {
        split: np.array([len(text.encode()) for text in part]) for split, part in texts.items()
    }
    figure = canvas(6, 3)
    axes = figure.subplots()
    axes.set_title(f"{card.name}: lengths")
    for number, (split, found) in enumerate(sizes.items()):
        share = (np.arange(len(found)) + 1) / len(found)
        label = f"{split} ({len(found):,})"
        axes.plot(np.sort(found), share, color=CYCLE[number], ls=LINES[number], label=label)
    axes.set(xlabel="bytes", ylabel="share of the documents up to this", xscale="log")
    percent(axes.yaxis)
    axes.grid()
    axes.legend(loc="lower right")
    page.figure(
        "lengths",
        figure,
        title="Lengths",
        text="Documents by their bytes in UTF-8. The splits should have the same spread.",
        alt="; ".join(f"{split}: {found.sum():,} bytes" for split, found in sizes.items()),
    )
    first = texts["train"][:SHOWN]
    page.figure(
        "samples",
        text_sheet(
            first,
            [Caption(f"train row {row}", f"{size:,} bytes", False)
             for row, size in enumerate(sizes["train"][:SHOWN])],
            f"{card.name}: how documents begin",
        ),
        title="Samples",
        text="How the first training documents begin. Is this what the model will meet?",
        alt=f"The first lines of {len(first)} documents.",
    )  # fmt: skip
    features = audit.text_features({split: part[: ROWS[split]] for split, part in texts.items()})
    among = (
        f"among the first {ROWS['train']:,} + {ROWS['validation']:,} + {ROWS['test']:,} documents"
    )
    told, near = audit.list_duplicates(page, features, NEAR, among)
    encoding, some = bpe.tokenizer(card.facts.merges), texts["test"][:ENCODED]
    tokens = sum(len(one.ids) for one in encoding.encode_batch(some))
    per_token = sum(sizes["test"][:ENCODED].tolist()) / tokens
    train = audit.summary(sizes["train"])
    page.findings["Documents"] = ", ".join(
        f"{len(found):,} in {split} ({found.sum():,} bytes)" for split, found in sizes.items()
    )
    page.findings["Lengths in training"] = (
        f"{train['min']:g} to {train['max']:g} bytes, half of them {train['q1']:g} to "
        f"{train['q3']:g}"
    )
    page.findings["Bytes per token"] = (
        f"{per_token:.2f} in {len(some)} test documents, with the {encoding.get_vocab_size():,} "
        "tokens learnt from the training split"
    )
    page.findings["Exact duplicates"] = (
        "none in two splits (the preparation stops at one); left out: "
        f"{card.dropped['repeats']} that have the words of another one"
    )
    page.findings["Near duplicates"] = told
    return {
        **{f"rows/{split}": float(len(part)) for split, part in texts.items()},
        **{f"bytes/{split}": float(found.sum()) for split, found in sizes.items()},
        "bytes_per_token": per_token,
        **near,
    }
