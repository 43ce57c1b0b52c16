"""What a person at a terminal sees: notes, progress with speed and time left, tables. All but results goes to stderr."""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from text2token.backbone import Progress as Advance
from text2token.evaluation.before_after import Evaluation
from text2token.lens import KeyToken

SECONDS_BETWEEN_LINES = 15.0


class TerminalReporter:
    """Bars on a terminal; in a log file, a line every quarter of a minute."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def note(self, message: str) -> None:
        """Say one line."""
        self.console.print(Text(message), soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        """Show how far the work is, how fast and how long it will still take."""
        if not self.console.is_terminal:
            with _logged_progress(description, total, unit) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            started = time.monotonic()
            task = bars.add_task(description, total=total, unit=unit, speed="")

            def advance(done: int) -> None:
                completed = bars.tasks[task].completed + done
                speed = completed / max(time.monotonic() - started, 1e-9)
                bars.update(task, advance=done, speed=f"{speed:,.0f}/s")

            yield advance


def quiet_libraries() -> None:
    """Silence the libraries' own bars and advice, which would break ours; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    bars: Any = transformers.utils.logging
    bars.disable_progress_bar()
    bars.set_verbosity_error()
    datasets.disable_progress_bars()


@contextmanager
def _logged_progress(description: str, total: int, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    completed = 0

    def advance(done: int) -> None:
        nonlocal completed, last
        completed += done
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or completed >= total:
            last = now
            speed = completed / (now - started)
            left = max(total - completed, 0) / speed
            print(
                f"{description}: {completed:,}/{total:,} {unit}, {speed:,.0f}/s, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    yield advance


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


def _words(tokens: Sequence[KeyToken]) -> Text:
    return Text(", ".join(token.word for token in tokens))
