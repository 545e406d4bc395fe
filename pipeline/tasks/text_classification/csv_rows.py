"""Rows of text and label in csv files that people wrote."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError


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


def read(table: pa.Table, _facts: Any, _path: Path) -> list[str]:
    """The texts of a prepared split."""
    texts: list[str] = table["text"].to_pylist()
    return texts
