"""What a comparison measured: a row for each method and post-processing, their scores, and how rows are ranked."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

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
