"""What a person at a terminal sees: notes, progress with speed and time left, tables. All but results goes to stderr."""

import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from datetime import timedelta
from functools import partialmethod
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from text2token.errors import printable
from text2token.evaluation.alignment import Alignment
from text2token.evaluation.comparison import Evaluation
from text2token.evaluation.label_free import TASK
from text2token.lens.open import DecodedToken, ReadableModel
from text2token.lens.pair import Contributions
from text2token.progress import Progress as Advance
from text2token.search.explain import Reason, excerpt
from text2token.tokens.words import KeyToken

if TYPE_CHECKING:  # they stand on extras, and take seconds to import
    from text2token.evaluation.models import ModelReport
    from text2token.search.query import Hit

SECONDS_BETWEEN_LINES = 15.0
RECENT = 60.0  # seconds over which the pace is measured
LONGEST_BAR = 24  # characters
NARROWEST = 10  # characters of a column of figures, with what stands around it
Model = TypeVar("Model")


class Pace:
    """How fast work goes now: a resumed run finds much done at once, which does not tell how fast the rest will go."""

    def __init__(self, now: float) -> None:
        self._marks = deque([(now, 0)])
        self.speed = 0.0  # units a second

    @property
    def completed(self) -> int:
        """The number of units done."""
        return self._marks[-1][1]

    def after(self, done: int, now: float) -> float:
        """Return units a second over the last minute, or over the last step if that took longer.

        `done` are the units since the last call, `now` is in seconds.
        """
        self._marks.append((now, self.completed + done))
        while now - self._marks[1][0] >= RECENT:
            self._marks.popleft()
        then, before = self._marks[0]
        self.speed = (self.completed - before) / max(now - then, 1e-9)
        return self.speed

    def figures(self, total: int | None) -> tuple[str, str]:
        """Return the pace, and the time that what is left of `total` takes at that pace; nothing of what is not known."""
        speed = f"{self.speed:,.0f}/s" if self.speed >= 10 else f"{self.speed:.2g}/s"
        if total is None or not self.speed:
            return speed, ""
        return speed, str(timedelta(seconds=round(max(total - self.completed, 0) / self.speed)))


class _Console(Console):
    """Shows names and texts as they are: nothing in them is markup, and no control character reaches the terminal."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Leave the exit code to the command line; rich would exit with 1."""
        raise BrokenPipeError


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


