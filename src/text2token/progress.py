"""How long work reports its steps and progress; the caller decides how they are shown."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Progress = Callable[[int], None]  # called with the number of units just done


class Reporter(Protocol):
    """What long work reports while it runs. The command line shows bars; the default is silent."""

    def note(self, message: str) -> None:
        """Report one line."""

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Progress]:
        """Return a context that yields a function to be called with the number of units just done; None: no end is known."""


class Silent:
    """A reporter for library use."""

    def note(self, message: str) -> None:
        """Do nothing."""

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Progress]:
        """Count nothing."""
        yield lambda done: None


SILENT: Reporter = Silent()


class Phases:
    """Counts the seconds of the phases of a run, one after the other; `seconds` has them by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def ended(self, phase: str) -> None:
        """Count the seconds since the last phase ended as those of `phase`."""
        now = time.monotonic()
        self.seconds[phase] = round(self.seconds.get(phase, 0) + now - self._began, 1)
        self._began = now

    def sentence(self) -> str:
        """Return the seconds of all phases as one line for people."""
        whole = sum(self.seconds.values())
        return f"{whole:,.0f} s: " + ", ".join(f"{phase} {seconds:,.0f}" for phase, seconds in self.seconds.items())
