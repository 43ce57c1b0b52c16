"""`python -m text2token_bench SOURCES … --backbone … --output …` trains and scores all peers on your text."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.options import Format, OnError, Overwrite, Quiet, Set, Sources, TextField, broken_lines, reading_with
from text2token.cli.show import TerminalReporter, quiet_libraries
from text2token.corpus.readers import read_documents
from text2token.errors import Text2TokenError
from text2token.progress import Silent
from text2token.recipe import BackboneSettings, ReadingSettings
from text2token.settings import with_assignments
from text2token_bench.comparison import Comparison, choose_peers, compare_peers
from text2token_bench.rows import best_rows, ranking


def compare(
    sources: Sources,
    backbone: Annotated[str, typer.Option(help="Decoder LLM that all peers start from.")],
    output: Annotated[Path, typer.Option(help="Folder of the comparison; the same command resumes it.")],
    suite: Annotated[Path | None, typer.Option(help="Folder of labelled tasks.")] = None,
    suite_tokens: Annotated[int, typer.Option(help="Sample the suite to about so many tokens; 0 for all of it.")] = 250_000,
    peers: Annotated[str, typer.Option(help="Some peers only, by name, with commas between. Default: all.")] = "",
    reference: Annotated[str | None, typer.Option(help="A supervised embedder to show beside them.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens that each training may process.")] = 100_000,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, … of every trained peer.")] = 3,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train and score all peers on your text and write a leaderboard."""
    quiet_libraries()
    comparison = Comparison(
        BackboneSettings(backbone, max_length=128),
        sources=tuple(sources),
        reading=reading_with(ReadingSettings(), text_field, format, on_error),
        suite=str(suite) if suite else None,
        suite_tokens=suite_tokens or None,
        max_tokens=max_tokens,
    )
    comparison = with_assignments(comparison, set_ or [])
    chosen = choose_peers([name for name in peers.split(",") if name.strip()], reference)
    broken = broken_lines(on_error)
    documents = read_documents(comparison.sources, text_field=text_field, format=comparison.reading.format, broken=broken)
    reporter = Silent() if quiet else TerminalReporter()
    board = compare_peers(
        comparison, documents, output, chosen, seeds=seeds, overwrite=overwrite, broken=broken, reporter=reporter
    )
    if broken.count:
        reporter.note(f"Left out {broken.count:,} broken lines, the first: {broken.first[0]}")
    if not quiet:
        ranked_by = ranking(board.rows)
        for row in best_rows(board.rows):
            print(f"{ranked_by.of(row) or '–'!s:>12}  {row.peer}, {row.postprocessing}")
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
