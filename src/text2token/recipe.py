"""The whole method on one page: unlabelled text in, a sentence-transformers embedder out.

    text → corpus → token targets → LoRA training with KL through the head, in one or two stages
         → half way back to the untrained weights → whitening → export

The paper's two stages are data-driven targets, then model-derived ones (confirmed; the order is inferred). Every step
leaves a file in the run folder that can be looked at, and is taken from there as long as what it was made from has not
changed: an interrupted run goes on, and a changed setting costs only the steps after it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydantic
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.adapters import LoraSettings, add_lora, blend_lora
from text2token.backbone import BackboneSettings, embed, load_embedder, tokenizer_of
from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, CorpusSettings, prepare_corpus
from text2token.corpus.readers import BrokenLines, source_state
from text2token.errors import OutputError, RecipeError
from text2token.evaluation.before_after import Evaluation, EvaluationTexts, compare
from text2token.export import check_output, export_embedder
from text2token.files import atomic_file
from text2token.head import LanguageModelHead, load_head
from text2token.isotropy import Isotropy
from text2token.loss import TokenTargetLoss
from text2token.model_card import model_card
from text2token.reporter import Reporter, Silent
from text2token.settings import from_toml, to_toml, with_assignments
from text2token.targets.constructors import CONSTRUCTORS, ConstructorName, Materials, TargetSettings, write_constructed
from text2token.targets.store import TargetCard, open_targets, read_card, shuffle_targets
from text2token.training import (
    StageResult,
    StageSettings,
    load_trainable,
    plan,
    text_lengths,
    train_stage,
    trainable_weights,
)
from text2token.vocabulary import TargetVocabulary, VocabularySettings


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run. `sources` is what was read, for the record and to notice when it changes.

    `stage2` does not take place as long as its `targets` are "none". `shuffled_targets` gives every text another text's
    target: the control that must not learn what a text says.
    """

    backbone: BackboneSettings
    sources: tuple[str, ...] = ()
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    stage1: StageSettings = field(default_factory=StageSettings)
    stage2: StageSettings = field(default_factory=lambda: StageSettings(targets="none"))
    isotropy: Isotropy = "whiten"
    shuffled_targets: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise RecipeError('the targets of both stages are "none": there is nothing to train on')

    @property
    def stages(self) -> dict[str, StageSettings]:
        """The stages that take place, in their order, by name."""
        both = {"stage1": self.stage1, "stage2": self.stage2}
        return {name: stage for name, stage in both.items() if stage.targets != "none"}

    @property
    def constructors(self) -> list[ConstructorName]:
        """The kinds of targets that the stages need, each once."""
        return list(dict.fromkeys(stage.targets for stage in self.stages.values() if stage.targets != "none"))

    def with_settings(self, assignments: Iterable[str]) -> "Recipe":
        """Return a copy changed by `section.key=value` assignments, such as `stage1.learning_rate=1e-4`.

        Raises `RecipeError` for an unknown key (naming the nearest) or a value that does not fit.
        """
        return with_assignments(self, assignments)

    def to_toml(self) -> str:
        """Return the recipe as TOML; settings that are None are left out."""
        return to_toml(self)


def read_recipe(name: str) -> Recipe:
    """Return the recipe in a TOML file, or one that comes with the package by its name (`recipe_names`).

    What the file leaves out has its default. Raises `RecipeError` with the file and the key where something is wrong.
    """
    if name in recipe_names():
        return from_toml(Recipe, (RECIPES / f"{name}.toml").read_text(), name)
    try:
        return from_toml(Recipe, Path(name).read_text(), name)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: no such recipe file; those that come along are {', '.join(recipe_names())}") from error


RECIPES = importlib.resources.files("text2token") / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir() if file.name.endswith(".toml"))


@dataclass(frozen=True)
class RunResult:
    """What a run came to, stages and targets by name; `results.json` holds the same."""

    model: str
    corpus: dict[str, int]
    targets: dict[str, TargetCard]
    stages: dict[str, StageResult]
    evaluation: Evaluation | None


