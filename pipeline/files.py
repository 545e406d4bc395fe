"""Files that are either there, whole, or not there at all."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.errors import PipelineError

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EBUSY,
)  # fmt: skip
FULL = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file may not be so large (`ulimit -f`)", "raise that limit"),
}
"""Errors of a place that takes no more: what they mean, and what helps."""


def digest(path: Path, algorithm: str = "md5") -> str:
    """Hex digest of a file's bytes; md5 by default, the hash that DVC records for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def refuse_other(path: Path, found: str, sha256: str, key: str) -> None:
    """Make sure that a file, whose digest was `found`, is the one that was chosen.

    Raises:
        PipelineError: it is another one; `key` is the setting that says which.
    """
    if found != sha256:
        raise PipelineError(
            f"{key}: {path} has sha256 {found}, expected {sha256}; the file is damaged or not the "
            "one you chose, install it again"
        )


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
        PipelineError: the disk is full, `path` can't be written, or what is there is no folder that
            `holds` such a file.
    """
    refuse_foreign(path, "folder", holds)
    with explained(path, needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
        temporary, aside = beside / "new", beside / "old"
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                # safetensors writes what nobody else may read
                file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
                _sync(file)
            if os.path.lexists(path):
                path.rename(aside)
            try:
                temporary.rename(path)
            except OSError:
                if os.path.lexists(aside):
                    aside.rename(path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def refuse_foreign(path: Path, kind: Literal["folder", "file"], mark: str) -> None:
    """Make sure that what is at `path` may be replaced: nothing, an earlier output or a DVC link.

    `kind` and `mark` are those of `settings.Output`.

    Raises:
        PipelineError: anything else is there, or no name can be given to what is there.
    """
    if path.name in ("", ".."):
        raise PipelineError(f"{path} names no {kind}; name one that the stage may replace")
    with explained(path):
        if path.is_symlink():
            if in_dvc_cache(path):
                return
            raise PipelineError(
                f"{path} is a link to {path.readlink()} and is not replaced; "
                f"name that {kind} itself or remove the link"
            )
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not (stat.S_ISDIR(mode) if kind == "folder" else stat.S_ISREG(mode)):
            fault = f"is not a {kind}"
        elif kind == "folder" and any(path.iterdir()) and not (path / mark).is_file():
            fault = f"has files but no {mark}"
        elif kind == "file" and (start := _start(path)) and mark.encode() not in start:
            fault = "has other content"
        else:
            return
    raise PipelineError(
        f"{path} {fault}, so it is not an earlier output and is not replaced; name another {kind}"
    )


def refuse_endless(path: Path) -> None:
    """Make sure that reading comes to an end: of a file, or of every file in a folder.

    Raises:
        PipelineError: one of them is a device, a FIFO or a socket.
    """
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in (path, *below):
        try:
            mode = file.stat().st_mode
        except OSError:
            continue  # whoever reads it says why it can't be read
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise PipelineError(
                f"{file} is a device, a FIFO or a socket; put a regular file there or remove it"
            )


def in_dvc_cache(path: Path) -> bool:
    """Whether a link leads into the cache of the working directory's DVC repository."""
    folder = _dvc_cache(Path.cwd())
    return folder is not None and lies_in(path, folder)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether what is at `path` is in a folder, wherever links on the way lead."""
    # Path.resolve raises RuntimeError for a link to itself
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


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
        if full := _full(error):
            reason, remedy = full
            there = next(one for one in [path, *path.absolute().parents] if one.exists())
            free = shutil.disk_usage(there).free
            need = f"about {needs:,} bytes needed" if needs else "more needed"
            raise PipelineError(
                f"{path} can't be written: {reason} ({free:,} bytes free, {need}); "
                f"{remedy} and run the stage again"
            ) from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise PipelineError(
                f"{path} can't be written ({error.strerror}); "
                "check the path, its owner and permissions"
            ) from error
        raise


def _prefix(path: Path) -> str:
    """The start of a temporary name: carries this process's id. Removes those of dead processes."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        # as `tempfile` makes them, so that nothing of a user's is taken for one
        owner = re.fullmatch(r"(\d{1,7})\.[a-z0-9_]{8}\.tmp", leftover.name[len(path.name) + 2 :])
        if owner and not psutil.pid_exists(int(owner[1])) and not leftover.is_symlink():
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            elif leftover.is_file():
                leftover.unlink(missing_ok=True)
    return f".{path.name}.{os.getpid()}."


@cache
def _dvc_cache(folder: Path) -> Path | None:
    from dvc.exceptions import DvcException  # 0.3 s, and most stages meet no link
    from dvc.repo import Repo

    try:
        with Repo(folder) as repo:
            return Path(repo.cache.local_cache_dir)
    except DvcException:
        return None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2**20)


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


def _full(error: BaseException | None) -> tuple[str, str] | None:
    """Also where a library wrapped the system's error: torch raises its own with it as context."""
    while error is not None:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers
        number = int(in_rust[1]) if in_rust else getattr(error, "errno", None)
        if number in FULL:
            return FULL[number]
        error = error.__cause__ or error.__context__
    return None
