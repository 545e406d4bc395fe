"""Run a recorded run again, from what was recorded, and compare.

    python -m pipeline.reproduce <MLflow run id>          (make reproduce RUN=<MLflow run id>)

The run's commit is checked out into a temporary worktree, its uncommitted changes are applied, its
config, device, precision and thread count are restored, its inputs are found by their content, and
the stage runs there. The answer is *identical*, *within tolerance* (exit status 0) or *different*
(exit status 1), with every known reason for a difference.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline.compare import Repetition, Result, compare, find
from pipeline.environment import resolved
from pipeline.errors import PipelineError
from pipeline.tracking import root
from pipeline.tracking.masking import MASK
from pipeline.tracking.reader import Reader, Recorded

INPUTS = {"data": ("data", "dataset.json"), "model": ("weights", "model.safetensors")}
"""What a run calls its inputs, the setting that names the folder, the file whose md5 names it."""

OUTPUTS = ("output", "curve", "metrics", "plots")
"""Settings that say where results go."""


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        result = reproduce(arguments[0])
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(result)
    return int(result.verdict == "different")


def reproduce(run_id: str) -> Result:
    """Run a recorded run again and compare.

    Raises:
        PipelineError: the run did not finish, or can't be restored: its commit, its changes or
            its inputs are not to be had here.
    """
    reader = Reader()
    before = reader.read(run_id)
    if before.status != "FINISHED":
        raise PipelineError(f"run {run_id} is {before.status}; only a finished run can be compared")
    with tempfile.TemporaryDirectory(prefix="reproduce-") as place:
        folder = Path(place).resolve()
        with again(before, reader, folder) as repetition:
            return compare(before, repetition, reader, folder)


@contextmanager
def again(before: Recorded, reader: Reader, folder: Path) -> Iterator[Repetition]:
    """Restore a run in a worktree below `folder`, run its stage, and clear the worktree away."""
    workspace, place = root(), Path(tempfile.mkdtemp(dir=folder))
    tree = place / "tree"
    _git(workspace, "worktree", "prune")
    if not before.commit or _git(workspace, "cat-file", "-e", f"{before.commit}^{{commit}}"):
        raise PipelineError(
            f"commit {before.commit or '(none recorded)'} of run {before.run_id} is not in "
            f"{workspace}; fetch it first"
        )
    if said := _git(workspace, "worktree", "add", "--detach", str(tree), before.commit):
        raise PipelineError(f"git worktree add failed: {said}")
    try:
        reasons = _apply_changes(before, tree)
        config, more = _restored(before)
        reasons += more
        values = resolved(config)
        _bring_inputs(before, reader, values, tree, workspace, folder)
        name = f"{before.stage} of run {before.run_id}, commit {before.commit[:10]}"
        print(f"Running {name}{' with its changes' if before.diff else ''}", flush=True)
        uri = f"sqlite:///{place / 'mlflow.db'}"
        _run_stage(before.stage, config, tree, uri)
        store = Reader(uri)
        run = store.read(store.runs(before.stage)[-1])
        yield Repetition(tree, values, store, run, reasons)
    finally:
        _git(workspace, "worktree", "remove", "--force", str(tree))


def _apply_changes(run: Recorded, tree: Path) -> list[str]:
    """Apply the run's uncommitted changes; returns what can't be restored."""
    reasons = []
    if run.diff.strip():
        patch = tree.parent / "uncommitted.diff"
        patch.write_text(run.diff, encoding="utf-8")
        if said := _git(tree, "apply", "--ignore-whitespace", str(patch)):
            raise PipelineError(
                f"the uncommitted changes of run {run.run_id} don't apply to {run.commit[:10]} "
                f"({said}); they are its artifact source/uncommitted.diff"
            )
        if MASK in run.diff:
            reasons.append("its uncommitted changes held secrets, which were not recorded")
    if run.untracked:
        names = ", ".join(run.untracked[:5]) + (", …" if len(run.untracked) > 5 else "")
        reasons.append(f"files that git did not know were not recorded: {names}")
    return reasons


def _restored(run: Recorded) -> tuple[dict[str, Any], list[str]]:
    """The run's config for its worktree, and what could not be restored."""
    import torch

    config, values, reasons = dict(run.config), resolved(run.config), []
    # A stage that does not compute with torch has a card without precision and threads.
    chosen = ("device", "precision", "threads")
    config |= {key: run.card[key] for key in chosen if key in run.card}
    if config["device"].startswith("cuda") and not torch.cuda.is_available():
        reasons.append(f"it ran on {run.card['device_name']}, which is not here")
        config["device"] = "auto"
        if config["precision"] == "fp16":
            config["precision"] = "auto"
    for key in OUTPUTS:
        if key in config and Path(values[key]).is_absolute():
            config[key] = f"reproduced/{key}"
    if "tracking" in config:
        config["tracking"] = {**config["tracking"], "promote": False}
    if MASK in yaml.safe_dump(config):
        reasons.append("its config held secrets, which were not recorded")
    return config, reasons


