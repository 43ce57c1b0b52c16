"""How fast this machine trains and embeds, and how much of a recipe fits into so many minutes.

Processors differ fivefold, above all by whether they multiply bfloat16. A few steps on the first texts measure this one.
The result is kept in the run's recipe: a resumed run is not measured again.
"""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset

from text2token.corpus.documents import Document
from text2token.corpus.prepare import temporary_corpus
from text2token.corpus.readers import STDIN, Documents
from text2token.errors import UsageError
from text2token.evaluation.history import DOCUMENTS
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, token_lengths, tokenizer_of
from text2token.model.head import CENTRE_TEXTS, load_head
from text2token.model.whitening import SAMPLE_SIZE
from text2token.progress import Reporter
from text2token.recipe import Recipe, read_recipe
from text2token.tokens.vocabulary import tokenise
from text2token.training.folder import RunFolder
from text2token.training.objective import TokenTargetLoss
from text2token.training.processes import together
from text2token.training.schedule import TRAINING_COST, plan
from text2token.training.stage import train_stage

OTHER_SECONDS = 60.0  # of a run: loading, reading, targets, export, and measuring itself
SHARE_OF_EVALUATION = 0.2  # of the time that is left for both, where training could use all of it
FEWEST_TOKENS = 10_000  # to train on, however slow the machine: fewer teach nothing
PROBED_DOCUMENTS = 300
PROBED_TEXTS = 64
TOKENS_PER_STEP, STEPS = 512, 3  # the first step is not counted: it loads and compiles


@dataclass(frozen=True)
class Machine:
    """Tokens a second that are trained on and that are embedded here; tokens of a passage and of a held-out pair."""

    training: float
    embedding: float
    passage: float
    pair: float


