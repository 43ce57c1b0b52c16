"""Scores with labels, by mteb: its task classes, evaluators and result files. Only the rows are from elsewhere.

mteb keeps results under a model's name and revision, and every local model has the same one by default, so a
second model would silently get the first one's scores: the revision here is the encoder's fingerprint. Its clustering
draws from a random state that runs on from model to model, so tasks are made anew for each.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import mteb
import numpy as np
from mteb.abstasks import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.summarization import AbsTaskSummarization
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from sklearn.exceptions import UndefinedMetricWarning

from text2token.errors import CorpusError, UsageError, reason
from text2token.evaluation.suite import Row, SuiteTask, TaskType
from text2token.files import writing
from text2token.model.encoder import TextEncoder
from text2token.progress import Reporter, Silent

DRAWS_OF_A_SAMPLE = 3


@dataclass(frozen=True)
class TaskScore:
    """A task's main score in percent, as mteb names it for the type."""

    task: str
    type: str
    measure: str
    score: float


@dataclass(frozen=True)
class LabelledScores:
    """The scores of one encoder, and both means that go by the name of "MTEB average"."""

    tasks: list[TaskScore]

    @property
    def types(self) -> dict[str, float]:
        """Mean score of each task type."""
        names = dict.fromkeys(task.type for task in self.tasks)
        return {name: float(np.mean([task.score for task in self.tasks if task.type == name])) for name in names}

    @property
    def mean_task(self) -> float:
        """Mean(Task): every task has the same weight."""
        return float(np.mean([task.score for task in self.tasks]))

    @property
    def mean_task_type(self) -> float:
        """Mean(TaskType): every type has the same weight."""
        return float(np.mean(list(self.types.values())))


def score_suite(
    model: "TextEncoder | Any",
    tasks: Sequence[SuiteTask],
    cache: Path,
    reporter: Reporter | None = None,
) -> LabelledScores:
    """Score `model` on the tasks of a suite.

    `model` is a `TextEncoder`, or a model of mteb's own that only searches and then is scored on retrieval alone.
    Finished tasks are taken from `cache`, so an interrupted evaluation resumes.
    """
    searches_only = not isinstance(model, TextEncoder)
    chosen = [task for task in tasks if not searches_only or task.type in ("retrieval", "reranking")]
    subject = model if searches_only else _Encoder(model)
    scores = []
    with (reporter or Silent()).progress(f"Scoring {_name(model)}", len(chosen), "tasks") as progress:
        for task in chosen:
            scores.append(_evaluate(subject, _local_task(task), task.name, task.type, cache / task.fingerprint))
            progress(1)
    return LabelledScores(scores)


def score_benchmark(encoder: TextEncoder, name: str, cache: Path, reporter: Reporter | None = None) -> LabelledScores:
    """Score `encoder` on a benchmark or task of mteb by name; its data come from the hub."""
    tasks = named_tasks(name)
    scores = []
    with (reporter or Silent()).progress(f"Scoring {encoder.name}", len(tasks), "tasks") as progress:
        for task in tasks:
            scores.append(_evaluate(_Encoder(encoder), task, task.metadata.name, task.metadata.type, cache / "hub"))
            progress(1)
    return LabelledScores(scores)


def named_tasks(name: str) -> list[AbsTask]:
    """Return the tasks of the benchmark or the one task that mteb knows as `name`, or raise `UsageError`."""
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        try:
            return [mteb.get_task(name)]
        except KeyError:
            raise UsageError(f"mteb knows no benchmark or task {name!r}. {str(error).strip(chr(34))}") from None


def _name(model: Any) -> str:
    return model.name if isinstance(model, TextEncoder) else str(model.mteb_model_meta.name)


def _evaluate(model: Any, task: AbsTask, name: str, kind: str, cache: Path) -> TaskScore:
    if isinstance(model, _Encoder):
        model.go_by_what_is_known_in(cache)
    with writing(cache), warnings.catch_warnings():
        # of precision and recall, which mteb computes beside the main score, in samples where a label is rare
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        try:
            result = mteb.evaluate(model, task, cache=mteb.ResultCache(cache), show_progress_bar=False, co2_tracker=False)
        except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
            raise CorpusError(
                f"{name}: its data cannot be loaded ({reason(error)}). Is the hub reachable? "
                "A folder of tasks goes with --suite"
            ) from error
    (found,) = result.task_results
    # rounded as mteb keeps it, so that a score from the cache is the same
    return TaskScore(name, kind, str(task.metadata.main_score), round(100 * float(found.get_score()), 4))


