"""How a ratio is measured: everything in one run, alternating, the median of several, and a line for the report."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REPEATS = 5
PAGE = Path("bench/docs/performance.md")


@dataclass(frozen=True)
class Line:
    """One line of the report: `work` against `other`, a `figure` in words, what it should `reach`, and whether it did."""

    work: str
    other: str
    figure: str
    reach: str
    reached: bool | None
    details: dict[str, object]


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes, what it has asked of a GPU included."""
    _wait_for_gpu()
    started = time.perf_counter()
    work()
    _wait_for_gpu()
    return time.perf_counter() - started


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(
    work: str,
    other: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    reach: float | None,
    repeats: int = REPEATS,
) -> Line:
    """Return how many times as fast ours is: the median over `repeats` pairs, each measured one after the other.

    A busy moment of the machine hits both sides of a pair, and the median leaves out the odd one. One pair before is not
    counted: it warms caches up.
    """
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
    value = statistics.median(b / a for a, b in pairs)
    details: dict[str, object] = {
        "ratio": round(value, 3),
        "seconds_ours": round(statistics.median(a for a, _ in pairs), 3),
        "seconds_other": round(statistics.median(b for _, b in pairs), 3),
        "ratios": [round(b / a, 3) for a, b in pairs],
    }
    wanted, reached = ("", None) if reach is None else (f"≥ {reach:g} ×", value >= reach)
    line = Line(work, other, f"{value:.2f} ×", wanted, reached, details)
    print(f"{work}: {line.figure} {other} {wanted and f'(reach {wanted})'}", flush=True)
    return line


def table(lines: list[Line], machine: str) -> str:
    """Return the lines as a table in Markdown, under the name of the machine."""
    marks = {True: "yes", False: "**no**", None: ""}
    rows = [f"| {line.work} | {line.other} | {line.figure} | {line.reach} | {marks[line.reached]} |" for line in lines]
    head = "| work | compared with | measured | reach | reached |\n|---|---|---|---|---|"
    return "\n".join([f"Machine: {machine}", "", head, *rows, ""])


def put_into_page(table: str, command: str) -> None:
    """Write `table` into bench/docs/performance.md, in place of what `command` had measured before."""
    begin, end = f"<!-- figures: {command} -->", f"<!-- end of figures: {command} -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
