"""What can go wrong for a user, as a tree. The CLI prints the message on one line and exits with `exit_code`.

Anything that is not a `Text2TokenError` is our mistake and keeps its traceback. A message says what was found, where,
and what to do about it.
"""


class Text2TokenError(Exception):
    """Base of everything a user can mend. `exit_code` is what the command line returns."""

    exit_code = 3


class CorpusError(Text2TokenError):
    """The text cannot be read: missing, damaged, empty, or without a text field."""

    exit_code = 3


class BackboneError(Text2TokenError):
    """The model cannot be found, loaded or used as a decoder backbone."""

    exit_code = 4


class TargetMismatch(Text2TokenError):
    """Stored targets do not belong to this tokenizer, vocabulary or corpus, or were altered."""

    exit_code = 5


class OutputError(Text2TokenError):
    """A result cannot be written, or would overwrite something."""

    exit_code = 6


class TrainingDiverged(Text2TokenError):
    """The loss became infinite or not a number."""

    exit_code = 7


class EngineError(Text2TokenError):
    """The engine of the work (`--engine`) cannot be reached, its workers keep dying, or they write where nobody sees it."""

    exit_code = 8


class RecipeError(Text2TokenError):
    """A setting is unknown or out of range."""

    exit_code = 2


VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def printable(text: str) -> str:
    """Return `text` with a sign for each control character, which a terminal would obey: it may be a stranger's."""
    return text.translate(VISIBLE)


def reason(error: BaseException) -> str:
    """Return in one line why something outside of this package failed: what the system says, or the error's first line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
