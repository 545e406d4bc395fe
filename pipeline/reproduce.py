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
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from pipeline.compare import Repetition, Result, compare, find
from pipeline.environment import resolved
from pipeline.errors import PipelineError
from pipeline.streams import make_safe
from pipeline.tracking import root
from pipeline.tracking.journal import sqlite_uri
from pipeline.tracking.masking import MASK, unmasked
from pipeline.tracking.reader import Reader, Recorded

INPUTS = {"data": ("data", "dataset.json"), "model": ("weights", "model.safetensors")}
"""What a run calls its inputs, the setting that names the folder, the file whose md5 names it."""

READ = (
    *("pipeline", "stages", "conf", "raw", ".dvc"),
    *("params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"),
)
"""What of the repository a stage reads; changes of the rest can't change its result."""

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
        hint = "; if it has ended, `make sync` sends the rest" if before.status == "RUNNING" else ""
        raise PipelineError(
            f"run {run_id} is {before.status}; only a finished run can be compared{hint}"
        )
    with tempfile.TemporaryDirectory(prefix="reproduce-") as place:
        folder = Path(place).resolve()
        with again(before, reader, folder) as repetition:
            return compare(before, repetition, reader, folder)


@contextmanager
def again(before: Recorded, reader: Reader, folder: Path) -> Iterator[Repetition]:
    """Restore a run in a worktree below `folder`, run its stage, and clear the worktree away."""
    workspace, place = root(), Path(tempfile.mkdtemp(dir=folder))
    if not before.commit:
        why = before.tags.get("source.git", "it recorded no reason")
        raise PipelineError(
            f"run {before.run_id} has no commit ({why}), so its code can't be restored; run the "
            "stage in a repository that git reads, and reproduce that run"
        )
    prefix = os.fsdecode(_git(workspace, "rev-parse", "--show-prefix").rstrip(b"\n"))
    _git(workspace, "worktree", "prune")
    try:
        _git(workspace, "cat-file", "-e", f"{before.commit}^{{commit}}")
    except PipelineError as error:
        raise PipelineError(
            f"commit {before.commit} of run {before.run_id} is not in {workspace}; fetch it first"
        ) from error
    top = place / "tree"  # of the whole repository, of which the project may be a folder
    tree = top / prefix
    _git(workspace, "worktree", "add", "--detach", str(top), before.commit)
    try:
        if not tree.is_dir():
            raise PipelineError(
                f"commit {before.commit} of run {before.run_id} has no folder {prefix}: the "
                "project was in another one; repeat the run in a worktree of that commit"
            )
        reasons = _apply_changes(before, top, prefix)
        config, more = _restored(before)
        reasons += more
        _bring_inputs(before, reader, config, tree, workspace, folder)
        _keep_outputs_inside(before.stage, config, tree, workspace)
        name = f"{before.stage} of run {before.run_id}, commit {before.commit[:10]}"
        print(f"Running {name}{' with its changes' if before.diff else ''}", flush=True)
        uri = sqlite_uri(place / "mlflow.db")
        _run_stage(before.stage, config, tree, uri)
        store = Reader(uri)
        run = store.read(store.runs(before.stage)[-1])
        yield Repetition(tree, config, store, run, reasons)
    finally:
        with suppress(PipelineError):  # the next one prunes
            _git(workspace, "worktree", "remove", "--force", str(top))


def inside(tree: Path, path: str | Path) -> bool:
    """Whether a path, taken from the tree, ends below it, `..` and links followed."""
    return Path(os.path.realpath(tree)) in Path(os.path.realpath(tree / path)).parents