def _bring_inputs(
    run: Recorded,
    reader: Reader,
    config: dict[str, Any],
    tree: Path,
    workspace: Path,
    folder: Path,
) -> None:
    """Put what the run read where its config says, found by content, or made again."""
    for name, (key, file) in INPUTS.items():
        md5 = run.tags.get(f"input.{name}.md5")
        if not md5:
            continue
        where = Path(config[key])
        if found := find(workspace / where / file, md5):
            print(f"{where}: the workspace has it")
            _link(tree / where, found.parent)
        elif _checked_out(tree, where, workspace) and find(tree / where / file, md5):
            print(f"{where}: DVC has it")
        else:
            _make(run.tags.get(f"input.{name}.run_id", ""), where, file, md5, reader, tree, folder)
    _link_others(config, tree, workspace)


def _make(
    run_id: str, where: Path, file: str, md5: str, reader: Reader, tree: Path, folder: Path
) -> None:
    """Make an input again, by repeating the run that made it."""
    if not run_id or run_id == "not found":
        raise PipelineError(
            f"{where} with {file} of md5 {md5} is neither in the workspace nor in DVC's cache, "
            "and the run that made it is not on this store; `dvc pull` it first"
        )
    print(f"{where}: is made again")
    with again(reader.read(run_id), reader, folder) as made:
        source = made.tree / made.config["output"]
        if not find(source / file, md5):
            raise PipelineError(
                f"{where}, made again by repeating run {run_id}, is not what the run read "
                f"(md5 of {file}: {md5}); `dvc pull` the original first"
            )
        _clear(tree / where)
        shutil.copytree(source, tree / where)
        if "curve" in made.config and (made.tree / made.config["curve"]).is_file():
            target = tree / made.config["curve"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made.tree / made.config["curve"], target)


def _link_others(config: dict[str, Any], tree: Path, workspace: Path) -> None:
    """Sources that lie in the workspace outside of git and DVC, such as a folder of images."""
    for key, value in config.items():
        if isinstance(value, dict):
            _link_others(value, tree, workspace)
        elif isinstance(value, str) and value and (key == "curve" or key not in OUTPUTS):
            inside = not Path(value).is_absolute() and ".." not in Path(value).parts
            source = workspace / value
            if inside and source != workspace and source.exists() and not (tree / value).exists():
                if key == "curve" and "weights" not in config:
                    continue  # a training's own output
                _link(tree / value, source)


def _run_stage(stage: str, config: dict[str, Any], tree: Path, uri: str) -> None:
    """Run a stage of a worktree with exactly this config, tracked by the store of that URI."""
    conf = tree / "conf"
    base = yaml.safe_load((conf / "base.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((conf / f"{stage}.yaml").read_text(encoding="utf-8"))
    kept = [one for one in own["defaults"] if isinstance(one, str) or "override" in next(iter(one))]
    files = {
        conf / "base.yaml": {"hydra": base["hydra"]},
        conf / f"{stage}.yaml": {"defaults": kept, **config},
        tree / "params.yaml": {stage: {}},
    }
    for path, values in files.items():
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_RUN"))}
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=tree,
        env={**variables, "MLFLOW_TRACKING_URI": uri},
    )
    if ended.returncode:
        raise PipelineError(
            f"{stage} ended with status {ended.returncode} in the worktree; its message is above"
        )


def _checked_out(tree: Path, where: Path, workspace: Path) -> bool:
    """Whether DVC's cache has an output as the worktree's commit knows it."""
    dvc = Path(sys.executable).with_name("dvc")
    cache = subprocess.run(
        [str(dvc), "cache", "dir"], cwd=workspace, capture_output=True, text=True
    ).stdout.strip()
    if not cache or not (tree / ".dvc").is_dir():
        return False
    local = tree / ".dvc" / "config.local"
    local.write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
    done = subprocess.run([str(dvc), "checkout", str(where)], cwd=tree, capture_output=True)
    return done.returncode == 0


def _link(link: Path, target: Path) -> None:
    _clear(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve())


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _git(folder: Path, *arguments: str) -> str:
    """Run git without hooks; returns why it failed, empty on success."""
    done = subprocess.run(
        ["git", "-c", f"core.hooksPath={os.devnull}", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return ""
    return " ".join(done.stderr.split()) or f"status {done.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
