"""One `dvc repro`, one story: the parent run, and who made what.

The parent stands for one dvc process. It is opened with the first stage under that process and
closed, with a table of the whole graph, after the last one, when the process is gone: only then
dvc.lock says what became of every stage.
"""

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.tracking.graph import WHOLE, outdated, passed
from pipeline.tracking.journal import Journal, Record, flat, is_alive, journals
from pipeline.tracking.masking import masked
from pipeline.tracking.provenance import head_file

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.tracking.store import Store

NOTE = "mlflow.note.content"
MAIN_METRICS = ("test/accuracy", "validation/accuracy")


def parent_key(begin: Record) -> str | None:
    """What names the dvc process above a stage; None outside DVC."""
    process = begin["dvc"].get("process")
    return process and f"{begin['host']}:{process['pid']}:{process['created']:.0f}"


def changes(folder: Path) -> list[str]:
    """What params.yaml says differently from HEAD, as `train_cnn.optimizer.lr=0.1`."""
    try:
        now = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        before = yaml.safe_load(head_file(folder, "params.yaml"))
    except (OSError, yaml.YAMLError):
        return []
    new, old = (
        flat(masked(values)) if isinstance(values, dict) else {} for values in (now, before)
    )
    return [
        f"{key}={json.dumps(new.get(key)) if not isinstance(new.get(key), str) else new[key]}"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key)
    ]


def parent_name(begin: Record, provenance: dict[str, Any]) -> str:
    """The experiment's name, or branch and commit; and what params.yaml changed against it."""
    commit = provenance.get("commit", "")[:7] + ("*" if provenance.get("dirty") else "")
    name = begin["dvc"].get("experiment") or " ".join(
        filter(None, [provenance.get("branch"), commit])
    )
    changed = provenance.get("changes", [])
    more = f" +{len(changed) - 3}" if len(changed) > 3 else ""
    return " · ".join(filter(None, [name or "dvc", ", ".join(changed[:3]) + more]))[:250]


def open_parent(
    store: "Store", experiment: str, begin: Record, provenance: dict[str, Any]
) -> str | None:
    """Id of the run that stands for the dvc process, created by its first stage."""
    key = parent_key(begin)
    if key is None:
        return None
    tags = {
        "stage": "dvc",
        "host": begin["host"],
        "dvc.command": begin["dvc"].get("command", ""),
        "dvc.experiment": begin["dvc"].get("experiment", ""),
        "mlflow.user": begin["user"],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.git.commit": provenance.get("commit", ""),
        "mlflow.source.git.branch": provenance.get("branch", ""),
        "params.changed": "\n".join(provenance.get("changes", [])),
    }
    tags = {name: value for name, value in tags.items() if value}
    name = parent_name(begin, provenance)
    parent = store.find_or_create(experiment, "dvc.process", key, name, begin["t"], tags)
    store.client.update_run(parent, "RUNNING")
    return parent


def family(journal: Journal, begin: Record) -> str:
    """What the journals have in common that one sender sends: dvc process and store.

    Outside DVC each is alone.
    """
    key = parent_key(begin)
    return f"{key} {begin['uri']}" if key else journal.id


def dvc_lives(journal: Journal, begin: Record) -> bool:
    """Whether the dvc process above a stage still runs; of another host: as long as the stage."""
    process = begin["dvc"].get("process")
    if not process or begin["host"] != socket.gethostname():
        return bool(process) and journal.is_live(begin)
    return is_alive(process["pid"], process["created"])


def duty(journal: Journal, begin: Record) -> Literal["none", "wait", "close"]:
    """What is to be done about the run of the dvc process above, after a stage was sent."""
    if parent_key(begin) is None or journal.state().closed >= begin["count"]:
        return "none"
    mine = family(journal, begin)
    for other in journals(journal.folder.parent):
        found = other.begin()
        if found and found["t"] > begin["t"] and family(other, found) == mine:
            return "none"
    return "wait" if dvc_lives(journal, begin) else "close"


