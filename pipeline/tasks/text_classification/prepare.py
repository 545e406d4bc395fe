"""Labelled sentences from a package or a csv file, cut into splits."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.classification.data.labels import cap, check, numbered
from pipeline.columns import Columns
from pipeline.errors import PipelineError
from pipeline.prepared import Prepared, dataset, text_identities
from pipeline.sources import deal, distinct, refuse_leaving
from pipeline.tasks.text_classification.settings import Facts, Source
from pipeline.texts.tables import movie_reviews, read_csv

_POLARITY = {"0": "NEGATIVE", "1": "POSITIVE"}


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Read a source and cut it into splits: columns `text` and `label`, and the group's.

    Raises:
        PipelineError: the source is missing, empty or malformed, or too small for its splits.
    """
    import datasets

    where, path = f"text source {source.name}", str(source.file or source.subset)
    columns = Columns("text", path, source.group, ("text", "label"))
    if source.kind == "movie_reviews":
        if source.subset is None:
            raise PipelineError("text.subset is null; set it to rotten_tomatoes or imdb")
        found, about = movie_reviews(source.subset)
        rows = [(text, _POLARITY[label]) for text, label in found]
    else:
        if source.file is None:
            raise PipelineError("text.file is null; name a csv file with columns text and label")
        file = Path(source.file)
        refuse_leaving(file, file.parent, "text.file")
        rows = []
        try:
            for place, row in read_csv(file, "text", "label"):
                rows.append((row["text"], row["label"]))
                columns.add(place, row)
        except OSError as error:
            raise PipelineError(
                f"text.file: {file} can't be read ({error.strerror}); correct the setting"
            ) from error
        about = {"source": f"file {file.name}"}
    if not rows:
        raise PipelineError(f"{path} has no rows; give it examples of every class")

    told = columns.told()
    classes, labels = numbered([label for _, label in rows], path)
    table = pa.table({"text": [text for text, _ in rows], "label": labels})
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)}
    if told.group is not None:
        table = table.append_column(told.group, [told.groups])
        features[told.group] = datasets.Value("string")
    kept, dropped = distinct(text_identities(table), labels, told.order(len(labels)))
    shares = {"validation": source.validation, "test": source.test}
    parts = deal(kept, labels, classes, shares, seed, where, told)
    splits: Any = {}
    for split, part in parts.items():
        rows_of = cap(part, labels, limit)
        check(labels[rows_of], classes, f"{source.name}, split {split}")
        splits[split] = dataset(table, features, rows_of)
    return Prepared(
        {"name": source.name, **about},
        Facts(classes=classes),
        dropped,
        splits,
        text_identities,
        told.group,
    )
