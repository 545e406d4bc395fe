"""What a dvc process was to do and what came of it: dvc.yaml as DVC reads it, and dvc.lock."""

import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

Needs = dict[str, list[str]]
"""The stages in the order in which DVC comes to them, each with all that have to be done before."""

WHOLE = re.compile(r"dvc (repro|exp run)( (-f|--force|--temp|(-S|--set-param|-n|--name)[ =]\S+))*")
"""Commands that come to every stage and stop at the first that fails."""


class Graph:
    """What DVC reads and writes, as it was last seen: a temporary copy may be gone at the end."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / name for name in ("dvc.yaml", "params.yaml", "dvc.lock")]
        self._seen: dict[Path, tuple[tuple[int, int], bytes]] = {}

    def look(self) -> None:
        """Read what has changed; parsing it here would take a fifth of a core."""
        for path in self._paths:
            with suppress(OSError):
                now = path.stat()
                version = now.st_mtime_ns, now.st_size
                if path not in self._seen or self._seen[path][0] != version:
                    self._seen[path] = version, path.read_bytes()

    def found(self) -> dict[str, Any]:
        """`needs`; `stages`, those of dvc.lock; `final`, whether dvc.lock is still there.

        Takes half a second. What can't be read is left out: the files may be broken, and DVC's
        insides, which nobody promises, may move.
        """
        files = {path.name: content for path, (_, content) in self._seen.items()}
        found: dict[str, Any] = {"needs": {}, "stages": {}, "final": self._paths[-1].exists()}
        with suppress(yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            lock = yaml.safe_load(files.pop("dvc.lock", b"")) or {"stages": {}}
            found["stages"] = dict(lock["stages"])
        with suppress(Exception):
            found["needs"] = _needs(files)
        return found


def _needs(files: dict[str, bytes]) -> Needs:
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / ".dvc").mkdir()
        config = {"core": {"no_scm": True, "site_cache_dir": folder}}
        with Repo(folder, config=config) as repo:
            graph = get_active_graph(repo.index.graph)
            needs: Needs = {}
            for stage in plan_repro(graph):
                near = [one.name for one in graph.successors(stage)]
                needs[stage.name] = sorted({*near, *(far for one in near for far in needs[one])})
            return needs


def passed(needs: Needs, ran: set[str], whole: bool) -> set[str]:
    """The stages that DVC must have found in order when the last of `ran` began.

    Those that one of them needs; of a whole repro all that DVC comes to before.
    """
    before = {name for stage in ran for name in needs.get(stage, [])}
    if whole and (last := [place for place, name in enumerate(needs) if name in ran]):
        before |= {*list(needs)[: last[-1]]}
    return before


def outdated(needs: Needs, stages: dict[str, Any]) -> set[str]:
    """Stages that dvc.lock lacks or that read what it has no more, and all that come after them."""
    found: set[str] = set()
    for name, before in needs.items():
        outs = [out for one in before for out in stages.get(one, {}).get("outs", [])]
        made = {out["path"]: out.get("md5") for out in outs}
        deps = stages.get(name, {}).get("deps", [])
        old = any(made.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in deps)
        if name not in stages or old or found & {*before}:
            found.add(name)
    return found
