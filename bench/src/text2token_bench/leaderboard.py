"""A comparison of embedding methods as one HTML page that needs nothing beside it, and as CSV.

A mean alone does not tell people who were not there whether to believe it: the page puts the spread over seeds, the cost,
the single tasks and what was tried in tuning next to it.

The trap: the post-processing shown for a method is the best by the very scores that are shown, which favours methods with
many variants. So the page says it, and lists every variant. Supervised models and controls bound the field from above and
below; they get no rank, or the ranks of the others would depend on how many of them were run.
"""

import csv
import io
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from operator import itemgetter
from typing import Literal, NamedTuple

import jinja2

from text2token.evaluation.models import spreadsheet_text

Family = Literal["text2token", "contrastive", "untrained", "static", "lexical", "supervised", "control"]

UNRANKED = ("supervised", "control")


@dataclass(frozen=True)
class Spread:
    """A score in percent: the `mean` over seeds and their sample standard `deviation` in percentage points.

    `deviation` is None for one seed or a deterministic method. What is not finite is a ValueError: no order survives it.
    """

    mean: float
    deviation: float | None

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not math.isfinite(self.deviation or 0.0):
            raise ValueError(f"a score must be finite, found mean {self.mean}, deviation {self.deviation}")

    def __str__(self) -> str:
        return f"{self.mean:z.1f}" if self.deviation is None else f"{self.mean:z.1f} ± {self.deviation:.1f}"

    @property
    def ends(self) -> tuple[float, float]:
        """The mean less and plus one deviation, in percent."""
        return self.mean - (self.deviation or 0.0), self.mean + (self.deviation or 0.0)


@dataclass(frozen=True)
class Row:
    """One method with one post-processing. All scores are in percent, higher is better.

    `settings` says in one line what was chosen; `seeds` counts the runs. `tasks` and `types` hold the score per task and
    per task type; `mean_task` averages the former, `mean_task_type` the latter, both None where the method cannot do
    every type (BM25 only retrieves). `label_free` is the MRR@10 on held-out documents of the corpus. `tokens` were
    processed in training (0 for untrained, None for unknown); building the method took `seconds` of wall time.
    """

    peer: str
    family: Family
    postprocessing: Literal["none", "centre", "whiten"]
    settings: str
    seeds: int
    tasks: dict[str, Spread]
    types: dict[str, Spread]
    mean_task: Spread | None
    mean_task_type: Spread | None
    label_free: Spread | None
    tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class Trial:
    """One setting tried in tuning: its best `score` in percent by a `measure`, with one `seed`, and if it was `chosen`."""

    peer: str
    settings: str
    seed: int
    measure: str
    score: float
    chosen: bool


@dataclass(frozen=True)
class Leaderboard:
    """All that the page shows: `facts` are short name-value pairs, `notes` plain sentences."""

    title: str
    facts: dict[str, str]
    notes: list[str]
    rows: list[Row]
    trials: list[Trial]


class Column(NamedTuple):
    """A score of a row: its `name` in the CSV, its `heading` on the page and how to read it `of` a row."""

    name: str
    heading: str
    of: Callable[[Row], Spread | None]


MEAN_TASK_TYPE = Column("mean_task_type", "Mean (TaskType)", lambda row: row.mean_task_type)
MEAN_TASK = Column("mean_task", "Mean (Task)", lambda row: row.mean_task)
LABEL_FREE = Column("label_free", "Label-free MRR@10", lambda row: row.label_free)


