"""One bench for all: every peer on the same passages, backbone and token budget, scored on the same texts.

    comparison/
      comparison.toml        on what peers are compared; other peers and seeds may come into the same folder later
      corpus/                the passages, and the held-out documents
      runs/PEER/C-S.json     settings C with seed S: scores under each post-processing, tokens, seconds
      leaderboard.html, .csv, .md   of all runs in the folder, rewritten after every run

First every peer tries all its candidate settings with seed 0; the best goes on with the other seeds. What was tried stays
in the leaderboard. Embeddings are made once per run; the post-processings (none, centred, whitened) share them. Several
processes may work in one folder: a run that one of them has begun is left to it.
"""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import platform
import re
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, cast

import filelock
import numpy as np
import tomli_w
import torch
from pydantic import PositiveInt

from text2token import (
    BackboneSettings,
    CorpusSettings,
    Document,
    OutputError,
    ReadingSettings,
    UsageError,
    fit_postprocessing,
)
from text2token_bench.inside import (
    ONE_OR_MORE,
    Corpus,
    Geometry,
    LabelledScores,
    Place,
    Postprocessing,
    Reporter,
    RetrievalScores,
    Silent,
    Strength,
    SuiteTask,
    TaskScore,
    TextEncoder,
    atomic_file,
    check_begun,
    check_ours,
    checked,
    claim,
    dense_scores,
    difference,
    forget,
    geometry,
    model_state,
    open_encoder,
    prepare_corpus,
    read_suite,
    retrieval_scores,
    sample_suite,
    score_suite,
    source_state,
    to_toml,
    without_secrets,
)
from text2token_bench.leaderboard import leaderboard_csv, leaderboard_html, leaderboard_markdown
from text2token_bench.peers import (
    cropping,
    echo,
    embed_filter,
    lexical,
    llm2vec,
    neighbours,
    simcse,
    static,
    token_targets,
    untrained,
    whitened_cse,
)
from text2token_bench.peers.peer import Built, Peer, SearchOnly, Settings, Workshop
from text2token_bench.rows import LABEL_FREE, MEAN_TASK_TYPE, Family, Leaderboard, Row, Spread, Trial

POSTPROCESSINGS: dict[str, tuple[Postprocessing, Strength]] = {
    "none": ("none", "full"),
    "centre": ("centred", "full"),
    "whiten": ("whitened", "full"),
}
PEERS: tuple[Peer, ...] = (
    *token_targets.PEERS,
    *untrained.PEERS,
    *echo.PEERS,
    *embed_filter.PEERS,
    *simcse.PEERS,
    *llm2vec.PEERS,
    *cropping.PEERS,
    *whitened_cse.PEERS,
    *neighbours.PEERS,
    *lexical.PEERS,
    *static.PEERS,
)


@checked
class Comparison:
    """What is the same for all peers. `sources` is what was read, and `reading` how, for the record.

    `max_tokens` is each trained peer's budget for one training, repetitions counted. `suite_tokens` cuts the labelled
    tasks down (None: all of them).
    """

    backbone: BackboneSettings
    sources: Annotated[tuple[Place, ...], ONE_OR_MORE] = ()
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    suite: Place | None = None
    suite_tokens: PositiveInt | None = 250_000
    corpus: CorpusSettings = field(default_factory=lambda: CorpusSettings(halves_from=0))
    max_tokens: PositiveInt = 100_000


