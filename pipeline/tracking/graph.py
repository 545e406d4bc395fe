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
        self._seen: dict[Path, tuple[int, str]] = {}

    def look(self) -> None:
        """Read what has changed; parsing it here would take a fifth of a core."""
        for path in self._paths:
            with suppress(OSError):
                changed = path.stat().st_mtime_ns
                if self._seen.get(path, (0, ""))[0] != changed:
                    self._seen[path] = changed, path.read_text(encoding="utf-8")

    def found(self) -> dict[str, Any]:
        """`needs`; `stages`, those of dvc.lock; `final`, whether those are of the very end.

        Takes half a second. Empty where DVC does not understand the files either, or has moved what
        is asked of it.
        """
        from dvc.exceptions import DvcException

        texts = {path.name: text for path, (_, text) in self._seen.items()}
        try:
            lock = yaml.safe_load(texts.pop("dvc.lock", "")) or {"stages": {}}
            return {
                "needs": _needs(texts),
                "stages": dict(lock["stages"]),
                "final": self._paths[-1].exists(),
            }
        except (
            DvcException, ImportError, OSError, yaml.YAMLError, AttributeError, KeyError, TypeError,
        ):  # fmt: skip
            return {}


def _needs(texts: dict[str, str]) -> Needs:
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
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


def is_unfinished(needs: Needs, stages: dict[str, Any]) -> bool:
    """Whether dvc.lock lacks a stage, or has one that read something older than it has now."""
    for name, before in needs.items():
        if name not in stages:
            return True
        made = {
            out["path"]: out.get("md5")
            for one in before
            for out in stages.get(one, {}).get("outs", [])
        }
        read = {dep["path"]: dep.get("md5") for dep in stages[name].get("deps", [])}
        if any(made[path] != read[path] for path in made.keys() & read.keys()):
            return True
    return False
