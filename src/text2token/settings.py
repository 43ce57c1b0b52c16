"""Settings are frozen dataclasses that pydantic checks; here they are changed by text, written as TOML and compared.

A range stands in a field's type (`PositiveInt`, `Share`). What does not fit is a `UsageError` wherever it was given: in
Python, on the command line, in a file. No value is altered: a prompt keeps its outer spaces.
"""

import dataclasses
import difflib
import functools
import json
import os
import tomllib
import typing
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic.dataclasses
import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field

from text2token.errors import UsageError, reason

Settings = TypeVar("Settings")

LARGEST_INTEGER = 2**63 - 1  # that torch and numpy take
RULES = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _with_room_for_text(prompt: str) -> str:
    if prompt.count("{text}") != 1:
        raise ValueError("it must hold {text} exactly once")
    return prompt


def one_or_more(given: Any) -> Any:
    """Return `given`, or, of a single text or path, a tuple of it: a text is no sequence of its characters."""
    return (given,) if isinstance(given, str | os.PathLike) else given


def _as_text(place: Any) -> Any:
    return os.fspath(place) if isinstance(place, os.PathLike) else place


ONE_OR_MORE = BeforeValidator(one_or_more)
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy's range; torch and Python take more
Prompt = Annotated[str, AfterValidator(_with_room_for_text)]
Place = Annotated[str, BeforeValidator(_as_text)]  # a path, URL or name


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(kind: type[Settings]) -> type[Settings]:
    """Make a class of settings: a frozen dataclass whose values are checked against their types whenever one is made.

    What does not fit, and a name that is no setting's (with the nearest one), is a `UsageError`.
    """
    made: Any = pydantic.dataclasses.dataclass(kind, frozen=True, config=RULES)
    check = made.__init__

    @functools.wraps(check)
    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except pydantic.ValidationError as error:
            raise UsageError(_explained(error, made)) from None
        for entry in dataclasses.fields(made):
            value = getattr(self, entry.name)
            if isinstance(value, int) and value > LARGEST_INTEGER:
                raise UsageError(f"{entry.name} is {value}: it should be at most {LARGEST_INTEGER}")

    made.__init__ = init
    return typing.cast(type[Settings], made)


_Change = tuple[list[str], str, str]  # keys from the outermost section inwards, the value, and both as they were written


def with_assignments(settings: Settings, assignments: Iterable[str]) -> Settings:
    """Return a copy of a (nested) dataclass changed by `section.key=value` texts; `none` stands for None.

    Raises `UsageError` for an unknown key (naming the nearest) or a value that does not fit its type.
    """
    changes: list[_Change] = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r}: expected section.key=value, such as stage1.learning_rate=1e-4")
        changes.append((path.strip().split("."), value, path.strip()))
    return typing.cast(Settings, _replaced(settings, changes))


