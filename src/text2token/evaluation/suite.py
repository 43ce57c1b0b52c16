"""A folder of labelled tasks, read without knowing any of them by name.

    suite/
      AnyName/test.jsonl                  {"a", "b", "score"}               sts
                                          {"a", "b", "label"}               pair classification, label 0 or 1
                                          {"text", "label"}                 clustering; with train.jsonl classification
                                          {"query", "positive", "negative"} reranking, lists of texts
                                          {"text", "human_summaries", "machine_summaries", "relevance"}  summarization
      AnyName/corpus.jsonl, queries.jsonl, qrels.tsv                        retrieval, as BEIR has it

What a task is, its files and keys say. `sample_suite` cuts a suite down to a budget for daily work.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from text2token.errors import CorpusError, reason

TaskType = Literal["sts", "classification", "clustering", "retrieval", "pair_classification", "reranking", "summarization"]
Row = dict[str, Any]

KEYS: dict[TaskType, tuple[str, ...]] = {
    "summarization": ("text", "human_summaries", "machine_summaries", "relevance"),
    "reranking": ("query", "positive", "negative"),
    "sts": ("a", "b", "score"),
    "pair_classification": ("a", "b", "label"),
    "clustering": ("text", "label"),
}
RETRIEVAL_FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")

# Tokens are estimated from characters, so that the sample is the same for every model.
CHARACTERS_PER_TOKEN = 4
TOKENS_AROUND_A_TEXT = 10  # about as many as a prompt has
LONGEST_TEXT = 1000  # characters that a model of 256 tokens reads of one text
# Retrieval needs many documents to be hard, clustering and classification many texts for their classes, and a score of
# summaries is a mean over few articles with many summaries each.
SHARES: dict[TaskType, int] = {"retrieval": 4, "clustering": 2, "classification": 2, "sts": 2, "summarization": 2}
HUMAN_SUMMARIES = 3  # of an article, in a sample: the machine's are compared with the nearest of them


@dataclass(frozen=True)
class SuiteTask:
    """One task: `tables` maps "test" (and "train"), or "corpus", "queries" and "qrels", to rows as they were read.

    `sampled` says that rows were left out; measures that draw repeatedly then draw less often.
    """

    name: str
    type: TaskType
    tables: dict[str, list[Row]]
    sampled: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of name, type and rows: scores of another sample are other scores."""
        content = json.dumps([self.name, self.type, self.tables], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def tokens(self) -> int:
        """An estimate of the tokens that an embedder reads."""
        return sum(_tokens(row) for name, rows in self.tables.items() if name != "qrels" for row in rows)


def read_suite(folder: Path) -> list[SuiteTask]:
    """Return the tasks of all subfolders, by name. Raises `CorpusError` that names the file and line of what is wrong."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; --suite wants a folder of task folders")
    tasks = [_read_task(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not tasks:
        raise CorpusError(f"{folder}: holds no task folders (such as {folder}/MyTask/test.jsonl)")
    return tasks


def sample_suite(tasks: Sequence[SuiteTask], tokens: int, seed: int = 0) -> list[SuiteTask]:
    """Return the tasks cut down to about `tokens` in all, seeded; small tasks stay whole and leave their share to others.

    Types share by `SHARES`, tasks of a type in equal parts. A retrieval sample keeps the right documents of its queries and
    draws the others at random, so its figures are higher than those of the whole task: compare within a profile.
    """
    weight = {task.name: SHARES.get(task.type, 1) / sum(other.type == task.type for other in tasks) for task in tasks}
    budget: dict[str, float] = {}
    left, open_tasks = float(tokens), list(tasks)
    while open_tasks:  # whoever needs less than its share is served first
        unit = left / sum(weight[task.name] for task in open_tasks)
        task = min(open_tasks, key=lambda task: task.tokens / weight[task.name])
        budget[task.name] = min(task.tokens, unit * weight[task.name])
        left -= budget[task.name]
        open_tasks.remove(task)
    return [task if budget[task.name] >= task.tokens else _sample(task, int(budget[task.name]), seed) for task in tasks]


def _sample(task: SuiteTask, tokens: int, seed: int) -> SuiteTask:
    rng = np.random.default_rng([seed, *hashlib.sha256(task.name.encode()).digest()[:4]])

    def shuffled(rows: list[Row]) -> list[Row]:
        return [rows[index] for index in rng.permutation(len(rows))]

    if task.type == "retrieval":
        return replace(task, tables=_sample_retrieval(task.tables, tokens, shuffled), sampled=True)
    tables = {}
    if "train" in task.tables:
        tables["train"] = _labels_in_turn(shuffled(task.tables["train"]), tokens // 2)
        tokens = max(tokens // 2, tokens - sum(map(_tokens, tables["train"])))
    rows = shuffled(task.tables["test"])
    if task.type == "summarization":
        rows = [{**row, "human_summaries": row["human_summaries"][:HUMAN_SUMMARIES]} for row in rows]
    tables["test"] = _first_up_to(rows, tokens)
    return replace(task, tables=tables, sampled=True)


def _sample_retrieval(tables: dict[str, list[Row]], tokens: int, shuffled: Any) -> dict[str, list[Row]]:
    """Half of the budget for queries with their right documents, half for documents that may be right for none."""
    documents = {row["_id"]: row for row in tables["corpus"]}
    right: dict[str, list[Row]] = defaultdict(list)
    for judgement in tables["qrels"]:
        right[judgement["query-id"]].append(judgement)
    queries: list[Row] = []
    kept: dict[str, Row] = {}
    spent = 0
    for query in shuffled(tables["queries"]):
        new = {
            judgement["corpus-id"]: documents[judgement["corpus-id"]]
            for judgement in right[query["_id"]]
            if judgement["corpus-id"] in documents and judgement["corpus-id"] not in kept
        }
        cost = _tokens(query) + sum(map(_tokens, new.values()))
        if spent + cost > tokens // 2 and queries:
            continue  # a query with many right documents may not fit where the next one does
        queries.append(query)
        kept |= new
        spent += cost
    others = [row for row in shuffled(tables["corpus"]) if row["_id"] not in kept]
    chosen = {row["_id"] for row in [*kept.values(), *_first_up_to(others, tokens - spent)]}
    kept_queries = {row["_id"] for row in queries}
    return {
        "queries": queries,
        "corpus": [row for row in tables["corpus"] if row["_id"] in chosen],
        "qrels": [row for row in tables["qrels"] if row["query-id"] in kept_queries and row["corpus-id"] in chosen],
    }


def _labels_in_turn(rows: list[Row], tokens: int) -> list[Row]:
    """Return the first text of every label, then the second of every label, and so on: two of each at least."""
    place: dict[Any, int] = defaultdict(int)
    turns: list[int] = []
    for row in rows:
        turns.append(place[row["label"]])
        place[row["label"]] += 1
    in_turn = [rows[index] for index in np.argsort(turns, kind="stable")]
    first_two = sum(turn < 2 for turn in turns)
    return in_turn[: max(first_two, len(_first_up_to(in_turn, tokens)))]


def _first_up_to(rows: list[Row], tokens: int) -> list[Row]:
    cumulated = np.cumsum([_tokens(row) for row in rows])
    return rows[: max(2, int(np.searchsorted(cumulated, tokens)))]


def _tokens(row: Row) -> int:
    texts = list(_texts(row))
    characters = sum(min(len(text), LONGEST_TEXT) for text in texts)
    return characters // CHARACTERS_PER_TOKEN + TOKENS_AROUND_A_TEXT * len(texts)


def _texts(row: Row) -> Iterator[str]:
    if "machine_summaries" in row:  # the article itself is not embedded
        yield from row["human_summaries"]
        yield from row["machine_summaries"]
        return
    for key in ("a", "b", "query"):
        if key in row:
            yield row[key]
    if "text" in row:
        yield f"{row['title']} {row['text']}" if row.get("title") and "_id" in row else row["text"]
    yield from row.get("positive", ())
    yield from row.get("negative", ())


def _read_task(folder: Path) -> SuiteTask:
    if all((folder / name).exists() for name in RETRIEVAL_FILES):
        return _read_retrieval(folder)
    test = _read_rows(folder / "test.jsonl")
    kind = next((kind for kind, keys in KEYS.items() if all(key in test[0] for key in keys)), None)
    if kind is None:
        raise CorpusError(
            f"{folder / 'test.jsonl'}:1: no task has rows with the keys {', '.join(sorted(test[0]))}; "
            "known are " + "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in KEYS.items())
        )
    tables = {"test": test}
    if kind == "clustering" and (folder / "train.jsonl").exists():
        kind = "classification"
        tables["train"] = _read_rows(folder / "train.jsonl")
    keys = KEYS["clustering" if kind == "classification" else kind]
    for name, rows in tables.items():
        for number, row in enumerate(rows, start=1):
            if missing := [key for key in keys if key not in row]:
                raise CorpusError(f"{folder / name}.jsonl:{number}: {', '.join(missing)} missing in a {kind} row")
    return SuiteTask(folder.name, kind, tables)


def _read_retrieval(folder: Path) -> SuiteTask:
    tables: dict[str, list[Row]] = {}
    for name in ("corpus", "queries"):
        tables[name] = []
        for number, row in enumerate(_read_rows(folder / f"{name}.jsonl"), start=1):
            identifier = row.get("_id", row.get("id"))
            if identifier is None or "text" not in row:
                raise CorpusError(f"{folder / name}.jsonl:{number}: a row needs _id and text")
            tables[name].append({"_id": str(identifier), "title": row.get("title") or "", "text": row["text"]})
    judgements: list[Row] = []
    for number, line in enumerate((folder / "qrels.tsv").read_text(encoding="utf-8").splitlines(), start=1):
        cells = line.split("\t")
        if number == 1 and not cells[-1].strip().lstrip("-").isdigit():
            continue  # the header
        try:
            judgements.append({"query-id": cells[0], "corpus-id": cells[-2], "score": int(cells[-1])})
        except (ValueError, IndexError):
            raise CorpusError(f"{folder / 'qrels.tsv'}:{number}: expected query, document and whole number") from None
    known = {row["_id"] for row in tables["corpus"]}
    kept_queries = {row["query-id"] for row in judgements if row["score"] > 0 and row["corpus-id"] in known}
    tables["queries"] = [row for row in tables["queries"] if row["_id"] in kept_queries]
    tables["qrels"] = judgements
    if not tables["queries"]:
        raise CorpusError(f"{folder}: no query of queries.jsonl has a right document in qrels.tsv and corpus.jsonl")
    return SuiteTask(folder.name, "retrieval", tables)


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        raise CorpusError(f"{path}: missing; a task folder holds test.jsonl, or {', '.join(RETRIEVAL_FILES)}")
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"{path}:{number}: not JSON ({reason(error)})") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path}:{number}: expected a JSON object")
            rows.append(row)
    if not rows:
        raise CorpusError(f"{path}: is empty")
    return rows
