"""Score models on labelled tasks, on mteb by name, and in-domain without labels; write the scores to a file."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import NonNegativeInt

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus
from text2token.errors import CorpusError, UsageError
from text2token.evaluation.held_out import unseen_corpus
from text2token.evaluation.label_free import (
    TFIDF_SAMPLE,
    Geometry,
    RetrievalScores,
    dense_scores,
    geometry,
    tfidf_scores,
)
from text2token.evaluation.labelled import LabelledScores, score_benchmark, score_suite
from text2token.evaluation.suite import SuiteTask, read_suite, sample_suite
from text2token.files import atomic_file, check_file
from text2token.model.backbone import Role
from text2token.model.encoder import TextEncoder, open_encoder
from text2token.progress import Reporter, Silent
from text2token.recipe import CorpusSettings, DType
from text2token.settings import checked

QUICK_TOKENS = 250_000
COLUMNS = ("model", "type", "task", "measure", "score")
BEGINNING = {".csv": ",".join(COLUMNS), ".json": '[\n  {\n    "model": '}  # of a file of scores, by its ending


@dataclass(frozen=True)
class ModelReport:
    """All scores of one model; what was not scored is None. `model` is the name it was given by.

    `prompts`: what it has before the texts of a role, where its folder names prompts.
    """

    model: str
    labelled: LabelledScores | None = None
    label_free: RetrievalScores | None = None
    geometry: Geometry | None = None
    prompts: Mapping[Role, str] = field(default_factory=dict)


@checked
class EvaluationSettings:
    """What to score on."""

    suite: Path | None = None
    """A folder of labelled tasks."""
    quick: bool = False
    """Score on a sample of them."""
    benchmark: str | None = None
    """A benchmark of mteb, by its name."""
    held_out: NonNegativeInt = 200
    """Documents of the corpus that become queries, where a corpus is given."""
    dtype: DType = "float32"
    """What the transformers compute in."""


def evaluate(
    models: Sequence[str],
    settings: EvaluationSettings,
    documents: Iterable[Document] | None = None,
    *,
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> list[ModelReport]:
    """Return a report per model and, with `documents`, one of TF-IDF beside them.

    `documents` are prepared as for training. None of the queries was in the training of a model, as far as that is known
    (`held_out`); what is not known is noted. Finished tasks of mteb are kept in `cache`.
    """
    reporter = reporter or Silent()
    cache = cache or platformdirs.user_cache_path("text2token") / "mteb"
    tasks = read_suite(settings.suite) if settings.suite else []
    tasks = sample_suite(tasks, QUICK_TOKENS) if settings.quick else tasks
    reports = []
    with ExitStack() as stack:
        corpus = None
        if documents is not None:
            wanted = CorpusSettings(held_out=settings.held_out)
            corpus = stack.enter_context(unseen_corpus(documents, models, wanted, reporter=reporter))
            if len(corpus.held_out) < 2:
                raise CorpusError("no two documents are long enough for a query (title or first half) and the rest")
        for name in models:
            encoder = replace(open_encoder(name, settings.dtype), memory=None)  # a benchmark's texts are millions
            labelled = _labelled(encoder, tasks, settings.benchmark, cache, reporter)
            in_domain, shape = _label_free(encoder, corpus, reporter) if corpus else (None, None)
            reports.append(ModelReport(name, labelled, in_domain, shape, encoder.prompts))
        if corpus:
            fitted_on = list(corpus.passages[:TFIDF_SAMPLE]["text"])
            scores = tfidf_scores(list(corpus.held_out["query"]), list(corpus.held_out["passage"]), fitted_on)
            reports.append(ModelReport("TF-IDF", label_free=scores))
    return reports


def _labelled(
    encoder: TextEncoder, tasks: Sequence[SuiteTask], benchmark: str | None, cache: Path, reporter: Reporter
) -> LabelledScores | None:
    found = score_suite(encoder, tasks, cache, reporter).tasks if tasks else []
    found = [*found, *(score_benchmark(encoder, benchmark, cache, reporter).tasks if benchmark else [])]
    return LabelledScores(found) if found else None


def _label_free(encoder: TextEncoder, corpus: Corpus, reporter: Reporter) -> tuple[RetrievalScores, Geometry]:
    queries, passages = list(corpus.held_out["query"]), list(corpus.held_out["passage"])
    with reporter.progress(f"Embedding, {encoder.name}", len({*queries, *passages}), "texts") as progress:
        of_queries, of_passages = encoder(queries, progress, "query"), encoder(passages, progress, "document")
    return dense_scores(of_queries, of_passages), geometry(of_queries, of_passages)


def reports_json(reports: Sequence[ModelReport]) -> str:
    """Return all scores as JSON, both means by their names."""
    return json.dumps([_plain(report) for report in reports], indent=2, ensure_ascii=False)


def reports_csv(reports: Sequence[ModelReport]) -> str:
    """Return one line per model and task: model, type, task, measure, score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        model = spreadsheet_text(report.model)
        if report.labelled:
            for task in report.labelled.tasks:
                writer.writerow([model, task.type, spreadsheet_text(task.task), task.measure, round(task.score, 4)])
            writer.writerow([model, "", "Mean(Task)", "", round(report.labelled.mean_task, 4)])
            writer.writerow([model, "", "Mean(TaskType)", "", round(report.labelled.mean_task_type, 4)])
        if report.label_free:
            for measure in ("mrr_at_10", "ndcg_at_10", "recall_at_10"):
                score = round(getattr(report.label_free, measure), 4)
                writer.writerow([model, "label_free", "in-domain", measure, score])
    return file.getvalue()


def spreadsheet_text(cell: Any) -> Any:
    """Return a cell of a CSV as one line that no spreadsheet takes for a formula; what is no text is left as it is."""
    if not isinstance(cell, str):
        return cell
    cell = re.sub(r"[\r\n]+", " ", cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t")) else cell


def check_reports(path: Path) -> None:
    """Raise `OutputError` where `path` is anything but a file of scores, `UsageError` where its ending is not of one."""
    if path.suffix not in BEGINNING:
        raise UsageError(f"--output is {path}; its name must end in .json or .csv")
    check_file(path, BEGINNING[path.suffix])


def write_reports(reports: Sequence[ModelReport], path: Path) -> None:
    """Write the scores to `path`, as CSV or JSON by its ending; only scores are replaced (`check_reports`)."""
    check_reports(path)
    content = reports_csv(reports) if path.suffix == ".csv" else reports_json(reports) + "\n"
    with atomic_file(path) as unfinished:
        unfinished.write_text(content, encoding="utf-8")


def _plain(report: ModelReport) -> dict[str, Any]:
    content: dict[str, Any] = {"model": report.model}
    if report.labelled:
        content["mean_task"] = report.labelled.mean_task
        content["mean_task_type"] = report.labelled.mean_task_type
        content["types"] = report.labelled.types
        content["tasks"] = [asdict(task) for task in report.labelled.tasks]
    if report.label_free:
        content["label_free"] = asdict(report.label_free)
    if report.prompts:
        content["prompts"] = dict(report.prompts)
    if report.geometry:
        content["geometry"] = asdict(report.geometry)
    return content
