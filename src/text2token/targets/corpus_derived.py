"""Corpus-derived targets (ours): what stands next to a text says what it is about, at no language model's cost.

    q(v | x) = mean of the data-driven targets of x's companions

Companions are the next passage of the same document (for the last one, the one before; after LLARA, Li et al. 2024) and the
nearest neighbours in the corpus: by the words of their data-driven targets, as vectors of the language-model head
(`head.word_table`), whitened and cut to their leading dimensions, which finds a text's other half far more often than latent
semantic analysis does (LOG.md). The targets of the whole corpus are held in memory, about 200 bytes a text. Neighbours are
found exactly, by comparing every text with up to `INDEXED_TEXTS`: of a larger corpus an even sample stands for all.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from text2token.backbone import Progress
from text2token.errors import RecipeError
from text2token.head import LanguageModelHead, word_table
from text2token.isotropy import fit_isotropy
from text2token.targets.data_driven import TEXTS_PER_BATCH, DataDrivenTargets
from text2token.targets.rows import Passages, distributions, heaviest, mixed, record_batch, text_batches, without

DIMENSIONS = 128
INDEXED_TEXTS = 100_000
WHITENED_ON = 10_000  # texts
SAME = 1e-6  # two targets that differ by less are one


@dataclass(frozen=True)
class CorpusDerivedSettings:
    """`next_passage`: take the passage that follows. `neighbours`: how many nearest texts of the corpus (0: none).

    `top_k` words are kept. `exclude_in_text`: only words beyond the text. `data_driven_share`: so much of the target is
    the text's own data-driven one.
    """

    next_passage: bool = True
    neighbours: int = 4
    top_k: int = 64
    exclude_in_text: bool = False
    data_driven_share: float = 0.5

    def __post_init__(self) -> None:
        if self.neighbours < 0 or self.top_k < 1:
            raise RecipeError(f"neighbours is {self.neighbours} and top_k {self.top_k}; at least 0 and 1 are needed")
        if not self.neighbours and not self.next_passage:
            raise RecipeError("neither next_passage nor neighbours: there is nothing to derive targets from")
        if not 0 <= self.data_driven_share <= 1:
            raise RecipeError(f"data_driven_share is {self.data_driven_share}; it must lie between 0 and 1")


class CorpusDerivedTargets:
    """Builds corpus-derived targets: `fit` reads the corpus, `transform` finds each text's companions in it.

    Which passage follows which is known from the column `document`; texts without it have neighbours only. A text without
    companions, or whose companions have nothing to add, has its own data-driven target.
    """

    name = "corpus_derived"
    expensive = False

    def __init__(
        self, data_driven: DataDrivenTargets, head: LanguageModelHead, settings: CorpusDerivedSettings | None = None
    ) -> None:
        self.data_driven = data_driven
        self.settings = settings or CorpusDerivedSettings()
        vocabulary = data_driven.vocabulary
        self.words = word_table(head, vocabulary, torch.ones(vocabulary.size)).numpy()  # targets have the idf in them

    def fit(self, passages: Passages) -> "CorpusDerivedTargets":
        """Learn document frequencies, the targets of all texts and where they lie, and return self."""
        self.targets_ = self.data_driven.fit_rows(passages)
        if self.settings.neighbours:
            self.indexed_ = _even_sample(self.targets_, INDEXED_TEXTS)
            sample = self._vectors(_even_sample(self.indexed_, WHITENED_ON))
            # of few texts every direction looks alike, and whitened they would all be equally far from each other
            self.whitening_ = fit_isotropy(sample, "whiten" if len(sample) > sample.shape[1] else "centre")
            # by the distance of unit vectors, which scikit-learn searches ten times as fast as by their cosine
            self.index_ = NearestNeighbors(metric="euclidean", algorithm="brute").fit(self._places(self.indexed_))
        return self

    def fit_transform(self, passages: Passages, scratch: Path) -> Iterator[pa.RecordBatch]:
        """Do both, with the targets that `fit` made of the texts; `scratch` is not needed."""
        self.fit(passages)
        return self._derived(passages, self.targets_)

    def transform(self, passages: Passages, progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `passages` in their order, in batches of the store's schema."""
        return self._derived(passages, self._own(passages), progress)

    def _derived(self, passages: Passages, own: csr_array, progress: Progress | None = None) -> Iterator[pa.RecordBatch]:
        following = _next_passages(passages) if self.settings.next_passage and isinstance(passages, Dataset) else None
        start = 0
        for texts in text_batches(passages, TEXTS_PER_BATCH):
            rows = slice(start, start + len(texts))
            start += len(texts)
            companions = csr_array((len(texts), own.shape[1]))
            if following is not None:
                there = following[rows] >= 0
                companions = csr_array(companions + own[np.maximum(following[rows], 0)].multiply(there[:, None]))
            if self.settings.neighbours:
                companions = csr_array(companions + self._neighbourhood(own[rows]))
            if self.settings.exclude_in_text:
                companions = without(companions, self.data_driven.in_text(texts))
            derived = distributions(heaviest(distributions(companions), self.settings.top_k))
            alone = np.diff(derived.indptr) == 0
            derived = csr_array(derived + own[rows].multiply(alone[:, None]))
            yield record_batch(texts, mixed(derived, own[rows], self.settings.data_driven_share))
            if progress:
                progress(len(texts))

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card."""
        return {**asdict(self.settings), "data_driven": self.data_driven.describe()}

    def _own(self, passages: Passages) -> csr_array:
        batches = [self.data_driven.rows(texts) for texts in text_batches(passages, TEXTS_PER_BATCH)]
        return csr_array(vstack(batches, format="csr"))

    def _vectors(self, targets: csr_array) -> Tensor:
        return torch.from_numpy(targets @ self.words).float()

    def _places(self, targets: csr_array) -> NDArray[np.float32]:
        batches = (targets[start : start + TEXTS_PER_BATCH] for start in range(0, targets.shape[0], TEXTS_PER_BATCH))
        vectors = [self.whitening_(self._vectors(batch))[:, :DIMENSIONS] for batch in batches]
        places: NDArray[np.float32] = torch.nn.functional.normalize(torch.cat(vectors)).numpy()
        return places

    def _neighbourhood(self, own: csr_array) -> csr_array:
        """Return the mean target of each text's neighbours, weighed by their cosine, itself left out."""
        count = min(self.settings.neighbours + 1, self.indexed_.shape[0])
        distances, found = self.index_.kneighbors(self._places(own), count)
        text = np.repeat(np.arange(len(found)), count)
        itself = abs(self.indexed_[found.ravel()] - own[text]).sum(axis=1) < SAME  # distance 0 may be another text
        left_out = itself.reshape(found.shape)
        left_out[:, -1] |= ~left_out.any(axis=1)  # a text that is not in the sample has found one more than was asked for
        weights = np.clip(1 - distances**2 / 2, 0, None) * ~left_out
        nearest = csr_array((weights.ravel(), (text, found.ravel())), shape=(len(found), self.indexed_.shape[0]))
        return distributions(csr_array(nearest @ self.indexed_))


def _even_sample(rows: csr_array, count: int) -> csr_array:
    return rows[np.unique(np.linspace(0, rows.shape[0] - 1, min(count, rows.shape[0])).astype(int))]


def _next_passages(passages: Dataset) -> NDArray[np.int64]:
    """Return for each row the row of the next passage of its document, for the last one that before, -1 where alone."""
    if "document" not in passages.column_names:
        return np.full(len(passages), -1)
    document = np.array(passages["document"])
    same = document[1:] == document[:-1]
    rows = np.arange(len(document))
    after = np.append(same, False)
    before = np.insert(same, 0, False)
    return np.where(after, rows + 1, np.where(before, rows - 1, -1))
