"""The worktree of a run's commit: its uncommitted changes, and nothing written outside of it."""

import os
import shutil
import subprocess
from glob import escape
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.tracking.masking import MASK, unmasked
from pipeline.tracking.reader import Recorded

READ = (
    *("pipeline", "stages", "conf", "raw", ".dvc"),
    *("params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"),
)
"""What of the repository a stage reads; changes of the rest can't change its result."""


def inside(tree: Path, path: str | Path) -> bool:
    """Whether a path, taken from the tree, ends below it, `..` and links followed."""
    return Path(os.path.realpath(tree)) in Path(os.path.realpath(tree / path)).parents


def free(tree: Path, path: str | Path) -> Path:
    """Make way for something new in the tree; all that is written or removed there comes here.

    A link at the path itself is removed, not followed, so what is written there next stays there.

    Returns:
        The path without `..` and links; nothing is there, and its folder is.

    Raises:
        PipelineError: it leads out of the tree.
    """
    given = tree / path
    place = Path(os.path.realpath(given))
    if given.is_symlink():
        place = Path(os.path.realpath(given.parent), given.name)
    if Path(os.path.realpath(tree)) not in place.parents:
        raise PipelineError(
            f"{path} leads out of the worktree, and nothing is written or removed there; what "
            "leads out is a link in the run's commit: remove it there and run the stage again"
        )
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def apply_changes(run: Recorded, top: Path, prefix: str) -> list[str]:
    """Apply the run's uncommitted changes; returns what can't be restored."""
    reasons = []
    if run.diff:
        blob = ("cat-file", "blob")
        lines = list(unmasked(_lines(run.diff), lambda name: _lines(git(top, *blob, name))))
        patch = "\n".join(lines).encode("utf-8", "surrogateescape")
        apply = ("apply", "--whitespace=nowarn", "--no-ignore-whitespace")
        try:
            git(top, *apply, given=patch)
        except PipelineError as error:
            start = f"--include={escape(prefix)}"
            only = [f"{start}{name}{below}" for name in READ for below in ("", "/*")]
            try:
                git(top, *apply, *only, given=patch)
            except PipelineError as again:
                raise PipelineError(
                    f"the uncommitted changes of run {run.run_id} don't apply to "
                    f"{run.commit[:10]} ({again}); they are its artifact source/uncommitted.diff"
                ) from again
            reasons.append(f"uncommitted changes of files that no stage reads don't apply: {error}")
        if any(MASK in line for line in lines if line.startswith("+")):
            reasons.append("its uncommitted changes held secrets, which were not recorded")
    if why := run.tags.get("source.diff", run.tags.get("source.git")):
        reasons.append(f"uncommitted changes were not recorded: {why}")
    if run.untracked:
        names = ", ".join(run.untracked[:5]) + (", …" if len(run.untracked) > 5 else "")
        reasons.append(f"files that git did not know were not recorded: {names}")
    return reasons


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "surrogateescape").split("\n")  # and at no other line's end


def git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    """What git says, run without hooks.

    Raises:
        PipelineError: it fails.
    """
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True)
    except OSError as error:
        raise PipelineError(f"git can't be run ({error.strerror})") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip() or f"status {done.returncode}"
        raise PipelineError(f"git {arguments[0]} failed: {said}")
    return done.stdout
