"""What a person at a terminal is told: the pace, and results as they are, whatever names and texts hold."""

import io
import json
import re
import sys
import time
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from text2token.cli.common import show_json
from text2token.cli.show import (
    RECENT,
    Pace,
    TerminalReporter,
    show_alignment,
    show_evaluation,
    show_hits,
    show_pair,
    show_reports,
    show_words,
)
from text2token.errors import VISIBLE, printable
from text2token.evaluation.alignment import Alignment
from text2token.evaluation.label_free import Geometry, RetrievalScores
from text2token.evaluation.labelled import LabelledScores, TaskScore
from text2token.lens.open import DecodedToken
from text2token.lens.pair import Contribution, Contributions
from text2token.search.explain import Reason
from text2token.tokens.words import KeyToken


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


HOSTILE = (
    "runs/[/old]m",
    "model[v2]",
    "[bold]x[/]",
    ":smile:",
    "\x1b[31mred",
    "\x1b]0;own\x07",
    "\x9b2J",
    "a\rb",
    "\x00\x7f",
)
one_column = st.characters(exclude_categories=["Cs", "Z", "Cf", "M", "Lo", "So"], exclude_characters="\t\n")
names = st.sampled_from(HOSTILE) | st.text(one_column, min_size=1, max_size=12)


def shown_with(name: str) -> str:
    """Return all that the terminal shows of results in which everything that has a name or a text has this one."""
    from text2token.evaluation.models import ModelReport  # it stands on an extra
    from text2token.search.query import Hit

    scores = RetrievalScores(50.0, 60.0, 70.0, 20, (40.0, 60.0))
    task = TaskScore(name, name, name, 12.5)
    shape = Geometry(0.5, -2.0, 0.25)
    word, pair = DecodedToken(name, 0.5, True), Contributions(0.5, 0.1, (Contribution(name, 0.2),))
    tokens = [[KeyToken(name, 0.5)]]
    untold: Any = SimpleNamespace(name=name)
    finished: Any = SimpleNamespace(
        untrained=scores, trained=scores, tfidf=scores, texts=[name], key_tokens_untrained=tokens, key_tokens_trained=tokens
    )
    reason, hit = Reason(name, 0.5, "dense"), Hit("1", 0.5, 0.5, 0.5, name, name, {}, [], [(0, 1)])
    reason_too = Reason(name, 0.5, "sparse")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        show_evaluation(finished)
        show_reports([ModelReport(name, LabelledScores([task]), scores, shape)] * 2)
        show_hits([replace(hit, reasons=[reason, reason_too])], "hybrid")
        show_words([name], [untold, untold], [[[word]], [[word]]])
        show_pair(name, name, [(name, pair)])
        show_alignment([(name, Alignment(20, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0))])
        reporter = TerminalReporter()
        reporter.note(name)
        with reporter.progress(name, 1, "texts") as advance:
            advance(1)
        show_json({name: name})
    return out.getvalue() + err.getvalue()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
def test_any_name_or_text_is_shown_as_it_is_and_commands_no_terminal(name: str) -> None:
    shown = shown_with(name)
    assert not {character for character in shown if unicodedata.category(character) == "Cc"} - {"\n"}
    plain = name.translate(VISIBLE)
    assert plain == printable(plain)
    assert len(plain) == len(name)
    assert shown.count(plain) >= 20, shown


@pytest.mark.parametrize("models", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "name", ["mine", "sentence-transformers/all-MiniLM-L6-v2", "runs/a-very-long-name-of-a-model/model"]
)
def test_on_eighty_columns_no_head_and_no_figure_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, models: int
) -> None:
    from text2token.evaluation.models import ModelReport

    monkeypatch.setenv("COLUMNS", "80")
    scores = RetrievalScores(100.0, 100.0, 100.0, 2000, (100.0, 100.0))
    tasks = [TaskScore("STSBenchmark", "pair_classification", "cosine_spearman", 71.25)] * 3
    show_reports([ModelReport(name, LabelledScores(tasks), scores, Geometry(3.5, -2.25, 0.75))] * models)
    show_alignment([(name, Alignment(20, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0))] * models)
    out = capsys.readouterr().out
    assert "…" not in out.replace(" … ", "")
    assert max(map(len, out.splitlines())) <= 80
    for head in ("95 % interval", "Recall@10", "uniformity", "anisotropy", "Mean(TaskType)", "Hit@10", "GAR"):
        assert head in out
    assert out.count("71.25") == (3 + 1 + 2) * models
    assert "Retrieval among 2,000 held-out documents: the query is a title or first half" in " ".join(out.split())


def test_json_holds_every_text_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"text": "naïve 🐈 … \x1b[31m \x9b2J"}
    for encoding in ("utf-8", "latin-1", "cp1252", "ascii"):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
        show_json(content)
        sys.stdout.flush()
        shown = raw.getvalue().decode(encoding)
        assert json.loads(shown) == content
        assert not {"\x1b", "\x9b"} & set(shown)
