"""The bench is fair, resumable, and its leaderboard says what was run."""

import csv
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from test_files import contents, written
from test_suite import write_suite

from text2token.corpus.readers import read_documents
from text2token.errors import OutputError, UsageError
from text2token.recipe import BackboneSettings, CorpusSettings, ReadingSettings
from text2token.settings import from_toml, to_toml, with_assignments
from text2token_bench import comparison as bench
from text2token_bench.__main__ import main
from text2token_bench.comparison import Comparison, choose_peers, compare_peers
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop
from text2token_bench.rows import Leaderboard, best_rows


@pytest.fixture
def comparison(tiny: BackboneSettings, text_file: Path, tmp_path: Path) -> Comparison:
    suite = write_suite(tmp_path / "suite", size=16)
    for slow in ("Classes", "Groups", "Same", "Summaries"):  # which tests/test_labelled.py scores
        shutil.rmtree(suite / slow)
    return Comparison(
        tiny,
        sources=(str(text_file),),
        suite=str(suite),
        corpus=CorpusSettings(passage_characters=80, held_out=10),
        max_tokens=3000,
    )


def run(comparison: Comparison, folder: Path, *peers: Peer | str, **options: bool) -> Leaderboard:
    chosen = [peer if isinstance(peer, Peer) else choose_peers([peer])[0] for peer in peers]
    return compare_peers(comparison, read_documents(comparison.sources), folder, chosen, seeds=2, **options)