def free(tree: Path, path: str | Path) -> Path:
    """Make way for something new in the tree; all that is written or removed there comes here.

    A link at the path itself is removed, not followed, so what is written there next stays there.

    Args:
        tree: the worktree.
        path: relative to it.

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


def _apply_changes(run: Recorded, top: Path, prefix: str) -> list[str]:
    """Apply the run's uncommitted changes; returns what can't be restored."""
    reasons = []
    if run.diff:
        lines = list(unmasked(_lines(run.diff), lambda name: _blob(top, name)))
        patch = "\n".join(lines).encode("utf-8", "surrogateescape")
        apply = ("apply", "--whitespace=nowarn", "--no-ignore-whitespace")
        try:
            _git(top, *apply, given=patch)
        except PipelineError as error:
            start = f"--include={escape(prefix)}"
            only = [f"{start}{name}{below}" for name in READ for below in ("", "/*")]
            try:
                _git(top, *apply, *only, given=patch)
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


def _blob(folder: Path, name: str) -> list[str]:
    return _lines(_git(folder, "cat-file", "blob", name))


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "surrogateescape").split("\n")  # and at no other line's end


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
        if config["precision"] == "fp16":
            config["precision"] = "auto"
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
    """Let the config lead to what the run read: where it lies, from DVC, or made again."""
    for own in (".tracking", ".checkpoints", "reproduced"):  # links of that name may lead out
        free(tree, own)
    for name, (key, file) in INPUTS.items():
        md5 = run.tags.get(f"input.{name}.md5")
        if not md5:
            continue
        if find(workspace / config[key] / file, md5):
            print(f"{config[key]}: is as it was")
            config[key] = _led(config[key], tree, workspace)
            continue
        config[key] = _own_path(config[key], key, tree, workspace)
        where = Path(config[key])
        if _pulled(tree, where, workspace) and find(tree / where / file, md5):
            print(f"{where}: DVC has it")
        else:
            maker = run.tags.get(f"input.{name}.run_id", "")
            _make(maker, where, file, md5, reader, config, tree, workspace, folder)
    outputs = OUTPUTS.get(run.stage, TRAINED)
    others = {key: value for key, value in config.items() if key not in outputs}
    config |= _others_led(others, tree, workspace)


def _make(
    run_id: str,
    where: Path,
    file: str,
    md5: str,
    reader: Reader,
    config: dict[str, Any],
    tree: Path,
    workspace: Path,
    folder: Path,
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
        shutil.copytree(source, free(tree, where))
        if "curve" in made.config and "curve" in config:  # an evaluation draws its model's
            config["curve"] = _own_path(config["curve"], "curve", tree, workspace)
            shutil.copyfile(made.tree / made.config["curve"], free(tree, config["curve"]))


def _others_led(value: Any, tree: Path, workspace: Path) -> Any:
    """Also what has no recorded digest, such as a folder of images outside of git and DVC."""
    if isinstance(value, dict):
        return {key: _others_led(one, tree, workspace) for key, one in value.items()}
    if isinstance(value, list):  # the overrides of `repeat` are `key=path`
        return [_others_led(one, tree, workspace) for one in value]
    if not isinstance(value, str) or not value:
        return value
    if not os.path.exists(workspace / value):  # noqa: PTH110 (Path.exists raises for long texts)
        key, equals, path = value.partition("=")
        return f"{key}={_others_led(path, tree, workspace)}" if equals else value
    has_it = inside(tree, value) and (tree / value).exists()
    return value if has_it else _led(value, tree, workspace)


def _led(value: str, tree: Path, workspace: Path) -> str:
    """A path that leads from the tree to the original, by a link if it leads nowhere else."""
    original = workspace / value
    if not inside(tree, value):
        return str(original)
    free(tree, value).symlink_to(original.resolve())
    return value


def _own_path(value: str, key: str, tree: Path, workspace: Path) -> str:
    """The path itself where it stays in the tree, else one below `reproduced`."""
    path = Path(value)
    if path.is_relative_to(workspace):
        path = path.relative_to(workspace)
    return str(path if inside(tree, path) else Path("reproduced", key, path.name))


def _keep_outputs_inside(stage: str, config: dict[str, Any], tree: Path, workspace: Path) -> None:
    """Give outputs that would leave the tree, maybe through a link to an input, a path in it."""
    for key in OUTPUTS.get(stage, TRAINED):
        if key in config:
            config[key] = _own_path(config[key], key, tree, workspace)
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
        "the repetition ran, but its store does not have all of its records, so nothing was "
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


def _pulled(tree: Path, where: Path, workspace: Path) -> bool:
    """Whether DVC's cache has an output as the worktree's commit knows it; then it is there now."""
    if not (tree / ".dvc").is_dir():
        return False
    dvc = str(Path(sys.executable).with_name("dvc"))
    cache = subprocess.run(
        [dvc, "cache", "dir"], cwd=workspace, capture_output=True, text=True
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


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
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


if __name__ == "__main__":
    make_safe()
    sys.exit(main(sys.argv[1:]))
