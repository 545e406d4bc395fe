"""Labelled sentences from a package or a csv file, cut into splits."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.classification.data.labels import cap, check, numbered
from pipeline.errors import PipelineError
from pipeline.prepared import Prepared, dataset, text_identities
from pipeline.sources import distinct, partition, refuse_leaving
from pipeline.tasks.text_classification.settings import Facts, Source
from pipeline.texts.tables import movie_reviews, read_csv

_POLARITY = {"0": "NEGATIVE", "1": "POSITIVE"}


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Read a source and cut it into splits: columns `text` and `label`.

    Raises:
        PipelineError: the source is missing, empty or malformed, or too small for its splits.
    """
    import datasets

    where = f"text source {source.name}"
    if source.kind == "movie_reviews":
        if source.subset is None:
            raise PipelineError("text.subset is null; set it to rotten_tomatoes or imdb")
        found, about = movie_reviews(source.subset)
        rows, path = [(text, _POLARITY[label]) for text, label in found], str(source.subset)
    else:
        if source.file is None:
            raise PipelineError("text.file is null; name a csv file with columns text and label")
        file = Path(source.file)
        refuse_leaving(file, file.parent, "text.file")
        try:
            rows = [(row["text"], row["label"].strip()) for row in read_csv(file, "text", "label")]
        except OSError as error:
            raise PipelineError(
                f"text.file: {file} can't be read ({error.strerror}); correct the setting"
            ) from error
        path = str(file)
        about = {"source": f"file {file.name}"}
    if not rows:
        raise PipelineError(f"{path} has no rows; give it examples of every class")

    classes, labels = numbered([label for _, label in rows], path)
    table = pa.table({"text": [text for text, _ in rows], "label": labels})
    kept, dropped = distinct(text_identities(table), labels)
    shares = {"validation": source.validation, "test": source.test}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)}
    splits: Any = {}
    for split, part in partition(labels[kept], classes, shares, seed, where).items():
        rows_of = cap(kept[part], labels, limit)
        check(labels[rows_of], classes, f"{source.name}, split {split}")
        splits[split] = dataset(table, features, rows_of)
    return Prepared(
        {"name": source.name, **about}, Facts(classes=classes), dropped, splits, text_identities
    )
