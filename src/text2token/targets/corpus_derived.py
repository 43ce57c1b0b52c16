"""Corpus-derived targets: the words of neighbouring texts, without a forward pass.

    q(v | x) = mean of the data-driven targets of x's neighbours

Neighbours are the next passage of the same document (for the last one, the one before; after LLARA, Li et al. 2024) and the
nearest neighbours in the corpus: by the words of their data-driven targets, as vectors of the language-model head
(`head.word_table`), whitened and cut to their leading dimensions. They are found exactly, by comparing a text with up to
`INDEXED_TEXTS`: of a larger corpus an even sample stands for all, so that memory hardly grows.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from text2token.engine import Engine
from text2token.model.bundle import Backbone
from text2token.model.head import LanguageModelHead, word_table
from text2token.model.whitening import fit_postprocessing
from text2token.progress import Progress
from text2token.recipe import CorpusDerivedSettings, Postprocessing, TargetSettings
from text2token.targets.base import HERE, Passages, as_dataset, evenly, text_batches
from text2token.targets.data_driven import TEXTS_PER_BATCH, DataDrivenTargets
from text2token.targets.data_driven import build as build_data_driven
from text2token.targets.sparse import distributions, interpolated, largest, record_batch

DIMENSIONS = 128
INDEXED_TEXTS = 100_000
WHITENED_ON = 10_000  # texts
ALONE = -1  # in place of the row of the next passage
SAME = 1e-6  # two targets that differ by less are one


class CorpusDerivedTargets:
    """Builds corpus-derived targets: `fit` reads the corpus, `transform` finds each text's neighbours in it.

    Which passage follows which is known from the column `document`; texts without it have nearest ones only. A text without
    neighbours, or whose neighbours have nothing to add, has its data-driven target.
    """

    name = "corpus_derived"
    expensive = True

    def __init__(
        self, data_driven: DataDrivenTargets, head: LanguageModelHead, settings: CorpusDerivedSettings | None = None
    ) -> None:
        self.data_driven = data_driven
        self.settings = settings or CorpusDerivedSettings()
        vocabulary = data_driven.vocabulary
        self.words = word_table(head, vocabulary, torch.ones(vocabulary.size)).numpy()  # targets have the idf in them

    def fit(self, passages: Passages, engine: Engine = HERE) -> "CorpusDerivedTargets":
        """Learn document frequencies, and here where an even sample of the texts lies; return self."""
        passages = as_dataset(passages)
        self.data_driven.fit(passages, engine)
        if self.settings.neighbours:
            indexed = passages.select(evenly(len(passages), INDEXED_TEXTS))
            self.indexed_ = csr_array(vstack([*map(self.data_driven.rows, text_batches(indexed, TEXTS_PER_BATCH))]))
            sample = self._vectors(self.indexed_[evenly(len(indexed), WHITENED_ON)])
            # of few texts every direction has the same variance, and whitened they would all be equally far from each other
            kind: Postprocessing = "whitened" if len(sample) > sample.shape[1] else "centred"
            self.whitening_ = fit_postprocessing(sample, kind, "full")
            # by the distance of unit vectors, which scikit-learn searches ten times as fast as by their cosine
            self.index_ = NearestNeighbors(metric="euclidean", algorithm="brute").fit(self._places(self.indexed_))
        return self

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `passages`, or of those `rows` of them, in batches of the store's schema."""
        passages = as_dataset(passages)
        rows = np.arange(len(passages)) if rows is None else rows
        for start in range(0, len(rows), TEXTS_PER_BATCH):
            chosen = rows[start : start + TEXTS_PER_BATCH]
            texts = list(passages.select(chosen)["text"])
            own = self.data_driven.rows(texts)
            companions = csr_array(own.shape)
            if self.settings.next_passage:
                companions = companions + self._next_ones(passages, chosen)
            if self.settings.neighbours:
                companions = csr_array(companions + self._neighbourhood(own))
            derived = distributions(largest(distributions(companions), self.settings.top_k))
            alone = np.diff(derived.indptr) == 0
            derived = csr_array(derived + own.multiply(alone[:, None]))
            yield record_batch(texts, interpolated(derived, own, self.settings.data_driven_share))
            if progress:
                progress(len(texts))

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card."""
        return {**asdict(self.settings), "data_driven": self.data_driven.describe()}

    def _vectors(self, targets: csr_array) -> Tensor:
        return torch.from_numpy(targets @ self.words).float()

    def _places(self, targets: csr_array) -> NDArray[np.float32]:
        batches = (targets[start : start + TEXTS_PER_BATCH] for start in range(0, targets.shape[0], TEXTS_PER_BATCH))
        vectors = [self.whitening_(self._vectors(batch))[:, :DIMENSIONS] for batch in batches]
        places: NDArray[np.float32] = torch.nn.functional.normalize(torch.cat(vectors)).numpy()
        return places

    def _next_ones(self, passages: Dataset, rows: NDArray[np.int64]) -> csr_array:
        """Return the target of the passage next to each of `rows`; an empty row for one that is alone in its document."""
        following = _next_passages(passages, rows)
        there = np.flatnonzero(following != ALONE)
        found = self.data_driven.rows(list(passages.select(following[there])["text"]))
        places = csr_array((np.ones(len(there)), (there, np.arange(len(there)))), shape=(len(rows), len(there)))
        return csr_array(places @ found)

    def _neighbourhood(self, own: csr_array) -> csr_array:
        """Return the mean target of each text's neighbours, weighed by their cosine, itself left out."""
        count = min(self.settings.neighbours + 1, self.indexed_.shape[0])
        distances, found = self.index_.kneighbors(self._places(own), count)
        text = np.repeat(np.arange(len(found)), count)
        itself = abs(self.indexed_[found.ravel()] - own[text]).sum(axis=1) < SAME  # distance 0 may be another text
        left_out = itself.reshape(found.shape)
        left_out[:, -1] |= ~left_out.any(axis=1)  # a text that is not in the sample has one neighbour more
        weights = np.clip(1 - distances**2 / 2, 0, None) * ~left_out
        nearest = csr_array((weights.ravel(), (text, found.ravel())), shape=(len(found), self.indexed_.shape[0]))
        return distributions(csr_array(nearest @ self.indexed_))


def _next_passages(passages: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of `rows` the row of the next passage of its document, for the last one that before, or `ALONE`."""
    if "document" not in passages.column_names:
        return np.full(len(rows), ALONE)
    last = len(passages) - 1
    own, after, before = (
        np.array(passages.select(near)["document"]) for near in (rows, np.minimum(rows + 1, last), np.maximum(rows - 1, 0))
    )
    is_next, is_before = (after == own) & (rows < last), (before == own) & (rows > 0)
    return np.where(is_next, rows + 1, np.where(is_before, rows - 1, ALONE))


def build(backbone: Backbone, settings: TargetSettings) -> CorpusDerivedTargets:
    """Return the constructor of the tokens of passages nearby."""
    return CorpusDerivedTargets(build_data_driven(backbone, settings), backbone.head, settings.corpus_derived)
