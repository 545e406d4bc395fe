"""Documents from a package or a folder, cut into splits."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.prepared import SPLITS, Prepared, dataset, text_identities
from pipeline.sources import visible
from pipeline.tasks.language_modeling.settings import Facts, Source
from pipeline.texts import bpe
from pipeline.texts.tables import movie_reviews

LEARNT_FROM = 4000
"""Training documents that the byte-pair encoding learns from, at most."""


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Shuffle the documents and cut them into splits: a column `text`.

    Raises:
        PipelineError: the source is missing, empty or malformed, or too small for its splits.
    """
    import datasets

    if source.kind == "movie_reviews":
        found, about = movie_reviews("imdb")
        texts = [text for text, _ in found]
    else:
        if source.folder is None:
            raise PipelineError("language.folder is null; name a folder with texts")
        root = Path(source.folder)
        texts = list(_folder(root, root))
        about = {"source": f"folder {root.name}", "licence": "not stated", "citation": "not stated"}
    if len(texts) < len(SPLITS):
        raise PipelineError(
            f"language.folder: {source.folder} has {len(texts)} documents; each split needs one"
        )
    table = pa.table({"text": [text.strip() for text in texts]})
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


def _folder(folder: Path, root: Path) -> Iterator[str]:
    """The documents in a folder and below it, by the names of the files."""
    try:
        paths = visible(folder, root, "language.folder")
    except OSError as error:
        raise PipelineError(
            f"language.folder: {folder} can't be read ({error.strerror}); put your texts there or "
            "correct the setting"
        ) from error
    for path in paths:
        if path.is_dir():
            yield from _folder(path, root)
        elif path.suffix == ".txt":
            text = _read(path)
            if not text.strip():
                raise PipelineError(f"{path}, line 1: the file has no text; remove it")
            yield text
        elif path.suffix == ".jsonl":
            for number, line in enumerate(_read(path).split("\n"), 1):
                if line.strip():
                    yield _document(line, f"{path}, line {number}")
        else:
            raise PipelineError(
                f"language.folder: {path} is no .txt and no .jsonl file; take it out"
            )


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PipelineError(
            f"{path}, line {line}: is not UTF-8 ({error.reason}); convert the file"
        ) from error
    except OSError as error:
        raise PipelineError(
            f"{path} can't be read ({error.strerror}); mend or remove it"
        ) from error


def _document(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{where}: is no JSON ({error}); mend it") from error
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise PipelineError(f"{where}: is no object with a `text` that has words; mend it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PipelineError(f"{where}: `text` has half a character ({error.reason})") from error
    return text
