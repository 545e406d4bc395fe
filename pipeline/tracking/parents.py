"""One `dvc repro`, one story: the run that stands for a dvc process, above those of its stages.

It is opened with the first stage below that process and closed when the process is gone: then
dvc.lock says what became of every stage. A file `.tracking/dvc-<…>.json` stands for it until then,
whichever sender comes to close it.
"""

import dataclasses
import hashlib
import json
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.task import tasks
from pipeline.tracking.journal import replace_json, was_elsewhere
from pipeline.tracking.operations import NOTE, Begin, now
from pipeline.tracking.surroundings import is_alive

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.tracking.store import Store

HASHED = 50_000_000  # bytes; a larger folder is taken for unchanged if it has its size

Stages = dict[str, dict[str, Any]]
"""`stages` of dvc.lock."""


@dataclass
class Parent:
    """What has to be known to close the run of a dvc process.

    Attributes:
        begin: of its first stage.
        run_id: of the run; empty until it is opened.
        end: when dvc was gone, in ms; 0 while it runs, or if nobody saw its end.
        graph: what `Graph.found` found then.
    """

    begin: Begin
    run_id: str = ""
    end: int = 0
    graph: dict[str, Any] = field(default_factory=dict)

    def lives(self) -> bool:
        """Whether the dvc process still runs."""
        process = self.begin.dvc["process"]
        return is_alive(process["pid"], process["created"])

    def save(self, path: Path) -> None:
        """Write the file that stands for the open run."""
        replace_json(path, asdict(self))


def parent_file(folder: Path, begin: Begin) -> Path:
    """Stands for the dvc process above a stage, while that or its run is not over."""
    mark = hashlib.sha256(f"{begin.parent} {begin.uri}".encode()).hexdigest()[:16]
    return folder / f"dvc-{mark}.json"


def read_parents(folder: Path, uri: str = "") -> list[tuple[Path, Parent]]:
    """The open runs of this host's dvc processes below `{root}/.tracking`.

    With `uri` those of a store; without also those of a workspace that was elsewhere.
    """
    found = []
    for path in sorted(folder.glob("dvc-*.json")):
        # just closed, of another format, or damaged
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            record = json.loads(path.read_text())
            parent = Parent(**{**record, "begin": Begin(**record["begin"])})
            begin = parent.begin
            here = begin.uri == uri and not was_elsewhere(begin, folder.parent)
            if begin.parent and (here or not uri) and begin.host == socket.gethostname():
                found.append((path, parent))
    return found


def open_parent(
    store: "Store", experiment: str, begin: Begin, source: dict[str, Any], folder: Path
) -> str | None:
    """Id of the run that stands for the dvc process, created by its first stage."""
    if begin.parent is None:
        return None
    commit = source.get("commit", "")[:7] + ("*" if source.get("dirty") else "")
    name = begin.dvc.get("experiment") or " ".join(filter(None, [source.get("branch"), commit]))
    changed = source.get("changes", [])
    more = f" +{len(changed) - 3}" if len(changed) > 3 else ""
    tags = {
        "stage": "dvc",
        "host": begin.host,
        "dvc.command": " ".join(begin.dvc.get("command", [])),
        "dvc.experiment": begin.dvc.get("experiment", ""),
        "mlflow.user": begin.user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.git.commit": source.get("commit", ""),
        "mlflow.source.git.branch": source.get("branch", ""),
        "params.changed": "\n".join(changed),
    }
    run_id = store.find_or_create(
        experiment,
        "dvc.process",
        begin.parent,
        " · ".join(filter(None, [name or "dvc", ", ".join(changed[:3]) + more]))[:250],
        begin.t,
        {key: value for key, value in tags.items() if value},
    )
    store.client.update_run(run_id, "RUNNING")
    path = parent_file(folder, begin)
    known = dict(read_parents(folder)).get(path) or Parent(begin)
    dataclasses.replace(known, run_id=run_id).save(path)
    return run_id


