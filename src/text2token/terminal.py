"""What a person at a terminal sees: notes, progress with speed and time left, tables. All but results goes to stderr."""

import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partialmethod
from typing import TYPE_CHECKING, Any

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from text2token.backbone import Progress as Advance
from text2token.doctor import Diagnosis
from text2token.evaluation.before_after import Evaluation
from text2token.leaderboard import Leaderboard, best_rows
from text2token.lens.key_tokens import KeyToken
from text2token.lens.metrics import Alignment
from text2token.lens.pair import Contributions
from text2token.lens.readable import ReadableModel, SaidWord
from text2token.search.explain import Reason, excerpt

if TYPE_CHECKING:  # they stand on extras, and take seconds to import
    from text2token.evaluation.report import ModelReport
    from text2token.search.index import Hit

SECONDS_BETWEEN_LINES = 15.0
RECENT = 60.0  # seconds that the pace looks back
LONGEST_BAR = 24  # characters


class Pace:
    """How fast work goes now: a run that goes on finds much done at once, which says nothing about what is left."""

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

    def told(self, total: int | None) -> tuple[str, str]:
        """Return the pace, and the time that what is left of `total` takes at that pace; nothing of what is not known."""
        speed = f"{self.speed:,.0f}/s" if self.speed >= 10 else f"{self.speed:.2g}/s"
        if total is None or not self.speed:
            return speed, ""
        return speed, str(timedelta(seconds=round(max(total - self.completed, 0) / self.speed)))


class TerminalReporter:
    """Bars on a terminal; in a log file, a line every quarter of a minute."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def note(self, message: str) -> None:
        """Say one line."""
        self.console.print(Text(message), soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show how far the work is, how fast and how long it will still take."""
        if not self.console.is_terminal:
            with _logged_progress(description, total, unit) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}"),
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
                speed, left = pace.told(total)
                bars.update(task, advance=done, speed=speed, left=left and f"left {left}")

            yield advance


def quiet_libraries() -> None:
    """Silence the libraries' own bars and advice, which would break ours; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    bars: Any = transformers.utils.logging
    bars.disable_progress_bar()
    bars.set_verbosity_error()
    datasets.disable_progress_bars()
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # mteb's bars, which its own switch does not reach


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
            speed, left = pace.told(total)
            print(f"{description}: {so_far} {unit}, {speed}{left and f', {left} left'}", file=sys.stderr, flush=True)

    yield advance


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print the machine, then every part of the installation with the line that completes it, to stdout."""
    console = Console(highlight=False)
    width = max(map(len, diagnosis.machine))
    for name, finding in diagnosis.machine.items():
        console.print(Text(f"{name:>{width}}  {finding}"), soft_wrap=True)
    console.print()
    for part in diagnosis.parts:
        name = f"[{part.extra}]" if part.extra else "the package"
        console.print(Text(f"{name:>{width}}  {'complete' if part.able else part.remedy}  ({part.used_by})"), soft_wrap=True)
        for requirement in part.missing:
            console.print(Text(f"{'':>{width}}    missing: {requirement}"), soft_wrap=True)


def show_evaluation(evaluation: Evaluation) -> None:
    """Print the before/after table and the key tokens to stdout."""
    console = Console(highlight=False)
    table = Table(title=f"Title or first half → own rest, among {evaluation.trained.queries} held-out documents (percent)")
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
    tokens = Table(title="Key tokens of held-out texts", show_lines=True)
    for name in ("text", "untrained", "trained"):
        tokens.add_column(name, ratio=2 if name == "text" else 1)
    for text, before, after in zip(
        evaluation.texts, evaluation.key_tokens_untrained, evaluation.key_tokens_trained, strict=True
    ):
        tokens.add_row(Text(" ".join(text.split())[:160]), _words(before), _words(after))
    console.print(tokens)


def show_reports(reports: "Sequence[ModelReport]") -> None:
    """Print scores on labelled tasks, and those on one's own text, to stdout."""
    console = Console(highlight=False)
    labelled = [(report.model, report.labelled) for report in reports if report.labelled]
    if labelled:
        table = Table(title="Labelled tasks (percent)")
        table.add_column("")
        for name, _ in labelled:
            table.add_column(_short(name), justify="right")
        for index, task in enumerate(labelled[0][1].tasks):
            table.add_row(f"{task.task} ({task.measure})", *(f"{scores.tasks[index].score:.2f}" for _, scores in labelled))
        table.add_section()
        for name in labelled[0][1].types:
            table.add_row(name, *(f"{scores.types[name]:.2f}" for _, scores in labelled))
        table.add_section()
        table.add_row("Mean(Task)", *(f"{scores.mean_task:.2f}" for _, scores in labelled), style="bold")
        table.add_row("Mean(TaskType)", *(f"{scores.mean_task_type:.2f}" for _, scores in labelled), style="bold")
        console.print(table)
    own = [(report.model, report.label_free, report.geometry) for report in reports if report.label_free]
    if own:
        table = Table(title=f"Title or first half → own rest, among {own[0][1].queries} held-out documents (percent)")
        names = ("", "MRR@10", "95 % interval", "nDCG@10", "Recall@10", "alignment", "uniformity", "anisotropy")
        for name in names:
            table.add_column(name, justify="right" if name else "left")
        for name, scores, shape in own:
            low, high = scores.mrr_interval
            figures = (
                f"{scores.mrr_at_10:.1f}",
                f"{low:.1f} … {high:.1f}",
                f"{scores.ndcg_at_10:.1f}",
                f"{scores.recall_at_10:.1f}",
            )
            shapes = (f"{shape.alignment:.2f}", f"{shape.uniformity:.2f}", f"{shape.anisotropy:.2f}") if shape else ()
            table.add_row(_short(name), *figures, *shapes)
        console.print(table)
    for report in reports:
        for role, prompt in report.prompts.items():
            console.print(Text(f"{_short(report.model)}: each {role} behind its own prompt {prompt!r}"), style="dim")


