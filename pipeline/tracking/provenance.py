"""What exactly made a run: the commit, the changes on top of it, and the dvc process above it."""

import getpass
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.tracking.masking import MASK, clean, clean_diff, is_secret

DIFF_BYTES = 1_000_000
UNTRACKED = 500  # names listed
# whatever the user's configuration says: a patch that `git apply` takes
_PATCH = ["--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/"]
_NEVER = [f":(exclude,glob)**/{name}" for name in (".env", ".env.*", "*.pem", "*.key", ".netrc")]


def git(folder: Path) -> dict[str, Any]:
    """State of the working tree: commit, branch, remote, dirty, diff, untracked.

    Empty outside a git repository. `diff` is what `git diff HEAD` says, without credentials and
    cut at 1 MB; `untracked` are names only. What DVC itself writes (dvc.lock and the outputs in
    dvc.yaml) did not make the run and is left out.
    """
    commit = _git(folder, "rev-parse", "HEAD").strip()
    if not commit:
        return {}
    rest = ["--", ".", *(f":(exclude,glob){name}" for name in written_by_dvc(folder))]
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", *rest).splitlines()
    changed = _git(folder, "diff", "HEAD", "--name-only", *rest)
    diff = _git(folder, "diff", "HEAD", *_PATCH, *rest, *_NEVER)
    cut = f"\n… cut at {DIFF_BYTES:,} bytes\n" if len(diff) > DIFF_BYTES else ""
    return {
        "commit": commit,
        "branch": _git(folder, "branch", "--show-current").strip(),
        "remote": clean(_git(folder, "config", "--get", "remote.origin.url").strip()),
        "dirty": bool(changed.strip() or untracked),
        "diff": clean_diff(diff[:DIFF_BYTES]) + cut,
        "untracked": untracked[:UNTRACKED],
    }


def written_by_dvc(folder: Path) -> list[str]:
    """Globs of dvc.lock and of all outputs in dvc.yaml."""
    try:
        stages = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    names = ["dvc.lock"]
    for stage in stages.values():
        stage = stage.get("do", stage)
        for entry in (out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])):
            path = entry if isinstance(entry, str) else next(iter(entry))
            path = re.sub(r"\$\{[^}]*\}", "*", path).rstrip("/")
            names += [path, f"{path}/**"]
    return names


def head_file(folder: Path, name: str) -> str:
    """A file as HEAD has it, empty when it has none."""
    return _git(folder, "show", f"HEAD:{name}")


def dvc() -> dict[str, Any]:
    """Names that DVC gives to a stage, and the dvc process that runs it; empty outside DVC.

    No variable of DVC names one `dvc repro`; the nearest dvc process above this one does.
    """
    stage = os.environ.get("DVC_STAGE")
    if not stage:
        return {}
    found: dict[str, Any] = {
        "stage": stage,
        "experiment": os.environ.get("DVC_EXP_NAME", ""),
        "baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    for process in psutil.Process().parents():
        try:
            arguments = process.cmdline()
            if any(Path(argument).name == "dvc" for argument in arguments[:3]):
                found["process"] = {"pid": process.pid, "created": process.create_time()}
                found["command"] = " ".join(["dvc", *map(_clean, _after_dvc(arguments))])
                break
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def user() -> str:
    """Login name, `unknown` where the system has none for this user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _after_dvc(arguments: list[str]) -> list[str]:
    names = [Path(argument).name for argument in arguments]
    return arguments[names.index("dvc") + 1 :]


def _clean(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key.startswith("--") and "=" in value:
        return f"{key}={_clean(value)}"
    return f"{key}={MASK}" if equals and is_secret(key) else clean(argument)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            # no index.lock: dvc or the user may need it at the same moment
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # not `text=True`, which takes every CR for a line's end
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
