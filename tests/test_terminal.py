"""The pace that a person at a terminal is told, and the time left that goes with it."""

import io
import re
import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from text2token.terminal import RECENT, Pace, TerminalReporter


def test_pace_forgets_within_a_minute_what_a_resumed_run_found_done() -> None:
    pace = Pace(0.0)
    assert pace.after(13_000, 1.0) == pytest.approx(13_000)
    speeds = [pace.after(256, 1.0 + 18.0 * step) for step in range(1, 10)]
    assert speeds[0] > 600
    assert speeds[4:] == pytest.approx([256 / 18] * 5)


def test_pace_of_steps_longer_than_a_minute_is_that_of_the_last_step() -> None:
    pace = Pace(0.0)
    assert [pace.after(100, 5 * RECENT * step) for step in (1, 2, 3)] == pytest.approx([100 / (5 * RECENT)] * 3)


def test_pace_follows_a_change() -> None:
    pace = Pace(0.0)
    for second in range(1, 101):
        pace.after(10, float(second))
    speeds = [pace.after(1, float(second)) for second in range(101, 301)]
    assert speeds[0] > 5
    assert speeds[-1] == pytest.approx(1)
    assert len(pace._marks) <= RECENT + 2  # however many steps there were


TIME = r"((?:\d+ days?, )?\d+:\d\d:\d\d)"


def seconds(shown: str) -> float:
    """Return the seconds of `1 day, 2:03:04`."""
    days, hours, minutes, rest = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", shown).groups(default=0)  # type: ignore[union-attr]
    return timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=int(rest)).total_seconds()


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_the_time_left_is_what_is_left_at_the_pace_beside_it(
    at_a_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = st.lists(st.tuples(st.integers(1, 5000), st.floats(0.01, 300)), min_size=1, max_size=30)

    @given(steps, st.integers(0, 1_000_000))
    @settings(deadline=None, max_examples=50)
    def law(steps: list[tuple[int, float]], rest: int) -> None:
        total = sum(done for done, _ in steps) + rest
        now = 1000.0
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: now)
            reporter = TerminalReporter()
            screen = io.StringIO()
            reporter.console = Console(file=screen, force_terminal=at_a_terminal, width=300, color_system=None)
            with reporter.progress("Work", total, "units") as progress:
                for done, passed in steps:
                    now += passed
                    progress(done)
        said = screen.getvalue() if at_a_terminal else capsys.readouterr().err
        time_left = rf"left {TIME}" if at_a_terminal else rf"{TIME} left"
        lines = re.findall(rf"([\d,]+)/[\d,]+ units,? +([\d.,e+-]+)/s[^\n]*?{time_left}", said)
        assert lines or not at_a_terminal
        for completed, pace, left in lines:
            speed, remaining = float(pace.replace(",", "")), total - int(completed.replace(",", ""))
            assert seconds(left) == pytest.approx(remaining / speed, rel=0.06, abs=1), said

    law()