def show_hits(hits: "Sequence[Hit]", mode: str) -> None:
    """Print hits to stdout: score, place, the part of the text where words of the query stand, and why it was found."""
    console = Console(highlight=False)
    if not hits:
        console.print("Nothing found.")
    for hit in hits:
        console.print(Text(f"{hit.score:.3f}  {hit.place}"), soft_wrap=True)
        shown, places = excerpt(hit.text, hit.highlights)
        text = Text("       " + shown)
        for start, end in places:
            text.stylize("bold", start + 7, end + 7)
        console.print(text, soft_wrap=True)
        why = [_said(hit.reasons, "sparse") or "no word shared"] if mode != "dense" else []
        if said := _said(hit.reasons, "dense"):
            why.append(f"by meaning: {said}")
        scores = f"cosine {hit.dense:.3f}, BM25 {hit.sparse:.1f}"
        console.print(Text(f"       {'; '.join([*why, scores])}"), style="dim", soft_wrap=True)


def show_leaderboard(board: Leaderboard) -> None:
    """Print the best row of each peer to stdout."""
    table = Table(title=board.title)
    for name in ("", "post-processing", "Mean(TaskType)", "Mean(Task)", "own text, MRR@10", "tokens", "seconds"):
        table.add_column(name, justify="right" if name and name != "post-processing" else "left")
    for row in best_rows(board.rows):
        scores = ("" if score is None else str(score) for score in (row.mean_task_type, row.mean_task, row.label_free))
        cost = (f"{row.tokens or 0:,}", f"{row.seconds or 0:,.0f}")
        table.add_row(row.peer, row.postprocessing, *scores, *cost, style="bold" if row.family == "text2token" else "")
    Console(highlight=False).print(table)


def show_words(texts: Sequence[str], models: Sequence[ReadableModel], said: Sequence[Sequence[Sequence[SaidWord]]]) -> None:
    """Print the words that each model says of each text as bars, `said[model][text]`, to stdout."""
    console = Console(highlight=False)
    for row, text in enumerate(texts):
        console.print(Text(" ".join(text.split())[:160]))
        table = Table(show_header=len(models) > 1)
        for model in models:
            table.add_column(Text(_short(model.name)))
        table.add_row(*(_bars([(word.word, word.weight, word.in_text) for word in words[row]]) for words in said))
        console.print(table)
    console.print("• in the text   + beyond it", style="dim")


def show_pair(a: str, b: str, pairs: Sequence[tuple[str, Contributions]]) -> None:
    """Print for each model, by name, which words make two texts similar to it, to stdout."""
    console = Console(highlight=False)
    for mark, text in (("A", a), ("B", b)):
        console.print(Text(f"{mark}  {' '.join(text.split())[:160]}"))
    for name, pair in pairs:
        parts = f"cosine {pair.cosine:.3f} = words {pair.explained:.3f} + common {pair.common:.3f} + rest {pair.rest:.3f}"
        console.print(Text(f"{_short(name)}: {parts}"))
        table = Table(show_header=False)
        table.add_row(_bars([(word, share, None) for word, share in pair]))
        console.print(table)
    explanation = (
        "A word's share is what both texts have along its reading direction, less what the mean of the corpus (common) and "
        "the words before it account for. The shares add up to the texts' likeness within these directions, exactly; the "
        "rest is of no word."
    )
    console.print(explanation, style="dim")


def show_alignment(rows: Sequence[tuple[str, Alignment]]) -> None:
    """Print how well the embeddings of held-out texts say the words of the texts, a row for each model, to stdout."""
    table = Table(title=f"Words of {rows[0][1].texts} held-out texts, as their embeddings say them (percent)")
    for name in ("", "Hit@1", "Hit@5", "Hit@10", "of the first 10 in the text", "LAR", "GAR"):
        table.add_column(name, justify="right" if name else "left")
    for name, found in rows:
        figures = (found.hit_at_1, found.hit_at_5, found.hit_at_10, found.precision_at_10, found.lar, found.gar)
        table.add_row(_short(name), *(f"{figure:.1f}" for figure in figures))
    Console(highlight=False).print(table)


def _bars(words: Sequence[tuple[str, float, bool | None]]) -> Table:
    """Return words with bars as long as their weights; the third of each says whether it is in the text, None: no matter."""
    grid = Table.grid(padding=(0, 1))
    longest = max((weight for _, weight, _ in words), default=0.0) or 1.0
    for word, weight, in_text in words:
        mark = "" if in_text is None else "•" if in_text else "+"
        bar = Text("█" * max(1, round(LONGEST_BAR * weight / longest)), style="cyan" if in_text is not False else "magenta")
        grid.add_row(mark, Text(word), bar, f"{weight:.3f}")
    return grid


def _short(model: str) -> str:
    """Return the name of a model without the folders it lies in."""
    return model if model.count("/") <= 1 else "/".join(model.rstrip("/").split("/")[-2:])


def _words(tokens: Sequence[KeyToken]) -> Text:
    return Text(", ".join(token.word for token in tokens))


def _said(reasons: Sequence[Reason], half: str) -> str:
    return ", ".join(f"{reason.word} {reason.contribution:.2g}" for reason in reasons if reason.half == half)
