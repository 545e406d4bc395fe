"""Values that a config takes from environment variables: used by the run, never written down.

`${oc.env:NAME}` may hold a password or a person's folder under any key, so what is logged has the
reference in the value's place.
"""

import os
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from pipeline.errors import PipelineError
from pipeline.task import find, tasks

References = dict[tuple[Any, ...], Any]
"""What a config says at the keys, each a path of steps, whose values depend on a variable."""

SHORTEST = 4
"""Characters of a value that `conceal` seeks in a text: any text has the shorter ones."""


class Environment:
    """What one config took from the environment."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # of each value
        self._taken = 0
        OmegaConf.register_new_resolver("oc.env", self._env, replace=True)

    def resolve(self, config: DictConfig) -> tuple[dict[str, Any], References]:
        """The values of a config; and, for the keys that depend on a variable, what it says there.

        Keys without a value, `???`, are left out.

        Raises:
            OmegaConfBaseException: a value refers to what is not there.
        """
        references: References = {}

        def items(parent: DictConfig, written: dict[Any, Any], path: Any) -> dict[Any, Any]:
            there = {k: one for k, one in written.items() if not OmegaConf.is_missing(parent, k)}
            return {k: value(parent, k, inner, (*path, k)) for k, inner in there.items()}

        def value(parent: DictConfig | ListConfig, key: Any, written: Any, path: Any) -> Any:
            taken, found = self._taken, parent[key]
            if isinstance(written, dict):
                return items(found, written, path)
            if isinstance(written, list):
                return [value(found, i, inner, (*path, i)) for i, inner in enumerate(written)]
            if OmegaConf.is_config(found):  # `${…}` of a whole section
                found = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
            if self._taken > taken:
                references[path] = written
            return found

        written: Any = OmegaConf.to_container(config)
        return items(config, written, ()), references

    def conceal(self, text: str) -> str:
        """The text with references in the place of the values."""
        for value in sorted(self._names, key=len, reverse=True):
            if len(value) >= SHORTEST:
                text = text.replace(value, f"${{oc.env:{self._names[value]}}}")
        return text

    def _env(self, name: str, *default: Any) -> str | None:
        if name in os.environ:
            self._names[os.environ[name]] = name
            self._taken += 1
        return oc.env(name, *default)


def with_references(values: dict[str, Any], references: References) -> Any:
    """A copy of the values in which what depends on a variable is as it was written."""

    def copy(value: Any, path: tuple[Any, ...]) -> Any:
        if path in references:
            return references[path]
        if isinstance(value, dict):
            return {key: copy(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [copy(inner, (*path, i)) for i, inner in enumerate(value)]
        return value

    return copy(values, ())


def resolved(logged: dict[str, Any]) -> dict[str, Any]:
    """The values of a logged config, its references taken from this environment.

    Raises:
        PipelineError: a variable is not set.
    """
    OmegaConf.register_new_resolver("output", lambda path: path, replace=True)  # of no sweep
    register_tasks()
    try:
        values, _ = Environment().resolve(OmegaConf.create(logged))
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise PipelineError(
            f"{error.full_key}: {reason}; set the variable to what it was, and try again"
        ) from error
    return values


def register_tasks() -> None:
    """Let conf/ ask what there is to train: `${task:<model>,data}` and `stage`, and `${tasks:}`."""

    def name(model: str, what: str) -> str:
        try:
            return str(getattr(find(model=model).about, what))
        except LookupError:
            return model  # the check of the settings says that there is no such model

    def sets() -> DictConfig:  # a dict `--cfg job --resolve` does not take
        return DictConfig({task.about.model: f"data/{task.about.data}" for task in tasks()})

    OmegaConf.register_new_resolver("task", name, replace=True)
    OmegaConf.register_new_resolver("tasks", sets, replace=True)
