"""The whole method on one page: unlabelled text in, a sentence-transformers embedder out.

    text → corpus → token targets → LoRA training with KL through the head, in one stage or several
         → the last layer left out → gentle whitening → export, and beside it what reads its key tokens

The paper's two stages are data-driven targets, then model-derived ones, asked of the model that the first stage made. By
default there is one, on corpus-derived targets, which measured best. Every step leaves a file in the run folder that can be
looked at, and is taken from there as long as what it was made from has not changed: an interrupted run goes on, a changed
setting costs only the steps after it.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, prepare_corpus
from text2token.corpus.published import published_model, published_source, without_secrets
from text2token.corpus.readers import STDIN, BrokenLines, source_state
from text2token.engine import Engine
from text2token.errors import CorpusError, OutputError
from text2token.evaluation.comparison import Embedded, Evaluation, EvaluationTexts, compare
from text2token.evaluation.held_out import write_held_out
from text2token.evaluation.history import Diary, Watch
from text2token.export.card import model_card
from text2token.export.folder import check_output, export_embedder
from text2token.files import alone_in, atomic_file, check_ours, claim, forget, is_ours, scratch_folder
from text2token.lens.fit import joined, learn_from_head, learn_from_words
from text2token.lens.reader import FOLDER as READER_FOLDER
from text2token.lens.reader import PROBE, TokenReader, save_reader
from text2token.model.adapters import add_lora
from text2token.model.backbone import (
    cut_last_layers,
    embed,
    load_embedder,
    model_state,
    room_for_text,
    token_lengths,
    tokenizer_of,
)
from text2token.model.head import LanguageModelHead, load_head
from text2token.progress import Phases, Reporter, Silent
from text2token.recipe import (
    Recipe,
)
from text2token.targets.base import HERE, Materials
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.targets.store import TargetCard, documents_of, open_targets, read_card
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.tokens.words import WordSplitter
from text2token.train.checkpoints import load_trainable, trainable_weights
from text2token.train.objective import TokenTargetLoss
from text2token.train.processes import Processes, together
from text2token.train.schedule import plan
from text2token.train.stage import StageResult, text_lengths, train_stage

DIARY = "diary.jsonl"
WEIGHTS = "weights.safetensors"
TRAINING_COST = 3  # of a token, where embedding it is 1; in float32 on CPUs 2 to 3 was measured


@dataclass(frozen=True)
class RunResult:
    """What a run came to, stages and their targets by the name of the stage; `results.json` holds the same.

    `seconds` are those of each phase, as far as it was not taken from an earlier, interrupted run.
    """

    model: str
    corpus: dict[str, int]
    targets: dict[str, TargetCard]
    stages: dict[str, StageResult]
    evaluation: Evaluation | None
    seconds: dict[str, float] = field(default_factory=dict)


class RunFolder:
    """Where the steps of a run leave their files, and from what each was made (`steps.json`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.corpus = root / "corpus"
        self.targets = root / "targets"
        self.stages = root / "stages"
        self.results = root / "results.json"
        self.embedded = root / "embedded"
        self.cache = root / "cache"
        self.record = root / "steps.json"

    def done(self, step: str, made_from: str) -> bool:
        """Say whether `step` was finished from the same inputs, and what it made is there still."""
        if self._steps().get(step) != made_from:
            return False
        last = {"corpus": self.corpus / "summary.json", "result": self.results}
        if step.startswith("targets/"):
            return (self.root / step / "card.json").exists()
        return last.get(step, self.stages / step / WEIGHTS).exists()

    def finished(self, step: str, made_from: str) -> None:
        """Note that `step` is finished; what was made after the corpus or a stage, and perhaps of it, no longer is."""
        steps = self._steps()
        if not step.startswith("targets/"):
            steps = dict(itertools.takewhile(lambda done: done[0] != step, steps.items()))
        with atomic_file(self.record) as path:
            path.write_text(json.dumps(steps | {step: made_from}, indent=2), encoding="utf-8")

    def started(self) -> bool:
        """Say whether a run was begun here.

        Raises `OutputError` where one of its folders is not ours: only what was made here is ever replaced.
        """
        for folder in (self.corpus, *self._made()):
            check_ours(folder)
        return bool(self._steps())

    def forget(self) -> None:
        """Delete what an earlier run made of its corpus, and nothing else that may be in the folder."""
        for folder in self._made():
            forget(folder)
        for file in (self.recipe, self.results, *filter(_of_a_stage, self.targets.glob("*.safetensors"))):
            file.unlink(missing_ok=True)

    def _made(self) -> list[Path]:
        """Return the folders of all steps after the corpus."""
        steps = filter(_of_a_stage, [*self.targets.glob("*"), *self.stages.glob("*")])
        return [*(path for path in steps if path.is_dir()), self.embedded, self.cache]

    def asked(self, stage: str) -> Path:
        """Return the file with the numbers of the passages that have this stage's targets; there is none where all have."""
        return self.targets / f"{stage}.safetensors"

    def tidy(self) -> None:
        """Delete what only an unfinished run goes on from: checkpoints, and a copy of the targets to train on."""
        forget(self.cache)
        for stage in filter(is_ours, self.stages.glob("*")):
            for checkpoint in stage.glob("checkpoints-*/checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _steps(self) -> dict[str, str]:
        try:
            steps = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return steps if isinstance(steps, dict) else {}


def _of_a_stage(path: Path) -> bool:
    return re.fullmatch(r"stage\d+", path.stem) is not None


def run(
    recipe: Recipe,
    documents: Iterable[Document],
    folder: Path,
    model_folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    broken: BrokenLines | None = None,
    reporter: Reporter | None = None,
    engine: Engine = HERE,
) -> RunResult:
    """Train an embedder by `recipe` on `documents`; write it to `model_folder` and everything else to `folder`.

    With `resume`, steps that are finished in `folder` are taken from there, unless their settings or the files that
    `recipe.sources` names have changed, and training goes on from its last checkpoint; the result is the same as without
    the interruption. Of a recipe without sources the `documents` themselves are compared. With `overwrite`, an earlier run
    and model are replaced. `broken` is what the reader of `documents` counts in. `engine` makes the targets. Of several
    processes (`processes.together`) the first does all but the training, which they share. Raises
    a `Text2TokenError` for anything a user can mend.
    """
    processes = together()
    reporter = reporter if reporter and processes.first else Silent()
    with contextlib.ExitStack() as locks:
        if processes.first:
            locks.enter_context(alone_in(folder, record=RunFolder(folder).record.name))
            locks.enter_context(alone_in(model_folder, beside=True))
        work = RunFolder(folder)
        return _run_alone(recipe, documents, work, model_folder, resume, overwrite, broken, reporter, engine, processes)


def _run_alone(
    recipe: Recipe,
    documents: Iterable[Document],
    work: RunFolder,
    model_folder: Path,
    resume: bool,
    overwrite: bool,
    broken: BrokenLines | None,
    reporter: Reporter,
    engine: Engine,
    processes: Processes,
) -> RunResult:
    with processes.first_alone():  # the others take from the folder what it has done
        goes_on = not processes.first or _check_folders(work, model_folder, recipe.backbone.name, resume, overwrite)
        if recipe.sources:
            texts_given: Any = source_state(recipe.sources)
        else:
            documents = list(documents)
            texts_given = [(document.title, document.body, document.place) for document in documents]
        steps = made_from(recipe, texts_given, processes.count)
        if goes_on and work.done("result", steps["result"]) and model_folder.exists():
            finished = _result_in(work)
            if finished.model == str(model_folder):
                unseen = " (standard input is not read again)" if STDIN in recipe.sources else ""
                reporter.note(f"Nothing has changed since this run was finished{unseen}.")
                return finished

        phases = Phases()
        embedder = load_embedder(recipe.backbone)
        phases.ended("loading the backbone")
        if not (goes_on and work.done("corpus", steps["corpus"])):
            prepare_corpus(documents, work.corpus, recipe.corpus, broken)
            work.forget()
            work.finished("corpus", steps["corpus"])
        if processes.first:
            with atomic_file(work.recipe) as path:  # from here on there is something to resume
                kept = dataclasses.replace(recipe, sources=tuple(map(without_secrets, recipe.sources)))
                path.write_text(kept.to_toml(), encoding="utf-8", errors="replace")  # a name may be any bytes
        corpus = Corpus.open(work.corpus)
        reporter.note(f"Corpus: {corpus.summary.sentence()}.")
        phases.ended("reading the corpus")

        head = load_head(embedder, recipe.backbone.name)
        vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
        texts = evaluation_texts(recipe, embedder, corpus, reporter)
        untrained, shape = None, (recipe.postprocessing, recipe.cut_layers)
        if processes.first:
            claim(work.embedded)
            file = work.embedded / "untrained.safetensors"
            untrained = texts.embedded(embedder, *shape, "Embedding, untrained", reporter, file, finished=False)
        phases.ended("embedding, untrained")

    splitter = WordSplitter(tokenizer_of(embedder), recipe.vocabulary)
    watched = texts.queries[: texts.watched], texts.passages[: texts.watched]
    watch = Watch.over(*watched, head, splitter, recipe.looks)
    centre = processes.from_first(untrained.head_centre if untrained else torch.empty(0))
    stages = Stages(recipe, embedder, head, vocabulary, corpus.passages, centre, work, steps, phases)
    cards, results = stages.train(reporter, engine, watch)

    with processes.first_alone():
        if untrained is None:
            return _result_in(work)
        trained = texts.embedded(embedder, *shape, "Embedding, trained", reporter, work.embedded / "trained.safetensors")
        phases.ended("embedding, trained")
        evaluation = compare(texts, corpus.passages, untrained, trained, head, splitter)

        result = RunResult(str(model_folder), asdict(corpus.summary), cards, results, evaluation)
        readme = model_card(recipe.to_toml(), asdict(result))
        cut_last_layers(embedder, recipe.cut_layers)
        export_embedder(embedder, trained.whitening, model_folder, readme, overwrite or resume)
        write_held_out(corpus.held_out, recipe.corpus.seed, model_folder)
        try:
            save_reader(reader_of(recipe, embedder, head, texts, trained), model_folder / READER_FOLDER)
        except CorpusError as error:
            reporter.note(f"Without key tokens: {error}.")
        phases.ended("export")
        result = dataclasses.replace(result, seconds=phases.seconds)
        with atomic_file(work.results) as path:
            path.write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")
        work.tidy()
        work.finished("result", steps["result"])
        reporter.note(f"Took {phases.sentence()}.")
    return result


def _result_in(work: RunFolder) -> RunResult:
    return pydantic.TypeAdapter(RunResult).validate_json(work.results.read_text(encoding="utf-8"))


def made_from(recipe: Recipe, corpus: Any, processes: int = 1) -> dict[str, str]:
    """Return for each step of a run a digest of all that decides its outcome; `corpus` stands for the texts.

    Models are told by their files too (`model_state`): other weights may come to stand under a name. `processes` train
    together: a step of theirs takes so many times the batches.
    """
    shared = [processes] if processes > 1 else []
    steps = {"corpus": _digest(recipe.corpus, recipe.reading, corpus)}
    before = [recipe.lora, recipe.seed, *shared]
    model = model_state(recipe.backbone.name)
    for name, stage in recipe.named_stages.items():
        kind = stage.targets
        of_targets = [kind, recipe.targets.data_driven, getattr(recipe.targets, kind)]
        seen = [getattr(stage, key) for key in DECIDES_WHAT_IS_SEEN]
        teacher = before if name in recipe.taught else []
        steps[f"targets/{name}"] = _digest(
            steps["corpus"], recipe.backbone, recipe.vocabulary, model, *of_targets, seen, recipe.seed, *shared, *teacher
        )
        steps[name] = _digest(steps[f"targets/{name}"], stage, *before)
        before = [steps[name]]
    steps["result"] = _digest(*before, recipe.cut_layers, recipe.postprocessing, recipe.evaluation_share)
    return steps


def evaluation_texts(recipe: Recipe, embedder: SentenceTransformer, corpus: Corpus, reporter: Reporter) -> EvaluationTexts:
    """Return the texts to evaluate on, so many that their cost is `evaluation_share` of what the stages will train."""
    texts = EvaluationTexts.of(corpus.passages, corpus.held_out, recipe.seed)
    if recipe.evaluation_share is None or not texts.queries:
        return texts
    tokenizer = tokenizer_of(embedder)
    corpus_tokens = float(token_lengths(tokenizer, [texts.sample]).mean()) * len(corpus.passages)
    trained = sum(min(stage.max_tokens or math.inf, stage.epochs * corpus_tokens) for stage in recipe.stages)
    asked = texts.costing(recipe.evaluation_share * TRAINING_COST * trained, tokenizer, recipe.looks)
    if len(asked.queries) < len(texts.queries):
        reporter.note(
            f"Evaluation: on {len(asked.queries)} of the {len(texts.queries)} held-out documents, "
            f"for {recipe.evaluation_share:.0%} of the training's cost; on all: --set evaluation_share=none"
        )
    return asked


DECIDES_WHAT_IS_SEEN = (
    "max_tokens",
    "epochs",
    "tokens_per_batch",
    "texts_per_batch",
    "accumulate",
    "contrast",
)


@dataclass(frozen=True)
class Stages:
    """What the stages of a run are made of. `embedder` is untrained at first, and all stages train it in place.

    `untrained_centre`, shape (dimension,), is the mean embedding of a sample; `steps` as of `made_from`. Everything is left
    in `work`, and taken from there where it is finished.
    """

    recipe: Recipe
    embedder: SentenceTransformer
    head: LanguageModelHead
    vocabulary: TargetVocabulary
    passages: Dataset
    untrained_centre: Tensor
    work: RunFolder
    steps: dict[str, str]
    phases: Phases = field(default_factory=Phases)

    def train(
        self, reporter: Reporter, engine: Engine = HERE, watch: Watch | None = None
    ) -> tuple[dict[str, TargetCard], dict[str, StageResult]]:
        """Train `embedder` through all stages; return cards and results by stage.

        Targets that are not asked of a trained model are all made first: some are asked of the untrained one.
        Losses, and what `watch` sees, are in each stage's diary.
        """
        recipe, processes = self.recipe, together()
        cards: dict[str, TargetCard] = {}
        results: dict[str, StageResult] = {}
        with processes.first_alone():  # the others take from the folder what it has done
            for name in recipe.named_stages:
                if name not in recipe.taught:
                    cards[name] = self.write_targets(name, reporter, engine)
        self.phases.ended("targets")
        if not recipe.lora.rank:
            self.embedder.float()  # all weights: bfloat16 would round small updates away
        for name in recipe.named_stages:
            if name in recipe.taught:
                with processes.first_alone():
                    cards[name] = self.write_targets(name, reporter, engine)
                self.phases.ended("targets")
            if recipe.lora.rank:
                add_lora(self.embedder, recipe.lora, recipe.seed)
            results[name] = self._train_stage(name, reporter, watch)
            self.phases.ended("training")
        return {name: cards[name] for name in recipe.named_stages}, results

    def write_targets(self, name: str, reporter: Reporter, engine: Engine = HERE) -> TargetCard:
        """Write the targets of a stage, unless they are there, and return their card.

        Where a target costs a forward pass, only passages that the stage will see are asked about.
        """
        recipe, work, step = self.recipe, self.work, f"targets/{name}"
        stage, folder = recipe.named_stages[name], work.root / step
        title = f"Targets, {stage.targets.replace('_', '-')}"
        if not work.done(step, self.steps[step]):
            materials = Materials(recipe.backbone, self.embedder, self.vocabulary, recipe.targets, self.head)
            constructor = make_constructor(stage.targets, materials)
            work.asked(name).unlink(missing_ok=True)
            rows = None
            if constructor.expensive:
                lengths, documents = text_lengths(self.embedder, self.passages), np.array(self.passages["document"])
                schedule = plan(lengths, stage, recipe.seed, documents=documents, processes=together().count)
                rows = schedule.rows_to_see
                with atomic_file(work.asked(name)) as path:
                    save_file({"rows": torch.from_numpy(rows)}, path)
            with reporter.progress(title, len(self.passages if rows is None else rows), "texts") as progress:
                write_constructed(
                    constructor, self.passages, self.vocabulary, folder, recipe.backbone.name, progress, rows, engine
                )
            work.finished(step, self.steps[step])
        card = read_card(folder)
        halves = f", half of the weight on {card.sizes.half_of_mass[1]:.0f} tokens (median)" if card.sizes else ""
        reporter.note(f"{title}: {card.texts:,} texts{halves}.")
        return card

    def _train_stage(self, name: str, reporter: Reporter, watch: Watch | None) -> StageResult:
        """Train one stage, or go on from its last checkpoint, or take its weights from the folder."""
        recipe, embedder, work, made_from, processes = self.recipe, self.embedder, self.work, self.steps[name], together()
        stage, made = recipe.named_stages[name], self.work.stages / name
        if work.done(name, made_from):
            load_trainable(embedder, load_file(made / WEIGHTS))
            return StageResult(**json.loads((made / "result.json").read_text(encoding="utf-8")))
        with processes.first_alone():
            if processes.first:
                claim(made)
                claim(work.cache)
            targets = open_targets(work.targets / name, self.vocabulary, cache=work.cache)
        asked = work.asked(name)
        read = self.passages.select(load_file(asked)["rows"].numpy()) if asked.exists() else self.passages
        documents = documents_of(targets, read)
        loss = TokenTargetLoss(
            embedder,
            self.head,
            self.untrained_centre if stage.centre == "untrained" else None,
            contrast=stage.contrast,
        )
        schedule = plan(text_lengths(embedder, targets), stage, recipe.seed, documents=documents, processes=processes.count)
        checkpoints = made / f"checkpoints-{made_from}"  # those of other settings are no good here
        title = "Training" if len(recipe.stages) == 1 else f"Training, {name}"
        with reporter.progress(title, schedule.tokens_to_see, "tokens") as progress:
            result = train_stage(
                embedder,
                loss,
                targets.add_column("document", documents),
                schedule,
                stage,
                checkpoints,
                resume=True,
                progress=progress,
                callbacks=[Diary(embedder, watch, made / DIARY)] if processes.first else [],
            )
        if processes.first:
            with atomic_file(made / "result.json") as path:
                path.write_text(json.dumps(asdict(result)), encoding="utf-8")
            with atomic_file(made / WEIGHTS) as path:
                save_file(trainable_weights(embedder), path)
            work.finished(name, made_from)
        return result


def reader_of(
    recipe: Recipe,
    embedder: SentenceTransformer,
    head: LanguageModelHead,
    texts: EvaluationTexts,
    trained: Embedded,
) -> TokenReader:
    """Return what reads the finished embedder, learnt on the sample; `embedder` ends where the finished one does.

    The head reads after the last layer, where the first texts of the sample were embedded for its centre.
    """

    def finished(embeddings: Tensor) -> Tensor:
        return normalize(trained.whitening(embeddings))

    tokenizer, probe, embeddings = tokenizer_of(embedder), finished(embed(embedder, PROBE)), finished(trained.sample)
    room = room_for_text(tokenizer)
    words = learn_from_words(
        texts.sample,
        embeddings,
        probe,
        tokenizer,
        vocabulary=recipe.vocabulary,
        max_tokens=room,
        source=", ".join(map(published_source, recipe.sources)),
    )
    by_head = learn_from_head(
        trained.head_sample,
        embeddings[: len(trained.head_sample)],
        probe,
        head,
        tokenizer,
        vocabulary=recipe.vocabulary,
        max_tokens=room,
        source=published_model(recipe.backbone.name),
    )
    return joined(words, by_head, embeddings)


def build_targets(
    recipe: Recipe,
    documents: Iterable[Document],
    folder: Path,
    broken: BrokenLines | None = None,
    reporter: Reporter | None = None,
    engine: Engine = HERE,
) -> TargetCard:
    """Write only the targets of the first stage to `folder`, as `run` would with nothing held out; return their card."""
    embedder = load_embedder(recipe.backbone)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    materials = Materials(recipe.backbone, embedder, vocabulary, recipe.targets)
    constructor = make_constructor(recipe.stages[0].targets, materials)
    with alone_in(folder, beside=True), scratch_folder(folder) as scratch:
        settings = dataclasses.replace(recipe.corpus, held_out=0)
        corpus = prepare_corpus(documents, scratch / "corpus", settings, broken)
        passages = corpus.passages
        with (reporter or Silent()).progress("Targets", len(passages), "texts") as progress:
            return write_constructed(
                constructor, passages, vocabulary, folder, recipe.backbone.name, progress, engine=engine
            )


def _check_folders(work: RunFolder, model_folder: Path, backbone: str, resume: bool, overwrite: bool) -> bool:
    """Check before the first minute of work whether the results may be written; return whether a run is resumed."""
    started = work.started()
    finished = resume and started and (model_folder / "modules.json").exists()
    check_output(model_folder, overwrite or finished, backbone)
    if started and not overwrite and not resume:
        raise OutputError(f"{work.root}: holds an earlier run. Go on with --resume, or start anew with --overwrite")
    return started and not overwrite


def _digest(*parts: Any) -> str:
    """Return 16 hex digits of settings (dataclasses) and whatever JSON can say."""
    content = json.dumps(parts, default=asdict, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