class _Encoder(AbsEncoder):
    """A `TextEncoder` as mteb wants it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.mteb_model_meta = self._meta(encoder.fingerprint)

    def _meta(self, revision: str) -> ModelMeta:
        return ModelMeta.create_empty(
            overwrites={
                "name": f"text2token/{self.encoder.name.strip('/').replace('/', '_')}",
                "revision": revision,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def go_by_what_is_known_in(self, cache: Path) -> None:
        """Take the fingerprint of version 0.1.0 where scores are kept under it."""
        earlier = self.encoder.earlier
        known = earlier and any((cache / "results").glob(f"*/{earlier}"))
        self.mteb_model_meta = self._meta(earlier if known else self.encoder.fingerprint)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        return self.encoder(texts, role=prompt_type.value if prompt_type else None).numpy()


def _local_task(task: SuiteTask) -> AbsTask:
    """Return the mteb task of `task`: a class of its own, because mteb clears what instances know when it unloads."""
    base, kind, measure, rows, settings = _LOCAL[task.type]
    if task.type == "classification" and task.sampled:  # few texts to draw from: ten draws would be much the same
        settings = {**settings, "n_experiments": DRAWS_OF_A_SAMPLE}

    def load_data(self: AbsTask, **_: Any) -> None:
        self.dataset = rows(task.tables)
        self.data_loaded = True

    metadata = TaskMetadata(
        name=task.name,
        description=f"{task.name}, a local task.",
        dataset={"path": task.name, "revision": task.fingerprint},
        type=cast(Any, kind),
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=measure,
    )
    return cast(AbsTask, type(task.name, (base,), {"metadata": metadata, "load_data": load_data, **settings})())


Tables = dict[str, list[Row]]


def _with_columns(**new_names: str) -> Callable[[Tables], Any]:
    """Return a function from tables to a dataset for each, columns renamed as given (old=new)."""

    def convert(tables: Tables) -> datasets.DatasetDict:
        return datasets.DatasetDict({name: _dataset(rows, new_names) for name, rows in tables.items()})

    return convert


def _dataset(rows: list[Row], new_names: dict[str, str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({new: [row[old] for row in rows] for old, new in new_names.items()})


def _classification(tables: Tables) -> datasets.DatasetDict:
    """Labels become numbers: of two labels mteb's measures take the one that equals 1 as positive."""
    numbers = {label: number for number, label in enumerate(sorted({str(row["label"]) for row in tables["train"]}))}
    known = {name: [row for row in rows if str(row["label"]) in numbers] for name, rows in tables.items()}
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"text": [row["text"] for row in rows], "label": [numbers[str(row["label"])] for row in rows]}
            )
            for name, rows in known.items()
        }
    )


def _retrieval(tables: Tables) -> Any:
    right: dict[str, dict[str, int]] = {}
    for row in tables["qrels"]:
        right.setdefault(row["query-id"], {})[row["corpus-id"]] = row["score"]
    return _retrieval_split(
        corpus=_dataset(tables["corpus"], {"_id": "id", "title": "title", "text": "text"}),
        queries=_dataset(tables["queries"], {"_id": "id", "text": "text"}),
        relevant_docs=right,
        top_ranked=None,
    )


def _reranking(tables: Tables) -> Any:
    queries, corpus = [], []
    right: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for number, row in enumerate(tables["test"]):
        query = f"q{number}"
        queries.append({"id": query, "text": row["query"]})
        labelled = [*((text, 1) for text in row["positive"]), *((text, 0) for text in row["negative"])]
        for place, (text, relevance) in enumerate(labelled):
            # mteb breaks ties by this name, so it must not tell the right ones from the wrong ones
            document = f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-{number}-{place}"
            corpus.append({"id": document, "text": text})
            right.setdefault(query, {})[document] = relevance
            candidates.setdefault(query, []).append(document)
    return _retrieval_split(
        corpus=datasets.Dataset.from_list(corpus),
        queries=datasets.Dataset.from_list(queries),
        relevant_docs=right,
        top_ranked=candidates,
    )


def _retrieval_split(**split: Any) -> Any:
    return {"default": {"test": split}}


_PAIRS = {"a": "sentence1", "b": "sentence2"}
_SUMMARIES = ("text", "human_summaries", "machine_summaries", "relevance")
# type: mteb's class, its name of the type, main score, rows as mteb wants them, settings of the class
_LOCAL: dict[TaskType, tuple[type[AbsTask], str, str, Callable[[Tables], Any], dict[str, Any]]] = {
    "sts": (AbsTaskSTS, "STS", "cosine_spearman", _with_columns(**_PAIRS, score="score"), {}),
    "pair_classification": (
        AbsTaskPairClassification,
        "PairClassification",
        "max_ap",
        _with_columns(**_PAIRS, label="labels"),
        {},
    ),
    "classification": (
        AbsTaskClassification,
        "Classification",
        "accuracy",
        _classification,
        {},
    ),
    "clustering": (
        AbsTaskClustering,
        "Clustering",
        "v_measure",
        _with_columns(text="sentences", label="labels"),
        {"max_fraction_of_documents_to_embed": None},  # all of them; mteb's own tasks state a share each
    ),
    "summarization": (
        AbsTaskSummarization,
        "Summarization",
        "cosine_spearman",
        _with_columns(**{key: key for key in _SUMMARIES}),
        {"min_score": 0, "max_score": 5},
    ),
    "retrieval": (AbsTaskRetrieval, "Retrieval", "ndcg_at_10", _retrieval, {}),
    "reranking": (AbsTaskRetrieval, "Reranking", "map_at_1000", _reranking, {}),
}