class RunFolder:
    """Where the steps of a run leave their files, and from what each was made (`steps.json`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.corpus = root / "corpus"
        self.targets = root / "targets"
        self.stages = root / "stages"
        self.results = root / "results.json"
        self.cache = root / "cache"
        self.record = root / "steps.json"

    def done(self, step: str, made_from: str) -> bool:
        """Say whether `step` was finished from the same inputs."""
        return self._steps().get(step) == made_from

    def finished(self, step: str, made_from: str, first: bool = False) -> None:
        """Note that `step` is finished; with `first`, that nothing after it is."""
        steps = {} if first else self._steps()
        with atomic_file(self.record) as path:
            path.write_text(json.dumps(steps | {step: made_from}, indent=2))

    def forget(self) -> None:
        """Delete what an earlier run made of its corpus, and nothing else that may be in the folder."""
        for folder in (self.targets, self.stages, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.recipe, self.results):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _steps(self) -> dict[str, str]:
        try:
            steps: dict[str, str] = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return {}
        return steps


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
) -> RunResult:
    """Train an embedder by `recipe` on `documents`; write it to `model_folder` and everything else to `folder`.

    With `resume`, steps that are finished in `folder` are taken from there, unless their settings or the files that
    `recipe.sources` names have changed, and training goes on from its last checkpoint; the result is the same as without
    the interruption. With `overwrite`, an earlier run and model are replaced. `broken` is what the reader of `documents`
    counts in. Raises a `Text2TokenError` for anything a user can mend.
    """
    reporter = reporter or Silent()
    work = RunFolder(folder)
    goes_on = _check_folders(work, model_folder, resume, overwrite)

    corpus_from = _digest(recipe.corpus, source_state(recipe.sources))
    targets_from: dict[ConstructorName, str] = {}
    for kind in recipe.constructors:
        settings = [recipe.backbone, recipe.vocabulary, recipe.targets.data_driven, getattr(recipe.targets, kind)]
        lengths = [(s.max_tokens, s.epochs, s.tokens_per_batch, s.accumulate) for s in _stages_on(recipe, kind)]
        targets_from[kind] = _digest(corpus_from, *settings, lengths, recipe.seed)
    stages_from: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        so_far = [recipe.lora, recipe.shuffled_targets, recipe.seed, *stages_from.values()]
        stages_from[name] = _digest(targets_from[cast(ConstructorName, stage.targets)], stage, *so_far)
    result_from = _digest(*stages_from.values(), recipe.isotropy, str(model_folder))
    if goes_on and work.done("result", result_from) and model_folder.exists():
        reporter.note("Nothing has changed since this run was finished.")
        return pydantic.TypeAdapter(RunResult).validate_json(work.results.read_text())

    embedder = load_embedder(recipe.backbone)
    if not (goes_on and work.done("corpus", corpus_from)):
        prepare_corpus(documents, work.corpus, recipe.corpus, broken)
        work.forget()
        work.finished("corpus", corpus_from, first=True)
    with atomic_file(work.recipe) as path:  # from here on there is something to resume
        path.write_text(recipe.to_toml())
    corpus = Corpus.open(work.corpus)
    reporter.note(f"Corpus: {corpus.summary.sentence()}.")

    head = load_head(embedder, recipe.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    materials = Materials(recipe.backbone, embedder, vocabulary, recipe.targets)
    cards: dict[str, TargetCard] = {}
    for kind, made_from in targets_from.items():
        if not work.done(f"targets/{kind}", made_from):
            write_targets_of(
                kind, materials, corpus.passages, _stages_on(recipe, kind), recipe.seed, work.targets / kind, reporter
            )
            work.finished(f"targets/{kind}", made_from)
        cards[kind] = read_card(work.targets / kind)
        reporter.note(f"Targets, {kind.replace('_', '-')}: {cards[kind].texts:,} texts.")

    texts = EvaluationTexts.of(corpus.passages, corpus.held_out, recipe.seed)
    with reporter.progress("Embedding, untrained", texts.count, "texts") as progress:
        untrained = texts.embedded(embedder, recipe.isotropy, progress)

    make_trainable(embedder, recipe.lora, recipe.seed)
    results: dict[str, StageResult] = {}
    for name, stage in recipe.stages.items():
        made = work.stages / name
        if work.done(name, stages_from[name]):
            load_trainable(embedder, load_file(made / "weights.safetensors"))
            results[name] = StageResult(**json.loads((made / "result.json").read_text()))
            continue
        targets = open_targets(work.targets / str(stage.targets), vocabulary, cache=work.cache)
        if recipe.shuffled_targets:
            targets = shuffle_targets(targets, recipe.seed)
        centre = embed(embedder, texts.sample).mean(0) if stage.recentre else untrained.whitening.centre
        checkpoints = made / f"checkpoints-{stages_from[name]}"  # those of other settings are no good here
        results[name] = train_on_targets(embedder, head, targets, centre, stage, recipe.seed, checkpoints, reporter=reporter)
        with atomic_file(made / "weights.safetensors") as path:
            save_file(trainable_weights(embedder), path)
        with atomic_file(made / "result.json") as path:
            path.write_text(json.dumps(asdict(results[name])))
        work.finished(name, stages_from[name])
    blend_lora(embedder, recipe.lora.blend)

    with reporter.progress("Embedding, trained", texts.count, "texts") as progress:
        trained = texts.embedded(embedder, recipe.isotropy, progress)
    evaluation = compare(texts, corpus.passages, untrained, trained, head, vocabulary)

    result = RunResult(str(model_folder), asdict(corpus.summary), cards, results, evaluation)
    readme = model_card(recipe.to_toml(), asdict(result))
    export_embedder(embedder, trained.whitening, model_folder, readme, overwrite or resume)
    with atomic_file(work.results) as path:
        path.write_text(json.dumps(asdict(result), indent=2))
    work.finished("result", result_from)
    return result


def make_trainable(embedder: SentenceTransformer, lora: LoraSettings, seed: int) -> None:
    """Put adapters on `embedder`, in place; of rank 0, make all weights trainable instead."""
    if lora.rank:
        add_lora(embedder, lora, seed)
    else:
        embedder.float()  # bfloat16 would round small updates away


def train_on_targets(
    embedder: SentenceTransformer,
    head: LanguageModelHead,
    targets: Dataset,
    centre: Tensor,
    stage: StageSettings,
    seed: int,
    checkpoints: Path,
    reporter: Reporter | None = None,
) -> StageResult:
    """Train `embedder` on `targets`, in place, going on from a checkpoint; `centre` is what the head reads from."""
    loss = TokenTargetLoss(embedder, head, centre, temperature=stage.temperature)
    schedule = plan(text_lengths(embedder, targets), stage, seed)
    with (reporter or Silent()).progress("Training", schedule.tokens_to_see, "tokens") as progress:
        return train_stage(embedder, loss, targets, schedule, stage, checkpoints, resume=True, progress=progress)


def build_targets(
    recipe: Recipe,
    documents: Iterable[Document],
    folder: Path,
    broken: BrokenLines | None = None,
    reporter: Reporter | None = None,
) -> TargetCard:
    """Write only the targets of the first stage to `folder`, as `run` would with nothing held out; return their card."""
    embedder = load_embedder(recipe.backbone)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    materials = Materials(recipe.backbone, embedder, vocabulary, recipe.targets)
    name = recipe.constructors[0]
    with tempfile.TemporaryDirectory(prefix="text2token-") as temporary:
        settings = dataclasses.replace(recipe.corpus, held_out=0)
        passages = prepare_corpus(documents, Path(temporary) / "corpus", settings, broken).passages
        return write_targets_of(name, materials, passages, [], recipe.seed, folder, reporter)


def write_targets_of(
    name: ConstructorName,
    materials: Materials,
    passages: Dataset,
    stages: Sequence[StageSettings],
    seed: int,
    folder: Path,
    reporter: Reporter | None = None,
) -> TargetCard:
    """Write the targets of `passages` by the constructor `name` to `folder` and return their card.

    Where a target costs a forward pass, only passages that one of `stages` will see are asked about (none given: all).
    """
    constructor = CONSTRUCTORS[name](materials)
    if constructor.expensive and stages:
        lengths = text_lengths(materials.embedder, passages)
        rows = [plan(lengths, stage, seed).rows_to_see for stage in stages]
        passages = passages.select(np.unique(np.concatenate(rows)))
    with (reporter or Silent()).progress(f"Targets, {name.replace('_', '-')}", len(passages), "texts") as progress:
        return write_constructed(constructor, passages, materials.vocabulary, folder, materials.backbone.name, progress)


def _stages_on(recipe: Recipe, name: ConstructorName) -> list[StageSettings]:
    return [stage for stage in recipe.stages.values() if stage.targets == name]


def _check_folders(work: RunFolder, model_folder: Path, resume: bool, overwrite: bool) -> bool:
    """Check before the first minute of work whether the results may be written; return whether a run is resumed."""
    started = work.recipe.exists()
    check_output(model_folder, overwrite or (resume and started))
    if started and not overwrite and not resume:
        raise OutputError(f"{work.root}: holds an earlier run. Go on with --resume, or start anew with --overwrite")
    return started and not overwrite


def _digest(*parts: Any) -> str:
    """Return 16 hex digits of settings (dataclasses) and whatever JSON can say."""
    content = json.dumps(parts, default=asdict, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
