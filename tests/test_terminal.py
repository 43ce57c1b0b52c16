"""The pace that a person at a terminal is told."""

import pytest

from text2token.terminal import RECENT, Pace


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
