"""How a ratio is measured: everything in one run, alternating, the median of several, and a line for the report."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 5


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
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
