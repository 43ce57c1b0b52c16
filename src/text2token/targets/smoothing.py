"""Targets smoothed over words that the language-model head holds alike (ours): "car" may stand where the text says "truck".

    q' = (1 - share) q + share · q N        N(v, w) ∝ max(0, cos(v, w)) over the `neighbours` words w nearest to v

with the word vectors of `head.word_table`. It wraps any constructor, costs no forward pass, and names words beyond the text.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from text2token.engine import Engine
from text2token.model.head import LanguageModelHead, word_table
from text2token.progress import Progress
from text2token.recipe import SmoothingSettings
from text2token.targets.rows import (
    HERE,
    Constructor,
    Passages,
    RecallingConstructor,
    distributions,
    heaviest,
    mixed,
    record_batch,
)
from text2token.tokens.vocabulary import NOT_A_TARGET, TargetVocabulary

WORDS_AT_A_TIME = 2048


class SmoothedTargets:
    """Another constructor's targets, smoothed; in all else it is that constructor."""

    def __init__(
        self, targets: Constructor, head: LanguageModelHead, vocabulary: TargetVocabulary, settings: SmoothingSettings
    ) -> None:
        self.targets = targets
        self.name = targets.name
        self.expensive = targets.expensive
        self.settings = settings
        self.alike = alike_words(head, vocabulary, settings.neighbours)

    def fit(self, passages: Passages, engine: Engine = HERE, scratch: Path | None = None) -> "SmoothedTargets":
        """Fit the constructor and return self."""
        self.targets.fit(passages, engine, scratch)
        return self

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the constructor's targets, smoothed."""
        return map(self._smoothed, self.targets.transform(passages, progress, rows))

    def describe(self) -> dict[str, Any]:
        """Return the settings of both, for the card."""
        return {**self.targets.describe(), "smoothing": asdict(self.settings)}

    def _smoothed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        lists = batch["token_ids"]
        bounds, ids = lists.offsets.to_numpy(), lists.values.to_numpy()
        own = csr_array((batch["weights"].values.to_numpy(), ids, bounds), shape=(len(lists), self.alike.shape[0]))
        related = distributions(csr_array(own @ self.alike))
        return record_batch(batch["text"], heaviest(mixed(related, own, 1 - self.settings.share), self.settings.top_k))


class SmoothedRecallingTargets(SmoothedTargets):
    """The same for a constructor that recalls."""

    def recall(self, scratch: Path, part: int) -> Iterator[pa.RecordBatch]:
        """Yield what the constructor recalls, smoothed."""
        return map(self._smoothed, cast(RecallingConstructor, self.targets).recall(scratch, part))


def alike_words(head: LanguageModelHead, vocabulary: TargetVocabulary, neighbours: int) -> csr_array:
    """Return N of the module's formula, shape (vocabulary size, vocabulary size).

    Rows of tokens that are no targets are empty. Spellings that stand for one word have the same row, and a neighbour's
    weight goes to its spellings alike.
    """
    forms = np.unique(vocabulary.representatives[vocabulary.representatives[:, 0] != NOT_A_TARGET], axis=0)
    table = torch.nn.functional.normalize(word_table(head, vocabulary, torch.ones(vocabulary.size)))
    words = table[torch.from_numpy(forms[:, 0]).long()]
    count = min(neighbours, len(words) - 1)
    found = []
    for start in range(0, len(words), WORDS_AT_A_TIME):
        cosines = words[start : start + WORDS_AT_A_TIME] @ words.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -1  # not the word itself
        found.append(torch.topk(cosines, count))
    weights = torch.cat([part.values for part in found]).clamp(min=0).numpy().ravel()
    nearest = torch.cat([part.indices for part in found]).numpy().ravel()
    of_words = csr_array((weights, nearest, np.arange(0, len(weights) + 1, count)), shape=(len(words), len(words)))
    spelt = _spellings(forms, vocabulary.size)
    return distributions(csr_array(spelt.T.astype(bool) @ distributions(of_words) @ distributions(spelt)))


def _spellings(forms: NDArray[np.int32], size: int) -> csr_array:
    """Return which tokens stand for each word: ones, shape (words, vocabulary size)."""
    word, place = np.nonzero(forms != NOT_A_TARGET)
    return csr_array((np.ones(len(word)), (word, forms[word, place])), shape=(len(forms), size))
