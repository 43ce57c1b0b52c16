"""The page tells what was measured: best rows in order, spread, cost and tries; it draws true and runs nothing foreign."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token_bench.leaderboard import leaderboard_csv, leaderboard_html, leaderboard_markdown
from text2token_bench.plots import by_cost, cost_plot, task_panels
from text2token_bench.rows import MEAN_TASK_TYPE, Family, Leaderboard, Row, Spread, Trial, best_rows

FIRST = Row(
    peer="LLM2Vec",
    family="contrastive",
    postprocessing="none",
    settings="rate 3e-4",
    seeds=3,
    tasks={"STSBenchmark": Spread(71.25, 0.5), "SciFact": Spread(33.5, 1.0)},
    types={"sts": Spread(71.25, 0.5), "retrieval": Spread(33.5, 1.0)},
    mean_task=Spread(52.375, 0.25),
    mean_task_type=Spread(52.25, 0.25),
    label_free=Spread(44.0, None),
    tokens=100_000,
    seconds=250.0,
)


def scored(peer: str, mean: float | None, **changes: object) -> Row:
    return replace(FIRST, peer=peer, mean_task_type=None if mean is None else Spread(mean, None), **changes)  # type: ignore[arg-type]


def board(*rows: Row) -> Leaderboard:
    return Leaderboard("Embeddings", {"Budget": "100,000 tokens"}, ["One note."], list(rows), [])


scores = st.builds(Spread, st.floats(-100, 100), st.none() | st.floats(0, 20))
named_scores = st.dictionaries(st.sampled_from(["sts", "SciFact", "pair_classification", "<b>"]), scores)
# one line each; the wild ones are in the test of inert names
names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=30)
any_rows = st.lists(
    st.builds(
        Row,
        peer=names,
        family=st.sampled_from(get_args(Family)),
        settings=names,
        tasks=named_scores,
        types=named_scores,
        mean_task=st.none() | scores,
        mean_task_type=st.none() | scores,
        label_free=st.none() | scores,
        tokens=st.none() | st.integers(0, 10**9),
        seconds=st.none() | st.floats(0, 1e9),
    ),
    max_size=25,
)


class Page(HTMLParser):
    """Collects the tags, and the text outside of style and script; raises on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += f" {data}"


def main_table(html: str) -> list[list[str]]:
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line, re.DOTALL) for line in body.split("</tr>")[:-1]]


@pytest.mark.parametrize(
    ("score", "text"),
    [(Spread(52.24, 0.16), "52.2 ± 0.2"), (Spread(52.24, None), "52.2"), (Spread(-0.01, 0.0), "0.0 ± 0.0")],
)
def test_a_spread_reads_as_people_write_it(score: Spread, text: str) -> None:
    assert str(score) == text


@pytest.mark.parametrize(("mean", "deviation"), [(float("nan"), None), (50.0, float("inf"))])
def test_a_score_that_is_no_number_is_refused(mean: float, deviation: float | None) -> None:
    with pytest.raises(ValueError, match="finite"):
        Spread(mean, deviation)


def test_best_row_is_chosen_by_mean_task_type() -> None:
    plain, centred, whitened = (
        scored("A", mean, postprocessing=kind, mean_task=Spread(100 - mean, None))
        for kind, mean in (("none", 50.0), ("centre", 52.0), ("whiten", 51.0))
    )
    assert best_rows([plain, centred, whitened]) == [centred]


def test_best_rows_stand_best_first_and_those_without_a_mean_last() -> None:
    weak, strong = scored("weak", 10.0), scored("strong", 60.0)
    partial = scored("BM25", None, types={"retrieval": Spread(99.0, None)})
    worse_partial = replace(partial, types={"retrieval": Spread(90.0, None)}, postprocessing="whiten")
    assert best_rows([worse_partial, weak, partial, strong]) == [strong, weak, partial]


label_free_rows = st.lists(
    st.builds(lambda name, score: replace(scored(name, None, tasks={}, types={}), label_free=score), names, scores),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=12)
@given(label_free_rows)
def test_without_labelled_tasks_the_label_free_score_ranks_and_is_shown_and_named(rows: list[Row]) -> None:
    best = best_rows(rows)
    ordered = [row.label_free.mean for row in best if row.label_free]
    assert ordered == sorted(ordered, reverse=True)
    for row in best:
        assert row.label_free
        assert row.label_free.mean == max(
            other.label_free.mean for other in rows if other.peer == row.peer and other.label_free
        )
    page = leaderboard_html(board(*rows))
    assert [cells[0] for cells in main_table(page)] == [str(rank) for rank in range(1, len(best) + 1)]
    assert "Label-free MRR@10, percent" in page
    assert "TaskType" not in page + leaderboard_markdown(board(*rows)) + leaderboard_csv(board(*rows))


wild = st.text() | st.sampled_from(
    ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "a|b", "a\\|b", "`x`", "**b**", "[a](b)"]
)


