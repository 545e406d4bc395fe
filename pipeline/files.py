"""Files that are either there, whole, or not there at all."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import PipelineError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def digest(path: Path, algorithm: str = "md5") -> str:
    """Hex digest of a file's bytes; md5 by default, the hash that DVC records for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def new_file(path: Path, needs: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success make it durable and rename it to `path`.

    After an error nothing is left behind and an earlier file at `path` is untouched. `needs` is
    about how many bytes will be written, for the message when the disk is full.

    Raises:
        PipelineError: the disk is full or `path` can't be written.
    """
    with explained(path, needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, holds: str, needs: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success let it take the place of `path`.

    A folder can't be replaced in one system call, so an earlier one is first moved aside; it is
    put back if the new one can't take its place.

    Raises:
        PipelineError: the disk is full, `path` can't be written, or `refuse_foreign(path, holds)`.
    """
    refuse_foreign(path, holds)
    with explained(path, needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
        aside = temporary.with_suffix(".old")
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in sorted(temporary.rglob("*")):
                # safetensors writes what nobody else may read
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                _sync(file)
            if path.exists():
                path.rename(aside)
            try:
                temporary.rename(path)
            except OSError:
                if aside.exists():
                    aside.rename(path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def refuse_foreign(path: Path, holds: str) -> None:
    """Make sure that what is at `path` may be replaced.

    Raises:
        PipelineError: a folder with other files is there, and not `holds`, which is in each folder
            that takes its place.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / holds).is_file():
        raise PipelineError(
            f"{path} has files but no {holds}, so it is not an earlier output and is not replaced; "
            "name another folder"
        )


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON with a final newline: equal values give equal bytes."""
    with new_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path, made_by: str) -> Any:
    """Read JSON that stage `made_by` wrote.

    Raises:
        PipelineError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; run `dvc repro {made_by}` to make it") from None
    except (ValueError, OSError) as error:
        raise PipelineError(
            f"{path} can't be read ({error}); delete it and run `dvc repro {made_by}`"
        ) from error


@contextmanager
def explained(path: Path, needs: int | None = None) -> Iterator[None]:
    """Say in one line why `path` can't be written.

    Raises:
        PipelineError: instead of the error that a full disk or missing rights make.
    """
    try:
        yield
    except Exception as error:
        if _disk_is_full(error):
            free = shutil.disk_usage(_existing(path)).free
            need = f"about {needs:,} bytes needed" if needs else "more needed"
            raise PipelineError(
                f"{path} can't be written: the disk is full ({free:,} bytes free, {need}); "
                "free some space and run the stage again"
            ) from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise PipelineError(
                f"{path} can't be written ({error.strerror}); check its owner and permissions"
            ) from error
        raise


def _prefix(path: Path) -> str:
    """The start of a temporary name: carries this process's id. Removes those of dead processes."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner = leftover.name.removeprefix(f".{path.name}.").split(".")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
    return f".{path.name}.{os.getpid()}."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_is_full(error: BaseException | None) -> bool:
    """Also where a library wrapped the system's error: torch raises its own with it as context."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if f"(os error {errno.ENOSPC})" in str(error):  # safetensors, in Rust's words
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(path: Path) -> Path:
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())
