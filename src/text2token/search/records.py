"""A document as the engine keeps it, and what a filter compares.

A document is known by the hash of its normalised text. The engine writes values that it cannot read back, such as
deeply nested lists, so its fields are one JSON text; and it compares numbers, truth values and strings each in
another way, so what filters compare is kept as text too.
"""

import datetime
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import qdrant_edge as engine

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import normalise, whole_characters
from text2token.corpus.prepare import normalised_text
from text2token.corpus.values import UnfitField, plain_fields
from text2token.errors import UsageError, reason

LONGEST_FACET = 200  # characters; of a longer one the hash is kept
WHOLE_NUMBER = re.compile(r"([-+]?[0-9]{1,300})\.0+")
FilterValue = str | int | float | bool | datetime.date | None  # or what else a field may hold
Filters = Mapping[str, FilterValue | Sequence[FilterValue]]


def identity(text: str) -> str:
    """Return what a document of this text is known by."""
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16]))


def former_identity(document: Document) -> str:
    """Return what the document was known by when its text was hashed before it was normalised."""
    return identity(document.text.encode("utf-8", "replace").decode())


def payload_of(document: Document) -> dict[str, Any]:
    """Return all of a document that is not a vector."""
    return {
        "text": normalised_text(document),
        "place": whole_characters(document.place),
        "fields": json.dumps(dict(document.fields), ensure_ascii=False),  # plain JSON already
        "facets": sorted(set(_facets(document.fields))),
        "names": sorted({normalise(name) for name in document.fields}),
    }


def fields_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a document; in format 1 they were not a text."""
    fields = payload["fields"]
    return cast(dict[str, Any], json.loads(fields) if isinstance(fields, str) else fields)


def shown(payload: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a hit shows of a document."""
    return payload["text"], payload["place"], fields_of(payload)


def named(name: str) -> "engine.FieldCondition":
    """Return the condition that a document has a field of this name."""
    return _having("names", [normalise(name)])


def conditions(filters: Filters, check_field: Callable[[str], None]) -> list[Any]:
    """Return what a hit must meet, a condition for each field; `UsageError` for what no field can hold.

    `check_field` is called with each field's name, and raises for one that there is not.
    """
    try:
        plain = plain_fields(filters)
    except (UnfitField, AttributeError) as problem:
        raise UsageError(f"filters: {reason(problem)}; give each field with its value, or a list of values") from None
    unfit = [name for name, value in filters.items() if isinstance(value, Mapping | bytes | bytearray | memoryview)]
    if unfit:
        raise UsageError(f"filters: {unfit[0]!r} has a {type(filters[unfit[0]]).__name__}; give values")
    must: list[Any] = []
    for name, given in plain.items():
        check_field(name)
        values = given if isinstance(given, list) else [given]
        spelt = [spelling for value in values for spelling in _spellings(value)]
        former = [f"{name}={spelling}" for spelling in spelt]  # of documents that were stored in format 1
        must.append(_having("facets", [*(_facet(name, spelling) for spelling in spelt), *former]))
    return must


def _facets(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield what can be filtered by: every field with its value, or with each element of its list."""
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                yield from (_facet(name, spelling) for spelling in _spellings(one))


def _facet(name: str, spelling: str) -> str:
    facet = json.dumps([normalise(name), normalise(spelling)], ensure_ascii=False)
    return facet if len(facet) <= LONGEST_FACET else hashlib.sha256(facet.encode()).hexdigest()


def _spellings(value: Any) -> set[str]:
    """Return the texts that stand for a value: as JSON writes it, strings without their marks, and plainer where it can be.

    A document is found where it shares one with the filter, so 1 finds 1.0, as pandas makes it of a column with gaps.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    spellings = {text}
    if isinstance(value, float) and value.is_integer():
        spellings.add(str(int(value)))
    elif whole := WHOLE_NUMBER.fullmatch(text):
        spellings.add(str(int(whole[1])))
    elif text in ("True", "False"):
        spellings.add(text.lower())
    return spellings


def _having(key: str, values: Sequence[str]) -> "engine.FieldCondition":
    return engine.FieldCondition(key=key, match=engine.MatchAny(list(values)))
