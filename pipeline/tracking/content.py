"""What names the bytes of an output: the hashes that DVC has for it too."""

import hashlib
import json
from pathlib import Path

from pipeline.files import digest

IDENTITY = {"model.safetensors": "weights.md5", "dataset.json": "data.md5"}
"""The file whose md5 names the content of an output folder, and the tag that carries it."""


def identity(path: Path) -> tuple[str, str] | None:
    """The tag that names the content of a data set or model, and its value."""
    for name, tag in IDENTITY.items():
        if (path / name).exists():
            return tag, digest(path / name)
    return None


def dvc_md5(path: Path) -> str:
    """The md5 that dvc.lock has for an output, a file or a folder."""
    if not path.is_dir():
        return digest(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listed = [{"md5": digest(files[name]), "relpath": name} for name in sorted(files)]
    text = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