def test_a_comparison_leaves_runs_and_a_leaderboard(comparison: Comparison, tmp_path: Path) -> None:
    board = run(comparison, tmp_path / "out", "mean", "simcse", "bm25")
    made = {str(path.relative_to(tmp_path / "out" / "runs")) for path in (tmp_path / "out" / "runs").rglob("*.json")}
    chosen = next(number for number in range(3) if f"simcse/{number}-1.json" in made)
    assert made == {"mean/0-0.json", "bm25/0-0.json", *(f"simcse/{n}-0.json" for n in range(3)), f"simcse/{chosen}-1.json"}
    assert {(row.peer, row.postprocessing) for row in board.rows} == {
        *((peer, kind) for peer in ("mean", "SimCSE") for kind in ("none", "centre", "whiten")),
        ("BM25", "none"),
    }
    simcse = next(row for row in best_rows(board.rows) if row.peer == "SimCSE")
    assert simcse.seeds == 2
    assert simcse.mean_task is not None
    assert simcse.mean_task.deviation is not None
    assert simcse.tokens is not None
    assert simcse.tokens >= comparison.max_tokens
    bm25 = next(row for row in board.rows if row.peer == "BM25")
    assert set(bm25.types) == {"retrieval", "reranking"}
    assert bm25.mean_task_type is None
    assert bm25.label_free is not None
    assert [trial.chosen for trial in board.trials].count(True) == 1
    page = (tmp_path / "out" / "leaderboard.html").read_text(encoding="utf-8")
    assert "SimCSE" in page
    with (tmp_path / "out" / "leaderboard.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(board.rows)
    assert not (tmp_path / "out" / "work").exists()


def test_the_best_candidate_goes_on_and_all_are_shown(comparison: Comparison, tmp_path: Path) -> None:
    board = run(comparison, tmp_path / "out", "simcse")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out" / "runs" / "simcse").glob("*-0.json")]
    merits = {
        tuple(run["settings"].items()): bench._read_run(path).merit
        for path, run in zip((tmp_path / "out" / "runs" / "simcse").glob("*-0.json"), runs, strict=True)
    }
    best = max(trial.score for trial in board.trials)
    assert best == max(merits.values())
    assert next(trial for trial in board.trials if trial.chosen).score == best
    assert len(board.trials) == 3


class Counting:
    """A peer that counts how often it was built, and stops the run when told."""

    def __init__(self, fail_at: int = 0) -> None:
        self.built = 0
        self.fail_at = fail_at
        self.real = next(peer for peer in bench.PEERS if peer.name == "mean")

    def __call__(self, workshop: Workshop, settings: Settings) -> Built:
        self.built += 1
        if self.built == self.fail_at:
            raise KeyboardInterrupt
        return self.real.build(workshop, settings)

    def peer(self) -> Peer:
        candidates = ({"prompt": "{text}"}, {"prompt": "say: {text}"})
        return Peer("counting", "untrained", self, candidates, seeded=True)


def test_what_is_finished_is_not_done_again(comparison: Comparison, tmp_path: Path) -> None:
    counting = Counting(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(comparison, tmp_path / "out", counting.peer())
    assert (tmp_path / "out" / "leaderboard.html").exists()  # what is known so far
    board = run(comparison, tmp_path / "out", counting.peer())
    assert counting.built == 2 + 2  # one finished, one interrupted; then the second candidate and the second seed
    again = run(comparison, tmp_path / "out", counting.peer())
    assert counting.built == 4
    assert again == board


def test_processes_share_a_folder_and_no_run_is_done_twice(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WAIT_FOR_OTHERS", 0.05)
    comparison = replace(comparison, suite=None)
    counting = Counting()
    run(comparison, tmp_path / "out", "mean")
    lock = bench._lock(tmp_path / "out", "counting-0-0")
    with ThreadPoolExecutor() as pool:
        with lock:  # as a process holds it that does this run
            board = pool.submit(run, comparison, tmp_path / "out", counting.peer())
            while counting.built < 1:  # the other settings do not wait
                time.sleep(0.01)
            assert not board.done()
            assert not (tmp_path / "out" / "runs" / "counting" / "0-0.json").exists()
        rows = board.result(timeout=PATIENCE).rows
    assert counting.built == 3  # both settings, and the second seed of the better
    assert {row.peer for row in rows} == {"mean", "counting"}  # the board is of all that the folder holds


def test_a_folder_belongs_to_one_comparison(comparison: Comparison, tmp_path: Path) -> None:
    comparison = replace(comparison, suite=None)
    run(comparison, tmp_path / "out", "mean")
    with pytest.raises(OutputError, match="holds another comparison"):
        run(replace(comparison, max_tokens=5), tmp_path / "out", "mean")
    run(replace(comparison, max_tokens=5), tmp_path / "out", "mean", overwrite=True)


def test_without_a_suite_the_label_free_figure_chooses_ranks_and_is_named(comparison: Comparison, tmp_path: Path) -> None:
    board = run(replace(comparison, suite=None), tmp_path / "out", "mean", Counting().peer())
    assert all(row.mean_task is None and row.label_free for row in board.rows)
    shown = [row.label_free.mean for row in best_rows(board.rows) if row.label_free]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == max(row.label_free.mean for row in board.rows if row.label_free)
    assert {trial.measure for trial in board.trials} == {"Label-free MRR@10"}
    assert max(trial.score for trial in board.trials) == next(trial.score for trial in board.trials if trial.chosen)


def test_a_changed_text_or_suite_is_another_comparison(comparison: Comparison, tmp_path: Path) -> None:
    out, suite = tmp_path / "out", Path(str(comparison.suite))
    run(comparison, out, "mean")
    table = (out / "leaderboard.csv").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match=r"text_field"):
        run(replace(comparison, reading=ReadingSettings(text_field="body")), out, "mean")
    task = next(path for path in sorted(suite.iterdir()) if (path / "test.jsonl").exists())
    kept = (task / "test.jsonl").read_text(encoding="utf-8")
    (task / "test.jsonl").write_text("\n".join(kept.splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(OutputError, match=f"tasks of the suite have changed since: {task.name}"):
        run(comparison, out, "mean")
    (task / "test.jsonl").write_text(kept, encoding="utf-8")
    shutil.copytree(task, suite / "Another")
    with pytest.raises(OutputError, match="changed since: Another"):
        run(comparison, out, "mean")
    shutil.rmtree(suite / "Another")
    weights = Path(comparison.backbone.name) / "model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(OutputError, match="backbone changed since"):
        run(comparison, out, "mean")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(comparison, out, "mean").rows
    with Path(comparison.sources[0]).open("a", encoding="utf-8") as file:
        file.write("One more document that nobody has read before.\n")
    with pytest.raises(OutputError, match="texts changed since"):
        run(comparison, out, "mean")
    assert (out / "leaderboard.csv").read_text(encoding="utf-8") == table
    record = out / "comparison.toml"
    record.write_text(record.read_text(encoding="utf-8").partition("[made_from]")[0], encoding="utf-8")
    with pytest.raises(OutputError, match="an earlier version"):
        run(comparison, out, "mean")
    run(comparison, out, "mean", overwrite=True)


def test_unknown_peers_are_named(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no peer 'simsce'; there are text2token-data-driven"):
        choose_peers(["simsce"])
    with pytest.raises(UsageError, match="above zero"):
        compare_peers(comparison, [], tmp_path, [], seeds=0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_comparison_is_refused_in_a_folder_of_others(comparison: Comparison, tmp_path: Path, overwrite: bool) -> None:
    theirs = {"thesis.txt": b"years", "corpus/docs.txt": b"years", "runs/quickstart/0-0.json": b"{}"}
    written(tmp_path / "p", theirs)
    with pytest.raises(OutputError, match=r"holds corpus and no comparison\.toml"):
        run(comparison, tmp_path / "p", "bm25", overwrite=overwrite)
    assert contents(tmp_path / "p") == theirs


def test_a_comparison_begun_anew_deletes_its_own_runs_only(comparison: Comparison, tmp_path: Path) -> None:
    run(comparison, tmp_path / "p", "bm25")
    theirs = {"runs/quickstart/model.bin": b"years", "runs/quickstart/results.json": b"{}", "work/thesis.txt": b"years"}
    written(tmp_path / "p", theirs)
    run(comparison, tmp_path / "p", "bm25", overwrite=True)
    assert theirs.items() <= contents(tmp_path / "p").items()


@given(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.integers(1, 2**63 - 1))
def test_a_comparison_is_written_whole_too(text: str, tokens: int | None) -> None:
    comparison = Comparison(BackboneSettings("x"), sources=(text,), suite=text, suite_tokens=tokens)
    assert from_toml(Comparison, to_toml(comparison), "here") == comparison


@pytest.mark.parametrize("value", ["nan", "-1", "many"])
def test_a_budget_that_is_none_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(UsageError, match=r"^max_tokens is "):
        with_assignments(Comparison(BackboneSettings("x")), [f"max_tokens={value}"])


def test_the_command_says_who_is_best_and_names_a_peer_that_is_none(
    tiny: BackboneSettings,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [text_file, "--backbone", tiny.name, "--output", tmp_path / "out", "--set", "corpus.held_out=10"]
    words += ["--set", "corpus.passage_characters=80", "--peers"]
    monkeypatch.setattr("sys.argv", ["text2token_bench", *map(str, words), "mean,last-token"])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    assert "mean, " in out
    assert "last token, " in out
    assert (tmp_path / "out" / "leaderboard.html").stat().st_size > 5000
    monkeypatch.setattr("sys.argv", ["text2token_bench", *map(str, words), "meen"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines()[0].startswith("text2token_bench: no peer 'meen'; there are ")
