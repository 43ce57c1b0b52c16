"""Work that is done once: what it was made from is noted with it, and as long as that is the same it is reused.

    steps.json   {"corpus": "16 hex digits", "targets/stage1": …}   the finished steps of a work in a folder
    card.json    a dataclass: what lies beside it and how it was made

A digest is of everything that decides an outcome. Settings go into it as whole dataclasses, never field by field: a setting
that is added later then counts without anybody's thinking of it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from text2token.errors import Text2TokenError, reason
from text2token.files import atomic_file

Card = TypeVar("Card")


def digest(*parts: Any) -> str:
    """Return 16 hex digits of settings (dataclasses) and anything else of JSON."""
    content = json.dumps(parts, default=asdict, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Steps:
    """The steps of a work in a folder, each with the digest of what it was made from."""

    RECORD = "steps.json"

    def __init__(self, folder: Path) -> None:
        self.record = folder / self.RECORD

    def begun(self) -> bool:
        """Return whether any step is finished."""
        return bool(self._made())

    def is_made(self, step: str, made_from: str, last: Path) -> bool:
        """Return whether `step` was made from the same and is still there; `last` is the file that is written last."""
        return self._made().get(step) == made_from and last.exists()

    @contextmanager
    def making(self, step: str, made_from: str) -> Iterator[None]:
        """Note that `step` is made from this when the block succeeds; until then it counts as not made."""
        self.forget(step)
        yield
        self._write({**self._made(), step: made_from})

    def forget(self, *steps: str) -> None:
        """Let `steps` count as not made; all of them where none is named."""
        made = self._made()
        if made:
            self._write({step: made_from for step, made_from in made.items() if steps and step not in steps})

    def _made(self) -> dict[str, str]:
        try:
            made = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return made if isinstance(made, dict) else {}

    def _write(self, made: dict[str, str]) -> None:
        with atomic_file(self.record) as path:
            path.write_text(json.dumps(made, indent=2), encoding="utf-8")


def write_card(card: Any, path: Path) -> None:
    """Write a dataclass as JSON, all or nothing."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(card), indent=2), encoding="utf-8")


def read_card(kind: type[Card], path: Path, error: type[Text2TokenError], what: str, remedy: str) -> Card:
    """Return the dataclass of this `kind` that `write_card` wrote; keys that it does not have (any more) are passed by.

    Raises `error` where there is none or it is damaged: `path`'s folder then holds no `what`, and `remedy` is what to do.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except pydantic.ValidationError as invalid:
        first = invalid.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as missing:
        problem = reason(missing)
    raise error(f"{path.parent}: holds no {what} that can be read ({path.name}: {problem}). {remedy}")
