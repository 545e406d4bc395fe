"""`params.yaml` in front of the command line, Hydra behind it, a schema at the end.

A stage's values come, the later the stronger, from `conf/base.yaml` and the groups it names, from
`conf/<stage>.yaml`, from the sections `common` and `<stage>` of `params.yaml`, and from the command
line. The two sections are handed to Hydra as overrides in front of the user's own, so `--multirun`,
`--cfg job` and `dvc exp run -S` all see one and the same config.
"""

import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
"""The working copy this code stands in; for `dvc exp run --temp` and `--queue` a temporary one."""
CONF = ROOT / "conf"
PARAMS = ROOT / "params.yaml"


CSafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if built

S = TypeVar("S", bound=BaseModel)


def main(stage: str, schema: type[S], task: Callable[[S], Any]) -> None:
    """Compose and check the config of `stage`, then call `task` with it, once per Hydra job.

    The working directory becomes the repository's root, so relative paths mean the same from
    everywhere. A PipelineError is printed as one line; the process then exits with status 1.
    """
    os.chdir(ROOT)
    # Hydra would print its own report, without the file a value came from, and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(config: DictConfig) -> Any:
        try:
            return task(check(config, stage, schema, command_line))
        except PipelineError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra adds which job of the sweep it was
            fail(str(error))

    command_line: list[str] = []
    OmegaConf.register_new_resolver("output", _output, replace=True)
    try:
        read_conf()
        arguments = sys.argv[1:]
        command_line = get_args_parser().parse_args(arguments).overrides
        chosen = _without(overrides(stage, schema), command_line)
        at = arguments.index(command_line[0]) if command_line else len(arguments)
        sys.argv[1:] = [*arguments[:at], *chosen, *arguments[at:]]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=stage)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, stage, schema, command_line))
    except PipelineError as error:
        fail(str(error))


def fail(message: str) -> typing.NoReturn:
    """Print one line and exit with status 1."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(1)


def overrides(stage: str, schema: type[BaseModel]) -> list[str]:
    """The sections `common` and `stage` of params.yaml as Hydra overrides.

    A plain value under a group's name chooses a file of that group; anything else sets a value.
    Types survive: null, booleans, numbers, lists, and strings with blanks, quotes or commas.

    Raises:
        PipelineError: params.yaml is missing, is not YAML, or has a section or key that no stage
            reads.
    """
    try:
        params = OmegaConf.to_container(OmegaConf.load(PARAMS))
    except FileNotFoundError:
        raise PipelineError(f"{PARAMS.name} is missing in {ROOT}; restore it from git") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise PipelineError(f"{PARAMS.name} is not valid YAML: {error}") from error
    if not isinstance(params, dict):
        raise PipelineError(f"{PARAMS.name} must map section names to values")
    sections = ["common", *(file.stem for file in CONF.glob("*.yaml") if file.stem != "base")]
    for section in map(str, params):
        if section not in sections:
            raise PipelineError(
                f"{section} ({_where(PARAMS, [section])}) is not a stage"
                f"{_suggest(section, sections)}"
            )
    found: dict[str, str] = {}
    for section in ("common", stage):
        for key, value in _leaves(params.get(section) or {}, section):
            path = key.split(".")
            if not _known(path, schema):
                label, where = f"{section}.{key}", _where(PARAMS, [section, *path])
                raise PipelineError(_unknown(label, where, path, schema))
            if isinstance(value, str) and (CONF / key).is_dir():
                found[key] = f"{key}={value}"
            else:
                found[key] = f"{key}={_literal(value)}"
    return list(found.values())


def read_conf() -> None:
    """Look through conf/ before Hydra does.

    Hydra calls what a file names under `hydra.callbacks` or as a logging handler; its own list of
    forbidden names can't be complete, so no file here may name anything to call.

    Raises:
        PipelineError: a file is not YAML, or names something to call or other places of config.
    """
    for file in sorted(CONF.rglob("*.yaml")):
        where = file.relative_to(CONF.parent)
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=CSafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PipelineError(f"{where} is not valid YAML: {error}") from error
        if not isinstance(root, yaml.MappingNode | None):
            raise PipelineError(f"{where} must map names to values")
        for key in _keys(root):
            if key.value in ("_target_", "()", "searchpath"):
                raise PipelineError(
                    f"{where}:{key.start_mark.line + 1} says {key.value!r}, and config may not "
                    "name code or other places of config; remove it"
                )


def _keys(root: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Every key in a YAML document; an alias may lead back to what it stands in."""
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    yield key
                left.append(value)
        elif isinstance(node, yaml.SequenceNode):
            left += node.value


