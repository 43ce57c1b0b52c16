"""What a field may hold: plain JSON that every store and page reads back unchanged.

JSON files, tables and callers from Python bring values that engines refuse, round or fail on much later. They are made plain
here, once, for all of them; what cannot be is refused with its name.
"""

import datetime
import enum
import json
import math
import uuid
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal, InvalidOperation
from pathlib import PurePath
from typing import Any

import numpy as np

from text2token.corpus.normalisation import whole_characters
from text2token.errors import reason

DEEPEST_LEVEL = 32  # lists and objects within each other; the engine of an index fails at some 130
LONGEST_FIELDS = 1_000_000  # characters of all fields of a document
BYTES = (bytes, bytearray, memoryview)
INTEGERS = range(-(2**63), 2**63)
PLACES_WRITTEN_OUT = 100  # of a decimal; one of more places keeps its exponent


class UnfitField(ValueError):
    """A field that no store could give back; the message has its name and the reason."""


def plain_fields(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Return `fields` as plain JSON: equal after a way through a JSON text, and unchanged by a second call.

    Numbers that are none (NaN, infinities, NaT) become None, as null; integers beyond 64 bits and decimals their exact
    text; numbers of 16 or 32 bits the shortest that is read back as the same; dates, times and durations ISO 8601 text;
    halves of surrogate pairs U+FFFD. Bytes are left out, from objects and lists too. Keys become text as JSON writes them.
    Raises `UnfitField` for anything longer than `LONGEST_FIELDS`, of a type
    that JSON has no word for, with two keys of the same text, or too deep to be written at all.
    """
    room = [LONGEST_FIELDS]
    plain: dict[str, Any] = {}
    for key, value in fields.items():
        try:
            name = _name(key)
        except UnfitField as problem:
            raise UnfitField(f"the document {problem}") from None
        if name in plain:
            raise UnfitField(f"two fields are named {name[:200]!r}")
        if not isinstance(value, BYTES):
            try:
                _spend(room, len(name))
                plain[name] = _plain(value, 0, room)
            except UnfitField as problem:
                raise UnfitField(f"field {name[:200]!r} {problem}") from None
    return plain


def exact_integer(digits: str) -> int | Decimal:
    """Return what JSON spells `digits`: a reader for `json.loads` that a number of any length costs little."""
    return int(digits) if len(digits) <= 20 else Decimal(digits)


def exact_number(digits: str) -> float | Decimal:
    """Return what JSON spells `digits`, exactly where it is too large for a float; `ValueError` beyond even that."""
    number = float(digits)
    try:
        return number if math.isfinite(number) else Decimal(digits)
    except InvalidOperation:
        raise ValueError("a number of too large an exponent") from None


def _plain(value: Any, depth: int, room: list[int]) -> Any:
    _spend(room, 1)
    kind = type(value)  # nearly all are of the kinds that JSON itself reads, and asking for others costs more
    if value is None or kind is bool:
        return value
    if kind is str:
        return _text(whole_characters(value), room)
    if kind is int:
        return value if value in INTEGERS else _text(str(Decimal(value)), room)  # Python's own str has a limit
    if kind is float:
        return value if math.isfinite(value) else None
    is_object = kind is dict or (kind is not list and isinstance(value, Mapping))
    if is_object or kind is list or (isinstance(value, Sequence | Set) and not isinstance(value, str)):
        if depth == DEEPEST_LEVEL:
            return _text(_as_json(value), room)
        if is_object:
            return _plain_object(value, depth + 1, room)
        items = [_plain(item, depth + 1, room) for item in value if not isinstance(item, BYTES)]
        return sorted(items, key=json.dumps) if isinstance(value, Set) else items  # a set has another order in every run
    return _scalar(value, depth, room)


def _plain_object(value: Mapping[Any, Any], depth: int, room: list[int]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = _name(key)
        if name in plain:
            raise UnfitField(f"has two keys {name[:200]!r}")
        _spend(room, len(name))
        if not isinstance(item, BYTES):
            plain[name] = _plain(item, depth, room)
    return plain


def _scalar(value: Any, depth: int, room: list[int]) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth, room)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return _plain(kind(value), depth, room)
    if isinstance(value, np.float16 | np.float32):
        return _plain(float(str(value)), depth, room)  # 1.1, where the same number as a double is 1.100000023841858
    if isinstance(value, np.ndarray):
        return _plain(list(value) if value.ndim else value[()], depth, room)
    if type(value).__name__ in ("NaTType", "NAType"):  # what pandas calls missing
        return None
    if isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value):
        return None
    if isinstance(value, np.timedelta64):
        return _text(_duration(int(value.astype("timedelta64[ns]").astype(np.int64))), room)
    if isinstance(value, datetime.timedelta):
        microseconds = value // datetime.timedelta(microseconds=1)
        return _text(_duration(1000 * microseconds + getattr(value, "nanoseconds", 0)), room)  # pandas counts further
    if isinstance(value, datetime.date | datetime.time):
        return _text(value.isoformat(), room)
    if isinstance(value, Decimal):
        return _text(_decimal(value), room) if value.is_finite() else None
    if isinstance(value, uuid.UUID | PurePath | np.datetime64):
        return _text(whole_characters(str(value)), room)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return _plain(value.item(), depth, room)
    raise UnfitField(f"holds a {type(value).__name__}, which JSON has no word for")


def _text(text: str, room: list[int]) -> str:
    _spend(room, len(text))
    return text


def _spend(room: list[int], characters: int) -> None:
    room[0] -= characters
    if room[0] < 0:
        raise UnfitField(f"makes the fields longer than {LONGEST_FIELDS:,} characters")


def _as_json(value: Any) -> str:
    """Return `value` as JSON text, which no reader takes apart."""

    def other(item: Any) -> Any:
        return None if isinstance(item, BYTES) else _plain(item, 0, [LONGEST_FIELDS])

    try:
        return whole_characters(json.dumps(value, ensure_ascii=False, default=other))
    except (RecursionError, ValueError, TypeError) as error:  # too deep, within itself, with keys that are no text
        raise UnfitField(
            f"is nested deeper than {DEEPEST_LEVEL} levels, and cannot be kept as text ({reason(error)})"
        ) from error


def _name(key: Any) -> str:
    if type(key) is str:
        return whole_characters(key)
    if isinstance(key, Mapping | Set | Sequence) and not isinstance(key, str):
        raise UnfitField(f"has a {type(key).__name__} for a key")
    plain = _plain(key, 0, [LONGEST_FIELDS])
    return plain if isinstance(plain, str) else json.dumps(plain)


def _decimal(value: Decimal) -> str:
    written_out = abs(int(value.as_tuple().exponent)) <= PLACES_WRITTEN_OUT
    return format(value, "f") if written_out else str(value)


def _duration(nanoseconds: int) -> str:
    """Return ISO 8601 with seconds as the only unit: the others are not always as long."""
    seconds = format((Decimal(abs(nanoseconds)) / 10**9).normalize(), "f")
    return f"{'-' if nanoseconds < 0 else ''}PT{seconds}S"
