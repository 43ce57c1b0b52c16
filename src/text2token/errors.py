"""What a user can mend, as a tree whose classes name what is wrong; all of them are names of `text2token`.

    Text2TokenError
    ├── UsageError           exit code 2
    ├── CorpusError          3
    ├── ModelError           4
    ├── TargetMismatch       5
    ├── OutputError          6
    ├── TrainingDiverged     7
    └── EngineUnavailable    8

A message is one line: what was found, where, and what to do. The command line prints it and exits with `exit_code`. Anything
that is no `Text2TokenError` is a mistake of this package and keeps its traceback.
"""

import re
from typing import ClassVar

INTERRUPTED, NOBODY_READS = 130, 141  # exit codes: 128 and the number of the signal that ends other programs then


class Text2TokenError(Exception):
    """Base of everything a user can mend; a subclass names what is wrong and has the command line's `exit_code`."""

    exit_code: ClassVar[int]


class UsageError(Text2TokenError):
    """A setting, an option or a request does not make sense, or needs a package or port that is not to be had."""

    exit_code = 2


class CorpusError(Text2TokenError):
    """The text cannot be read: missing, damaged, empty, or without a text field."""

    exit_code = 3


class ModelError(Text2TokenError):
    """The model cannot be found, loaded, or used for this."""

    exit_code = 4


class TargetMismatch(Text2TokenError):
    """Stored targets do not fit this tokenizer, vocabulary or corpus, or were altered."""

    exit_code = 5


class OutputError(Text2TokenError):
    """A result cannot be written, would replace something, or is there and cannot be read."""

    exit_code = 6


class TrainingDiverged(Text2TokenError):
    """The loss became infinite or not a number."""

    exit_code = 7


class EngineUnavailable(Text2TokenError):
    """The engine of the work (`--engine`) cannot be reached, its workers keep dying, or they write where nobody sees it."""

    exit_code = 8


def exit_codes() -> dict[int, str]:
    """Return what each exit code of the command line means, in a word or two: the names of the tree, spelt out."""
    kinds = {kind.exit_code: kind.__name__ for kind in Text2TokenError.__subclasses__()}
    spelt = {code: re.sub(r"\B(?=[A-Z])", " ", name.removesuffix("Error")).lower() for code, name in sorted(kinds.items())}
    return {0: "done", **spelt, INTERRUPTED: "interrupted", NOBODY_READS: "nobody reads the results"}


VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def printable(text: str) -> str:
    """Return `text` with a sign for each control character, which a terminal would obey: it may come from anybody."""
    return text.translate(VISIBLE)


def reason(error: BaseException) -> str:
    """Return in one line why something outside of this package failed: the system's message, or the error's first line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