def check(config: DictConfig, stage: str, schema: type[S], argv: list[str]) -> S:
    """The composed config as an instance of `schema`.

    Raises:
        PipelineError: a key is unknown, missing, of a wrong type or out of range; the message
            names the key, where its value came from and, for an unknown one, the nearest name.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise PipelineError(explain(error, stage, schema, argv)) from error
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = _present(values, first["loc"])
        choices = HydraConfig.get().runtime.choices
        label, where = _origin(path, stage, argv, dict(choices))
        if first["type"] == "extra_forbidden":
            raise PipelineError(_unknown(label, where, path, schema)) from None
        if first["type"] == "missing":
            missing = ".".join([label, str(first["loc"][-1])]) if path else str(first["loc"][-1])
            raise PipelineError(f"{missing} ({where}) is missing; give it a value") from None
        value = "" if isinstance(first["input"], dict) else f" is {first['input']!r}:"
        raise PipelineError(f"{label} ({where}){value} {first['msg']}") from None


def explain(error: Exception, stage: str, schema: type[BaseModel], argv: list[str]) -> str:
    """One line for what Hydra or OmegaConf raised while composing."""
    text = str(error)
    if key := re.search(r"Could not (?:override|append) '([^']+)'", text):
        path = key[1].split(".")
        label, where = _origin(path, stage, argv, {})
        return _unknown(label, where, path, schema)
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, choice = option.groups()
        label, where = _origin([group], stage, argv, {})
        names = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        return f"{label} ({where}) is {choice!r}, and conf/{group} has only: {', '.join(names)}"
    if group := re.search(r"You must specify '([^']+)'", text):
        return f"{group[1]} is not chosen; set {stage}.{group[1]} in params.yaml"
    if key := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{key[1]} has no value; set {stage}.{key[1]} in params.yaml or on the command line"
    return f"command line: {text}" if isinstance(error, OverrideParseException) else text


def _output(path: str) -> str:
    """`${output:path}`: the path itself; in a sweep, a path in the job's own folder.

    DVC's outputs belong to the one config that params.yaml chose, so the jobs of a sweep must not
    write there.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return path
    return os.path.relpath(Path(hydra_config.runtime.output_dir) / path, ROOT)


def _leaves(section: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(section, dict):
        raise PipelineError(f"{name} ({_where(PARAMS, [name])}) must be a mapping")
    for key, value in section.items():
        if isinstance(value, dict) and value:
            for below, leaf in _leaves(value, str(key)):
                yield f"{key}.{below}", leaf
        else:
            yield str(key), value


def _literal(value: Any) -> str:
    """A value in Hydra's override grammar."""
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
    # In a quoted string only quotes, and the backslashes right before one, are escaped.
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), str(value))
    return f"'{text}'"


def _without(chosen: list[str], argv: list[str]) -> list[str]:
    """Leave out what the user overrides too, so that a sweep does not hold a key twice."""
    parser = OverridesParser.create()
    given = {override.key_or_group for override in parser.parse_overrides(argv)}
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
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return key, "command line"
    for section in (stage, "common"):
        if where := _line(PARAMS, [section, *path]):
            return f"{section}.{key}", f"{PARAMS.name}:{where}"
    files = []
    if path and isinstance(choices.get(path[0]), str):
        files.append((CONF / path[0] / f"{choices[path[0]]}.yaml", path[1:]))
    files += [(CONF / f"{stage}.yaml", path), (CONF / "base.yaml", path)]
    for file, inner in files:
        if inner and (where := _line(file, inner)):
            return key, f"{file.relative_to(ROOT)}:{where}"
    return key, str(files[0][0].relative_to(ROOT))


def _where(file: Path, path: list[str]) -> str:
    line = _line(file, path)
    return f"{file.name}:{line}" if line else file.name


def _line(file: Path, path: list[str]) -> int | None:
    """Line of a key in a YAML file, counted from 1, or None where the file does not set it."""
    if not file.is_file():
        return None
    node = yaml.compose(file.read_text(encoding="utf-8"))
    line = None
    for step in path:
        if isinstance(node, yaml.SequenceNode):
            break
        if not isinstance(node, yaml.MappingNode):
            return None
        pair = next((pair for pair in node.value if pair[0].value == step), None)
        if pair is None:
            return None
        line = pair[0].start_mark.line + 1
        node = pair[1]
    return line


def _unknown(label: str, where: str, path: list[str], schema: type[BaseModel]) -> str:
    """The message for a key that the schema does not have."""
    levels = list(zip(path, _names(path, schema), strict=False))
    wrong, names = next(((step, names) for step, names in levels if step not in names), levels[-1])
    return f"{label} ({where}) is not a setting{_suggest(wrong, names)}"


def _known(path: list[str], schema: type[BaseModel]) -> bool:
    return all(
        step in names or not names for step, names in zip(path, _names(path, schema), strict=True)
    )


def _names(path: list[str], schema: type[BaseModel]) -> list[list[str]]:
    """The setting names that each step of a path may have; none below a plain value."""
    models: list[type[BaseModel]] = [schema]
    levels = []
    for step in path:
        fields = [(name, field) for model in models for name, field in model.model_fields.items()]
        levels.append(sorted({name for name, _ in fields}))
        models = [
            inner for name, field in fields if name == step for inner in _models(field.annotation)
        ]
    return levels


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in a field's type: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _suggest(wrong: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return f"; known here: {', '.join(names)}" if names else ""
