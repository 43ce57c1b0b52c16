"""A comparison of embedding methods as one HTML page that needs nothing beside it, and as CSV.

A mean alone does not tell people who were not there whether to believe it: the page puts the spread over seeds, the cost,
the single tasks and what was tried in tuning next to it.

The trap: the post-processing shown for a method is the best by the very scores that are shown, which favours methods with
many variants. So the page says it, and lists every variant. Supervised models and controls bound the field from above and
below; they get no rank, or the ranks of the others would depend on how many of them were run.
"""

import csv
import io
from collections.abc import Iterable
from itertools import chain

from text2token_bench.inside import filled, spreadsheet_text
from text2token_bench.plots import by_cost, cost_plot, task_panels
from text2token_bench.rows import UNRANKED, Leaderboard, best_rows, ranking, score_columns


def leaderboard_html(board: Leaderboard) -> str:
    """Return the whole page: table, cost plot, bars per task, every variant and trial, notes. It loads nothing."""
    best, ranked_by = best_rows(board.rows), ranking(board.rows)
    ranked = [row for row in best if row.family not in UNRANKED and ranked_by.of(row)]
    columns = score_columns(best)
    return filled(
        "text2token_bench",
        "leaderboard.html.jinja",
        board=board,
        best=best,
        ranks={row.peer: rank for rank, row in enumerate(ranked, 1)},
        unranked=UNRANKED,
        ranked_by=ranked_by,
        columns=columns,
        all_columns=score_columns(board.rows, tasks=True),
        leading={column.name: max((s.mean for r in ranked if (s := column.of(r))), default=None) for column in columns},
        plot=cost_plot(best, ranked_by),
        unplotted=[row.peer for row in best if row not in chain.from_iterable(by_cost(best, ranked_by))],
        panels=task_panels(best),
    )


def leaderboard_csv(board: Leaderboard) -> str:
    """Return one line per row, each score as two columns: its mean and its deviation; what is absent is empty."""
    columns = score_columns(board.rows, tasks=True)
    plain = ("peer", "family", "postprocessing", "settings", "seeds", "tokens", "seconds")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(name for column in columns for name in (column.name, f"{column.name}_deviation"))])
    for row in board.rows:
        scores = [column.of(row) for column in columns]
        pairs = [(score.mean, score.deviation) if score else (None, None) for score in scores]
        cells = [getattr(row, name) for name in plain]
        writer.writerow([*(spreadsheet_text(cell) for cell in cells), *(figure for pair in pairs for figure in pair)])
    return text.getvalue()


def leaderboard_markdown(board: Leaderboard) -> str:
    """Return facts, the best row of each peer, what was tried and notes as Markdown, for a page in a repository."""
    best = best_rows(board.rows)
    columns = score_columns(best)
    head = ["", "post-processing", "seeds", *(column.heading for column in columns), "tokens", "minutes"]
    lines = [f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in board.facts.items()]
    lines += ["", _table_line(head), _table_line(["---"] * len(head))]
    for row in best:
        name = f"**{markdown_text(row.peer)}**" if row.family == "text2token" else markdown_text(row.peer)
        name += f" ({row.family})" if row.family in UNRANKED else ""
        scores = [str(column.of(row) or "") for column in columns]
        minutes = "" if row.seconds is None else f"{row.seconds / 60:.1f}"
        tokens = "" if row.tokens is None else f"{row.tokens:,}"
        lines.append(_table_line([name, row.postprocessing, str(row.seeds), *scores, tokens, minutes]))
    if board.trials:
        tried = [
            [*map(markdown_text, (trial.peer, trial.settings, trial.measure)), f"{trial.score:.1f}", "x" * trial.chosen]
            for trial in board.trials
        ]
        headings = ["tried", "settings", "measure", "with the best post-processing", "chosen"]
        lines += ["", *map(_table_line, [headings, ["---"] * 5, *tried])]
    return "\n".join([*lines, "", *(f"- {markdown_text(note)}" for note in board.notes), ""])


MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", **{sign: f"\\{sign}" for sign in "\\`*_[]~"}})


def markdown_text(text: str) -> str:
    """Return `text` as Markdown that shows it as it is, in one line."""
    return " ".join(text.split()).translate(MARKUP)


def _table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
