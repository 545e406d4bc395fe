"""What evaluation measures and draws of a language model."""

import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.comparison import compare
from pipeline.evaluation.intervals import Floats, bootstrap, rounded
from pipeline.evaluation.learning import learning
from pipeline.figures.page import Page
from pipeline.settings import Repeat
from pipeline.tasks.language_modeling.evaluation import words
from pipeline.tasks.language_modeling.evaluation.depths import read_out
from pipeline.tasks.language_modeling.evaluation.heads import heads
from pipeline.tasks.language_modeling.evaluation.memory import forgetting, memory, recall
from pipeline.tasks.language_modeling.evaluation.study import (
    Read,
    Study,
    numbers,
    open_study,
    per_byte,
    score,
)
from pipeline.tasks.language_modeling.settings import ABOUT
from pipeline.texts import bpe, ngrams
from pipeline.texts.chats import learnt
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

study = open_study


def repetition(first: Net, second: Net, settings: Repeat, hardware: Hardware) -> dict[str, float]:
    """The second network's numbers; how it stands to the first on the same test documents."""
    before, now = (open_study(net, settings, hardware, ()).read for net in (first, second))
    gains = np.stack([now.bits - before.bits, now.sizes], axis=1)
    low, high = bootstrap(gains, settings.seed, per_byte)
    against = compare(score(before), score(now), settings.seed)
    told = {"difference": float(per_byte(gains)), "difference_low": low, "difference_high": high}
    return rounded(numbers(now, settings.seed) | told | {"p_value": against.p_value})


def scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the table that versions are compared by."""
    found, settings = study.read, study.net.settings
    page.numbers |= numbers(found, study.settings.seed)
    bits = page.numbers["bits_per_byte"]
    page.columns["Perplexity by token"] = f"{np.exp(page.numbers['loss']):.1f}"
    page.facts |= {
        "bytes": f"{int(found.sizes.sum()):,} in {len(found.bits)} documents, "
        f"{page.numbers['bytes_per_token']:.2f} by token; each counts once",
        "context": f"up to {settings.context} tokens; a longer document is read in pieces that "
        f"overlap by {settings.context // 2}, so that a token has at least that many before it",
        "share of its bytes that a document would need": f"{bits / 8:.1%}",
    }
    table = {"score": score(found), "bits": found.bits, "bytes": found.sizes.astype(np.int64)}
    pq.write_table(pa.table(table), page.folder / "predictions.parquet")


def _learning(page: Page, study: Study) -> None:
    learning(page, study.curve, study.name, ABOUT, "nats by token")


def baselines(page: Page, study: Study) -> None:
    """xz, n-grams of tokens, and the network before its training."""
    found, parts = study.read, study.parts
    texts = ["\n".join(learnt(one)) for one in study.texts]
    whole = len(lzma.compress("\n\n\n".join(texts).encode(), preset=9)) * 8
    rows: list[tuple[str, Read, float, Floats | None]] = [
        ("xz", found, whole / found.sizes.sum(), None)
    ]
    encoding = bpe.tokenizer(study.net.facts.merges)
    train = ["\n".join(learnt(one)) for one in study.split("train", parts.ngram_documents)]
    known, told = (
        [[0, *one.ids] for one in encoding.encode_batch(some)] for some in (train, texts)
    )
    counted = [bits.sum() for bits in ngrams.kneser_ney(known, told, encoding.get_vocab_size())]
    rows.append(("5-grams", found, sum(counted) / found.sizes.sum(), np.array(counted)))
    some = study.before
    first = found.first(len(some.bits))
    rows.append(("untouched", first, float(per_byte(some.pairs)), some.bits))
    shown = []
    for name, ours, value, bits in rows:
        own = float(per_byte(ours.pairs))
        page.numbers |= {
            f"baseline/{name}/bits_per_byte": value,
            f"baseline/{name}/gain": value - own,
        }
        p = "—" if bits is None else f"{compare(-bits, -ours.bits).p_value:.2g}"
        shown.append([name, f"{value:.3f}", f"{own:.3f}", f"{len(ours.bits)}", p])
    text = (
        "Simpler rules, in bits per byte: xz -9 of all test documents in one file, "
        f"Kneser-Ney 5-grams of {len(train):,} training documents, and the network as it was "
        "before this training; p of the paired test over documents"
    )
    if any(not isinstance(one, str) for one in study.texts):
        text += (
            ". Of chats xz and 5-grams have the answers alone, without the prompts that the model "
            "sees, and pay for a line's end between two answers"
        )
    page.show(
        text,
        ["Rule", "Its bits", "The model's", "Documents", "p"],
        shown,
    )


PARTS = {
    "scores": scores,
    "learning": _learning,
    "baselines": baselines,
    "surprise": words.surprises,
    "writing": words.writing,
    "places": words.places,
    "calibration": words.calibration,
    "robustness": words.robustness,
    "memory": memory,
    "recall": recall,
    "forgetting": forgetting,
    "heads": heads,
    "depths": read_out,
}
