"""`params.yaml` in front of the command line, Hydra behind it, a schema at the end.

A stage's values come, the later the stronger, from `conf/base.yaml` and the groups it names, from
`conf/<stage>.yaml`, from the sections `common` and `<stage>` of `params.yaml`, and from the command
line. The two sections are handed to Hydra as overrides in front of the user's own, so `--multirun`,
`--cfg job` and `dvc exp run -S` all see one and the same config.
"""

import os
import re
import sys
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline import conf_files, hydra_guard, yaml_files
from pipeline.checks import refuse_shared_names
from pipeline.environment import Environment, References, register_tasks, with_references
from pipeline.errors import PipelineError
from pipeline.schema import known, unknown
from pipeline.streams import make_safe
from pipeline.task import tasks

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Written:
    """A config as it may be written down: what came from the environment stays a reference."""

    config: dict[str, Any]
    conceal: Callable[[str], str]
    """Puts references in the place of the values in a text."""


def main(stage: str, schema: type[S], body: Callable[[S, Written], Any]) -> None:
    """Compose and check the config of `stage`, then call `body` with it, once per Hydra job.

    `body` gets the settings, and what of them may be written down.

    The working directory becomes the repository's root, so relative paths mean the same from
    everywhere. A PipelineError is printed as one line; the process then exits with status 1.
    """
    make_safe()
    os.chdir(conf_files.ROOT)
    # Hydra would print its own report, without the file a value came from, and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(config: DictConfig) -> Any:
        # again: a sweep's job may have a process of its own
        make_safe()
        taken = Environment()
        try:
            settings, references = check(config, stage, schema, command_line, taken)
            written = with_references(settings.model_dump(), references)
            return body(settings, Written(written, taken.conceal))
        except PipelineError as error:
            message = taken.conceal(str(error))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise PipelineError(message) from None  # Hydra adds which job of the sweep it was
            fail(message)

    command_line: list[str] = []
    environment = Environment()
    hydra_guard.install()
    try:
        _register()
        conf_files.refuse_unreadable()
        arguments = sys.argv[1:]
        command_line = hydra_guard.overrides_of(arguments)
        chosen = _without(conf_files.overrides(stage), command_line)
        # in front of the user's first: argparse takes overrides in one piece only
        at = arguments.index(command_line[0]) if command_line else len(arguments)
        given = [_forced(one) if one in command_line else one for one in arguments[at:]]
        sys.argv[1:] = [*arguments[:at], *map(_forced, chosen), *given]
        hydra.main(version_base="1.3", config_path=str(conf_files.CONF), config_name=stage)(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        fail(environment.conceal(explain(error, stage, schema, command_line)))
    except PipelineError as error:
        fail(str(error))


def fail(message: str) -> typing.NoReturn:
    """Print one line and exit with status 1."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(1)


def check(
    config: DictConfig, stage: str, schema: type[S], argv: list[str], environment: Environment
) -> tuple[S, References]:
    """The composed config as an instance of `schema`; and what of it depends on a variable.

    Raises:
        PipelineError: a key is unknown, missing, of a wrong type or out of range; the message
            names the key, where its value came from and, for an unknown one, the nearest name.
    """
    choices = dict(HydraConfig.get().runtime.choices)
    try:
        values, references = environment.resolve(config)
    except OmegaConfBaseException as error:
        raise PipelineError(explain(error, stage, schema, argv, choices)) from error
    try:
        return schema.model_validate(values), references
    except ValidationError as error:
        # A misspelt key is missing as well, and only the misspelling tells why.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        kind, path = first["type"], _present(values, first["loc"])
        if kind == "missing":
            path.append(str(first["loc"][-1]))
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            path.append(first["ctx"]["discriminator"].strip("'"))
        key, where = conf_files.origin(path, stage, argv, choices)
        place = f"{key} ({where})"
        if kind == "extra_forbidden":
            section = f"{stage}." if where.startswith(conf_files.PARAMS.name) else ""
            raise PipelineError(f"{place} {unknown(path, schema, section)}") from None
        if kind in ("missing", "union_tag_not_found"):
            setting = ".".join(path)
            if not conf_files.is_group(path[0]):
                section = conf_files.section(setting, stage)
                setting = f"{section}.{setting} in {conf_files.PARAMS.name} or {setting}"
            raise PipelineError(
                f"{place} has no value; set {setting} on the command line"
            ) from None
        at = next((at for at in references if path[: len(at)] == [*map(str, at)]), None)
        if kind == "union_tag_invalid":
            tag = references[at] if at else first["ctx"]["tag"]
            tags = first["ctx"]["expected_tags"]
            raise PipelineError(f"{place} is {tag!r}; it may be {tags}") from None
        given = references[at] if at else first["input"]
        value = "" if isinstance(given, dict) else f" is {given!r}:"
        raise PipelineError(f"{place}{value} {first['msg']}") from None


def explain(
    error: Exception,
    stage: str,
    schema: type[BaseModel],
    argv: list[str],
    choices: dict[str, Any] | None = None,
) -> str:
    """One line for what Hydra or OmegaConf raised while composing; `choices` are the groups'."""
    # a file's own fault comes first; to load them all takes too long while nothing is wrong
    for file in sorted(conf_files.CONF.rglob("*.yaml")):
        try:
            yaml_files.load(file)
        except PipelineError as fault:
            return str(fault)
    if isinstance(error, yaml.YAMLError | RecursionError):
        raise error

    def place(key: str) -> str:
        return "{} ({})".format(*conf_files.origin(_steps(key), stage, argv, choices or {}))

    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and not str(error):  # wrapped without a word
        error = cause
    text = str(error)
    reason = text.partition("\n")[0]
    if isinstance(error, MissingConfigException):
        absent = str(error.missing_cfg_file)
        if error.options is None:  # no group's
            return f"conf/{absent}.yaml is missing; restore it, or correct what names it ({reason})"
        *steps, value = absent.split("/", 2 if absent.startswith("hydra/") else 1)
        group = "/".join(steps)
        return f"{place(group)} {conf_files.no_choice(group, value, error.options)}"
    if key := getattr(error, "full_key", None):
        return f"{place(key)} has no value: {reason}; correct the ${{…}} or what it refers to"
    # the rest Hydra says in sentences only, in which stands what could not be set
    if found := re.search(r"Error merging override \+*([^=\s]+)=", text):
        reason = str(cause).partition("\n")[0]  # its key may be that within a list or mapping
        return f"{place(found[1])} is malformed: {reason}; correct it"
    if found := re.search(r"(not override|not delete|must specify)[^']*'([^'=]+)", text):
        what, key = found.groups()
        if not known(_steps(key), schema):
            return f"{place(key)} {unknown(_steps(key), schema)}"
        if what == "not delete":
            return f"{place(key)} can't be deleted; give it a value"
        if what == "not override":
            return f"{place(key)} is not in conf/{stage}.yaml nor conf/base.yaml; add it there"
        setting, names = f"{conf_files.section(key, stage)}.{key}", conf_files.choices(key)
        return (
            f"{place(key)} is not chosen; set {setting} in params.yaml to one of: "
            f"{', '.join(names)}"
        )
    ours = isinstance(error, OverrideParseException) or any(one in text for one in argv)
    return f"command line: {text}" if ours else text


def _register() -> None:
    """Tell Hydra and OmegaConf what conf/ does not spell out: the tasks, and where outputs go."""
    OmegaConf.register_new_resolver("output", _output, replace=True)
    register_tasks()
    refuse_shared_names()
    groups = [{task.about.data: MISSING} for task in tasks()]
    ConfigStore.instance().store("sources", {"defaults": groups})


def _output(path: str) -> str:
    """`${output:path}`: the path itself; in a sweep, a path in the job's own folder.

    DVC's outputs belong to the one config that params.yaml chose, so the jobs of a sweep must not
    write there.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return path
    # Not `runtime.output_dir`, which does not show that it depends on a variable.
    folder = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    return os.path.relpath(folder / path, conf_files.ROOT)


def _forced(override: str) -> str:
    """Set a value whether or not conf/ has the key, so that the schema speaks of unknown ones."""
    bare = override.lstrip("+")
    key = bare.partition("=")[0]
    if key[:1] == "~" or key.startswith("hydra"):
        return override
    return bare if conf_files.is_group(key) else f"++{bare}"


def _steps(key: str) -> list[str]:
    """The steps of a key as OmegaConf writes it: `optimizer.betas[1]`."""
    return re.split(r"[.\[]", key.replace("]", ""))


def _without(chosen: list[str], argv: list[str]) -> list[str]:
    """Leave out what the user overrides too, so that a sweep does not hold a key twice.

    Raises:
        PipelineError: the user chooses what can't be a file of a group.
    """
    given = set()
    for override in OverridesParser.create().parse_overrides(argv):
        key, value = override.key_or_group, override.value()
        given.add(key)
        if override.is_delete() and value is None:
            continue
        for one in value.list if isinstance(value, ChoiceSweep) else [value]:
            choice = getattr(one, "text", one)  # of a quoted string
            if not conf_files.may_choose(key, choice):
                fault = conf_files.no_choice(key, choice, conf_files.choices(key))
                raise PipelineError(f"{key} (command line) {fault}")
    return [one for one in chosen if one.split("=", 1)[0] not in given]


def _present(values: Any, path: tuple[int | str, ...]) -> list[str]:
    """The steps of a pydantic location that exist in the config (union tags do not)."""
    found: list[str] = []
    for step in path:
        with suppress(LookupError, TypeError):  # of a value that has no such step
            values = values[step]
            found.append(str(step))
    return found