@given(wild, wild)
def test_any_name_is_one_line_of_its_own_in_the_markdown_table_and_acts_nowhere(peer: str, tried: str) -> None:
    trials = [Trial(peer, tried, 0, tried, 1.0, True)]
    lines = leaderboard_markdown(replace(board(replace(FIRST, peer=peer)), trials=trials)).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 3 + 3
    plain = [re.sub(r"\\.", "", line) for line in table]  # what is escaped divides no cells
    assert [line.count("|") for line in plain] == [plain[0].count("|")] * 3 + [plain[3].count("|")] * 3
    assert not any(sign in line for line in plain for sign in "<`[~")
    (line,) = csv.DictReader(io.StringIO(leaderboard_csv(board(replace(FIRST, peer=peer))), newline=""))
    assert line["peer"][:1] not in tuple("=+-@\t\r\n")
    assert line["peer"].removeprefix("'") == re.sub(r"[\r\n]+", " ", peer).removeprefix("'")


@settings(deadline=None)
@given(any_rows)
def test_best_rows_keep_each_peer_once_with_nothing_better_left_out(rows: list[Row]) -> None:
    best = best_rows(rows)
    assert sorted(row.peer for row in best) == sorted({row.peer for row in rows})
    means = {row.peer: row.mean_task_type for row in best}
    for row in rows:
        if row.mean_task_type:
            kept = means[row.peer]
            assert kept
            assert kept.mean >= row.mean_task_type.mean


def test_html_in_names_is_inert() -> None:
    attack = "</title></style></script></svg><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    attacked = {attack: Spread(50.0, 1.0)}
    row = replace(FIRST, peer=attack, settings=attack, tasks=attacked, types=attacked)
    supervised = replace(row, peer=attack + "!", family="supervised")
    unplaced = replace(row, peer=attack + "?", mean_task_type=None)
    page = leaderboard_html(
        Leaderboard(
            attack, {attack: attack}, [attack], [row, supervised, unplaced], [Trial(attack, attack, 0, attack, 50.0, True)]
        )
    )
    tags = Page(page).tags
    assert [tag for tag, _ in tags].count("script") == 1  # the page's own, for sorting
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert attack in Page(page).text


def test_page_asks_for_nothing_outside() -> None:
    page = leaderboard_html(board(FIRST))
    assert not re.search(r"(?:src|href)=[\"'](?!#)|@import|url\((?!#)|<link", page)


@settings(max_examples=12, deadline=None)
@given(any_rows, st.text())
def test_any_board_gives_a_page_that_nests_and_draws_with_numbers(rows: list[Row], title: str) -> None:
    page = Page(leaderboard_html(replace(board(*rows), title=title)))
    coordinates = {"d", "x", "y", "cx", "cy", "width", "height", "viewbox"}
    for tag, attributes in page.tags:
        for name in coordinates & set(attributes):
            assert not re.search("nan|inf|e", attributes[name] or ""), (tag, attributes)
        assert tag != "rect" or float(attributes["width"] or "") >= 0


def test_every_row_of_every_post_processing_is_on_the_page() -> None:
    rows = [
        scored("LLM2Vec", mean, postprocessing=kind, tasks={"SciFact": Spread(mean, 0.5)})
        for kind, mean in (("none", 11.1), ("centre", 22.2), ("whiten", 33.3))
    ]
    text = Page(leaderboard_html(board(*rows))).text
    assert all(figure in text for figure in ("11.1", "22.2", "33.3", "centre", "rate 3e-4", "One note.", "100,000 tokens"))


def test_what_was_tried_is_on_the_page() -> None:
    trials = [
        Trial("LLM2Vec", "rate 1e-4", 7, "Mean (TaskType)", 41.2, False),
        Trial("LLM2Vec", "rate 3e-4", 7, "Mean (TaskType)", 43.4, True),
    ]
    page = leaderboard_html(replace(board(FIRST), trials=trials))
    text = " ".join(
        Page(
            page.partition("What was tried")[2].partition("</details>")[0].join(("<details><summary>", "</details>"))
        ).text.split()
    )
    assert "rate 1e-4 7 Mean (TaskType) 41.2 LLM2Vec rate 3e-4 7 Mean (TaskType) 43.4 chosen" in text


def test_references_get_no_rank_and_push_no_other() -> None:
    rows = [
        scored("teacher", 80.0, family="supervised"),
        scored("ours", 60.0, family="text2token"),
        scored("shuffled", 55.0, family="control"),
        scored("theirs", 50.0),
        scored("BM25", None, family="lexical"),
    ]
    assert [cells[0] for cells in main_table(leaderboard_html(board(*rows)))] == ["ref.", "1", "ref.", "2", "–"]


def test_only_ranked_rows_are_marked_best() -> None:
    rows = [scored("teacher", 80.0, family="supervised"), scored("ours", 60.0, family="text2token")]
    page = leaderboard_html(board(*rows)).partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall(r'number best" data-sort="([\d.]+)"', page)[0] == "60.0"
    assert 'best" data-sort="80.0"' not in page


def test_what_is_absent_is_a_dash_and_not_a_zero() -> None:
    other = scored("another", 1.0)
    cells, _ = main_table(leaderboard_html(board(replace(FIRST, mean_task=None, tokens=None, seconds=None), other)))
    assert cells[4] == cells[-1] == cells[-2] == "–"
    (cells,) = main_table(leaderboard_html(board(replace(FIRST, tokens=0, seconds=0.0))))
    assert cells[-2:] == ["0", "0"]


