"""What exactly made a run: the commit, the changes on top of it, and the bytes that it read."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import yaml

from pipeline.files import digest
from pipeline.nested import differences
from pipeline.tracking.masking import clean, clean_diff, masked
from pipeline.tracking.operations import text

DIFF_BYTES = 100_000_000
SECONDS = 25  # for all of it; the sender does not wait much longer
UNTRACKED = 500  # names listed
SNIFFED = 8000  # bytes in which git, too, looks for a NUL
# whatever the user's configuration says: a patch that `git apply` takes
_CONFIG = [
    *("-c", "core.quotePath=true", "-c", "core.safecrlf=false"),
    *("-c", "diff.autoRefreshIndex=true", "-c", "diff.suppressBlankEmpty=false"),
]
_DIFF = [
    *("diff", "HEAD", "--no-relative", "--no-renames", "--no-color", "--no-ext-diff"),
    *("--no-textconv", f"-O{os.devnull}", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--submodule=short", "--ignore-submodules=none"),
]
_PATCH = [*_DIFF, "--binary", "--full-index", "-U3", "--inter-hunk-context=0"]
_NEVER = [f":(exclude,glob)**/{name}" for name in (".env", ".env.*", "*.pem", "*.key", ".netrc")]

IDENTITY = {"model.safetensors": "weights.md5", "dataset.json": "data.md5"}
"""The file whose md5 names the content of an output folder, and the tag that carries it."""

TYPES = {"int64": "long", "string": "string", "double": "double", "bool": "boolean"}
"""MLflow's names of Arrow's types."""

Ask = Callable[..., bytes]
"""Runs git with these arguments."""


class RefusedError(Exception):
    """What git said instead of an answer."""


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


def dvc_md5(path: Path) -> str:
    """The md5 that dvc.lock has for a file or folder, but for what a .dvcignore leaves out."""
    if not path.is_dir():
        return digest(path)
    found = [file for file in path.rglob("*") if file.is_file()]
    files = {file.relative_to(path).as_posix(): file for file in found}
    listed = [{"md5": digest(files[name]), "relpath": name} for name in sorted(files)]
    text = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def git(folder: Path, patch: Path) -> dict[str, Any]:
    """State of the working tree: commit, branch, remote, changes, untracked, dirty.

    `changes` is what params.yaml says differently from HEAD, as `train_cnn.optimizer.lr=0.1`;
    `untracked` are names only. What is missing is told: `none` outside a git repository, `refused`
    where git did not answer, `no_diff` where the diff is not kept. What DVC itself writes (dvc.lock
    and the outputs in dvc.yaml) did not make the run and is left out. The diff from HEAD, without
    credentials, is written to `patch`.
    """
    end = time.monotonic() + SECONDS
    ask = partial(_git, folder, end)
    found: dict[str, Any] = {}
    patch.unlink(missing_ok=True)  # of an earlier start
    try:
        # unlike `rev-parse` it says so if there is no commit yet
        plain = ("--no-show-signature", "--encoding=UTF-8")
        found["commit"] = _line(ask("log", "-1", *plain, "--format=%H"))
        found["branch"] = _line(ask("branch", "--show-current"))
        remote = ask("config", "--default", "", "--get", "remote.origin.url")
        found["remote"] = clean(_line(remote))
        found["changes"] = _changes(ask, folder)
        rest = ["--", ".", *(f":(exclude,glob){name}" for name in written_by_dvc(folder))]
        untracked = ask("ls-files", "-z", "--others", "--exclude-standard", *rest)
        names = untracked.decode("utf-8", "replace").split("\0")
        found["untracked"] = names[:-1][:UNTRACKED]
        changed = ask(*_DIFF, "--name-only", *rest)
        found["dirty"] = bool(changed or untracked)
        found["no_diff"] = _write_diff(ask, end, rest, patch) if changed else ""
    except RefusedError as error:
        is_none = str(error).startswith("fatal: not a git repository (or any")
        found["none" if is_none else "refused"] = clean(str(error))
    return found


def _write_diff(ask: Ask, end: float, rest: list[str], patch: Path) -> str:
    """Write the diff; returns why it is not kept."""
    as_text = _text_called_binary(ask, [*rest, *_NEVER])
    kept = [f":(exclude,top,literal){path}" for path in as_text]
    diff = ask(*_PATCH, *rest, *_NEVER, *kept)
    if as_text:
        paths = [f":(top,literal){path}" for path in as_text]
        diff += ask(*_PATCH, "--text", "--", *paths)
    if len(diff) > DIFF_BYTES:
        return f"it has more than {DIFF_BYTES:,} bytes"
    lines = (one.rstrip(b"\n").decode("utf-8", "surrogateescape") for one in io.BytesIO(diff))
    with patch.open("wb") as file:
        for line in clean_diff(lines):
            file.write(line.encode("utf-8", "surrogateescape") + b"\n")
            if time.monotonic() > end:
                patch.unlink()
                return f"to mask its {len(diff):,} bytes takes longer than {SECONDS} s"
    return ""


def _text_called_binary(ask: Ask, paths: list[str]) -> list[str]:
    """Changed files that attributes make binary: nothing could be masked in those, or read."""
    top = Path(os.fsdecode(ask("rev-parse", "--show-toplevel").removesuffix(b"\n")))
    counts = os.fsdecode(ask(*_DIFF, "--numstat", "-z", *paths))
    found = []
    for path in re.findall(r"(?:^|\0)-\t-\t([^\0]+)", counts):
        with suppress(RefusedError):  # it is new
            if b"\0" in ask("cat-file", "blob", f"HEAD:{path}", limit=SNIFFED):
                continue
        if (new := top / path).is_file():  # not deleted, nor a FIFO now
            with new.open("rb") as file:
                if b"\0" in file.read(SNIFFED):
                    continue
        found.append(path)
    return found


def written_by_dvc(folder: Path) -> list[str]:
    """Globs of dvc.lock and of the outputs in dvc.yaml that are in this folder."""
    try:
        stages = yaml.safe_load((folder / "dvc.yaml").read_bytes())["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    names = ["dvc.lock"]
    for stage in stages.values():
        stage = stage.get("do", stage)
        for entry in (out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])):
            path = entry if isinstance(entry, str) else next(iter(entry))
            path = os.path.relpath(folder / re.sub(r"\$\{[^}]*\}", "*", path), folder)
            if not path.startswith(".."):  # where git would refuse it
                names += [path, f"{path}/**"]
    return names


def _changes(ask: Ask, folder: Path) -> list[str]:
    try:
        now = yaml.safe_load((folder / "params.yaml").read_bytes())
        before = yaml.safe_load(ask("cat-file", "blob", "HEAD:./params.yaml"))
    except (OSError, yaml.YAMLError, RefusedError):
        return []
    new, old = (masked(values) if isinstance(values, dict) else {} for values in (now, before))
    return [f"{key}={text(value)}" for key, _, value in differences(old, new)]


def _line(answer: bytes) -> str:
    return answer.decode("utf-8", "replace").strip()


def _git(folder: Path, end: float, *arguments: str, limit: int = DIFF_BYTES + 1) -> bytes:
    """What git says, the first `limit` bytes of it.

    Raises:
        RefusedError: it fails, or has not ended at `end`.
    """
    meant_otherwise = ("GIT_DIFF_OPTS", "_PATHSPECS")
    variables = {k: v for k, v in os.environ.items() if not k.endswith(meant_otherwise)}
    try:
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                ["git", *_CONFIG, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                # no index.lock: dvc or the user may need it at the same moment
                env={**variables, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
                start_new_session=True,
            ) as process,
        ):
            stop = partial(os.killpg, process.pid, signal.SIGKILL)  # with its filters
            timer = Timer(end - time.monotonic(), stop)
            timer.start()
            answer = process.stdout.read(limit) if process.stdout else b""
            if len(answer) == limit:
                stop()
            status = process.wait()
            timer.cancel()
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise RefusedError(f"git can't be run ({error.strerror})") from error
    if status == 0 or len(answer) == limit:
        return answer
    if time.monotonic() > end:
        raise RefusedError(f"git took longer than {SECONDS} s")
    why = [line for line in said if line.startswith(("fatal: ", "error: "))]
    raise RefusedError(next(iter([*why, *said]), f"git ended with status {status}"))
