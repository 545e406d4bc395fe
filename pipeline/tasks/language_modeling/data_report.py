"""What the preparation draws of documents: lengths, bytes per token, repeats, samples.

Of chats also what is learnt of them, and prompts that occur more than once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.evaluation import audit
from pipeline.evaluation.intervals import Integers
from pipeline.figures.page import Page
from pipeline.figures.sheets import Caption, text_sheet
from pipeline.figures.style import CYCLE, LINES, canvas, percent
from pipeline.prepared import SPLITS, Card, SplitName, read_split
from pipeline.texts import bpe
from pipeline.texts.chats import Document, Message, before_last_answer, from_table, learnt, plain

ROWS = {"train": 4000, "validation": 1000, "test": 1000}
"""The first documents of each split, in which near duplicates are sought, at most."""
NEAR = 0.8
"""Cosine above which two documents count as nearly the same."""
SHOWN, MESSAGES, ENCODED = 8, 16, 500
"""Documents and messages on the sheet, and documents that bytes per token are of, at most."""


def data_report(folder: Path, card: Card, page: Page) -> dict[str, float]:
    """Look through prepared documents; figures, tables and findings go to `page`.

    Returns:
        Counts for tracking: documents, bytes, bytes per token, near duplicates; where there are
        chats the share of their bytes that is learnt, and equal prompts.

    Raises:
        PipelineError: a split is missing or damaged.
    """
    documents = {split: from_table(read_split(folder, split, card.task)[1]) for split in SPLITS}
    texts = {split: [plain(one) for one in part] for split, part in documents.items()}
    sizes = {split: _sizes(part) for split, part in texts.items()}
    chats = {
        split: [one for one in part if not isinstance(one, str)]
        for split, part in documents.items()
    }
    answers = {
        split: _sizes(["".join(learnt(one)) for one in part]) for split, part in chats.items()
    }
    panels = {"bytes": sizes}
    if chats["train"]:
        panels["bytes of a chat's answers"] = answers
    _lengths(page, card.name, panels)
    _samples(page, card.name, documents["train"][:SHOWN])
    features = audit.text_features({split: part[: ROWS[split]] for split, part in texts.items()})
    among = (
        f"among the first {ROWS['train']:,} + {ROWS['validation']:,} + {ROWS['test']:,} documents"
    )
    told, near = audit.list_duplicates(page, features, NEAR, among)
    encoding, some = bpe.tokenizer(card.facts.merges), texts["test"][:ENCODED]
    tokens = sum(len(one.ids) for one in encoding.encode_batch(some))
    per_token = sum(sizes["test"][:ENCODED].tolist()) / tokens
    page.findings["Documents"] = ", ".join(
        f"{len(found):,} in {split} ({found.sum():,} bytes)" for split, found in sizes.items()
    )
    page.findings["Lengths in training"] = _span(sizes["train"])
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
        **(_chats(page, chats, answers["train"]) if chats["train"] else {}),
    }


def _sizes(texts: Sequence[str]) -> Integers:
    return np.array([len(text.encode()) for text in texts], np.int64)


def _span(sizes: Integers) -> str:
    found = audit.summary(sizes)
    return (
        f"{found['min']:g} to {found['max']:g} bytes, half of them {found['q1']:g} to "
        f"{found['q3']:g}"
    )


def _lengths(page: Page, name: str, panels: Mapping[str, Mapping[SplitName, Integers]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = canvas(3 + 3 * len(panels), 3, f"{name}: lengths")
    for axes, (label, sizes) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (split, found) in enumerate(sizes.items()):
            share = (np.arange(len(found)) + 1) / len(found)
            told = f"{split} ({len(found):,})"
            axes.plot(np.sort(found), share, color=CYCLE[number], ls=LINES[number], label=told)
        axes.set(xlabel=label, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        percent(axes.yaxis)
        axes.grid()
        axes.legend(loc="lower right")
    figure.axes[0].set_ylabel("share of the documents up to this")
    page.figure(
        "lengths",
        figure,
        title="Lengths",
        text="Documents by their bytes in UTF-8. The splits should have the same spread.",
        alt="; ".join(
            f"{split}: {found.sum():,} {label}"
            for label, sizes in panels.items()
            for split, found in sizes.items()
        ),
    )


def _samples(page: Page, name: str, documents: Sequence[Document]) -> None:
    """A text below the other; of a chat a message below the other."""
    shown = list[tuple[str, Caption]]()
    for row, one in enumerate(documents):
        for message in [{"role": "text", "content": one}] if isinstance(one, str) else one:
            size = f"{message['role']}, {len(message['content'].encode()):,} bytes"
            shown.append((message["content"], Caption(f"train row {row}", size, False)))
    texts, captions = zip(*shown[:MESSAGES], strict=True)
    page.figure(
        "samples",
        text_sheet(texts, captions, f"{name}: how documents begin"),
        title="Samples",
        text="How the first training documents begin, message by message if they are chats. Is "
        "this what the model will meet?",
        alt=f"The first lines of {len(texts)} texts and messages.",
    )


def _chats(
    page: Page, chats: Mapping[SplitName, Sequence[list[Message]]], answers: Integers
) -> dict[str, float]:
    """What is learnt of chats, and prompts that several of them have."""
    train = chats["train"]
    prompts = {
        split: [plain(before_last_answer(one)) for one in part] for split, part in chats.items()
    }
    words = {
        split: [" ".join(one.split()).casefold() for one in part] for split, part in prompts.items()
    }
    said = [message for one in train for message in one]
    share = answers.sum() / sum(len(message["content"].encode()) for message in said)
    known = {*words["train"]}
    within = len(train) - len(known)
    across = sum(one in known for split in ("validation", "test") for one in words[split])
    page.findings["Chats in training"] = (
        f"{len(train):,} chats of {len(said):,} messages; what the assistant says has {share:.1%} "
        "of their bytes, and nothing else of them is learnt"
    )
    page.findings["Answers of a chat in training"] = _span(answers)
    page.findings["Before the last answer"] = _span(_sizes(prompts["train"]))
    page.findings["Equal prompts"] = (
        "with the same words before the last answer, whatever it is, as another chat in training: "
        f"{across:,} in validation and test, {within:,} more in training"
    )
    return {
        "answers_share": float(share),
        "equal_prompts/within": float(within),
        "equal_prompts/across": float(across),
    }
