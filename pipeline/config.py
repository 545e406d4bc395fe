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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline import hydra_guard, yaml_files
from pipeline.environment import Environment, References, register_tasks, with_references
from pipeline.errors import PipelineError
from pipeline.schema import known, suggest, unknown
from pipeline.settings import Stage
from pipeline.streams import make_safe
from pipeline.task import refuse_shared_names, tasks

ROOT = Path(__file__).resolve().parent.parent
"""The working copy this code stands in; for `dvc exp run --temp` and `--queue` a temporary one."""
CONF = ROOT / "conf"
PARAMS = ROOT / "params.yaml"

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Written:
    """A config as it may be written down: what came from the environment stays a reference."""

    config: dict[str, Any]
    conceal: Callable[[str], str]
    """Puts references in the place of the values in a text."""


def main(stage: str, schema: type[S], task: Callable[[S, Written], Any]) -> None:
    """Compose and check the config of `stage`, then call `task` with it, once per Hydra job.

    `task` gets the settings, and what of them may be written down.

    The working directory becomes the repository's root, so relative paths mean the same from
    everywhere. A PipelineError is printed as one line; the process then exits with status 1.
    """
    make_safe()
    os.chdir(ROOT)
    # Hydra would print its own report, without the file a value came from, and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(config: DictConfig) -> Any:
        make_safe()  # a sweep's job may be in a process of its own
        taken = Environment()  # anew: a job of a sweep may have a process of its own
        try:
            settings, references = check(config, stage, schema, command_line, taken)
            written = with_references(settings.model_dump(), references)
            return task(settings, Written(written, taken.conceal))
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
        read_conf()
        arguments = sys.argv[1:]
        command_line = hydra_guard.overrides_of(arguments)
        chosen = _without(overrides(stage), command_line)
        at = arguments.index(command_line[0]) if command_line else len(arguments)
        given = [_forced(one) if one in command_line else one for one in arguments[at:]]
        sys.argv[1:] = [*arguments[:at], *map(_forced, chosen), *given]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=stage)(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        fail(environment.conceal(explain(error, stage, schema, command_line)))
    except PipelineError as error:
        fail(str(error))


def fail(message: str) -> typing.NoReturn:
    """Print one line and exit with status 1."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(1)


def overrides(stage: str) -> list[str]:
    """The sections `common` and `stage` of params.yaml as Hydra overrides.

    A plain value under a group's name chooses a file of that group; anything else sets a value.
    Types survive: null, booleans, numbers, lists, and strings with blanks, quotes or commas.

    Raises:
        PipelineError: params.yaml or conf/<stage>.yaml is missing, or params.yaml can't be read or
            has a section or kind of value that no stage reads.
    """
    for file in (PARAMS, CONF / f"{stage}.yaml"):
        if not file.exists():
            named = f", or correct the stage's name, {stage!r}" if file != PARAMS else ""
            raise PipelineError(
                f"{yaml_files.name(file)} is missing in {ROOT}; restore it from git{named}"
            )
    params = yaml_files.load(PARAMS)
    if not isinstance(params, dict):
        raise PipelineError(f"{PARAMS.name} must map section names to values")
    sections = ["common", *(file.stem for file in CONF.glob("*.yaml") if file.stem != "base")]
    for section in map(str, params):
        if section not in sections:
            raise PipelineError(
                f"{section} ({yaml_files.where(PARAMS, [section])}) has no conf/{section}.yaml and "
                f"is not a stage{suggest(section, sections)}"
            )
    found: dict[str, str] = {}
    for section in ("common", stage):
        for key, value in _leaves(params.get(section) or {}, section):
            try:
                if not _may_choose(key, value):
                    raise TypeError(_no_choice(key, value))
                found[key] = f"{key}={_literal(value)}"
            except TypeError as error:
                where = yaml_files.where(PARAMS, [section, *key.split(".")])
                raise PipelineError(f"{section}.{key} ({where}) {error}") from None
    return list(found.values())


def read_conf() -> None:
    """Look through conf/ before Hydra does.

    Raises:
        PipelineError: a file can't be read, is not YAML, or is too large.
    """
    for file in sorted(CONF.rglob("*.yaml")):
        root = yaml_files.compose(file)
        if not isinstance(root, yaml.MappingNode | None):
            raise PipelineError(f"{yaml_files.name(file)} must map names to values")


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
        key, where = _origin(path, stage, argv, choices)
        place = f"{key} ({where})"
        if kind == "extra_forbidden":
            section = f"{stage}." if where.startswith(PARAMS.name) else ""
            raise PipelineError(f"{place} {unknown(path, schema, section)}") from None
        if kind in ("missing", "union_tag_not_found"):
            setting = ".".join(path)
            if not _is_group(path[0]):
                setting = f"{_section(setting, stage)}.{setting} in {PARAMS.name} or {setting}"
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
    for file in sorted(CONF.rglob("*.yaml")):
        try:
            yaml_files.load(file)
        except PipelineError as fault:
            return str(fault)
    if isinstance(error, yaml.YAMLError | RecursionError):
        raise error

    def place(key: str) -> str:
        return "{} ({})".format(*_origin(_steps(key), stage, argv, choices or {}))

    text, full_key = str(error), getattr(error, "full_key", None)
    if found := re.search(r"Could not (?:override|append|delete)\D*?'([^']+)'", text):
        key = found[1]
        if not known(_steps(key), schema):
            return f"{place(key)} {unknown(_steps(key), schema)}"
        if "delete" in found[0]:
            return f"{place(key)} can't be deleted; give it a value"
        return f"{place(key)} is not in conf/{stage}.yaml nor conf/base.yaml; add it there"
    if found := re.search(r"Could not find '((?:hydra/)?[^'/]+)/([^']*)'", text):
        return f"{place(found[1])} {_no_choice(found[1], found[2])}"
    if found := re.search(r"In '([^']+)': Could not load '([^']+)'", text):
        return f"conf/{found[1]}.yaml needs conf/{found[2]}.yaml, which is missing; restore it"
    if found := re.search(r"You must specify '([^']+)'", text):
        key, names = found[1], ", ".join(_choices(found[1]))
        setting = f"{_section(key, stage)}.{key}"
        return f"{place(key)} is not chosen; set {setting} in params.yaml to one of: {names}"
    if found := re.search(r"Error merging override \+*([^=\s]+)=", text):
        reason = str(error.__cause__).partition("\n")[0]
        return f"{place(found[1])} is malformed: {reason}; correct it"
    if full_key:
        reason = text.partition("\n")[0]
        return f"{place(full_key)} has no value: {reason}; correct the ${{…}} or what it refers to"
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
    return os.path.relpath(folder / path, ROOT)


def _section(key: str, stage: str) -> str:
    """The section of params.yaml that a setting belongs in."""
    return "common" if key.partition(".")[0] in Stage.model_fields else stage


def _choices(group: str) -> list[str]:
    """What there is to choose under conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _forced(override: str) -> str:
    """Set a value whether or not conf/ has the key, so that the schema speaks of unknown ones."""
    key = override.partition("=")[0]
    plain = key[:1] not in "+~" and not key.startswith("hydra") and not _is_group(key)
    return f"++{override}" if plain else override


def _is_group(key: str) -> bool:
    return "/" in key or "@" in key or (CONF / key).is_dir()


def _may_choose(key: str, value: Any) -> bool:
    """Whether `value` may name a file of the group `key`; what is no group may have any value."""
    if not _is_group(key):
        return True
    return isinstance(value, Glob) or (isinstance(value, str) and "${" not in value)


def _no_choice(group: str, value: Any) -> str:
    """The end of the message for a value that names no file of a group."""
    return f"is {value!r}, and conf/{group} has only: {', '.join(_choices(group))}"


def _steps(key: str) -> list[str]:
    """The steps of a key as OmegaConf writes it: `optimizer.betas[1]`."""
    return re.split(r"[.\[]", key.replace("]", ""))


def _leaves(section: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(section, dict):
        raise PipelineError(f"{name} ({yaml_files.where(PARAMS, [name])}) must be a mapping")
    for key, value in section.items():
        if isinstance(value, dict) and value:
            for below, leaf in _leaves(value, str(key)):
                yield f"{key}.{below}", leaf
        else:
            yield str(key), value


def _literal(value: Any) -> str:
    """A value in Hydra's override grammar.

    Raises:
        TypeError: the grammar has no such kind of value; the message is the end of a sentence.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{_literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        raise TypeError(f"is {value!r}; write a string, number, boolean, list or null")
    # In a quoted string only quotes, and the backslashes right before one, are escaped.
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), value)
    return f"'{text}'"


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
            if not _may_choose(key, choice):
                raise PipelineError(f"{key} (command line) {_no_choice(key, choice)}")
    return [one for one in chosen if one.split("=", 1)[0] not in given]


def _present(values: Any, path: tuple[int | str, ...]) -> list[str]:
    """The steps of a pydantic location that exist in the config (union tags do not)."""
    found: list[str] = []
    for step in path:
        if isinstance(values, dict) and step in values:
            values = values[step]
            found.append(str(step))
        elif isinstance(values, list) and isinstance(step, int):
            found.append(str(step))
            values = values[step]
    return found


def _origin(
    path: list[str], stage: str, argv: list[str], choices: dict[str, Any]
) -> tuple[str, str]:
    """How a user would write a key, and where its value was set: the strongest source first."""
    key = ".".join(path)
    for override in argv:
        name = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        if name in choices and key != name:
            continue  # it chose the file that holds the value
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return key, "command line"
    for section in (stage, "common"):
        if where := yaml_files.line(PARAMS, [section, *path]):
            return f"{section}.{key}", f"{PARAMS.name}:{where}"
    files = []
    if path and isinstance(choices.get(path[0]), str):
        files.append((CONF / path[0] / f"{choices[path[0]]}.yaml", path[1:]))
    files += [(CONF / f"{stage}.yaml", path), (CONF / "base.yaml", path)]
    for file, inner in files:
        if inner and (where := yaml_files.line(file, inner)):
            return key, f"{yaml_files.name(file)}:{where}"
    return key, yaml_files.name(files[0][0])