def choose_peers(names: Sequence[str] = (), reference: str | None = None) -> list[Peer]:
    """Return the peers of these names (none: all), and `reference`, a supervised embedder, to show beside them.

    `reference` is a folder, hub id or pypi:PACKAGE. Raises `UsageError` for a name that is no peer's.
    """
    known = {_slug(peer.name): peer for peer in PEERS}
    if unknown := [name for name in names if _slug(name) not in known]:
        raise UsageError(f"no peer {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [known[_slug(name)] for name in names] if names else list(PEERS)
    return [*chosen, _reference_peer(reference)] if reference else chosen


@dataclass(frozen=True)
class Scores:
    """What one run scored under one post-processing. `tasks` is empty without a suite."""

    tasks: tuple[TaskScore, ...]
    label_free: RetrievalScores | None
    geometry: Geometry | None


@dataclass(frozen=True)
class Run:
    """One training (or none) of one peer. `tokens` were processed in training.

    Building it took `seconds` on the clock and `processor_seconds` of all cores together; the latter hardly changes when
    the machine does other work beside.
    """

    peer: str
    family: Family
    candidate: int
    settings: Settings
    seed: int
    tokens: int
    seconds: float
    processor_seconds: float
    scores: Mapping[str, Scores]

    @property
    def merit(self) -> float:
        """What candidates are chosen by: Mean(TaskType) under the best post-processing, or MRR@10 without a suite."""
        return max(_merit(scores) for scores in self.scores.values())

    @property
    def measure(self) -> str:
        """The name of what `merit` is."""
        return (MEAN_TASK_TYPE if any(scores.tasks for scores in self.scores.values()) else LABEL_FREE).heading


def compare_peers(
    comparison: Comparison,
    documents: Iterable[Document],
    folder: Path,
    peers: Sequence[Peer],
    *,
    seeds: int = 3,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Leaderboard:
    """Run `peers` in `folder`, or what of it is missing there, and return the leaderboard of all that the folder holds.

    Raises `OutputError` when the folder belongs to another comparison, or to this one when its texts or tasks were others:
    scores of the one and of the other say nothing beside each other. `UsageError` for less than one seed.
    """
    if seeds < 1:
        raise UsageError("seeds must be above zero")
    reporter = reporter or Silent()
    tasks = _tasks(comparison)
    record = folder / "comparison.toml"
    check_begun(folder, record.name, known=("compare.log",))
    check_ours(folder / "corpus")
    shown = replace(comparison, sources=tuple(map(without_secrets, comparison.sources)))
    described = to_toml(shown) + "\n" + tomli_w.dumps({MADE_FROM: _made_from(comparison, tasks)})
    with _lock(folder, "corpus"):
        if record.exists() and not overwrite:
            if changed := _changed(record, described):
                raise OutputError(f"{folder}: holds another comparison ({changed}). Choose another --output, or --overwrite")
        else:
            for path in _run_files(folder):
                path.unlink()
            prepare_corpus(documents, folder / "corpus", comparison.corpus)
            with atomic_file(record) as path:
                path.write_text(described, encoding="utf-8")
    corpus = Corpus.open(folder / "corpus")
    reporter.note(f"Corpus: {corpus.summary.sentence()}.")
    if tasks:
        estimate = sum(task.tokens for task in tasks)
        reporter.note(f"Suite: {len(tasks)} tasks, about {estimate:,} tokens for an encoder to read.")

    bench = _Bench(comparison, corpus, tasks, folder, reporter)
    while missing := bench.missing(peers, seeds):
        if not any(bench.run(*wanted) for wanted in missing):
            time.sleep(WAIT_FOR_OTHERS)
    return bench.publish()


def _made_from(comparison: Comparison, tasks: Sequence[SuiteTask]) -> dict[str, Any]:
    """Return what shows that backbone, texts or tasks of a comparison have changed, though its settings have not."""

    def digest(state: Any) -> str:
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    return {
        "backbone": digest(model_state(comparison.backbone.name)),
        "texts": digest(source_state(comparison.sources)),
        "tasks": {task.name: task.fingerprint for task in tasks},
    }


def _changed(record: Path, described: str) -> str:
    """Return in one line what differs between the comparison of a folder and the one `described`; nothing where none."""
    try:
        old, new = tomllib.loads(recorded := record.read_text(encoding="utf-8")), tomllib.loads(described)
    except (OSError, ValueError) as error:
        return f"{record.name} cannot be read: {error}"
    was, now = old.pop(MADE_FROM, None), new.pop(MADE_FROM)
    if old != new:
        return difference(recorded, described)
    if was is None:
        return "an earlier version made it, which did not keep what its texts and tasks were"
    if changed := [name for name in ("backbone", "texts") if was.get(name) != now[name]]:
        return f"{' and '.join(changed)} changed since"
    names = sorted(name for name in {*was["tasks"], *now["tasks"]} if was["tasks"].get(name) != now["tasks"].get(name))
    return f"tasks of the suite have changed since: {', '.join(names[:4])}" if names else ""


def _run_files(folder: Path) -> list[Path]:
    """Return the files of all runs in the folder of a comparison, and nothing else that may be there."""
    return sorted(path for path in folder.glob("runs/*/*.json") if re.fullmatch(r"\d+-\d+", path.stem))


MADE_FROM = "made_from"
WAIT_FOR_OTHERS = 5  # seconds, when all that is missing is being done by other processes


def _lock(folder: Path, name: str) -> filelock.BaseFileLock:
    """Return a lock that the system lets go of when its process ends, however it ends."""
    (folder / ".locks").mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".locks" / name)


class _Bench:
    """Runs peers and keeps what came out; the leaderboard on disk shows at any time what is known."""

    def __init__(
        self, comparison: Comparison, corpus: Corpus, tasks: Sequence[SuiteTask], folder: Path, reporter: Reporter
    ) -> None:
        self.comparison = comparison
        self.corpus = corpus
        self.tasks = tasks
        self.folder = folder
        self.reporter = reporter

    def missing(self, peers: Sequence[Peer], seeds: int) -> list[tuple[Peer, int, int]]:
        """Return peer, settings and seed of all that is still to be run, seeds above 0 once the settings are chosen."""
        wanted, later = [], []
        for peer in peers:
            tried = [self._read(peer, number, 0) for number in range(len(peer.candidates))]
            wanted += [(peer, number, 0) for number, run in enumerate(tried) if run is None]
            done = [run for run in tried if run is not None]
            if peer.seeded and len(done) == len(tried):
                best = max(done, key=lambda run: run.merit).candidate
                later += [(peer, best, seed) for seed in range(1, seeds) if self._read(peer, best, seed) is None]
        return wanted + sorted(later, key=itemgetter(2))

    def run(self, peer: Peer, candidate: int, seed: int) -> bool:
        """Do the run and write its file; return False when another process is at it."""
        name = f"{_slug(peer.name)}-{candidate}-{seed}"
        try:
            with _lock(self.folder, name).acquire(blocking=False):
                if self._read(peer, candidate, seed) is None:
                    self.reporter.note(f"{peer.name}, settings {candidate + 1} of {len(peer.candidates)}, seed {seed}")
                    run = self._do(peer, candidate, seed, self.folder / "work" / name)
                    with atomic_file(self._path(peer, candidate, seed)) as path:
                        path.write_text(json.dumps(asdict(run), indent=2), encoding="utf-8")
                    self.publish()
                    _give_memory_back()
                return True
        except filelock.Timeout:
            return False

    def _path(self, peer: Peer, candidate: int, seed: int) -> Path:
        return self.folder / "runs" / _slug(peer.name) / f"{candidate}-{seed}.json"

    def _read(self, peer: Peer, candidate: int, seed: int) -> Run | None:
        """Return the run from its file; None when there is none, or one of settings that were changed since."""
        path = self._path(peer, candidate, seed)
        run = _read_run(path) if path.exists() else None
        as_written = json.loads(json.dumps(peer.candidates[candidate]))
        return run if run and dict(run.settings) == as_written else None

    def publish(self) -> Leaderboard:
        """Write the leaderboard of all runs so far and return it."""
        paths = _run_files(self.folder)
        board = leaderboard_of([_read_run(path) for path in paths], _facts(self.comparison, self.corpus, self.tasks))
        written = {"html": leaderboard_html(board), "csv": leaderboard_csv(board), "md": leaderboard_markdown(board)}
        with _lock(self.folder, "leaderboard"):
            for ending, content in written.items():
                with atomic_file(self.folder / f"leaderboard.{ending}") as path:
                    path.write_text(content, encoding="utf-8")
        return board

    def _do(self, peer: Peer, candidate: int, seed: int, work: Path) -> Run:
        forget(work)
        claim(work)
        torch.manual_seed(seed)
        workshop = Workshop(
            self.comparison.backbone, self.corpus.passages, self.comparison.max_tokens, seed, work, self.reporter
        )
        started, computed = time.monotonic(), time.process_time()
        built = peer.build(workshop, peer.candidates[candidate])
        seconds, processor_seconds = time.monotonic() - started, time.process_time() - computed
        scores = dict(self._score(built, workshop))
        forget(work)
        with contextlib.suppress(OSError):  # others are at work there
            work.parent.rmdir()
        return Run(
            peer=peer.name,
            family=peer.family,
            candidate=candidate,
            settings=peer.candidates[candidate],
            seed=seed,
            tokens=built.tokens,
            seconds=round(seconds, 1),
            processor_seconds=round(processor_seconds, 1),
            scores=scores,
        )

    def _score(self, built: Built, workshop: Workshop) -> Iterable[tuple[str, Scores]]:
        cache = workshop.folder / "mteb"
        queries, passages = list(self.corpus.held_out["query"]), list(self.corpus.held_out["passage"])
        if not isinstance(built.result, TextEncoder):
            searcher: SearchOnly = built.result
            found = score_suite(searcher.mteb_model, self.tasks, cache, self.reporter) if self.tasks else None
            own = retrieval_scores(searcher.similarities(queries, passages)) if len(queries) > 1 else None
            yield "none", Scores(tuple(found.tasks) if found else (), own, None)
            return
        texts = [*workshop.sample(), *queries, *passages]
        with self.reporter.progress("Embedding", len(set(texts)), "texts") as progress:
            built.result(texts, progress)
        sample = built.result(workshop.sample())
        for kind, postprocessing in POSTPROCESSINGS.items():
            encoder = built.result.postprocessed_by(
                fit_postprocessing(sample, *postprocessing), f"{built.result.name} ({kind})"
            )
            found = score_suite(encoder, self.tasks, cache, self.reporter) if self.tasks else None
            own = shape = None
            if len(queries) > 1:
                asked, answers = encoder(queries, role="query"), encoder(passages, role="document")
                own, shape = dense_scores(asked, answers), geometry(asked, answers)
            yield kind, Scores(tuple(found.tasks) if found else (), own, shape)


def _give_memory_back() -> None:
    """Hand what a finished run no longer needs back to the system, or a dozen runs in one process fill 24 GB.

    Batches of ever other shapes leave gaps that the C library keeps: 2.8 GB after a training, 0.8 once it was told.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def leaderboard_of(runs: Sequence[Run], facts: dict[str, str]) -> Leaderboard:
    """Return the leaderboard of `runs`: for each peer the seeds of its best settings, one row per post-processing."""
    rows, trials = [], []
    for name in dict.fromkeys(run.peer for run in runs):
        own = [run for run in runs if run.peer == name]
        first = [run for run in own if run.seed == 0]
        best = max(first, key=lambda run: run.merit)
        if len(first) > 1:
            trials += [Trial(name, _described(run.settings), run.seed, run.measure, run.merit, run is best) for run in first]
        seeds = [run for run in own if run.candidate == best.candidate]
        rows += [_row(seeds, kind) for kind in best.scores]
    notes = [
        "Settings and post-processing of every peer were chosen on the tasks shown here, three tries or fewer each, "
        "so figures on other tasks will be somewhat lower, for all.",
        "Spread is the standard deviation over seeds. Rows without it are deterministic or have one seed.",
        "Label-free: the title or first half of a held-out document must find its other half. It measures that and no more.",
    ]
    return Leaderboard("Unsupervised text embedders on one bench", facts, notes, rows, trials)


def _row(runs: Sequence[Run], kind: str) -> Row:
    scores = [run.scores[kind] for run in runs]
    labelled = [LabelledScores(list(score.tasks)) for score in scores]
    complete = bool(labelled[0].tasks) and not _searches_only(runs[0])
    own = [score.label_free.mrr_at_10 for score in scores if score.label_free]
    return Row(
        peer=runs[0].peer,
        family=runs[0].family,
        postprocessing=cast(Any, kind),
        settings=_described(runs[0].settings),
        seeds=len(runs),
        tasks={
            task.task: _spread([found.tasks[index].score for found in labelled])
            for index, task in enumerate(labelled[0].tasks)
        },
        types={name: _spread([found.types[name] for found in labelled]) for name in labelled[0].types},
        mean_task=_spread([found.mean_task for found in labelled]) if complete else None,
        mean_task_type=_spread([found.mean_task_type for found in labelled]) if complete else None,
        label_free=_spread(own) if own else None,
        tokens=runs[0].tokens,
        seconds=float(np.mean([run.seconds for run in runs])),
    )


def _searches_only(run: Run) -> bool:
    return any(scores.geometry is None and scores.label_free for scores in run.scores.values())


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _merit(scores: Scores) -> float:
    if scores.tasks:
        return LabelledScores(list(scores.tasks)).mean_task_type
    return scores.label_free.mrr_at_10 if scores.label_free else 0.0


def _described(settings: Settings) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "as they are"


def _tasks(comparison: Comparison) -> list[SuiteTask]:
    if not comparison.suite:
        return []
    tasks = read_suite(Path(comparison.suite))
    return tasks if comparison.suite_tokens is None else sample_suite(tasks, comparison.suite_tokens)


def _facts(comparison: Comparison, corpus: Corpus, tasks: Sequence[SuiteTask]) -> dict[str, str]:
    size = "whole" if comparison.suite_tokens is None else f"sampled to about {comparison.suite_tokens:,} tokens"
    return {
        "Backbone": comparison.backbone.name,
        "Corpus": f"{corpus.summary.documents:,} documents, {corpus.summary.passages:,} passages",
        "Budget": f"{comparison.max_tokens:,} tokens in each training",
        "Tasks": f"{len(tasks)}, {size}" if tasks else "none",
        "Label-free": f"{corpus.summary.held_out:,} held-out documents, MRR@10",
        "Machine": f"{os.cpu_count()} CPU cores" + (f", {_gpu()}" if torch.cuda.is_available() else ""),
        "Versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def _gpu() -> str:
    return str(torch.cuda.get_device_name())


def _reference_peer(name: str) -> Peer:
    short = name.removeprefix("pypi:").removeprefix("gt-").rstrip("/").rpartition("/")[2]
    return Peer(short, "supervised", lambda workshop, settings: Built(open_encoder(name)))


def _read_run(path: Path) -> Run:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["scores"] = {
        kind: Scores(
            tuple(TaskScore(**task) for task in scores["tasks"]),
            RetrievalScores(**{**scores["label_free"], "mrr_interval": tuple(scores["label_free"]["mrr_interval"])})
            if scores["label_free"]
            else None,
            Geometry(**scores["geometry"]) if scores["geometry"] else None,
        )
        for kind, scores in content["scores"].items()
    }
    return Run(**content)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
