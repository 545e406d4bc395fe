"""Bring back what a run had, in a worktree, and run its stage there."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.environment import resolved
from pipeline.errors import PipelineError
from pipeline.reproduce.verdict import Reproduction, has_md5
from pipeline.reproduce.worktree import apply_changes, free, git, inside
from pipeline.tracking import root
from pipeline.tracking.masking import MASK
from pipeline.tracking.reader import Reader, Recorded
from pipeline.tracking.surroundings import sqlite_uri

INPUTS = {"data": ("data", "dataset.json"), "model": ("weights", "model.safetensors")}
"""What a run calls its inputs, the setting that names the folder, the file whose md5 names it."""

SYNCS = 10
"""Each waits a minute for the stage's own sender, which gives way to whatever else runs."""

TRAINED = ("output", "curve")
OUTPUTS = {
    "prepare": ("output", "plots"),
    "evaluate": ("metrics", "plots"),
    "repeat": ("trained", "metrics"),
    "report": ("html", "markdown"),
}
"""Settings that say where a stage's results go; those of every other stage are `TRAINED`."""


@contextmanager
def again(before: Recorded, reader: Reader, folder: Path) -> Iterator[Reproduction]:
    """Restore a run in a worktree below `folder`, run its stage, and clear the worktree away."""
    workspace, place = root(), Path(tempfile.mkdtemp(dir=folder))
    if not before.commit:
        why = before.tags.get("source.git", "it recorded no reason")
        raise PipelineError(
            f"run {before.run_id} has no commit ({why}), so its code can't be restored; run the "
            "stage in a repository that git reads, and reproduce that run"
        )
    prefix = os.fsdecode(git(workspace, "rev-parse", "--show-prefix").rstrip(b"\n"))
    git(workspace, "worktree", "prune")
    try:
        git(workspace, "cat-file", "-e", f"{before.commit}^{{commit}}")
    except PipelineError as error:
        raise PipelineError(
            f"commit {before.commit} of run {before.run_id} is not in {workspace}; fetch it first"
        ) from error
    top = place / "tree"  # of the whole repository, of which the project may be a folder
    tree = top / prefix
    git(workspace, "worktree", "add", "--detach", str(top), before.commit)
    try:
        if not tree.is_dir():
            raise PipelineError(
                f"commit {before.commit} of run {before.run_id} has no folder {prefix}: the "
                "project was in another one; repeat the run in a worktree of that commit"
            )
        reasons = apply_changes(before, top, prefix)
        config, more = _restored(before)
        reasons += more
        _bring_inputs(before, reader, config, tree, folder)
        _keep_outputs_inside(before.stage, config, tree)
        name = f"{before.stage} of run {before.run_id}, commit {before.commit[:10]}"
        print(f"Running {name}{' with its changes' if before.diff else ''}", flush=True)
        uri = sqlite_uri(place / "mlflow.db")
        _run_stage(before.stage, config, tree, uri)
        store = Reader(uri)
        run = store.read(store.runs(before.stage)[-1])
        yield Reproduction(tree, config, store, run, reasons)
    finally:
        with suppress(PipelineError):  # the next one prunes
            git(workspace, "worktree", "remove", "--force", str(top))


def _restored(run: Recorded) -> tuple[dict[str, Any], list[str]]:
    """The run's config for its worktree, and what could not be restored."""
    import torch

    config, reasons = resolved(run.config), []
    # A stage that does not compute with torch has a card without precision and threads.
    chosen = ("device", "precision", "threads")
    config |= {key: run.card[key] for key in chosen if key in run.card}
    if config["device"].startswith("cuda") and not torch.cuda.is_available():
        reasons.append(f"it ran on {run.card['device_name']}, which is not here")
        config["device"] = "auto"
        if config["precision"] in ("tf32", "fp16"):
            config["precision"] = "auto"
    if "tracking" in config:
        config["tracking"] = {**config["tracking"], "promote": False}
    if MASK in yaml.safe_dump(config):
        reasons.append("its config held secrets, which were not recorded")
    return config, reasons


def _bring_inputs(
    run: Recorded, reader: Reader, config: dict[str, Any], tree: Path, folder: Path
) -> None:
    """Let the config lead to what the run read: where it lies, from DVC, or made again."""
    for own in (".tracking", ".checkpoints", "reproduced"):  # links of that name may lead out
        free(tree, own)
    for name, (key, file) in INPUTS.items():
        md5 = run.tags.get(f"input.{name}.md5")
        if not md5:
            continue
        if has_md5(root() / config[key] / file, md5):
            print(f"{config[key]}: is as it was")
            config[key] = _linked(config[key], tree)
            continue
        config[key] = _own_path(config[key], key, tree)
        where = Path(config[key])
        if _pulled(tree, where) and has_md5(tree / where / file, md5):
            print(f"{where}: DVC has it")
            continue
        run_id = run.tags.get(f"input.{name}.run_id", "")
        if run_id in ("", "not found"):
            raise PipelineError(
                f"{where} with {file} of md5 {md5} is neither in the workspace nor in DVC's cache, "
                "and the run that made it is not on this store; `dvc pull` it first"
            )
        print(f"{where}: is made again")
        with again(reader.read(run_id), reader, folder) as made:
            source = made.tree / made.config["output"]
            if not has_md5(source / file, md5):
                raise PipelineError(
                    f"{where}, made again by repeating run {run_id}, is not what the run read "
                    f"(md5 of {file}: {md5}); `dvc pull` the original first"
                )
            shutil.copytree(source, free(tree, where))
            if "curve" in made.config and "curve" in config:  # an evaluation draws its model's
                config["curve"] = _own_path(config["curve"], "curve", tree)
                shutil.copyfile(made.tree / made.config["curve"], free(tree, config["curve"]))
    outputs = OUTPUTS.get(run.stage, TRAINED)
    others = {key: value for key, value in config.items() if key not in outputs}
    config |= _all_linked(others, tree)


