"""Labelled sentences from a package or a csv file, cut into splits."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.classification.labels import cap, check, distinct, numbered, partition
from pipeline.errors import PipelineError
from pipeline.prepared import Prepared, dataset, text_identities
from pipeline.sources import package_file, refuse_leaving
from pipeline.tasks.text_classification.settings import Facts, Source

_POLARITY = {"0": "NEGATIVE", "1": "POSITIVE"}
_CITATIONS = {
    "rotten_tomatoes": "B. Pang and L. Lee. Seeing stars: Exploiting class relationships for "
    "sentiment categorization with respect to rating scales. ACL 2005.",
    "imdb": "A. L. Maas, R. E. Daly, P. T. Pham, D. Huang, A. Y. Ng and C. Potts. Learning word "
    "vectors for sentiment analysis. ACL 2011.",
}


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


def read_csv(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a csv file that has at least these columns and a text and a label in each row.

    Raises:
        PipelineError: the file is missing, is no UTF-8 or no csv, lacks a column, or has a row of
            another length or without text or label; names the row and its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [column for column in columns if column not in header]:
                raise PipelineError(
                    f"{path} has no column {missing[0]!r} in its first line; add it"
                )
            for number, values in enumerate(reader, 1):
                where = f"{path}, row {number} (line {reader.line_num})"
                if len(values) != len(header):
                    raise PipelineError(
                        f"{where}: has {len(values)} fields, the first line {len(header)}; "
                        "put text with commas or line breaks in double quotes"
                    )
                row = dict(zip(header, values, strict=True))
                if not row["text"].strip() or not row["label"].strip():
                    raise PipelineError(f"{where}: text or label is empty; fill it in or remove it")
                if not row["label"].strip().isprintable():
                    raise PipelineError(f"{where}: the label has unprintable characters; mend it")
                yield row
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; put it there or correct text.file") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not UTF-8 ({error.reason}); convert it") from error
    except csv.Error as error:
        raise PipelineError(f"{path}, line {reader.line_num}: {error}; mend it") from error
    except OSError as error:
        raise PipelineError(
            f"{path} can't be read ({error.strerror}); correct text.file"
        ) from error
