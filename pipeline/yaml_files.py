"""Reading of YAML files that anyone may have written: bounded, with the line each key stands in."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import PipelineError

BYTES = 100_000
NODES = 10_000
"""Values of a file, those behind an alias counted wherever the alias stands."""
DEPTH = 50
LENGTH = 4_000
"""Characters of a value that may be a number; Python refuses to print one of more digits."""

CSafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if built


def compose(file: Path) -> yaml.Node | None:
    """The nodes of a YAML file, None of an empty one.

    Raises:
        PipelineError: it can't be read, is not YAML, or is larger or deeper than any config is.
    """
    try:
        if file.exists() and not file.is_file() and not file.is_dir():  # a pipe would block
            raise PipelineError(f"{name(file)} is not a file; restore it from git")
        with file.open("rb") as opened:
            content = opened.read(BYTES + 1)
        if len(content) > BYTES:
            raise PipelineError(f"{name(file)} is larger than {BYTES:,} bytes; shorten it")
        text = content.decode("utf-8")
        _measure(text, file)
        return yaml.compose(text, Loader=CSafeLoader)
    except OSError as error:
        raise PipelineError(
            f"{name(file)} can't be read ({error.strerror or error}); restore it from git"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{name(file)} is not valid YAML: {error}") from error


def load(file: Path) -> Any:
    """The content of a YAML file as OmegaConf takes it.

    Raises:
        PipelineError: as of `compose`, or a value is malformed.
    """
    compose(file)
    try:
        return OmegaConf.to_container(OmegaConf.load(file))
    except OmegaConfBaseException as error:
        key, text = error.full_key or "", str(error).partition("\n")[0]
        place = where(file, key.split("."))
        raise PipelineError(f"{key} ({place}) is malformed: {text}; correct it") from error
    except (yaml.YAMLError, ValueError, OSError) as error:  # OSError: the top is a set, say
        raise PipelineError(f"{name(file)} is not valid YAML: {error}") from error


def name(file: Path) -> str:
    """How a user would write a file of conf/, or params.yaml."""
    conf = next((folder for folder in file.parents if folder.name == "conf"), None)
    return file.relative_to(conf.parent).as_posix() if conf else file.name


def where(file: Path, path: list[str]) -> str:
    """A file and, where it sets the key, the key's line."""
    found = line(file, path)
    return f"{name(file)}:{found}" if found else name(file)


def line(file: Path, path: list[str]) -> int | None:
    """Line of a key in a YAML file, counted from 1, or None where the file does not set it."""
    if not file.is_file():
        return None
    node = compose(file)
    found = None
    for step in path:
        if isinstance(node, yaml.SequenceNode):
            break
        if not isinstance(node, yaml.MappingNode):
            return None
        pair = next((pair for pair in node.value if pair[0].value == step), None)
        if pair is None:
            return None
        found = pair[0].start_mark.line + 1
        node = pair[1]
    return found


def _measure(text: str, file: Path) -> None:
    """Refuse what would take the memory or the stack, before a value is made of it."""
    sizes: dict[str | None, int] = {}
    above: list[tuple[str | None, int]] = []  # anchor of each open collection, size before it
    size = 0
    for event in yaml.parse(text, Loader=CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            above.append((event.anchor, size))
            size = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = above.pop()
            sizes[anchor] = size
            size += before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in above):
                raise PipelineError(f"{name(file)} is nested without end; remove its alias")
            size += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            if len(event.value) > LENGTH and (event.tag or event.implicit[0]):
                raise PipelineError(
                    f"{name(file)} has a value of more than {LENGTH:,} characters "
                    f"({event.value[:20]}…); shorten it, or put it in quotes"
                )
        if size + sum(before for _, before in above) > NODES or len(above) > DEPTH:
            raise PipelineError(
                f"{name(file)} has more than {NODES:,} values or {DEPTH} levels, with its aliases "
                "written out; shorten it"
            )