def _all_linked(value: Any, tree: Path) -> Any:
    """Also what has no recorded digest, such as a folder of images outside of git and DVC."""
    if isinstance(value, dict):
        return {key: _all_linked(one, tree) for key, one in value.items()}
    if isinstance(value, list):  # the overrides of `repeat` are `key=path`
        return [_all_linked(one, tree) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if not os.path.exists(root() / value):  # noqa: PTH110 (Path.exists raises for long texts)
        key, equals, path = value.partition("=")
        return f"{key}={_all_linked(path, tree)}" if equals else value
    has_it = inside(tree, value) and (tree / value).exists()
    return value if has_it else _linked(value, tree)


def _linked(value: str, tree: Path) -> str:
    """A path that leads from the tree to the original, by a link if it leads nowhere else."""
    original = root() / value
    if not inside(tree, value):
        return str(original)
    free(tree, value).symlink_to(original.resolve())
    return value


def _own_path(value: str, key: str, tree: Path) -> str:
    """The path itself where it stays in the tree, else one below `reproduced`."""
    path = Path(value)
    if path.is_relative_to(root()):
        path = path.relative_to(root())
    return str(path if inside(tree, path) else Path("reproduced", key, path.name))


def _keep_outputs_inside(stage: str, config: dict[str, Any], tree: Path) -> None:
    """Give outputs that would leave the tree, maybe through a link to an input, a path in it."""
    for key in OUTPUTS.get(stage, TRAINED):
        if key in config:
            config[key] = _own_path(config[key], key, tree)
    if "overrides" in config:  # of the training that `repeat` starts, whose outputs it names itself
        config["overrides"] = [
            one for one in config["overrides"] if one.partition("=")[0].lstrip("+") not in TRAINED
        ]


def _run_stage(stage: str, config: dict[str, Any], tree: Path, uri: str) -> None:
    """Run a stage of a worktree with exactly this config, tracked by the store of that URI."""
    conf = tree / "conf"
    base = yaml.safe_load((conf / "base.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((conf / f"{stage}.yaml").read_text(encoding="utf-8"))
    # the config has what the groups gave
    kept = [
        one for one in own["defaults"]
        if one in ("base", "_self_") or (isinstance(one, dict) and "override" in next(iter(one)))
    ]  # fmt: skip
    files = {
        conf / "base.yaml": {"hydra": base["hydra"]},
        conf / f"{stage}.yaml": {"defaults": kept, **config},
        tree / "params.yaml": {stage: {}},
    }
    for path, values in files.items():
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        free(tree, path).write_text(text, encoding="utf-8")
    ended = _python(tree, uri, f"stages.{stage}")
    if ended.returncode:
        raise PipelineError(
            f"{stage} ended with status {ended.returncode} in the worktree; its message is above"
        )
    for _ in range(SYNCS):  # the stage may have ended before the store had all of it
        sent = _python(
            tree, uri, "pipeline.tracking", "sync", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if not sent.returncode:
            return
    raise PipelineError(
        "the reproduction ran, but its store does not have all of its records, so nothing was "
        f"compared ({' '.join(sent.stdout.splitlines()[-1:])}); run it again"
    )


def _python(
    tree: Path, uri: str, *arguments: str, **how: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a module of the worktree, tracked by the store of that URI."""
    # Without the folder it is started in (PYTHONSAFEPATH) Python would take the workspace's module.
    dropped = ("DVC_", "MLFLOW_RUN", "PYTHONSAFEPATH")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tree,
        env={**variables, "MLFLOW_TRACKING_URI": uri},
        text=True,
        **how,
    )


def _pulled(tree: Path, where: Path) -> bool:
    """Whether DVC's cache has an output as the worktree's commit knows it; then it is there now."""
    if not (tree / ".dvc").is_dir():
        return False
    dvc = str(Path(sys.executable).with_name("dvc"))
    cache = subprocess.run(
        [dvc, "cache", "dir"], cwd=root(), capture_output=True, text=True
    ).stdout.strip()
    # All that DVC writes stays in the tree. The cache is a remote here: one of its own it mends.
    settings = f"""
[core]
    site_cache_dir = "{tree}/.dvc/site"
[cache]
    dir = "{tree}/.dvc/cache"
['remote "workspace"']
    url = "{cache}"
    verify = true
"""
    free(tree, ".dvc/config.local").write_text(settings, encoding="utf-8")
    free(tree, where)
    pull = [dvc, "pull", "--remote", "workspace", str(where)]
    return subprocess.run(pull, cwd=tree, capture_output=True).returncode == 0