@settings(deadline=None)
@given(any_rows)
def test_every_peer_is_in_the_plot_or_named_as_missing(rows: list[Row]) -> None:
    best = best_rows(rows)
    placed = [row for group in by_cost(best, MEAN_TASK_TYPE) for row in group]
    assert len({row.peer for row in placed}) == len(placed)
    for row in best:
        known = row.family == "supervised" or row.tokens == 0 or row.seconds is not None
        assert (row in placed) == bool(row.mean_task_type and known)


def test_a_peer_that_cannot_be_placed_is_named_under_the_plot() -> None:
    page = leaderboard_html(board(FIRST, scored("timeless", 40.0, seconds=None)))
    assert "Not in the plot, for want of Mean (TaskType) or of the time: timeless." in page


def drawn(rows: list[Row]) -> str:
    plot = cost_plot(rows, MEAN_TASK_TYPE)
    assert plot
    return plot


def test_the_plot_names_every_method_in_the_colour_of_its_family() -> None:
    rows = [
        scored("teacher", 55.0, family="supervised", tokens=None, seconds=None),
        scored("shuffled", 30.0, family="control"),
        scored("untrained", 40.0, family="untrained", tokens=0, seconds=3000.0),
        scored("quick", 50.0, seconds=20.0),
        scored("a method by a name that is far too long", 60.0, seconds=2000.0),
    ]
    plot = drawn(rows)
    for name in ("teacher", "shuffled", "untrained", "quick", "a method by a name that i…", "no training", "10 min"):
        assert f">{name}</text>" in plot
    assert {f"var(--{row.family})" for row in rows} <= set(re.findall(r"var\(--\w+\)", plot))
    assert "#06" not in plot  # every placeholder has become one of the page's own colours


def test_without_a_score_or_a_task_nothing_is_drawn() -> None:
    assert cost_plot([scored("BM25", None)], MEAN_TASK_TYPE) is None
    assert task_panels([replace(FIRST, tasks={})]) is None


def test_a_panel_has_a_score_for_every_method_and_a_dash_where_it_has_none() -> None:
    panels = task_panels([FIRST, replace(FIRST, peer="other", tasks={"SciFact": Spread(-3.0, None)})])
    assert panels
    for text in ("STSBenchmark", "SciFact", "71.2 ± 0.5", "33.5 ± 1.0", "-3.0", "–", "LLM2Vec", "other"):
        assert f">{text}</text>" in panels


@settings(deadline=None)
@given(any_rows)
def test_csv_gives_back_every_figure(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(leaderboard_csv(board(*rows)), newline="")))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for name in ("peer", "settings"):
            text = getattr(row, name)
            assert line[name] == (f"'{text}" if text.startswith(tuple("=+-@")) else text)  # else it would be a formula
        named = {"mean_task": row.mean_task, "mean_task_type": row.mean_task_type, "label_free": row.label_free}
        named |= {f"task_{task}": score for task, score in row.tasks.items()}
        named |= {f"type_{kind}": score for kind, score in row.types.items()}
        for name, score in named.items():
            # what no row has, has no column
            assert line.get(name, "") == ("" if score is None else str(score.mean))
            deviation = "" if score is None or score.deviation is None else str(score.deviation)
            assert line.get(f"{name}_deviation", "") == deviation
        assert line["seconds"] == ("" if row.seconds is None else str(row.seconds))
        assert sum(map(bool, line.values())) >= len(row.tasks) + len(row.types)


def test_the_template_travels_with_the_package() -> None:
    assert files("text2token_bench").joinpath("leaderboard.html.jinja").is_file()


def test_the_markdown_table_has_the_best_row_of_each_peer_and_the_tries() -> None:
    ours = scored("text2token", 60.0, family="text2token", label_free=None)
    rows = [FIRST, scored("LLM2Vec", 40.0, postprocessing="whiten"), ours, scored("a|b", 70.0, family="supervised")]
    trials = [
        Trial("LLM2Vec", "rate 3e-4", 0, "Mean (TaskType)", 52.25, True),
        Trial("LLM2Vec", "rate 1e-4", 0, "Mean (TaskType)", 50.0, False),
    ]
    lines = leaderboard_markdown(replace(board(*rows), trials=trials)).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[2:5]] == ["| a\\|b (supervised)", "| **text2token**", "| LLM2Vec"]
    assert table[4] == ("| LLM2Vec | none | 3 | 52.2 ± 0.2 | 52.4 ± 0.2 | 71.2 ± 0.5 | 33.5 ± 1.0 | 44.0 | 100,000 | 4.2 |")
    assert table[-2:] == [
        "| LLM2Vec | rate 3e-4 | Mean (TaskType) | 52.2 | x |",
        "| LLM2Vec | rate 1e-4 | Mean (TaskType) | 50.0 |  |",
    ]
    assert len({line.replace("\\|", "").count("|") for line in table[:5]}) == 1
    assert lines[0] == "- Budget: 100,000 tokens"
    assert lines[-1] == "- One note."
