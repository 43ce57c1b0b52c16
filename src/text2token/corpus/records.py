"""Records → documents: which field holds the text, what is its title, and what stands beside it.

A field is found by its name; nothing is guessed between two. An only choice is taken, and noted.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from text2token.corpus.broken import BrokenLines
from text2token.corpus.documents import Document
from text2token.corpus.normalisation import whole_characters
from text2token.errors import CorpusError

MAX_DOCUMENT_BYTES = 1_000_000  # longer than most novels' chapters; a longer line is far more often a damaged file
TITLE_FIELD = "title"
TEXT_FIELDS = ("text", "content", "body", "document", "passage", "sentence")


@dataclass(frozen=True)
class OtherType:
    """Stands in for the values of a column that holds no text; `name` is what it holds."""

    name: str


@dataclass
class Records:
    """Makes documents of the records of one source; which field holds the text is found with the first of them.

    `text_field` is what the user named, if anything: a name, or names with dots between for a field within an object.
    `beside` are fields that every document of the source has. `called` is what a field is here: "field" or "column".
    """

    name: str
    text_field: str | None
    broken: BrokenLines
    beside: Mapping[str, Any] = field(default_factory=dict)
    called: str = "field"

    def settle(self, columns: Mapping[str, Any], place: str) -> None:
        """Find the text among the columns of a table, "" for each that holds text; `CorpusError` where it is not there."""
        if self.text_field is None:
            problem = self._find(columns, place)
            if problem:
                raise CorpusError(f"{place}: {problem}")
        found = looked_up(columns, self.text_field or "")
        if found is None:
            raise CorpusError(f"{place}: no {self.called} {self.text_field!r}; there are {listed(columns)}")
        holder, key = found
        if not isinstance(holder[key], str | None):
            raise CorpusError(f"{place}: {self.called} {self.text_field!r} is {kind_of(holder[key])}, not text")

    def document(self, record: Mapping[str, Any], place: str) -> Iterator[Document]:
        """Yield the document of a record, or report what is wrong with it."""
        problem = self._find(record, place) if self.text_field is None else None
        if problem:
            self.broken.report(place, problem)
            return
        text_field = self.text_field or ""
        found = looked_up(record, text_field)
        if found is None:
            self.broken.report(place, f"no {self.called} {text_field!r}; there are {listed(sorted(record))}")
            return
        holder, key = found
        value = "" if holder[key] is None else holder[key]  # an empty text, which is counted further on
        if not isinstance(value, str):
            self.broken.report(place, f"{self.called} {text_field!r} is {kind_of(value)}, not text")
            return
        if len(value.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
            self.broken.report(place, f"the text is longer than {MAX_DOCUMENT_BYTES:,} bytes")
            return
        fields = {**self.beside, **_without(record, holder, key)}
        title = next((one for one in (_titled(holder, key), _titled(record, key)) if isinstance(one, str)), "")
        try:
            document = _document(whole_characters(value), title, fields, place)
        except CorpusError as error:  # a field that cannot be kept
            self.broken.report(place, str(error.__cause__))
        else:
            yield document

    def _find(self, record: Mapping[str, Any], place: str) -> str | None:
        """Set `text_field` to what holds the text of `record`, or return why there is no telling."""
        for same in (str, folded):
            for name in TEXT_FIELDS:
                known = [key for key in record if same(key) == name]
                usable = [key for key in known if record[key] is None or isinstance(record[key], str)]
                if len(usable) > 1:
                    raise CorpusError(f"{place}: which holds the text, {listed(sorted(usable))}? Name it with --text-field")
                if usable:
                    self.text_field = usable[0]
                    return None
        known = [key for key in record if folded(key) in TEXT_FIELDS]
        if known:
            return f"{self.called} {known[0]!r} is {kind_of(record[known[0]])}, not text; name another with --text-field"
        texts = sorted(key for key, value in record.items() if isinstance(value, str))
        if not texts:
            held = ", ".join(f"{key!r} ({kind_of(value)})" for key, value in list(record.items())[:12])
            return (
                f"no {self.called} holds text; there are {held or 'none'}. "
                "Name it with --text-field, one within an object as data.text"
            )
        if len(texts) > 1:
            raise CorpusError(
                f"{place}: which field holds the text? There are {listed(texts)}; name it with --text-field, "
                "or, for a file of lines of text, give --format txt"
            )
        self.broken.note(place, f"{self.called} {texts[0]!r} is taken for the text: no other holds any")
        self.text_field = texts[0]
        return None


def looked_up(record: Mapping[str, Any], wanted: str) -> tuple[Mapping[str, Any], str] | None:
    """Return the object that holds the field `wanted`, and its key there; None where it is not, or may be one of two.

    A name may be spelt in other capitals, or lead through objects ("data.text").
    """
    if wanted in record:
        return record, wanted
    for place, character in enumerate(wanted):
        inner = record.get(wanted[:place]) if character == "." else None
        found = looked_up(inner, wanted[place + 1 :]) if isinstance(inner, Mapping) else None
        if found:
            return found
    same = [key for key in record if folded(key) == folded(wanted)]
    return (record, same[0]) if len(same) == 1 else None


def folded(name: str) -> str:
    """Return `name` without outer spaces and capitals."""
    return name.strip().casefold()


def listed(names: Iterable[str]) -> str:
    """Return names for a message, a dozen at most."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") if shown else "none"


def kind_of(value: object) -> str:
    """Return what a JSON value or a column is, for a message."""
    if isinstance(value, OtherType):
        return value.name
    names = {
        str: "text",
        dict: "an object",
        list: "a list",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        Decimal: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _without(record: Mapping[str, Any], holder: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return `record` without the field `key` of the object `holder` in it."""
    if record is holder:
        return {name: value for name, value in record.items() if name != key}
    return {
        name: _without(value, holder, key) if isinstance(value, Mapping) else value  # leads to it, or is left unchanged
        for name, value in record.items()
    }


def _titled(record: Mapping[str, Any], text_key: str) -> Any:
    found = looked_up(record, TITLE_FIELD)
    return record[found[1]] if found and found[1] != text_key else None


def _document(body: str, title: str, fields: Mapping[str, Any], place: str) -> Document:
    """Return the document of a text: its title only where the text lacks it. A title without a text is the text."""
    title = whole_characters(title).strip()
    if not body.strip():
        return Document(body=title, place=place, fields=fields)
    begins, after = body.lstrip().startswith(title), body.lstrip()[len(title) : len(title) + 1]
    return Document(body=body, place=place, title="" if begins and not after.isalnum() else title, fields=fields)
