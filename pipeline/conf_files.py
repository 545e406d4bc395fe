"""What `conf/` and `params.yaml` hold: sections, groups, and where a value was set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Glob, Quote, QuotedString

from pipeline import yaml_files
from pipeline.errors import PipelineError
from pipeline.nested import flat
from pipeline.schema import suggest
from pipeline.settings import Stage

ROOT = Path(__file__).resolve().parent.parent
"""The working copy this code stands in; for `dvc exp run --temp` and `--queue` a temporary one."""
CONF = ROOT / "conf"
PARAMS = ROOT / "params.yaml"


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
        values = params.get(section) or {}
        if not isinstance(values, dict):
            raise PipelineError(
                f"{section} ({yaml_files.where(PARAMS, [section])}) must be a mapping"
            )
        for key, value in flat(values).items():
            try:
                if not may_choose(key, value):
                    raise TypeError(no_choice(key, value, choices(key)))
                found[key] = f"{key}={literal(value)}"
            except TypeError as error:
                where = yaml_files.where(PARAMS, [section, *key.split(".")])
                raise PipelineError(f"{section}.{key} ({where}) {error}") from None
    return list(found.values())


def refuse_unreadable() -> None:
    """Look through conf/ before Hydra does.

    Raises:
        PipelineError: a file can't be read, is not YAML, or is too large.
    """
    for file in sorted(CONF.rglob("*.yaml")):
        root = yaml_files.compose(file)
        if not isinstance(root, yaml.MappingNode | None):
            raise PipelineError(f"{yaml_files.name(file)} must map names to values")


def section(key: str, stage: str) -> str:
    """The section of params.yaml that a setting belongs in."""
    return "common" if key.partition(".")[0] in Stage.model_fields else stage


def choices(group: str) -> list[str]:
    """What there is to choose under conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def is_group(key: str) -> bool:
    """Whether the files of a folder of conf/ are chosen by that key."""
    return "/" in key or "@" in key or (CONF / key).is_dir()


def may_choose(key: str, value: Any) -> bool:
    """Whether `value` may name a file of the group `key`; what is no group may have any value."""
    if not is_group(key):
        return True
    return isinstance(value, Glob) or (isinstance(value, str) and "${" not in value)


def no_choice(group: str, value: Any, names: Sequence[str]) -> str:
    """The end of the message for a value that is none of the names of a group's files."""
    return f"is {value!r}, and conf/{group} has only: {', '.join(names)}"


def origin(path: list[str], stage: str, argv: list[str], chosen: dict[str, Any]) -> tuple[str, str]:
    """How a user would write a key, and where its value was set: the strongest source first.

    `chosen` has the file that was chosen of each group.
    """
    key = ".".join(path)
    for override in argv:
        name = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        if name in chosen and key != name:
            continue  # it chose the file that holds the value
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return key, "command line"
    for section in (stage, "common"):
        if where := yaml_files.line(PARAMS, [section, *path]):
            return f"{section}.{key}", f"{PARAMS.name}:{where}"
    files = []
    if path and isinstance(chosen.get(path[0]), str):
        files.append((CONF / path[0] / f"{chosen[path[0]]}.yaml", path[1:]))
    files += [(CONF / f"{stage}.yaml", path), (CONF / "base.yaml", path)]
    file, inner = next((one for one in files if yaml_files.line(*one)), files[0])
    return key, yaml_files.where(file, inner)


def literal(value: Any) -> str:
    """A value in Hydra's override grammar.

    Raises:
        TypeError: the grammar has no such kind of value; the message is the end of a sentence.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        raise TypeError(f"is {value!r}; write a string, number, boolean, list or null")
    return QuotedString(value, Quote.single).with_quotes()
