"""How a long run speaks: rooms report steps and progress, and whoever called them decides how it looks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from text2token.backbone import Progress


class Reporter(Protocol):
    """What `run` tells while it works. The command line shows bars; the default says nothing."""

    def note(self, message: str) -> None:
        """Say one line."""

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Progress]:
        """Return a context that yields a function to be called with the number of units just done; None: no end is known."""


class Silent:
    """A reporter for library use."""

    def note(self, message: str) -> None:
        """Say nothing."""

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Progress]:
        """Count nothing."""
        yield lambda done: None
