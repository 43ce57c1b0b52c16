"""What a document is, before anything has been decided about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus and where it came from.

    `title` is what its source calls so (a key or column of that name, a docstring's first paragraph), else empty.
    `place` is for people: `"docs.jsonl:17"` or a dotted Python name. `fields` are all other keys of its JSON object or
    columns of its row, the title's too.
    """

    body: str
    place: str
    title: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """The whole document: title and body, or the body alone."""
        return f"{self.title}\n\n{self.body}" if self.title else self.body
