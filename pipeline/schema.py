"""Which keys a schema has: what a setting may be called, and what a wrong name was meant to be."""

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M")


def places(settings: BaseModel, mark: type[M]) -> Iterator[tuple[str, Path, M]]:
    """Key, path and mark of every file or folder in settings whose type has such a mark."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{key}", path, one) for key, path, one in places(value, mark))
        for one in field.metadata:
            if isinstance(one, mark):
                named = value if isinstance(value, dict) else {"": value}
                yield from (
                    (f"{name}.{key}".rstrip("."), Path(path), one)
                    for key, path in named.items()
                    if path is not None
                )


def unknown(path: list[str], schema: type[BaseModel], section: str = "") -> str:
    """The end of the message for a key that the schema does not have.

    Suggests the nearest name of all its settings, with its whole path and `section` before it
    where it is not in the place of the wrong one.
    """
    levels = list(zip(path, _names(path, schema), strict=False))
    wrong, names = next(((step, names) for step, names in levels if step not in names), levels[-1])
    places = {name: f"{section}{'.'.join((*above, name))}" for *above, name in _paths(schema)}
    places |= {name: name for name in names}
    return f"is not a setting{suggest(wrong, names, places)}"


def known(path: list[str], schema: type[BaseModel]) -> bool:
    """Whether the schema has the key that these steps lead to."""
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


def _paths(schema: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """The paths of all settings, the deepest first."""
    for name, field in schema.model_fields.items():
        for model in _models(field.annotation):
            yield from ((name, *below) for below in _paths(model))
    yield from ((name,) for name in schema.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in a field's type: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def suggest(wrong: str, names: list[str], places: dict[str, str] | None = None) -> str:
    """The nearest of the names, or all of them; the end of a message.

    `places` are further names, and what to call each.
    """
    places = places or {name: name for name in names}
    nearest = difflib.get_close_matches(wrong, places, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {places[nearest[0]]}?"
    return f"; known here: {', '.join(names)}" if names else ""
