"""What a reading tells besides its documents: lines that are broken, files that are cut, and what was taken for what."""

from collections.abc import Callable
from dataclasses import dataclass, field

from text2token.errors import CorpusError
from text2token.recipe import OnError

EXAMPLES = 5  # messages kept, so that a summary can show them


@dataclass
class BrokenLines:
    """What a broken line means: an error at once (`stop`), or one more in the count (`skip`).

    `incomplete`: a file ended early, or is damaged so that nobody knows what else it holds; one broken line alone, whose
    neighbours were read, does not make it so. After either, what has not been read is not known to be gone. `notes` are
    what a reader took for granted, such as a file's only column for the text; `tell` is called with each at once.
    """

    on_error: OnError = "stop"
    count: int = 0
    incomplete: bool = False
    first: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tell: Callable[[str], None] | None = None
    known: set[str] = field(default_factory=set, repr=False)  # what the notes say, places apart

    def begin(self) -> None:
        """Count anew: what is read is read once more. What was noted is not noted again."""
        self.count, self.incomplete = 0, False
        self.first.clear()

    def report(self, place: str, problem: str, *, rest_unknown: bool = False) -> None:
        """Raise `CorpusError` or count the problem, by `on_error`; `rest_unknown` where more than this line may be lost."""
        message = f"{place}: {problem}"
        self.incomplete |= rest_unknown
        if self.on_error == "stop":
            what = (
                "Get the file whole, or take what can be read of it" if rest_unknown else "Mend the line, or leave such out"
            )
            raise CorpusError(f"{message}. {what} with --on-error skip")
        self.count += 1
        if len(self.first) < EXAMPLES:
            self.first.append(message)

    def note(self, place: str, what: str) -> None:
        """Keep and report what was taken for granted, the same of many files once."""
        if what not in self.known:
            self.known.add(what)
            self.notes.append(f"{place}: {what}")
            if self.tell:
                self.tell(self.notes[-1])
