"""What the commands have in common. Heavy imports happen inside, as in the commands."""

import codecs
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2token.errors import UsageError, printable
from text2token.recipe import Format, OnError, ReadingSettings

if TYPE_CHECKING:
    from text2token.corpus.readers import Documents
    from text2token.engine import Engine
    from text2token.progress import Reporter


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Let what stands on the packages of an extra be imported, or show how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("text2token"):
            raise
        raise UsageError(f"this needs the package {error.name}: pip install 'text2token[{extra}]'") from None


def proposed(*words: object) -> str:
    """Return a command that can be copied: this program as it was called, with `words`, quoted where they must be."""
    called = Path(sys.argv[0])
    program = [str(called)] if called.name == "text2token" else [sys.executable, "-m", "text2token"]
    return shlex.join([*program, *map(str, words)])


def reading_of(text_field: str | None, format: Format | None, on_error: OnError | None) -> ReadingSettings:
    """Return how text is read, by default where the command line does not set it."""
    usual = ReadingSettings()
    return ReadingSettings(text_field, format or usual.format, on_error or usual.on_error)


def to_read(sources: Sequence[str], reading: ReadingSettings, *, counting: bool = False) -> "Documents":
    """Return the documents of `sources`; `CorpusError` where a source is not there.

    What is taken for granted is noted, unless they are read for `counting` alone.
    """
    from text2token.corpus.readers import BrokenLines, expand_sources, read_documents

    broken = BrokenLines(reading.on_error, tell=None if counting else lambda note: print(note, file=sys.stderr))
    expand_sources(sources)  # a misspelt file is refused at once, not after the model has loaded
    return read_documents(sources, text_field=reading.text_field, format=reading.format, broken=broken)


def counted(sources: Sequence[str], reading: ReadingSettings, *, empty: bool) -> int | None:
    """Return the number of documents, with those that are `empty` or without; None where they can be read but once.

    Reading takes seconds where embedding takes hours, and then the time left is known.
    """
    if "-" in sources:
        return None
    documents = to_read(sources, reading, counting=True)
    return sum(empty or bool(document.text.strip()) for document in documents)


@contextlib.contextmanager
def workers_of(engine: str, ray_address: str | None) -> "Iterator[Engine]":
    """Yield the engine; Ray tells of workers that died on stdout, which is for results."""
    from text2token.engine import open_engine

    with open_engine(engine, ray_address) as workers, contextlib.redirect_stdout(sys.stderr):
        yield workers


def reporter_for(quiet: bool) -> "Reporter":
    """Return what shows progress on the terminal, and let the libraries be quiet."""
    from text2token.cli.show import TerminalReporter, quiet_libraries
    from text2token.progress import Silent

    quiet_libraries()
    return Silent() if quiet else TerminalReporter()


def show_json(content: Any) -> None:
    """Print `content` as JSON, letters as they are where stdout takes them, and control characters by their numbers."""
    takes_all = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(content, indent=2, ensure_ascii=not takes_all)
    print(re.sub(r"[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text))


def is_first() -> bool:
    """Return whether this is the first of several training processes, which reports."""
    return os.environ.get("RANK", "0") == "0"


def warn(documents: "Documents | None") -> None:
    """Report how many broken lines were left out."""
    if documents and (broken := documents.broken).count:
        sys.stderr.write(f"Left out {broken.count:,} broken lines, the first of them:\n")
        sys.stderr.writelines(f"  {printable(message)}\n" for message in broken.first)