class Graph:
    """What DVC reads and writes, as it was last seen: a temporary copy may be gone at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = b""
        self._began: dict[str, list[str]] = {"names": [], "unchanged": []}
        self.watched = False

    def look(self) -> None:
        """Read dvc.lock; parsing it here would take a fifth of a core."""
        if not self.watched:  # now: the user may edit files while DVC runs
            self.watched = True
            with suppress(Exception):  # DVC's insides, which nobody promises, may move
                self._began = _as_dvc_begins(self._folder)
        with suppress(OSError):
            self._lock = (self._folder / "dvc.lock").read_bytes()

    def found(self) -> dict[str, Any]:
        """What came of it.

        `names`: the stages in the order of dvc.yaml; `unchanged`: of which values and sources were,
        as dvc began, what dvc.lock has; `stages`: those of dvc.lock; `final`: whether that is still
        there. What can't be read is left out: the files may be broken.
        """
        self.look()
        stages: Stages = {}
        with suppress(YAMLError, KeyError, TypeError):
            stages = dict(YAML(typ="safe").load(self._lock)["stages"])
        return {**self._began, "stages": stages, "final": (self._folder / "dvc.lock").exists()}


def _as_dvc_begins(folder: Path) -> dict[str, list[str]]:
    """`names` and `unchanged` of `Graph.found`; what other stages made is taken for unchanged."""
    from dvc.repo import Repo

    # no lock is taken, and no walk looks for other files like dvc.yaml
    with (
        TemporaryDirectory() as own,
        Repo(folder, config={"core": {"no_scm": True, "site_cache_dir": own}}) as repo,
    ):
        stages = repo.stage.load_all(str(folder / "dvc.yaml"))
        outs = [out.fs_path for stage in stages for out in stage.outs]
        changed = {
            stage.name
            for stage in stages
            for dep in stage.deps
            if not any(_same_place(dep.fs_path, out) for out in outs)
            and (dep.meta.size or 0) <= HASHED
            and dep.workspace_status()
        }
    names = [stage.name for stage in stages]
    return {"names": names, "unchanged": sorted({*names} - changed)}


def _same_place(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def reused(graph: dict[str, Any], ran: dict[str, str]) -> set[str]:
    """The stages of `Graph.found` without a run whose outputs are what dvc would have made.

    `ran` has the status of the runs below the dvc process, by stage.
    """
    stages: Stages = graph.get("stages", {})
    known: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False  # for a circle, which DVC would have refused
            untouched = name not in ran and name in graph["unchanged"] and fits(name)
            known[name] = untouched or ran.get(name) == "FINISHED"
        return known[name]

    def fits(name: str) -> bool:
        return all(
            holds(other) and (dep["path"] != out["path"] or dep.get("md5") == out.get("md5"))
            for dep in stages[name].get("deps", [])
            for other, stage in stages.items()
            for out in stage.get("outs", [])
            if other != name and _same_place(dep["path"], out["path"])
        )

    return {name for name in stages if name not in ran and holds(name)}


def close_parent(store: "Store", parent: Parent) -> None:
    """Give the parent its table, the test metrics of all models, and its status."""
    from mlflow.entities import Metric

    below, graph = store.find("mlflow.parentRunId", parent.run_id), parent.graph
    # not what an evaluation put beside itself; of two runs of a stage the later one is a training
    # that the stage started
    children = {
        run.data.tags["dvc.stage"]: run
        for run in reversed(below)
        if "dvc.stage" in run.data.tags and "beside" not in run.data.tags
    }
    ran = {name: run.info.status for name, run in children.items()}
    again, stages = reused(graph, ran), graph.get("stages", {})
    names = list(dict.fromkeys([*graph.get("names", []), *stages, *children]))
    rows, metrics = [], dict[str, float]()
    for name in names:
        outs = stages.get(name, {}).get("outs", [])
        if name not in ran and name not in again:
            rows.append(f"| {name} | not run | | | | |")
            continue
        run = children.get(name) or _maker(store, outs)
        what = {"FINISHED": "ran", None: "reused"}.get(ran.get(name), "failed")
        rows.append(_row(store, name, what, outs, run))
        if run and (prefix := run.data.tags.get("summary")):
            own = {k: v for k, v in run.data.metrics.items() if k.startswith("test/")}
            metrics |= {f"{prefix}/{key}": value for key, value in own.items()}
    head = "| stage | what | run | output | metric | seconds |\n|---|---|---|---|---|---:|\n"
    ends = [run.info.end_time for run in children.values() if run.info.end_time]
    end = parent.end or max(ends, default=now())
    known = store.client.get_run(parent.run_id).data.metrics
    points = [Metric(k, v, end, 0) for k, v in sorted(metrics.items()) if known.get(k) != v]
    store.log(parent.run_id, points, tags={NOTE: head + "\n".join(rows)})
    store.close(parent.run_id, _status(parent, ran, {*names} - {*ran} - again), end)


def _status(parent: Parent, ran: dict[str, str], left: set[str]) -> str:
    """How a dvc process ended: its own exit status only its parent process knows."""
    if "FAILED" in ran.values():
        return "FAILED"
    if {*ran.values()} != {"FINISHED"}:
        return "KILLED"
    # one that died before it could log, where all were asked for
    stopped = parent.graph.get("final") and left and not _targets(parent.begin)
    return "FAILED" if stopped else "FINISHED"


def _targets(begin: Begin) -> list[str]:
    """The stages that dvc was asked for; none stands for all."""
    from dvc.cli import DvcParserError, parse_args

    try:
        given = parse_args(begin.dvc["command"][1:])
    except (DvcParserError, SystemExit):
        return ["?"]
    return getattr(given, "targets", ["?"])  # a queue's worker does not say


def _row(
    store: "Store", name: str, what: str, outs: list[dict[str, Any]], run: "Run | None"
) -> str:
    output = ", ".join(f"`{out['path']}` {out.get('md5', '')[:8]}" for out in outs[:2])
    metric = seconds = ""
    if run:
        headlines = dict.fromkeys(task.about.headline for task in tasks())
        wanted = [f"{split}/{one}" for split in ("test", "validation") for one in headlines]
        main = [key for key in wanted if key in run.data.metrics]
        metric = f"{main[0]} {run.data.metrics[main[0]]:.4f}" if main else ""
        if run.info.end_time:
            seconds = f"{(run.info.end_time - run.info.start_time) / 1000:.1f}"
    shown = store.link(run) if run else "not on this store"
    return f"| {name} | {what} | {shown} | {output} | {metric} | {seconds} |"


def _maker(store: "Store", outs: list[dict[str, Any]]) -> "Run | None":
    """The newest run that wrote one of the outputs, byte for byte."""
    for out in outs:
        if found := store.find(f"output.{out['path']}", out.get("md5", "")):
            return found[-1]
    return None