def from_toml(kind: type[Settings], text: str, where: str) -> Settings:
    """Return the (nested) dataclass that a TOML text describes; what it leaves out has its default.

    Raises `UsageError`, beginning with `where`, for what is no TOML, an unknown key (naming the nearest), a value that does
    not fit, or one that has no default and is missing.
    """
    try:
        return _read(kind, tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: is no TOML ({reason(error)})") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def to_toml(settings: Any) -> str:
    """Return a dataclass as TOML that `from_toml` reads as the same: None is "none", or left out where it is the default."""
    return tomli_w.dumps(_written(settings))


def _read(kind: type[Settings], content: dict[str, Any], path: str) -> Settings:
    described: Any = kind
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {entry.name: entry for entry in dataclasses.fields(described)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        _check_key(key, list(fields), path + key)
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UsageError(f"{path}{key}: is a section; write [{path}{key}] and settings below it")
            values[key] = _read(typing.cast(type, hints[key]), value, f"{path}{key}.")
        elif section := _section_of(hints[key]):
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise UsageError(
                    f"{path}{key}: is a list of sections; write [[{path}{key}]] and settings below it, for each"
                )
            values[key] = tuple(
                _read(section, one, f"{path}{item_name(key, number)}.") for number, one in enumerate(value, start=1)
            )
        else:
            values[key] = _fitting(hints[key], value, path + key)
    for name, entry in fields.items():
        if name not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise UsageError(
                f"{path}{name}: is missing" + (f"; add [{path}{name}]" if dataclasses.is_dataclass(hints[name]) else "")
            )
    return kind(**values)


def difference(old: str, new: str) -> str:
    """Return the lines in which two TOML texts differ, as one line; empty when they agree."""
    changed = [line[2:] for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line.startswith(("- ", "+ "))]
    return "; ".join(changed[:4])


def _replaced(settings: Any, changes: list[_Change]) -> Any:
    """Return `settings` with all changes made at once, because some are only allowed together."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    lists = {name: section for name, hint in hints.items() if (section := _section_of(hint))}
    items = {
        item_name(name, number): name
        for name in lists
        for number in range(1, len(getattr(settings, name)) + len(changes) + 1)
    }
    names = [entry.name for entry in dataclasses.fields(settings)]
    values: dict[str, Any] = {}
    inside: dict[str, list[_Change]] = {}
    of_items: dict[str, list[_Change]] = {}
    for keys, value, path in changes:
        if keys[0] in items:
            of_items.setdefault(items[keys[0]], []).append((keys, value, path))
            continue
        _check_key(keys[0], [*names, *items], path)
        if keys[0] in lists:
            raise UsageError(f"{path}: is a list of sections; name one, such as {item_name(keys[0], 1)}")
        current = getattr(settings, keys[0])
        if dataclasses.is_dataclass(current) and len(keys) == 1:
            first = dataclasses.fields(current)[0].name
            raise UsageError(f"{path}: is a section; name a setting in it, such as {path}.{first}")
        if dataclasses.is_dataclass(current):
            inside.setdefault(keys[0], []).append((keys[1:], value, path))
        elif len(keys) > 1:
            raise UsageError(f"{path}: {keys[0]!r} holds no further settings")
        else:
            values[keys[0]] = _fitting(hints[keys[0]], value, path)
    values |= {key: _replaced(getattr(settings, key), own) for key, own in inside.items()}
    values |= {key: _replaced_items(key, lists[key], getattr(settings, key), own) for key, own in of_items.items()}
    return dataclasses.replace(settings, **values)


def _replaced_items(name: str, section: type, current: tuple[Any, ...], changes: list[_Change]) -> tuple[Any, ...]:
    """Return the sections of a list with all changes made: none leaves one out, the one after the last is new."""
    items = dict(enumerate(current, start=1))
    by_number: dict[int, list[_Change]] = {}
    for keys, value, path in changes:
        by_number.setdefault(int(keys[0].removeprefix(item_name(name, ""))), []).append((keys[1:], value, path))
    for number, own in sorted(by_number.items()):
        removed = [value == "none" for keys, value, _ in own if not keys]
        if removed == [True] and len(own) == 1:
            items.pop(number, None)
            continue
        path = own[0][2]
        if removed:
            first = dataclasses.fields(section)[0].name
            raise UsageError(
                f"{path}: is a section; name a setting in it, such as {path}.{first}, or leave it out with =none"
            )
        if number > len(current) + 1 and number - 1 not in items:
            raise UsageError(f"{path}: there is no {item_name(name, number - 1)} before it")
        items[number] = _replaced(items.get(number, section()), own)
    return tuple(items[number] for number in sorted(items))


def item_name(name: str, number: int | str) -> str:
    """Return what one section of a list of sections is called: the second of `stages` is stage2."""
    return f"{name.removesuffix('s')}{number}"


def _section_of(hint: Any) -> Any:
    """Return the dataclass of which a setting is a list; None where it is none."""
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(arguments[0]) else None


def _check_key(key: str, names: list[str], path: str) -> None:
    if key not in names:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise UsageError(f"{path}: no setting {key!r}; {hint}")


def _fitting(type_: Any, value: Any, path: str) -> Any:
    try:
        return _converted(type_, value)
    except pydantic.ValidationError as error:
        raise UsageError(f"{path} is {value!r}: {_wrong(error)}") from None


def _explained(error: pydantic.ValidationError, kind: Any) -> str:
    """Return in one line what is wrong with the values that an object of `kind` was to be made of."""
    first = error.errors()[0]
    path = ".".join(part for part in first["loc"] if isinstance(part, str) and part.isidentifier())  # the rest is pydantic's
    names = [entry.name for entry in dataclasses.fields(kind)]
    if first["type"] == "unexpected_keyword_argument" and path not in names:
        _check_key(path, names, kind.__name__)
    if first["type"] in ("missing", "missing_argument"):
        return f"{path}: is missing"
    return f"{path or kind.__name__} is {first['input']!r}: {_wrong(error)}"


def _wrong(error: pydantic.ValidationError) -> str:
    message = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return message[0].lower() + message[1:]


def _written(settings: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if value is None and entry.default is None:
            continue
        content[entry.name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _written(value)
    return "none" if value is None else [_plain(one) for one in value] if isinstance(value, tuple) else value


def _converted(type_: Any, value: Any) -> Any:
    """Return what a value, of TOML or as text, is as this type."""
    adapter = pydantic.TypeAdapter(type_, config=RULES)
    if isinstance(value, str) and value.startswith("[") and _is_tuple(type_):
        with suppress(ValueError):
            value = json.loads(value)
    if value == "none":  # the word, where it is one of the choices, else the absence of a value
        with suppress(pydantic.ValidationError):
            return adapter.validate_python(value)
        return adapter.validate_python(None)
    return adapter.validate_python(value)


def _is_tuple(type_: Any) -> bool:
    return typing.get_origin(typing.get_args(type_)[0] if typing.get_origin(type_) is Annotated else type_) is tuple