def measured(recipe: Recipe, documents: Iterable[Document]) -> Machine:
    """Embed and train on passages of the first `documents` as `recipe` would, for some seconds; return how fast that was."""
    embedder = load_embedder(recipe.backbone)
    tokenizer = tokenizer_of(embedder)
    with temporary_corpus(islice(documents, PROBED_DOCUMENTS), recipe.corpus) as corpus:
        passages = corpus.passages.shuffle(seed=0)
        texts = list(passages["text"][:PROBED_TEXTS])
        pairs = (
            token_lengths(tokenizer, [list(corpus.held_out["query"])]),
            token_lengths(tokenizer, [list(corpus.held_out["passage"])]),
        )
        lengths = token_lengths(tokenizer, [list(passages["text"])])
    first = max(1, len(texts) // 4)
    embed(embedder, texts[:first])  # loads and compiles
    began = time.perf_counter()
    embed(embedder, texts[first:])
    embedding = lengths[first : len(texts)].sum() / max(time.perf_counter() - began, 1e-9)

    head = load_head(embedder, recipe.backbone.name)
    if recipe.lora.rank:
        add_lora(embedder, recipe.lora, recipe.seed)
    else:
        embedder.float()
    token_ids = [sorted(set(ids)) for ids in tokenise(tokenizer, texts)]
    rows = Dataset.from_dict(
        {
            "text": texts,
            "token_ids": token_ids,
            "weights": [[1 / max(1, len(ids))] * len(ids) for ids in token_ids],
            "document": list(range(len(texts))),
        }
    )
    stage = recipe.stages[0]
    stage = replace(
        stage,
        tokens_per_batch=TOKENS_PER_STEP,
        texts_per_batch=None,
        accumulate=1,
        max_tokens=STEPS * TOKENS_PER_STEP,
        epochs=STEPS,
    )
    loss = TokenTargetLoss(embedder, head, contrast=stage.contrast)
    steps: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(prefix="text2token-") as folder:
        train_stage(
            embedder,
            loss,
            rows,
            plan(lengths[: len(texts)], stage.schedule, recipe.seed),
            stage,
            Path(folder),
            progress=lambda tokens: steps.append((time.perf_counter(), tokens)),
        )
    counted = steps[1:] or steps
    passed = counted[-1][0] - steps[0][0] if len(steps) > 1 else np.inf
    training = sum(tokens for _, tokens in counted) / max(passed, 1e-9)
    pair = float((pairs[0] + pairs[1]).mean()) if len(pairs[0]) else 0.0
    return Machine(float(training), float(embedding), float(lengths.mean()), pair)


def fitted(recipe: Recipe, machine: Machine, seconds: float) -> Recipe:
    """Return `recipe` with no more tokens in its first stage, and no larger evaluation, than fit `seconds` on `machine`.

    It is never made longer, and `FEWEST_TOKENS` stay whatever they take.
    """
    (stage, *others), held_out = recipe.stages, recipe.corpus.held_out
    left = seconds - OTHER_SECONDS - (CENTRE_TEXTS + SAMPLE_SIZE) * machine.passage / machine.embedding
    whole = machine.pair * (2 * held_out + (recipe.evaluation_steps + 1) * min(held_out, DOCUMENTS)) / machine.embedding
    most = stage.max_tokens or np.inf
    evaluation = max(0.0, min(whole, max(SHARE_OF_EVALUATION * left, left - most / machine.training)))
    tokens = round(min(most, max(FEWEST_TOKENS, (left - evaluation) * machine.training)))
    if tokens < most:  # two figures: more would claim what a measurement of seconds does not know
        tokens -= tokens % 10 ** (len(str(tokens)) - 2)
    share = evaluation * machine.embedding / (TRAINING_COST * tokens)
    usual = np.inf if recipe.evaluation_share is None else recipe.evaluation_share
    if evaluation < whole and share < usual:
        recipe = replace(recipe, evaluation_share=round(share, 3))
    return replace(recipe, stages=(replace(stage, max_tokens=tokens), *others))


def minutes_of(recipe: Recipe, machine: Machine) -> float:
    """Return how many minutes a run takes on `machine`, with one stage that does not end before `max_tokens`."""
    tokens, held_out = recipe.stages[0].max_tokens or 0, recipe.corpus.held_out
    evaluation = machine.pair * (2 * held_out + (recipe.evaluation_steps + 1) * min(held_out, DOCUMENTS))
    if recipe.evaluation_share is not None:
        evaluation = min(evaluation, recipe.evaluation_share * TRAINING_COST * tokens)
    embedded = (CENTRE_TEXTS + SAMPLE_SIZE) * machine.passage + evaluation
    return (OTHER_SECONDS + embedded / machine.embedding + tokens / machine.training) / 60


def in_its_minutes(
    recipe: Recipe, documents: Iterable[Document], folder: RunFolder, reporter: Reporter, *, anew: bool = False
) -> Recipe:
    """Return `recipe` as long as it takes about its `minutes` here, or, unless `anew`, as the run in `folder` was made.

    Without `minutes` it stays as it is. Raises `UsageError` where nothing can be measured: of several processes that train
    together, or where the documents can be read but once.
    """
    if recipe.minutes is None:
        return recipe
    if together().count > 1:
        raise UsageError("minutes: of several processes none can measure what they do together; give --max-tokens")
    if isinstance(documents, Documents) and STDIN in documents.sources:
        raise UsageError("minutes: standard input cannot be read twice, to measure and to train; give --max-tokens")
    if folder.recipe.exists() and not anew:
        earlier = read_recipe(str(folder.recipe))
        stage = replace(recipe.stages[0], max_tokens=earlier.stages[0].max_tokens)
        return replace(recipe, stages=(stage, *recipe.stages[1:]), evaluation_share=earlier.evaluation_share)
    reporter.note("Measuring this machine …")
    machine = measured(recipe, documents)
    recipe = fitted(recipe, machine, 60 * recipe.minutes)
    reporter.note(
        f"This machine trains about {machine.training:,.0f} tokens/s and embeds {machine.embedding:,.0f}: "
        f"{recipe.stages[0].max_tokens:,} tokens to train on, about {minutes_of(recipe, machine):.0f} minutes in all."
    )
    return recipe
