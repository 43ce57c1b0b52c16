"""The whole method on one page: unlabelled text in, a sentence-transformers embedder out.

    text → corpus → data-driven token targets → LoRA training with KL through the head
         → half way back to the untrained weights → whitening → export

Every step leaves a file in the run folder that can be looked at, and a resumed run takes finished steps from there.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.adapters import LoraSettings, add_lora, blend_lora
from text2token.backbone import BackboneSettings, load_embedder, prompt_tokens, tokenizer_of
from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, CorpusSettings, prepare_corpus
from text2token.corpus.readers import BrokenLines
from text2token.errors import OutputError
from text2token.evaluation.before_after import Evaluation, EvaluationTexts, compare
from text2token.export import check_output, export_embedder
from text2token.files import atomic_file, writing
from text2token.head import LanguageModelHead, load_head
from text2token.isotropy import Isotropy
from text2token.loss import TokenTargetLoss
from text2token.model_card import model_card
from text2token.reporter import Reporter, Silent
from text2token.settings import difference, to_toml, with_assignments
from text2token.targets.data_driven import DataDrivenSettings, DataDrivenTargets
from text2token.targets.store import TargetCard, open_targets, read_card, shuffle_targets, write_targets
from text2token.training import StageResult, StageSettings, plan, text_lengths, train_stage
from text2token.vocabulary import TargetVocabulary, VocabularySettings


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run. `sources` is what was read, for the record.

    `shuffled_targets` gives every text another text's target: the control that must not learn what a text says.
    """

    backbone: BackboneSettings
    sources: tuple[str, ...] = ()
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    targets: DataDrivenSettings = field(default_factory=DataDrivenSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    stage: StageSettings = field(default_factory=StageSettings)
    isotropy: Isotropy = "whiten"
    shuffled_targets: bool = False
    seed: int = 0

    def with_settings(self, assignments: Iterable[str]) -> "Recipe":
        """Return a copy changed by `section.key=value` assignments, such as `stage.learning_rate=1e-4`.

        Raises `RecipeError` for an unknown key (naming the nearest) or a value that does not fit.
        """
        return with_assignments(self, assignments)

    def to_toml(self) -> str:
        """Return the recipe as TOML; settings that are None are left out."""
        return to_toml(self)


@dataclass(frozen=True)
class RunResult:
    """What a run came to; `results.json` holds the same."""

    model: str
    corpus: dict[str, int]
    targets: TargetCard
    training: StageResult
    evaluation: Evaluation | None


class RunFolder:
    """Where the steps of a run leave their files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.corpus = root / "corpus"
        self.targets = root / "targets"
        self.checkpoints = root / "checkpoints"
        self.results = root / "results.json"
        self.cache = root / "cache"

    def clear_after_corpus(self) -> None:
        """Delete what an earlier run made of its corpus, and nothing else that may be in the folder."""
        for folder in (self.targets, self.checkpoints, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.recipe, self.results):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


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

    With `resume`, steps that are finished in `folder` are taken from there and training goes on from its last
    checkpoint; the result is the same as without the interruption. With `overwrite`, an earlier run and model are
    replaced. `broken` is what the reader of `documents` counts in. Raises a `Text2TokenError` for anything a user can mend.
    """
    reporter = reporter or Silent()
    work = RunFolder(folder)
    goes_on = _check_folders(recipe, work, model_folder, resume, overwrite)
    embedder = load_embedder(recipe.backbone)

    if not goes_on:
        prepare_corpus(documents, work.corpus, recipe.corpus, broken)
        work.clear_after_corpus()
        with atomic_file(work.recipe) as path:  # from here on there is something to resume
            path.write_text(recipe.to_toml())
    corpus = Corpus.open(work.corpus)
    reporter.note(f"Corpus: {corpus.summary.sentence()}.")

    head = load_head(embedder, recipe.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)

    if not work.targets.exists():
        write_passage_targets(recipe, corpus.passages, embedder, vocabulary, work.targets)
    targets = open_targets(work.targets, vocabulary, cache=work.cache)
    if recipe.shuffled_targets:
        targets = shuffle_targets(targets, recipe.seed)
    card = read_card(work.targets)
    reporter.note(f"Targets: {card.texts:,} texts over {len(vocabulary.target_ids):,} target tokens.")

    texts = EvaluationTexts.of(targets, corpus.held_out, recipe.seed)
    with reporter.progress("Embedding, untrained", texts.count, "texts") as progress:
        untrained = texts.embedded(embedder, recipe.isotropy, progress)

    training = train_on_targets(
        recipe, embedder, head, targets, untrained.whitening.centre, work.checkpoints, resume, reporter
    )
    with reporter.progress("Embedding, trained", texts.count, "texts") as progress:
        trained = texts.embedded(embedder, recipe.isotropy, progress)
    evaluation = compare(texts, corpus.passages, untrained, trained, head, vocabulary)

    result = RunResult(str(model_folder), asdict(corpus.summary), card, training, evaluation)
    readme = model_card(recipe.to_toml(), asdict(result))
    export_embedder(embedder, trained.whitening, model_folder, readme, overwrite or resume)
    with atomic_file(work.results) as path:
        path.write_text(json.dumps(asdict(result), indent=2))
    return result


def train_on_targets(
    recipe: Recipe,
    embedder: SentenceTransformer,
    head: LanguageModelHead,
    targets: Dataset,
    centre: Tensor,
    checkpoints: Path,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> StageResult:
    """Train `embedder` on `targets`, in place, and go back as far as `blend` says; `centre` is what the head reads from."""
    if recipe.lora.rank:
        add_lora(embedder, recipe.lora, recipe.seed)
    else:
        embedder.float()  # all weights: bfloat16 would round small updates away
    loss = TokenTargetLoss(embedder, head, centre, temperature=recipe.stage.temperature)
    schedule = plan(text_lengths(embedder, targets), recipe.stage, recipe.seed)
    with (reporter or Silent()).progress("Training", schedule.tokens_to_see, "tokens") as progress:
        result = train_stage(embedder, loss, targets, schedule, recipe.stage, checkpoints, resume=resume, progress=progress)
    blend_lora(embedder, recipe.lora.blend)
    return result


def build_targets(
    recipe: Recipe, documents: Iterable[Document], folder: Path, broken: BrokenLines | None = None
) -> TargetCard:
    """Write only the targets of `documents` to `folder`, as `run` would with nothing held out, and return their card."""
    embedder = load_embedder(recipe.backbone)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    with tempfile.TemporaryDirectory(prefix="text2token-") as temporary:
        settings = dataclasses.replace(recipe.corpus, held_out=0)
        corpus = prepare_corpus(documents, Path(temporary) / "corpus", settings, broken)
        return write_passage_targets(recipe, corpus.passages, embedder, vocabulary, folder)


def write_passage_targets(
    recipe: Recipe, passages: Dataset, embedder: SentenceTransformer, vocabulary: TargetVocabulary, folder: Path
) -> TargetCard:
    """Write the targets of `passages` to `folder` and return their card."""
    tokenizer = tokenizer_of(embedder)
    room = tokenizer.model_max_length - prompt_tokens(tokenizer)
    constructor = DataDrivenTargets(tokenizer, vocabulary, recipe.targets, max_tokens=room)
    with tempfile.TemporaryDirectory(prefix="text2token-") as temporary, writing(Path(temporary)):
        return write_targets(
            folder,
            constructor.fit_transform(_texts(passages), Path(temporary) / "candidates.arrow"),
            vocabulary,
            constructor=constructor.name,
            settings=constructor.describe(),
            tokenizer=recipe.backbone.name,
            texts_read=len(passages),
        )


def _check_folders(recipe: Recipe, work: RunFolder, model_folder: Path, resume: bool, overwrite: bool) -> bool:
    """Check before the first minute of work whether the results may be written; return whether a run is resumed."""
    started = work.recipe.exists()
    check_output(model_folder, overwrite or (resume and started))
    if started and not overwrite:
        if not resume:
            raise OutputError(f"{work.root}: holds an earlier run. Go on with --resume, or start anew with --overwrite")
        if changed := difference(work.recipe.read_text(), recipe.to_toml()):
            raise OutputError(f"{work.root}: was started with other settings ({changed}). Use them, or --overwrite")
    return started and not overwrite


def _texts(dataset: Dataset) -> Iterable[str]:
    for batch in dataset.iter(2048):
        yield from batch["text"]