class TerminalReporter:
    """Bars on a terminal; in a log file, a line every quarter of a minute."""

    def __init__(self) -> None:
        self.console = _Console(stderr=True)

    def note(self, message: str) -> None:
        """Print one line."""
        self.console.print(_text(message), soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show how far the work is, how fast and how long it will still take."""
        description = printable(description)
        if not self.console.is_terminal:
            with _logged_progress(description, total, unit) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}" + ("/{task.total:,.0f}" if total else "") + " {task.fields[unit]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            pace = Pace(time.monotonic())
            task = bars.add_task(description, total=total, unit=unit, speed="", left="")

            def advance(done: int) -> None:
                pace.after(done, time.monotonic())
                speed, left = pace.figures(total)
                bars.update(task, advance=done, speed=speed, left=left and f"left {left}")

            yield advance


def quiet_libraries() -> None:
    """Silence the libraries' bars and advice, which would break the bars here; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    bars: Any = transformers.utils.logging
    bars.disable_progress_bar()
    bars.set_verbosity_error()
    datasets.disable_progress_bars()
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # mteb's bars, which its switch does not reach


@contextmanager
def _logged_progress(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    last = time.monotonic()
    pace = Pace(last)

    def advance(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        pace.after(done, now)
        if now - last >= SECONDS_BETWEEN_LINES or (total is not None and pace.completed >= total):
            last = now
            so_far = f"{pace.completed:,}" if total is None else f"{pace.completed:,}/{total:,}"
            speed, left = pace.figures(total)
            print(f"{description}: {so_far} {unit}, {speed}{left and f', {left} left'}", file=sys.stderr, flush=True)

    yield advance


def show_evaluation(evaluation: Evaluation) -> None:
    """Print the before/after table and the decoded tokens to stdout."""
    console = _Console()
    table = Table(title=TASK.format(evaluation.trained.queries))
    table.add_column("")
    for name in ("MRR@10", "nDCG@10", "Recall@10"):
        table.add_column(name, justify="right")
    for name, scores in (
        ("untrained backbone", evaluation.untrained),
        ("trained", evaluation.trained),
        ("TF-IDF", evaluation.tfidf),
    ):
        style = "bold" if name == "trained" else ""
        figures = (scores.mrr_at_10, scores.ndcg_at_10, scores.recall_at_10)
        table.add_row(name, *(f"{figure:.1f}" for figure in figures), style=style)
    console.print(table)
    tokens = Table(title="Decoded tokens of held-out texts", show_lines=True)
    for name in ("text", "untrained", "trained"):
        tokens.add_column(name, ratio=2 if name == "text" else 1)
    for text, before, after in zip(
        evaluation.texts, evaluation.key_tokens_untrained, evaluation.key_tokens_trained, strict=True
    ):
        tokens.add_row(_text(" ".join(text.split())[:160]), _words(before), _words(after))
    console.print(tokens)


def show_reports(reports: "Sequence[ModelReport]") -> None:
    """Print scores on labelled tasks and on held-out documents to stdout."""
    console = _Console()
    labelled = [(report.model, report.labelled) for report in reports if report.labelled]
    for some in _side_by_side(labelled, console.width):
        tasks, types = some[0][1].tasks, list(some[0][1].types)
        figures = [[task.score for task in scores.tasks] for _, scores in some]
        names = [f"{task.task} ({task.measure})" for task in tasks]
        table = _named_columns(
            "Labelled tasks (percent)", [_short(name) for name, _ in some], [*names, *types], console.width
        )
        for name, row in zip(names, zip(*figures, strict=True), strict=True):
            table.add_row(name, *(f"{score:.2f}" for score in row))
        table.add_section()
        for name in types:
            table.add_row(name, *(f"{scores.types[name]:.2f}" for _, scores in some))
        table.add_section()
        table.add_row("Mean(Task)", *(f"{scores.mean_task:.2f}" for _, scores in some), style="bold")
        table.add_row("Mean(TaskType)", *(f"{scores.mean_task_type:.2f}" for _, scores in some), style="bold")
        console.print(table)
    in_domain = [(report.model, report.label_free) for report in reports if report.label_free]
    if in_domain:
        table = _named_rows(TASK.format(in_domain[0][1].queries), ("MRR@10", "95 % interval", "nDCG@10", "Recall@10"))
        for name, found in in_domain:
            low, high = found.mrr_interval
            measures = (found.mrr_at_10, found.ndcg_at_10, found.recall_at_10)
            mrr, *others = (f"{figure:.1f}" for figure in measures)
            table.add_row(_short(name), mrr, f"{low:.1f} … {high:.1f}", *others)
        console.print(table)
    shapes = [(report.model, report.geometry) for report in reports if report.geometry]
    if shapes:
        table = _named_rows("Geometry of the embeddings, at unit length", ("alignment", "uniformity", "anisotropy"))
        for name, shape in shapes:
            table.add_row(_short(name), *(f"{figure:.2f}" for figure in astuple(shape)))
        console.print(table)
    for report in reports:
        for role, prompt in report.prompts.items():
            console.print(_text(f"{_short(report.model)}: each {role} behind the prompt {prompt!r}"), style="dim")


def _side_by_side(models: Sequence[Model], width: int) -> Iterator[Sequence[Model]]:
    """Yield as many of `models` at a time as fit beside the names of tasks."""
    columns = max(1, width // 2 // NARROWEST)
    for start in range(0, len(models), columns):
        yield models[start : start + columns]


def _named_columns(title: str, names: Sequence[str], rows: Sequence[str], width: int) -> Table:
    """Return an empty table of a column for each name, broken where it is too long, beside the names of `rows`."""
    first = min(max(map(len, rows)), width - 4 - len(names) * NARROWEST)
    each = (width - first - 4) // len(names) - 3
    table = Table(title=title)
    table.add_column("", width=first, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", width=max(NARROWEST - 3, min(each, len(name))), overflow="fold")
    return table


def _named_rows(title: str, figures: Sequence[str]) -> Table:
    """Return an empty table of a row for each name, which is broken where it is too long, and of whole figures."""
    table = Table(title=title)
    table.add_column("", overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def show_hits(hits: "Sequence[Hit]", mode: str) -> None:
    """Print hits to stdout: score, place, the part of the text where words of the query stand, and why it was found."""
    console = _Console()
    if not hits:
        console.print("Nothing found.")
    for hit in hits:
        console.print(_text(f"{hit.score:.3f}  {hit.place}"), soft_wrap=True)
        shown, places = excerpt(hit.text, hit.highlights)
        text = _text("       " + shown)
        for start, end in places:
            text.stylize("bold", start + 7, end + 7)
        console.print(text, soft_wrap=True)
        why = [_words_of(hit.reasons, "sparse") or "no word shared"] if mode != "dense" else []
        if decoded := _words_of(hit.reasons, "dense"):
            why.append(f"by meaning: {decoded}")
        scores = f"cosine {hit.dense:.3f}, BM25 {hit.sparse:.1f}"
        console.print(_text(f"       {'; '.join([*why, scores])}"), style="dim", soft_wrap=True)


def show_words(
    texts: Sequence[str], models: Sequence[ReadableModel], decoded: Sequence[Sequence[Sequence[DecodedToken]]]
) -> None:
    """Print decoded tokens as bars, `decoded[model][text]`, to stdout."""
    console = _Console()
    for row, text in enumerate(texts):
        console.print(_text(" ".join(text.split())[:160]))
        table = Table(show_header=len(models) > 1)
        for model in models:
            table.add_column(_short(model.name), overflow="fold")
        table.add_row(*(_bars([(word.word, word.weight, word.in_text) for word in words[row]]) for words in decoded))
        console.print(table)
    console.print("• in the text   + beyond it", style="dim")


def show_pair(a: str, b: str, pairs: Sequence[tuple[str, Contributions]]) -> None:
    """Print for each model, by name, which words make two texts similar to it, to stdout."""
    console = _Console()
    for mark, text in (("A", a), ("B", b)):
        console.print(_text(f"{mark}  {' '.join(text.split())[:160]}"))
    for name, pair in pairs:
        parts = f"cosine {pair.cosine:.3f} = words {pair.explained:.3f} + common {pair.common:.3f} + rest {pair.rest:.3f}"
        console.print(_text(f"{_short(name)}: {parts}"))
        table = Table(show_header=False)
        table.add_row(_bars([(word, share, None) for word, share in pair]))
        console.print(table)
    explanation = (
        "A word's share is what both texts have along its reading direction, less what the mean of the corpus (common) and "
        "the words before it account for. The shares add up to the texts' similarity within these directions, exactly; the "
        "rest is of no word."
    )
    console.print(explanation, style="dim")


def show_alignment(rows: Sequence[tuple[str, Alignment]]) -> None:
    """Print how well decoded tokens match the words of held-out texts, a row for each model, to stdout."""
    table = Table(title=f"Decoded tokens of {rows[0][1].texts} held-out texts beside the words in them (percent)")
    for name in ("", "Hit@1", "Hit@5", "Hit@10", "of the first 10 in the text", "LAR", "GAR"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for name, found in rows:
        figures = (found.hit_at_1, found.hit_at_5, found.hit_at_10, found.precision_at_10, found.lar, found.gar)
        table.add_row(_short(name), *(f"{figure:.1f}" for figure in figures))
    _Console().print(table)


def _bars(words: Sequence[tuple[str, float, bool | None]]) -> Table:
    """Return words with bars as long as their weights; the third of each: whether the text holds it, None: not shown."""
    grid = Table.grid(padding=(0, 1))
    longest = max((weight for _, weight, _ in words), default=0.0) or 1.0
    for word, weight, in_text in words:
        mark = "" if in_text is None else "•" if in_text else "+"
        bar = _text("█" * max(1, round(LONGEST_BAR * weight / longest)), style="cyan" if in_text is not False else "magenta")
        grid.add_row(mark, _text(word), bar, f"{weight:.3f}")
    return grid


def _short(model: str) -> str:
    """Return the name of a model without the folders it lies in."""
    return model if model.count("/") <= 1 else "/".join(model.rstrip("/").split("/")[-2:])


def _words(tokens: Sequence[KeyToken]) -> Text:
    return _text(", ".join(token.word for token in tokens))


def _words_of(reasons: Sequence[Reason], half: str) -> str:
    return ", ".join(f"{reason.word} {reason.contribution:.2g}" for reason in reasons if reason.half == half)
