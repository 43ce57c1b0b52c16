"""`python -m text2token_bench SOURCES … --backbone … --output …` trains and scores all peers on your text."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import datasets
import transformers
import typer
from tqdm import tqdm

from text2token import BackboneSettings, Text2TokenError, read_documents
from text2token_bench.comparison import Comparison, choose_peers, compare_peers
from text2token_bench.inside import BrokenLines, Progress, with_assignments
from text2token_bench.rows import Leaderboard, best_rows, ranking


class TerminalReporter:
    """Notes and bars on stderr."""

    def __init__(self) -> None:
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        datasets.disable_progress_bars()

    def note(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Progress]:
        """Show how far the work is; in a log file, a line a minute."""
        pause = 0.5 if sys.stderr.isatty() else 60
        with tqdm(desc=description, total=total, unit=f" {unit}", leave=False, mininterval=pause) as bar:
            yield lambda done: bar.update(done) and None


def show(board: Leaderboard) -> None:
    """Print what each peer's best row is ranked by."""
    ranked_by = ranking(board.rows)
    print(f"{ranked_by.heading:>16}")
    for row in best_rows(board.rows):
        print(f"{ranked_by.of(row) or '–'!s:>16}  {row.peer}, {row.postprocessing}")


def compare(
    sources: Annotated[list[str], typer.Argument(help="Files, globs and URLs, as of `text2token train`.")],
    backbone: Annotated[str, typer.Option(help="Decoder LLM that all peers start from.")],
    output: Annotated[Path, typer.Option(help="Folder of the comparison; the same command resumes it.")],
    suite: Annotated[Path | None, typer.Option(help="Folder of labelled tasks.")] = None,
    suite_tokens: Annotated[int, typer.Option(help="Sample the suite to about so many tokens; 0 for all of it.")] = 250_000,
    peers: Annotated[str, typer.Option(help="Some peers only, by name, with commas between. Default: all.")] = "",
    reference: Annotated[str | None, typer.Option(help="A supervised embedder to show beside them.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each training may process.")] = 100_000,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … of every trained peer.")] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of the comparison, such as reading.text_field=body. Repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison.")] = False,
) -> None:
    """Train and score all peers on your text and write a leaderboard."""
    comparison = with_assignments(
        Comparison(
            BackboneSettings(backbone, max_length=128),
            sources=tuple(sources),
            suite=str(suite) if suite else None,
            suite_tokens=suite_tokens or None,
            max_tokens=max_tokens,
        ),
        set_ or [],
    )
    chosen = choose_peers([name for name in peers.split(",") if name.strip()], reference)
    reporter, reading = TerminalReporter(), comparison.reading
    broken = BrokenLines(reading.on_error, tell=reporter.note)
    documents = read_documents(comparison.sources, text_field=reading.text_field, format=reading.format, broken=broken)
    board = compare_peers(comparison, documents, output, chosen, seeds=seeds, overwrite=overwrite, reporter=reporter)
    if broken.count:
        reporter.note(f"Left out {broken.count:,} broken lines, the first: {broken.first[0]}")
    show(board)
    reporter.note(f"Open {output / 'leaderboard.html'} in a browser; the figures are in leaderboard.csv beside it.")


def main() -> None:
    """Run the command: one line and an exit code for a user's mistakes, a traceback for ours."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(compare)
    try:
        app()
    except Text2TokenError as error:
        sys.stderr.write(f"text2token_bench: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