def ranking(rows: Iterable[Row]) -> Column:
    """Return what rows are ranked by: Mean(TaskType), or the label-free score where no row has a labelled one."""
    return MEAN_TASK_TYPE if any(row.mean_task_type or row.types for row in rows) else LABEL_FREE


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Return for each peer the row of the highest score that they are ranked by (`ranking`), best first.

    A row without that score is judged by its best task type and stands behind all rows that have one.
    """
    rows = list(rows)
    of = ranking(rows).of

    def standing(row: Row) -> tuple[bool, float]:
        if score := of(row):
            return True, score.mean
        return False, max((score.mean for score in row.types.values()), default=-math.inf)

    best: dict[str, Row] = {}
    for row in rows:
        if row.peer not in best or standing(row) > standing(best[row.peer]):
            best[row.peer] = row
    return sorted(best.values(), key=standing, reverse=True)


def leaderboard_html(board: Leaderboard) -> str:
    """Return the whole page: table, cost plot, bars per task, every variant and trial, notes. It loads nothing."""
    best, ranked_by = best_rows(board.rows), ranking(board.rows)
    ranked = [row for row in best if row.family not in UNRANKED and ranked_by.of(row)]
    columns = score_columns(best)
    # always on, because jinja2's choice by file ending knows no template that comes as a string
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("text2token_bench").joinpath("leaderboard.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        board=board,
        best=best,
        ranks={row.peer: rank for rank, row in enumerate(ranked, 1)},
        unranked=UNRANKED,
        ranked_by=ranked_by,
        columns=columns,
        all_columns=score_columns(board.rows, tasks=True),
        leading={column.name: max((s.mean for r in ranked if (s := column.of(r))), default=None) for column in columns},
        # the second is as wide as a phone, where the first would be scaled down until nobody could read it
        plots=[plot for size in ((960, 460), (332, 440)) if (plot := cost_plot(best, *size, ranked_by))],
        panels=[task_panel(task, best) for task in dict.fromkeys(task for row in best for task in row.tasks)],
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
    head = ["", "afterwards", "seeds", *(column.heading for column in columns), "tokens", "minutes"]
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


def score_columns(rows: Iterable[Row], tasks: bool = False) -> list[Column]:
    """Return the scores that any of these rows has: means, one per type, the label-free one and, if asked, the tasks."""
    rows = list(rows)
    types = dict.fromkeys(name for row in rows for name in row.types)
    names = dict.fromkeys(name for row in rows for name in row.tasks) if tasks else {}
    columns = [
        MEAN_TASK_TYPE,
        MEAN_TASK,
        *(Column(f"type_{name}", _heading(name), partial(_type_score, name)) for name in types),
        LABEL_FREE,
        *(Column(f"task_{name}", name, partial(_task_score, name)) for name in names),
    ]
    return [column for column in columns if any(column.of(row) for row in rows)]


def _type_score(name: str, row: Row) -> Spread | None:
    return row.types.get(name)


def _task_score(name: str, row: Row) -> Spread | None:
    return row.tasks.get(name)


def _heading(name: str) -> str:
    return name.upper() if len(name) <= 3 else name[0].upper() + name[1:].replace("_", " ")


# Drawing. Units are those of the SVG's viewBox, y grows downwards. A tick is (coordinate, text).

TEXT = 12.0  # font size
LETTER = 0.67 * TEXT  # its width in bold in the widest of the usual system fonts: too much only moves labels apart
LINE = 1.25 * TEXT
RADIUS = 5.0
GAP = RADIUS + 4  # from the middle of a point to its label
UNITS = (("ms", 0.001, 1000), ("s", 1, 60), ("min", 60, 60), ("h", 3600, 24), ("d", 86400, 10_000))
ROUND = ((1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 100, 300, 1000), (1, 3, 10, 30, 100, 1000), (1, 10, 100, 1000), (1, 1000))


class Box(NamedTuple):
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Say whether the two share an area."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom


class Mark(NamedTuple):
    """A row at (x, y), the y of its mean minus and plus deviation, its label and the place of that."""

    row: Row
    x: float
    y: float
    whisker: tuple[float, float]
    text: str
    label: Box


class CostPlot(NamedTuple):
    """What rows are ranked by against seconds. Left of `divider` stand the untrained rows: a log axis has no place for them.

    `lines` are the supervised rows, whose cost is not ours to know; `missing` names the peers that cannot be placed.
    """

    width: float
    height: float
    frame: Box
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    divider: float
    points: list[Mark]
    lines: list[Mark]
    missing: list[str]


class Bar(NamedTuple):
    """A row's bar from x `left` to x `right`, its middle at y; `whisker` is the x of mean minus and plus deviation."""

    row: Row
    text: str
    score: Spread | None
    y: float
    left: float
    right: float
    whisker: tuple[float, float]


