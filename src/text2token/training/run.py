"""The whole method on one page: unlabelled text in, a sentence-transformers embedder out.

    text → corpus → token targets → LoRA training with KL through the head, in one stage or several
         → the last layer left out → whitening → export, and beside it what reads its key tokens

The paper's two stages are data-driven targets, then model-derived ones, whose teacher is the model of the first stage. By
default there is one, on corpus-derived targets. Every step leaves a file in the run's folder, and is reused as long as what
it was made from has not changed: an interrupted run resumes, a changed setting costs only the steps after it.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, prepare_corpus
from text2token.corpus.published import published_source
from text2token.corpus.readers import STDIN
from text2token.engine import Engine
from text2token.errors import CorpusError, OutputError
from text2token.evaluation.comparison import Embedded, Evaluation, EvaluationTexts, compare
from text2token.evaluation.held_out import write_held_out
from text2token.export.card import model_card
from text2token.export.folder import export_embedder
from text2token.files import alone_in, scratch_folder
from text2token.lens.fit import learn_from_both
from text2token.lens.reader import FOLDER as READER_FOLDER
from text2token.lens.reader import PROBE, save_reader
from text2token.model.backbone import cut_last_layers, embed, token_lengths
from text2token.model.bundle import Backbone, load_backbone
from text2token.progress import SILENT, Reporter
from text2token.recipe import Recipe, StageSettings
from text2token.steps import read_card, write_card
from text2token.targets.base import HERE
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.targets.store import TargetCard
from text2token.training.folder import Run, run_alone_in, texts_of
from text2token.training.schedule import TRAINING_COST
from text2token.training.speed import in_its_minutes
from text2token.training.stage import StageResult
from text2token.training.stages import Training


@dataclass(frozen=True)
class Result:
    """What a run came to, stages and their targets by the name of the stage; `results.json` holds the same.

    `seconds` are those of each phase, as far as it was not reused from an earlier, interrupted run.
    """

    model: str
    corpus: dict[str, int]
    targets: dict[str, TargetCard]
    stages: dict[str, StageResult]
    evaluation: Evaluation | None
    seconds: dict[str, float] = field(default_factory=dict)


def train(
    recipe: Recipe,
    documents: Iterable[Document] | None = None,
    *,
    output: Path,
    run_folder: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    engine: Engine = HERE,
) -> Result:
    """Train an embedder by `recipe`, write it to `output`, and everything else to `run_folder` (default: OUTPUT.run).

    What is read are `documents`, or what `recipe.sources` names. A run that is there is resumed, to the same result as
    without the interruption; steps whose settings, texts or models have changed are done again, and with `overwrite` all
    are. `engine` makes the targets. Of several processes (torchrun) the first does all but the training, which they
    share. With `recipe.minutes` this machine is measured first, and the run shortened to about that. Raises a
    `Text2TokenError` for anything a user can mend.
    """
    output = Path(output)
    with run_alone_in(run_folder or output.with_name(f"{output.name}.run"), output, reporter, engine) as run:
        documents = texts_of(recipe, documents, run.reporter)
        with run.first_alone():  # the others find in the folder what it has done
            run.check(recipe, output, overwrite)
            recipe = in_its_minutes(recipe, documents, run.folder, run.reporter, anew=overwrite)
            run.begin(recipe, documents, overwrite)
            if run.is_made("result") and output.exists() and (finished := _result_of(run)).model == str(output):
                unseen = " (standard input is not read again)" if STDIN in recipe.sources else ""
                run.reporter.note(f"Nothing has changed since this run was finished{unseen}.")
                return finished

            backbone = load_backbone(recipe.backbone, recipe.vocabulary)
            run.phases.ended("loading the backbone")
            if not run.is_made("corpus"):
                with run.making("corpus"):
                    prepare_corpus(documents, run.folder.corpus, recipe.corpus)
                    run.folder.forget()
            run.keep(recipe)  # from here on there is something to resume
            corpus = Corpus.open(run.folder.corpus)
            run.reporter.note(f"Corpus: {corpus.summary.sentence()}.")
            run.phases.ended("reading the corpus")

            texts = EvaluationTexts.of(corpus.passages, corpus.held_out, recipe.seed)
            if recipe.evaluation_share is not None and texts.queries:
                share, cost = recipe.evaluation_share, TRAINING_COST
                tokens = share * cost * _tokens_to_train_on(recipe.stages, texts, corpus, backbone)
                texts = texts.costing(tokens, backbone.tokenizer, recipe.evaluation_steps, run.reporter)
            evaluator = texts.step_evaluator(backbone, recipe.evaluation_steps)
            embedded = partial(texts.embedded, backbone.embedder, recipe.postprocessing, recipe.cut_layers, run.reporter)
            untrained = embedded(run.folder.embedded / "untrained.safetensors") if run.processes.first else None
            run.phases.ended("embedding, untrained")

        centre = run.processes.from_first(untrained.head_centre if untrained else torch.empty(0))
        training = Training(run, backbone, corpus.passages, recipe.targets, recipe.lora, recipe.seed, centre)
        targets, stages = training.stages(recipe.named_stages, recipe.taught, evaluator)

        with run.first_alone():
            if untrained is None:
                return _result_of(run)
            trained = embedded(run.folder.embedded / "trained.safetensors")
            run.phases.ended("embedding, trained")
            centre = untrained.head_centre * (recipe.stages[-1].centre != "none")
            evaluation = compare(texts, corpus.passages, untrained, trained, backbone, centre)
            result = Result(str(output), asdict(corpus.summary), targets, stages, evaluation)
            with run.making("result"):
                cut_last_layers(backbone.embedder, recipe.cut_layers)
                card = model_card(recipe.to_toml(), asdict(result))
                export_embedder(backbone.embedder, trained.whitening, output, card, overwrite=True)
                write_held_out(corpus.held_out, recipe.corpus.seed, output)
                _write_reader(backbone, texts.sample, trained, recipe.sources, output, run.reporter)
                run.phases.ended("export")
                result = dataclasses.replace(result, seconds=run.phases.seconds)
                write_card(result, run.folder.results)
                run.folder.tidy()
            run.reporter.note(f"Took {run.phases.sentence()}.")
            return result


def _tokens_to_train_on(
    stages: Iterable[StageSettings], texts: EvaluationTexts, corpus: Corpus, backbone: Backbone
) -> float:
    """Return how many tokens all stages process at most, by the mean length of a sample."""
    corpus_tokens = float(token_lengths(backbone.tokenizer, [texts.sample]).mean()) * len(corpus.passages)
    return sum(min(stage.max_tokens or math.inf, stage.epochs * corpus_tokens) for stage in stages)


def _write_reader(
    backbone: Backbone, sample: Sequence[str], trained: Embedded, sources: Iterable[str], model: Path, reporter: Reporter
) -> None:
    """Write the reader of the exported `model` beside it, learnt on the sample; without one where the corpus is too small.

    `backbone` ends where the model does. Its head reads after the last layer, where the first texts of the sample were
    embedded for its centre.
    """

    def postprocessed(embeddings: Tensor) -> Tensor:
        return normalize(trained.whitening(embeddings))

    probe, source = postprocessed(embed(backbone.embedder, PROBE)), ", ".join(map(published_source, sources))
    try:
        reader = learn_from_both(backbone, sample, postprocessed(trained.sample), probe, trained.head_sample, source)
    except CorpusError as error:
        reporter.note(f"Without key tokens: {error}.")
    else:
        save_reader(reader, model / READER_FOLDER)


def _result_of(run: Run) -> Result:
    return read_card(Result, run.folder.results, OutputError, "results", "Start anew with --overwrite")


def build_targets(
    recipe: Recipe,
    documents: Iterable[Document] | None = None,
    *,
    output: Path,
    reporter: Reporter = SILENT,
    engine: Engine = HERE,
) -> TargetCard:
    """Write only the targets of the first stage to `output`, as `train` would with nothing held out; return their card."""
    backbone = load_backbone(recipe.backbone, recipe.vocabulary)
    constructor = make_constructor(recipe.stages[0].targets, backbone, recipe.targets)
    with alone_in(output, beside=True), scratch_folder(output) as scratch:
        settings = dataclasses.replace(recipe.corpus, held_out=0)
        given = texts_of(recipe, documents, reporter)
        passages = prepare_corpus(given, scratch / "corpus", settings).passages
        with reporter.progress("Targets", len(passages), "texts") as progress:
            return write_constructed(constructor, passages, backbone, output, progress=progress, engine=engine)
