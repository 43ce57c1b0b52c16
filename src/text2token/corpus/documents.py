"""What a document is, before anything has been decided about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from text2token.corpus.values import UnfitField, plain_fields
from text2token.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus and where it came from.

    `title` is what its source calls so (a key or column of that name, a docstring's first paragraph), else empty.
    `place` is for people: `"docs.jsonl:17"` or a dotted Python name. `fields` are all other keys of its JSON object or
    columns of its row, the title's too, made plain JSON (`plain_fields`); `CorpusError` where they cannot be.
    """

    body: str
    place: str
    title: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.fields:
            try:
                object.__setattr__(self, "fields", plain_fields(self.fields))
            except UnfitField as problem:
                raise CorpusError(f"{self.place}: {problem}") from problem

    @property
    def text(self) -> str:
        """The whole document: title and body, or the body alone."""
        return f"{self.title}\n\n{self.body}" if self.title else self.body