class Panel(NamedTuple):
    """The bars of one task; the scale starts at the x `start`, where it is zero unless a score is below."""

    task: str
    width: float
    height: float
    start: float
    ticks: list[tuple[float, str]]
    bars: list[Bar]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` (4 or more) even round numbers: the first is at or below `low`, the last at or above `high`."""
    exponent = math.floor(math.log10(max(high - low, 0.1) / most))
    while True:
        for step in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent):
            first = math.floor(low / step)
            last = max(math.ceil(high / step), first + 1)
            if last - first < most:
                return [index * step for index in range(first, last + 1)]
        exponent += 1


def time_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return about `most` round times (seconds, text): the first is at or below `low`, the last at or above `high`."""
    for numbers in ROUND:
        times = [(n * size, f"{n:,} {unit}") for unit, size, end in UNITS for n in numbers if n < end]
        first = min(max(bisect_right(times, low, key=itemgetter(0)) - 1, 0), len(times) - 2)
        last = max(bisect_left(times, high, key=itemgetter(0)), first + 1)
        if last - first < most:
            break
    return times[first : last + 1]


def place_labels(anchors: Sequence[tuple[float, float, float]], taken: Sequence[Box], frame: Box) -> list[Box] | None:
    """Return a box beside each anchor (x, y, width of label) that covers nothing `taken` and no other label.

    Each stands right or left of its anchor, as little above or below as it must. None if one finds no place.
    """
    placed: dict[int, Box] = {}
    for index in sorted(range(len(anchors)), key=lambda index: anchors[index][1]):  # from the top, so lines cross little
        x, y, width = anchors[index]
        candidates = (
            Box(left, y + shift - LINE / 2, left + width, y + shift + LINE / 2)
            for distance in range(0, int(frame.bottom - frame.top), 2)
            for shift in (-distance, distance)
            for left in (x + GAP, x - GAP - width)
        )
        for box in candidates:
            inside = (
                frame.left <= box.left and frame.top <= box.top and box.right <= frame.right and box.bottom <= frame.bottom
            )
            if inside and not any(box.overlaps(other) for other in (*taken, *placed.values())):
                placed[index] = box
                break
        else:
            return None
    return [placed[index] for index in range(len(anchors))]


def cost_plot(rows: Sequence[Row], width: float, height: float, ranked_by: Column = MEAN_TASK_TYPE) -> CostPlot | None:
    """Lay out the plot, taller than `height` if the labels need it. None if there is nothing to place."""
    shown = [
        (row, score, 0.0 if row.tokens == 0 else row.seconds or 0.0)
        for row in rows
        if (score := ranked_by.of(row)) and (row.family == "supervised" or row.tokens == 0 or row.seconds is not None)
    ]
    if not shown:
        return None
    frame = Box(34, 28, width - 14, height - 42)
    levels = ticks(min(min(score.ends) for _, score, _ in shown), max(max(score.ends) for _, score, _ in shown), 8)
    costs = [cost for row, _, cost in shown if row.family != "supervised" and cost > 0]
    untrained = any(row.family != "supervised" and cost <= 0 for row, _, cost in shown)
    share = 0.0 if not untrained else 0.9 if not costs else 0.24 if width > 600 else 0.38
    divider = frame.left + share * (frame.right - frame.left)
    times = time_ticks(min(costs, default=1), max(costs, default=1), int((frame.right - divider) / (7 * LETTER)))
    logarithmic = _scale(math.log(times[0][0]), math.log(times[-1][0]), divider + 2 * RADIUS, frame.right - 2 * RADIUS)
    y = _scale(levels[0], levels[-1], frame.bottom, frame.top)

    def x(cost: float) -> float:
        return logarithmic(math.log(min(max(cost, times[0][0]), times[-1][0]))) if cost > 0 else frame.left + 2 * RADIUS

    room = int(((frame.right - frame.left) / 2 - GAP) / LETTER)  # so that there is room on one side of every point
    anchors: list[tuple[float, float, float]] = []
    taken: list[Box] = []
    for row, score, cost in shown:
        # a line's label ends where the line does, and stands above or below because the line itself is taken
        line = row.family == "supervised"
        a, b = frame.right + GAP if line else x(cost), y(score.mean)
        anchors.append((a, b, len(_shortened(row.peer, room)) * LETTER))
        taken.append(Box(frame.left, b - 1, a, b + 1) if line else Box(a - RADIUS, b - RADIUS, a + RADIUS, b + RADIUS))
    labels = place_labels(anchors, taken, frame)
    if labels is None:
        return cost_plot(rows, width, height * 1.2, ranked_by)
    marks = [
        Mark(row, a, b, (y(score.ends[0]), y(score.ends[1])), _shortened(row.peer, room), label)
        for (row, score, _), (a, b, _), label in zip(shown, anchors, labels, strict=True)
    ]
    return CostPlot(
        width=width,
        height=height,
        frame=frame,
        x_ticks=[(x(time), text) for time, text in times if costs],
        y_ticks=[(y(level), f"{level:g}") for level in levels],
        divider=divider,
        points=[mark for mark in marks if mark.row.family != "supervised"],
        lines=[mark for mark in marks if mark.row.family == "supervised"],
        missing=[row.peer for row in rows if row not in [mark.row for mark in marks]],
    )


def task_panel(task: str, rows: Sequence[Row]) -> Panel:
    """Lay out the bars of one task, in the order of the rows; a row without the task has no bar."""
    left, right, width, line = 160.0, 272.0, 352.0, 18.0
    ends = [end for row in rows if task in row.tasks for end in row.tasks[task].ends]
    levels = ticks(min([0.0, *ends]), max([0.0, *ends]), 5)
    x = _scale(levels[0], levels[-1], left, right)
    bars = []
    for index, row in enumerate(rows):
        score = row.tasks.get(task)
        low, high = score.ends if score else (0.0, 0.0)
        mean = score.mean if score else 0.0
        text = _shortened(row.peer, int((left - 6) / LETTER))
        bars.append(Bar(row, text, score, (index + 0.5) * line, x(min(mean, 0)), x(max(mean, 0)), (x(low), x(high))))
    return Panel(task, width, len(rows) * line + 20, left, [(x(level), f"{level:g}") for level in levels], bars)


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)
