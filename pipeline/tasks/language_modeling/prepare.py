"""Documents from a package, cut into splits."""

import numpy as np
import pyarrow as pa

from pipeline.prepared import SPLITS, Prepared, dataset, text_identities
from pipeline.tasks.language_modeling.settings import Facts, Source
from pipeline.texts import bpe
from pipeline.texts.tables import movie_reviews

LEARNT_FROM = 4000
"""Training documents that the byte-pair encoding learns from, at most."""


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Shuffle the documents and cut them into splits: a column `text`.

    Raises:
        PipelineError: the source is missing, or too small for its splits.
    """
    import datasets

    found, about = movie_reviews("imdb")
    table = pa.table({"text": [text.strip() for text, _ in found]})
    _, kept = np.unique(np.array(text_identities(table), object), return_index=True)
    order = np.random.default_rng(seed).permutation(np.sort(kept))
    ends = np.cumsum([source.test, source.validation]) * len(order)
    test, validation, train = np.split(order, np.ceil(ends).astype(int))
    rows = {"train": train[:limit], "validation": validation[:limit], "test": test[:limit]}
    learnt = table["text"].take(pa.array(rows["train"][:LEARNT_FROM])).to_pylist()
    features = {"text": datasets.Value("string")}
    return Prepared(
        about={"name": source.name, **about},
        facts=Facts(merges=bpe.learn(learnt, source.vocabulary)),
        dropped={"repeats": len(table) - len(order)},
        splits={split: dataset(table, features, rows[split]) for split in SPLITS},
        identities=text_identities,
    )