def close_parent(store: "Store", parent: str, graph: dict[str, Any]) -> None:
    """Give the parent its table, the test metrics of all models, and its status.

    Args:
        store: where the parent is.
        parent: its run's id.
        graph: of `Graph.found`, empty when nobody saw the end.
    """
    from mlflow.entities import Metric

    below = store.find("mlflow.parentRunId", parent)
    # Not the baselines that an evaluation put beside itself; of two runs of a stage the later one
    # is a training that the stage started.
    children = {
        name: run for run in reversed(below) if (name := run.data.tags.get("dvc.stage", ""))
    }
    needs, stages = graph.get("needs", {}), graph.get("stages", {})
    known = store.client.get_run(parent).data
    command = known.tags.get("dvc.command", "")
    whole = bool(WHOLE.fullmatch(command))
    of_targets = not whole and "exec-run" not in command  # a queue's worker does not say
    failed = any(run.info.status in ("FAILED", "KILLED") for run in children.values())
    old = outdated(needs, stages)
    failed = failed or bool(whole and graph.get("final", False) and old)
    # dvc.lock still has what an earlier repro made of the stages that this one did not come to
    partial = failed or of_targets
    reused = passed(needs, {*children}, whole) if partial else {*stages} - old
    rows: list[str] = []
    metrics: dict[str, float] = {}
    for name in dict.fromkeys([*(needs or stages), *children]):
        outs = stages.get(name, {}).get("outs", [])
        ran = children.get(name)
        if not ran and name not in reused:
            rows.append(f"| {name} | not run | | | | |")
            continue
        run = ran or _maker(store, outs)
        rows.append(_row(name, outs, ran is not None, run))
        if run and "trained_by" in run.data.tags:  # an evaluation; the training has copies
            model = name.partition("@")[2] or name
            metrics |= {
                f"{model}/{key}": value
                for key, value in run.data.metrics.items()
                if key.startswith("test/")
            }
    head = "| stage | what | run | output | metric | seconds |\n|---|---|---|---|---|---:|\n"
    # of a process above that nobody watched only this much is known afterwards
    ends = [run.info.end_time for run in children.values() if run.info.end_time]
    end = graph.get("end") or (int(time.time() * 1000) if graph or not ends else max(ends))
    points = [Metric(k, v, end, 0) for k, v in sorted(metrics.items()) if known.metrics.get(k) != v]
    store.log(parent, points, tags={NOTE: head + "\n".join(rows)})
    store.close(parent, "FAILED" if failed else "FINISHED", end)


def abandon(store: "Store", parent: str, end: int) -> None:
    """Close the parent of a dvc process that died with all that could have closed it."""
    run = store.client.get_run(parent)
    host, pid, created = run.data.tags["dvc.process"].rsplit(":", 2)
    lives = host == socket.gethostname() and is_alive(int(pid), float(created))
    if run.info.status == "RUNNING" and not lives:
        store.close(parent, "KILLED", end)


def link(run: "Run") -> str:
    """Markdown that opens a run in MLflow's UI."""
    place = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return f"[{run.info.run_name}]({place})"


def _row(name: str, outs: list[dict[str, Any]], ran: bool, run: "Run | None") -> str:
    what = ("ran" if run and run.info.status == "FINISHED" else "failed") if ran else "reused"
    output = ", ".join(f"`{out['path']}` {out.get('md5', '')[:8]}" for out in outs[:2])
    metric = seconds = ""
    if run:
        main = [key for key in MAIN_METRICS if key in run.data.metrics]
        metric = f"{main[0]} {run.data.metrics[main[0]]:.4f}" if main else ""
        if run.info.end_time:
            seconds = f"{(run.info.end_time - run.info.start_time) / 1000:.1f}"
    shown = link(run) if run else "not on this store"
    return f"| {name} | {what} | {shown} | {output} | {metric} | {seconds} |"


def _maker(store: "Store", outs: list[dict[str, Any]]) -> "Run | None":
    """The newest run that wrote one of the outputs, byte for byte."""
    for out in outs:
        if found := store.find(f"output.{out['path']}", out.get("md5", "")):
            return found[-1]
    return None
