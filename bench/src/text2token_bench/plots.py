"""The drawings of a leaderboard, by matplotlib: quality against cost, and every task by itself."""

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import get_args

from adjustText import adjust_text
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from text2token_bench.inside import QUIET, RULE, drawing, svg
from text2token_bench.rows import UNRANKED, Column, Family, Row, Spread

TIMES = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h", 864_000: "10 d"}  # seconds
LONGEST_NAME = 26  # characters of a peer
PANELS_BESIDE = 3
COLOURS = {family: f"#0600{number:02d}" for number, family in enumerate(get_args(Family))}
ON_THE_PAGE = {colour: f"var(--{family})" for family, colour in COLOURS.items()}


def cost_plot(rows: Sequence[Row], ranked_by: Column) -> Markup | None:
    """Return what rows are ranked by against the seconds to build them; None where no row has both.

    What trains on no token has an axis of its own, as a logarithmic one has no zero. A supervised model is a line: its cost
    is not known.
    """
    lines, untrained, trained = by_cost(rows, ranked_by)
    if not lines + untrained + trained:
        return None
    with drawing():
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        free, paid = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
        free.set(xticks=[0], xticklabels=["no training"], xlim=(-1, 1), ylabel=f"{ranked_by.heading}, percent")
        seconds = [_seconds(row) for row in trained] or [60.0]
        low, high = min(seconds) / 10, max(seconds) * 10
        paid.set(xscale="log", xlim=(low, high), xlabel="wall time to build, log scale")
        marks = {time: text for time, text in TIMES.items() if low <= time <= high}
        paid.set_xticks(list(marks), list(marks.values()))
        paid.set_xticks([], minor=True)
        for axes, shown in ((free, untrained), (paid, trained)):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=RULE)
            for row in lines:
                axes.axhline(_score(row, ranked_by).mean, color=COLOURS[row.family], linestyle="--")
            names = [_point(axes, row, _score(row, ranked_by)) for row in shown]
            if axes is paid:
                names += [_name(axes, row, high, _score(row, ranked_by), ha="right") for row in lines]
            figure.draw_without_rendering()  # else nothing has a place yet
            if names:
                adjust_text(
                    names,
                    ax=axes,
                    iter_lim=200,
                    expand=(1.15, 1.4),
                    arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6},
                )
        return svg(figure, ON_THE_PAGE)


def by_cost(rows: Iterable[Row], ranked_by: Column) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the supervised rows, those that trained on nothing and those that did; not those without score or time."""
    scored = [row for row in rows if ranked_by.of(row)]
    lines = [row for row in scored if row.family == "supervised"]
    untrained = [row for row in scored if row not in lines and row.tokens == 0]
    trained = [row for row in scored if row not in [*lines, *untrained] and row.seconds is not None]
    return lines, untrained, trained


def task_panels(rows: Sequence[Row]) -> Markup | None:
    """Return bars of every task that any row has, the rows in their order; None without tasks."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    if not tasks:
        return None
    high = math.ceil(len(tasks) / PANELS_BESIDE)
    with drawing():
        figure = Figure(figsize=(10, high * (0.9 + 0.22 * len(rows))), layout="constrained")
        panels = figure.subplots(high, PANELS_BESIDE, sharey=True, squeeze=False)
        for axes, task in zip_longest(panels.flat, tasks):
            if task is None:
                axes.set_axis_off()
                continue
            _bars(axes, [row.tasks.get(task) for row in rows], [COLOURS[row.family] for row in rows])
            axes.set_title(task, loc="left", fontsize="medium", weight="bold")
            axes.set_yticks(range(len(rows)), [_shortened(row.peer) for row in rows])
        panels[0, 0].invert_yaxis()
        return svg(figure, ON_THE_PAGE)


def _bars(axes: Axes, scores: Sequence[Spread | None], colours: Sequence[str]) -> None:
    means = [score.mean if score else 0.0 for score in scores]
    bars = axes.barh(range(len(scores)), means, color=colours)
    axes.bar_label(bars, [str(score or "–") for score in scores], padding=4, fontsize="small")
    axes.margins(x=0.35)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False)


def _point(axes: Axes, row: Row, score: Spread) -> Text:
    x = 0.0 if row.tokens == 0 else _seconds(row)
    colour = COLOURS[row.family]
    face = "none" if row.family == "control" else colour
    axes.errorbar(x, score.mean, score.deviation, color=colour, fmt="o", capsize=3, markerfacecolor=face)
    return _name(axes, row, x, score)


def _name(axes: Axes, row: Row, x: float, score: Spread, ha: str = "left") -> Text:
    weight = "bold" if row.family == "text2token" else "normal"
    slant = "italic" if row.family in UNRANKED else "normal"
    return axes.text(x, score.mean, _shortened(row.peer), ha=ha, weight=weight, style=slant, fontsize="small")


def _seconds(row: Row) -> float:
    return max(row.seconds or 0.0, min(TIMES))


def _score(row: Row, ranked_by: Column) -> Spread:
    score = ranked_by.of(row)
    assert score
    return score


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
