"""A folder of tasks is read by its shape; what is wrong in it is named; a sample is fair and stays the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token.errors import CorpusError
from text2token.evaluation.suite import SuiteTask, read_suite, sample_suite


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


SUBJECTS = ["cats", "dogs", "trains", "stars"]


def sentence(number: int) -> str:
    return f"Sentence {number} tells you much about {SUBJECTS[number % 4]} and nothing else."


def write_suite(folder: Path, size: int = 24) -> Path:
    numbers = range(size)
    write(folder / "Similar" / "test.jsonl", [{"a": sentence(n), "b": sentence(n * 3), "score": n % 5} for n in numbers])
    write(
        folder / "Same" / "test.jsonl", [{"a": sentence(n), "b": sentence(n + n % 2), "label": 1 - n % 2} for n in numbers]
    )
    labelled = [{"text": sentence(n), "label": SUBJECTS[n % 4]} for n in numbers]
    write(folder / "Groups" / "test.jsonl", labelled)
    write(folder / "Classes" / "test.jsonl", labelled)
    write(folder / "Classes" / "train.jsonl", [{**row, "text": row["text"] + " Yes."} for row in labelled])
    answers = [{"query": SUBJECTS[n % 4], "positive": [sentence(n)], "negative": [sentence(n + 1)]} for n in numbers]
    write(folder / "Ranked" / "test.jsonl", answers)
    summaries = [
        {
            "text": sentence(n) * 3,
            "human_summaries": [sentence(n), sentence(n + 4)],
            "machine_summaries": [sentence(n + k) for k in range(4)],
            "relevance": [5.0, 1.0, 2.0, 1.5],
        }
        for n in numbers
    ]
    write(folder / "Summaries" / "test.jsonl", summaries)
    write(folder / "Found" / "corpus.jsonl", [{"_id": str(n), "title": f"T{n}", "text": sentence(n)} for n in numbers])
    write(folder / "Found" / "queries.jsonl", [{"id": f"q{n}", "text": SUBJECTS[n]} for n in range(4)])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n % 4}\t{n}\t1" for n in range(12))]
    (folder / "Found" / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("Files beside the folders are left alone.", encoding="utf-8")
    return folder


def test_types_follow_from_files_and_keys(tmp_path: Path) -> None:
    found = {task.name: task.type for task in read_suite(write_suite(tmp_path))}
    assert found == {
        "Classes": "classification",
        "Found": "retrieval",
        "Groups": "clustering",
        "Ranked": "reranking",
        "Same": "pair_classification",
        "Similar": "sts",
        "Summaries": "summarization",
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Similar/test.jsonl", '{"a": "x"', r"test.jsonl:1: not JSON"),
        ("Similar/test.jsonl", '{"a": "x", "b": "y", "score": 1}\n\n{"a": "x", "b": "y"}', r"test.jsonl:\d: score missing"),
        ("Similar/test.jsonl", '{"x": 1}', r"test.jsonl:1: no task has rows with the keys x"),
        ("Similar/test.jsonl", "[1]", r"test.jsonl:1: expected a JSON object"),
        ("Similar/test.jsonl", "", r"test.jsonl: is empty"),
        ("Empty/readme", "", r"test.jsonl: missing"),
        ("Found/qrels.tsv", "q1\t3\tmany\nq1\t3\tmore", r"qrels.tsv:2: expected query, document and whole number"),
        ("Found/qrels.tsv", "q1\t999\t1", r"Found: no query of queries.jsonl has a right document"),
        ("Found/corpus.jsonl", '{"text": "no id"}', r"corpus.jsonl:1: a row needs _id and text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_suite(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_suite(tmp_path)


def test_no_suite_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        read_suite(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="holds no task folders"):
        read_suite(tmp_path)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> list[SuiteTask]:
    return read_suite(write_suite(tmp_path_factory.mktemp("suite"), size=200))


@settings(deadline=None, max_examples=25)
@given(tokens=st.integers(min_value=3000, max_value=40_000), seed=st.integers(0, 5))
def test_a_sample_holds_its_budget_and_every_task(suite: list[SuiteTask], tokens: int, seed: int) -> None:
    sample = sample_suite(suite, tokens, seed)
    assert [task.name for task in sample] == [task.name for task in suite]
    whole = {task.name: task for task in suite}
    for task in sample:
        for name, rows in task.tables.items():
            assert rows
            assert all(row in whole[task.name].tables[name] for row in rows)  # the human summaries here are but two
        assert task.sampled == (task.tables != whole[task.name].tables)
    assert sum(task.tokens for task in sample) <= 1.5 * tokens  # two rows of a table are kept at least


def test_a_sample_is_the_same_every_time_and_another_seed_another(suite: list[SuiteTask]) -> None:
    one, again, other = (sample_suite(suite, 8000, seed) for seed in (0, 0, 1))
    assert [task.fingerprint for task in one] == [task.fingerprint for task in again]
    assert [task.fingerprint for task in one] != [task.fingerprint for task in other]


def test_a_budget_beyond_the_suite_leaves_it_whole(suite: list[SuiteTask]) -> None:
    assert sample_suite(suite, 10**9) == suite


def test_every_label_of_a_sample_can_be_learnt(suite: list[SuiteTask]) -> None:
    sample = next(task for task in sample_suite(suite, 4000) if task.type == "classification")
    learnt = [row["label"] for row in sample.tables["train"]]
    assert min(learnt.count(label) for label in SUBJECTS) >= 2


def test_every_question_of_a_sample_keeps_all_its_answers(suite: list[SuiteTask]) -> None:
    sample = next(task for task in sample_suite(suite, 6000) if task.type == "retrieval")
    whole = next(task for task in suite if task.type == "retrieval")
    present = {row["_id"] for row in sample.tables["corpus"]}
    asked = {row["_id"] for row in sample.tables["queries"]}
    for judgement in whole.tables["qrels"]:
        if judgement["query-id"] in asked:
            assert judgement["corpus-id"] in present
            assert judgement in sample.tables["qrels"]
    assert len(present) > len(sample.tables["qrels"])  # and documents that are right for none
