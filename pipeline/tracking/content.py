"""What names the bytes of an output, the hashes that DVC has for it too, and what is in it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.files import digest

IDENTITY = {"model.safetensors": "weights.md5", "dataset.json": "data.md5"}
"""The file whose md5 names the content of an output folder, and the tag that carries it."""

TYPES = {"int64": "long", "string": "string", "double": "double", "bool": "boolean"}
"""MLflow's names of Arrow's types."""


def identity(path: Path) -> tuple[str, str] | None:
    """The tag that names the content of a data set or model, and its value."""
    for name, tag in IDENTITY.items():
        if (path / name).exists():
            return tag, digest(path / name)
    return None


def described(path: Path) -> dict[str, Any]:
    """What MLflow shows of a prepared data set: `source`, `schema` and `profile`."""
    import pyarrow.parquet

    card = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    told = ("name", "source", "licence")
    tables = sorted(path.glob("*.parquet"))
    schema = pyarrow.parquet.read_schema(tables[0]) if tables else []
    rows = {name: split["rows"] for name, split in card.get("splits", {}).items()}
    return {
        "source": {key: card[key] for key in told if key in card},
        # pictures and sounds are structs of their bytes and a path
        "schema": {column.name: TYPES.get(str(column.type), "binary") for column in schema},
        "profile": {"rows": rows, **card.get("facts", {})},
    }


def dvc_md5(path: Path, ignored: Callable[[Path], bool] | None = None) -> str:
    """The md5 that dvc.lock has for a file or folder, but for what a .dvcignore leaves out."""
    if not path.is_dir():
        return digest(path)
    found = [file for file in path.rglob("*") if file.is_file()]
    kept = [file for file in found if not (ignored and ignored(file))]
    files = {file.relative_to(path).as_posix(): file for file in kept}
    listed = [{"md5": digest(files[name]), "relpath": name} for name in sorted(files)]
    text = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
