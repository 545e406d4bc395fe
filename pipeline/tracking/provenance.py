"""What exactly made a run: the commit and the changes on top of it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline.tracking.masking import clean, clean_diff, masked
from pipeline.tracking.operations import flat, text

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


def changes(folder: Path) -> list[str]:
    """What params.yaml says differently from HEAD, as `train_cnn.optimizer.lr=0.1`."""
    try:
        now = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        before = yaml.safe_load(_git(folder, "show", "HEAD:params.yaml"))
    except (OSError, yaml.YAMLError):
        return []
    new, old = (
        flat(masked(values)) if isinstance(values, dict) else {} for values in (now, before)
    )
    return [
        f"{key}={text(new.get(key))}"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key)
    ]


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
