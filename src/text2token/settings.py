"""Settings are frozen dataclasses; here they are changed by text, written as TOML and compared."""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import pydantic
import tomli_w

from text2token.errors import RecipeError

Settings = TypeVar("Settings")
_Change = tuple[list[str], str, str]  # keys from the outermost section inwards, the value, and both as they were written


def with_assignments(settings: Settings, assignments: Iterable[str]) -> Settings:
    """Return a copy of a (nested) dataclass changed by `section.key=value` texts; `none` stands for None.

    Raises `RecipeError` for an unknown key (naming the nearest) or a value that does not fit its type.
    """
    changes: list[_Change] = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"{assignment!r}: expected section.key=value, such as stage1.learning_rate=1e-4")
        changes.append((path.strip().split("."), value.strip(), path.strip()))
    return typing.cast(Settings, _replaced(settings, changes))


def from_toml(kind: type[Settings], text: str, where: str) -> Settings:
    """Return the (nested) dataclass that a TOML text describes; what it leaves out has its default.

    Raises `RecipeError`, beginning with `where`, for what is no TOML, an unknown key (naming the nearest), a value that does
    not fit, or one that has no default and is missing.
    """
    try:
        return _read(kind, tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: is no TOML ({error})") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def to_toml(settings: Any) -> str:
    """Return a dataclass as TOML; settings that are None are left out."""
    return tomli_w.dumps(_without_none(dataclasses.asdict(settings)))


def _read(kind: type[Settings], content: dict[str, Any], path: str) -> Settings:
    described: Any = kind
    hints = typing.get_type_hints(kind)
    fields = {entry.name: entry for entry in dataclasses.fields(described)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        _check_key(key, list(fields), path + key)
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise RecipeError(f"{path}{key}: is a section; write [{path}{key}] and settings below it")
            values[key] = _read(typing.cast(type, hints[key]), value, f"{path}{key}.")
        else:
            values[key] = _checked(hints[key], value, path + key)
    for name, entry in fields.items():
        if name not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise RecipeError(
                f"{path}{name}: is missing" + (f"; add [{path}{name}]" if dataclasses.is_dataclass(hints[name]) else "")
            )
    return kind(**values)


def difference(old: str, new: str) -> str:
    """Return the lines in which two TOML texts differ, as one line; empty when they agree."""
    changed = [line[2:] for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line.startswith(("- ", "+ "))]
    return "; ".join(changed[:4])


def _replaced(settings: Any, changes: list[_Change]) -> Any:
    """Return `settings` with all changes made at once, because some are only allowed together."""
    hints = typing.get_type_hints(type(settings))
    names = [entry.name for entry in dataclasses.fields(settings)]
    values: dict[str, Any] = {}
    inside: dict[str, list[_Change]] = {}
    for keys, value, path in changes:
        _check_key(keys[0], names, path)
        current = getattr(settings, keys[0])
        if dataclasses.is_dataclass(current) and len(keys) == 1:
            first = dataclasses.fields(current)[0].name
            raise RecipeError(f"{path}: is a section; name a setting in it, such as {path}.{first}")
        if dataclasses.is_dataclass(current):
            inside.setdefault(keys[0], []).append((keys[1:], value, path))
        elif len(keys) > 1:
            raise RecipeError(f"{path}: {keys[0]!r} holds no further settings")
        else:
            values[keys[0]] = _checked(hints[keys[0]], value, path)
    values |= {key: _replaced(getattr(settings, key), own) for key, own in inside.items()}
    return dataclasses.replace(settings, **values)


def _check_key(key: str, names: list[str], path: str) -> None:
    if key not in names:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"{path}: no setting {key!r}; {hint}")


def _checked(type_: Any, value: Any, path: str) -> Any:
    try:
        return _converted(type_, value)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{path} is {value!r}: {error.errors()[0]['msg'].lower()}") from None


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for key, value in content.items()
        if value is not None
    }


def _converted(type_: Any, value: Any) -> Any:
    adapter = pydantic.TypeAdapter(type_)
    if isinstance(value, str) and value.startswith("[") and typing.get_origin(type_) is tuple:
        return adapter.validate_json(value)
    if value == "none":  # the word, where it is one of the choices, else the absence of a value
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError:
            return adapter.validate_python(None)
    return adapter.validate_python(value)
