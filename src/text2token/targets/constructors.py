"""All ways to make targets, by name, interchangeable. A new one is a file beside these and its name in three places here:
`ConstructorName`, `TargetSettings` and `CONSTRUCTORS` (CONTRIBUTING.md).
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from text2token.corpus.published import published_model
from text2token.engine import Engine
from text2token.files import real, scratch_folder
from text2token.model.backbone import load_embedder, room_for_text, tokenizer_of
from text2token.model.head import LanguageModelHead, load_head
from text2token.progress import Progress
from text2token.recipe import (
    PREVIOUS,
    BackboneSettings,
    ConstructorName,
    TargetSettings,
)
from text2token.targets.corpus_derived import CorpusDerivedTargets
from text2token.targets.data_driven import DataDrivenTargets
from text2token.targets.likelihood_ratio import LikelihoodRatioTargets
from text2token.targets.model_derived import ModelDerivedTargets
from text2token.targets.rows import HERE, TEXTS_PER_PART, Constructor, bounds, text_batches
from text2token.targets.store import TargetCard, write_targets
from text2token.tokens.vocabulary import TargetVocabulary

EXPENSIVE_TEXTS_PER_PART = 4096  # minutes of work on a CPU: what a killed run loses at most


@dataclass(frozen=True)
class Materials:
    """What constructors are made from: the backbone, its embedder as the stage finds it (left as it is), rules and settings.

    `loaded_head` is the backbone's head where it is at hand: one that is not tied is read from the model's files.
    """

    backbone: BackboneSettings
    embedder: SentenceTransformer
    vocabulary: TargetVocabulary
    settings: TargetSettings
    loaded_head: LanguageModelHead | None = None

    @cached_property
    def head(self) -> LanguageModelHead:
        """The backbone's head, loaded once for all."""
        return self.loaded_head or load_head(self.embedder, self.backbone.name)


def data_driven(materials: Materials) -> DataDrivenTargets:
    """Return the constructor of the text's own meaningful tokens."""
    tokenizer = tokenizer_of(materials.embedder)
    room = room_for_text(tokenizer)
    return DataDrivenTargets(tokenizer, materials.vocabulary, materials.settings.data_driven, max_tokens=room)


def corpus_derived(materials: Materials) -> CorpusDerivedTargets:
    """Return the constructor of the tokens of passages nearby."""
    return CorpusDerivedTargets(data_driven(materials), materials.head, materials.settings.corpus_derived)


def likelihood_ratio(materials: Materials) -> LikelihoodRatioTargets:
    """Return the constructor of what the embedder, as the stage finds it, says of a text far more than of others."""
    settings = materials.settings.likelihood_ratio
    return LikelihoodRatioTargets(materials.embedder, materials.head, materials.vocabulary, settings)


def model_derived(materials: Materials) -> ModelDerivedTargets:
    """Return the constructor of what the backbone says, untrained or as the stage before made it.

    Another copy of the weights is loaded only where the embedder cannot be asked itself.
    """
    settings, teacher = materials.settings.model_derived, materials.embedder
    as_asked = replace(materials.backbone, pooling="last", attention="causal", layers=None)
    if settings.teacher == PREVIOUS:
        settings = replace(settings, prompts=())
    elif as_asked != materials.backbone:
        teacher = load_embedder(as_asked)
    return ModelDerivedTargets(teacher, materials.head, materials.vocabulary, settings, data_driven(materials))


CONSTRUCTORS: dict[ConstructorName, Callable[[Materials], Constructor]] = {
    "data_driven": data_driven,
    "likelihood_ratio": likelihood_ratio,
    "model_derived": model_derived,
    "corpus_derived": corpus_derived,
}


def make_constructor(kind: ConstructorName, materials: Materials) -> Constructor:
    """Return the constructor of that name."""
    return CONSTRUCTORS[kind](materials)


def write_constructed(
    constructor: Constructor,
    passages: Dataset,
    vocabulary: TargetVocabulary,
    folder: Path,
    tokenizer: str,
    progress: Progress | None = None,
    rows: NDArray[np.int64] | None = None,
    engine: Engine = HERE,
) -> TargetCard:
    """Fit `constructor` on `passages`, write their targets, or those of `rows`, to `folder` and return the card.

    Every part of the texts becomes a shard, whichever `engine` makes it, and a killed run goes on after those that are
    finished.
    """
    size = EXPENSIVE_TEXTS_PER_PART if constructor.expensive else TEXTS_PER_PART
    folder = real(folder)  # a worker stands elsewhere
    with scratch_folder(folder) as scratch:
        if isinstance(constructor, DataDrivenTargets):
            constructor.remember, rows = scratch, None
        constructor.fit(passages, engine)
        read = passages if rows is None else passages.select(rows)
        return write_targets(
            folder,
            partial(_transformed, constructor, passages, rows, size),
            -(-len(read) // size),
            vocabulary,
            constructor=constructor.name,
            settings=constructor.describe(),
            tokenizer=published_model(tokenizer),
            texts_read=len(read),
            texts_fingerprint=_fingerprint(read),
            engine=engine,
            progress=progress,
            runs_model=constructor.expensive,
        )


def _transformed(
    constructor: Constructor,
    passages: Dataset,
    rows: NDArray[np.int64] | None,
    size: int,
    part: int,
    progress: Progress,
) -> Iterable[pa.RecordBatch]:
    """Return the targets of a part of `rows`; of all passages where they are None."""
    start, stop = bounds(len(passages) if rows is None else len(rows), size)[part]
    return constructor.transform(passages, progress, np.arange(start, stop) if rows is None else rows[start:stop])


def _fingerprint(passages: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for batch in text_batches(passages, 4096):
        digest.update("\0".join(batch).encode())
    return digest.hexdigest()
