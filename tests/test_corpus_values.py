"""What a field holds is plain JSON, whoever brought it: the same after any way through a store, or refused with its name."""

import datetime
import enum
import json
import uuid
from collections import OrderedDict
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from text2token.corpus.documents import Document
from text2token.corpus.values import DEEPEST_LEVEL, LONGEST_FIELDS, UnfitField, exact_integer, exact_number, plain_fields
from text2token.errors import CorpusError

keys = st.text(st.characters(), max_size=5) | st.integers() | st.booleans() | st.none() | st.floats() | st.dates()
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**70)
    | st.floats()
    | st.decimals()
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=5)
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(keys, values, max_size=5))
@settings(deadline=None)
def test_any_fields_survive_json_and_a_second_walk_or_are_refused(fields: dict[Any, Any]) -> None:
    try:
        plain = plain_fields(fields)
    except UnfitField as problem:
        reject() if "two" in str(problem) else pytest.fail(str(problem))
    assert json.loads(json.dumps(plain, allow_nan=False).encode()) == plain
    assert json.loads(json.dumps(plain, ensure_ascii=False).encode("utf-8")) == plain
    assert plain_fields(plain) == plain


def through_json(text: str) -> Any:
    return json.loads(text, parse_int=exact_integer, parse_float=exact_number)


@given(st.integers())
@settings(deadline=None)
def test_an_integer_keeps_every_digit(number: int) -> None:
    for wide in (number, number**7 + number):
        for value in (wide, through_json(str(wide))):
            kept = plain_fields({"n": value})["n"]
            assert str(kept) == str(wide)
            assert isinstance(kept, int) == (-(2**63) <= wide < 2**63)


NOT_JSON: dict[str, tuple[Any, Any]] = {
    "a bare NaN": (float("nan"), None),
    "NaN within": ([1.5, float("nan"), {"x": float("inf")}], [1.5, None, {"x": None}]),
    "a missing number of decimals": (Decimal("NaN"), None),
    "a missing time": (pandas.NaT, None),
    "a missing value": (pandas.NA, None),
    "ten thousand digits": (10**9_999, "1" + 9_999 * "0"),
    "the largest number": (2**63 - 1, 2**63 - 1),
    "the smallest number": (-(2**63), -(2**63)),
    "an unsigned number": (np.uint64(2**64 - 1), "18446744073709551615"),
    "a price": (Decimal("1.50"), "1.50"),
    "a decimal of a large exponent": (Decimal("1E+999999"), "1E+999999"),
    "a date": (datetime.date(2024, 1, 31), "2024-01-31"),
    "a time": (datetime.datetime(2024, 1, 31, 12), "2024-01-31T12:00:00"),
    "a time with its zone": (datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC), "2024-01-31T12:00:00+00:00"),
    "a time of day": (datetime.time(12, 30), "12:30:00"),
    "nanoseconds": (pandas.Timestamp("2024-01-31T12:00:00.000000001"), "2024-01-31T12:00:00.000000001"),
    "a duration": (datetime.timedelta(hours=-1, microseconds=-500_000), "-PT3600.5S"),
    "a duration of nanoseconds": (pandas.Timedelta(1, "ns"), "PT0.000000001S"),
    "numbers of numpy": (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "a number of numpy": ([np.float32(1.5), np.int8(-1), np.bool_(True), np.str_("a")], [1.5, -1, True, "a"]),
    "a time of numpy": (np.datetime64("2024-01-31T12"), "2024-01-31T12"),
    "no time of numpy": ([np.datetime64("NaT"), np.timedelta64("NaT")], [None, None]),
    "a duration of numpy": (np.timedelta64(90, "s"), "PT90S"),
    "half a pair": ({"\ud800": ["\udfff a"]}, {"\ufffd": ["\ufffd a"]}),
    "bytes within": ({"path": "a.png", "bytes": b"\x89PNG", "all": [b"", 1]}, {"path": "a.png", "all": [1]}),
    "keys of all kinds": ({True: 3, None: 2, 1.5: 4, "": 5}, {"true": 3, "null": 2, "1.5": 4, "": 5}),
    "a set": ({"b", "a"}, ["a", "b"]),
    "a tuple": ((1, (2,)), [1, [2]]),
    "another mapping": (OrderedDict(a=1), {"a": 1}),
    "a name of one": (enum.Enum("Colour", {"RED": "red"}).RED, "red"),  # type: ignore[attr-defined]
    "an identity": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "a path": (PurePosixPath("a/b"), "a/b"),
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_what_json_cannot_write_becomes_what_it_can(kind: str) -> None:
    value, expected = NOT_JSON[kind]
    assert plain_fields({"field": value}) == {"field": expected}


def test_bytes_are_left_out() -> None:
    assert plain_fields({"image": b"\x89PNG", "n": 1}) == {"n": 1}


def nested(levels: int, within: Any = None) -> Any:
    for _ in range(levels):
        within = [within] if levels % 2 else {"a": within}
    return within


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tree": nested(100_000)}, "field 'tree' is nested deeper than 32 levels"),
        ({"long": "x" * (LONGEST_FIELDS + 1)}, "field 'long' makes the fields longer than 1,000,000 characters"),
        ({"long": [0] * LONGEST_FIELDS}, "field 'long' makes the fields longer"),
        (dict.fromkeys(["n", "\ud800", "\udc00"]), "two fields are named '\ufffd'"),
        ({"n": {"1": 1, 1: 2}}, "field 'n' has two keys '1'"),
        ({"n": {(1, 2): 1}}, "field 'n' has a tuple for a key"),
        ({"n": object()}, "field 'n' holds a object, which JSON has no word for"),
        ({"n": [1 + 2j]}, "field 'n' holds a complex"),
        ({"n": np.clongdouble(1)}, "field 'n' holds a clongdouble"),
    ],
)
def test_what_no_store_could_give_back_is_refused_with_its_name(fields: dict[Any, Any], said: str) -> None:
    with pytest.raises(UnfitField, match=said):
        plain_fields(fields)
    with pytest.raises(CorpusError, match=f"^here:7: .*{said}"):
        Document("a text", "here:7", fields=fields)


@pytest.mark.parametrize("levels", [DEEPEST_LEVEL - 1, DEEPEST_LEVEL, DEEPEST_LEVEL + 1, 130, 500])
def test_what_lies_deeper_than_32_levels_is_kept_as_its_json(levels: int) -> None:
    value = plain_fields({"tree": nested(levels, "é")})["tree"]
    for _ in range(min(levels, DEEPEST_LEVEL)):
        (value,) = value if isinstance(value, list) else value.values()
    rest = nested(levels, "é")
    for _ in range(min(levels, DEEPEST_LEVEL)):
        (rest,) = rest if isinstance(rest, list) else rest.values()
    assert value == (json.dumps(rest, ensure_ascii=False) if levels > DEEPEST_LEVEL else rest)


def test_what_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnfitField, match="field 'n' is nested deeper"):
        plain_fields({"n": value})
