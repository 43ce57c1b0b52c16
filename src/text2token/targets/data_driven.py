"""Data-driven targets: the meaningful tokens of the text itself (the paper has them; the weights are ours).

    candidates(x) = unique target tokens among the tokens of x
    q(v | x)      = weight(v) / sum of weight over candidates(x)

Weights: inverse document frequency learnt on the corpus, smoothed as in scikit-learn,

    idf(v) = ln((1 + documents) / (1 + documents with v)) + 1

or smooth inverse frequency sif(v) = a / (a + p(v)) with p from the corpus, or by Zipf's law where none was seen, or one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from text2token.errors import RecipeError
from text2token.targets.store import TargetBatch
from text2token.vocabulary import NOT_A_TARGET, TargetVocabulary, tokenise

TEXTS_PER_BATCH = 2048
SIF_A = 1e-3  # Arora et al. 2017 recommend 1e-4 … 1e-3


@dataclass(frozen=True)
class DataDrivenSettings:
    """`weight`: idf, sif or uniform. `top_k`: keep at most so many tokens of a text, those of the largest weight."""

    weight: Literal["idf", "sif", "uniform"] = "idf"
    top_k: int = 64

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise RecipeError(f"top_k is {self.top_k}; a target needs at least one token")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_PER_BATCH)):
        yield batch


class DataDrivenTargets:
    """Builds data-driven targets, in scikit-learn's manner: `fit` learns document frequencies, `transform` uses them.

    `max_tokens` is how many tokens of a text the model will see; what it cannot see must not be asked of it.
    After `fit`, `document_frequencies_` has shape (vocabulary size,) and `documents_` is their number.
    """

    name = "data_driven"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: TargetVocabulary,
        settings: DataDrivenSettings | None = None,
        max_tokens: int = 256,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.settings = settings or DataDrivenSettings()
        self.max_tokens = max_tokens
        self.documents_ = 0
        self.document_frequencies_: NDArray[np.int64] = np.zeros(vocabulary.size, dtype=np.int64)

    def fit(self, texts: Iterable[str]) -> "DataDrivenTargets":
        """Count in how many texts each target token occurs, and return self."""
        self.documents_ = 0
        self.document_frequencies_ = np.zeros(self.vocabulary.size, dtype=np.int64)
        for batch in _batches(texts):
            _, ids = self._candidates(self._visible_tokens(batch))
            self.document_frequencies_ += np.bincount(ids, minlength=self.vocabulary.size)
            self.documents_ += len(batch)
        return self

    def transform(self, texts: Iterable[str]) -> Iterator[TargetBatch]:
        """Yield the targets of `texts` in their order, batch by batch.

        A text without a target token falls back to all its tokens that are not special; one without any is left out.
        """
        weights = self.token_weights() * self.vocabulary.form_shares
        for batch in _batches(texts):
            yield self._targets(batch, weights)

    def token_weights(self) -> NDArray[np.float32]:
        """Return the unnormalised weight of every token id, shape (vocabulary size,)."""
        if self.settings.weight == "uniform":
            return np.ones(self.vocabulary.size, dtype=np.float32)
        if self.settings.weight == "idf":
            if not self.documents_:
                raise RecipeError("idf weights need document frequencies: call fit first, or choose sif or uniform")
            idf: NDArray[np.float64] = np.log((1 + self.documents_) / (1 + self.document_frequencies_)) + 1
            return idf.astype(np.float32)
        if self.documents_:
            probability: NDArray[np.float64] = self.document_frequencies_ / max(1, self.document_frequencies_.sum())
        else:  # byte-pair ids ascend roughly by falling frequency, so the id serves as Zipf's rank
            ranks = np.arange(1, self.vocabulary.size + 1)
            probability = 1 / ranks / np.log(self.vocabulary.size + 1)
        sif: NDArray[np.float64] = SIF_A / (SIF_A + probability)
        return sif.astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card."""
        return {**asdict(self.settings), "max_tokens": self.max_tokens, "fitted_on": self.documents_}

    def _visible_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids[: self.max_tokens] for ids in tokenise(self.tokenizer, texts)]

    def _candidates(self, token_ids: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (row, target id) pairs, unique and sorted."""
        rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
        flat = np.fromiter((token for ids in token_ids for token in ids), dtype=np.int64, count=len(rows))
        represented = self.vocabulary.representatives[flat]  # (tokens, 2)
        pairs = np.stack([np.repeat(rows, 2), represented.ravel()], axis=1)
        keys = np.unique(pairs[pairs[:, 1] != NOT_A_TARGET] @ np.array([self.vocabulary.size, 1]))
        return keys // self.vocabulary.size, keys % self.vocabulary.size

    def _targets(self, texts: Sequence[str], weights: NDArray[np.float32]) -> TargetBatch:
        token_ids = self._visible_tokens(texts)
        rows, ids = self._candidates(token_ids)
        bounds = np.searchsorted(rows, np.arange(len(texts) + 1))
        result = TargetBatch(text=[], token_ids=[], weights=[])
        for row, text in enumerate(texts):
            chosen = ids[bounds[row] : bounds[row + 1]]
            if not len(chosen):
                chosen = np.array(sorted(set(token_ids[row]) - self.vocabulary.special_ids), dtype=np.int64)
            if not len(chosen):
                continue
            if len(chosen) > self.settings.top_k:
                heaviest = np.argpartition(-weights[chosen], self.settings.top_k - 1)[: self.settings.top_k]
                chosen = chosen[np.sort(heaviest)]
            share = weights[chosen] / weights[chosen].sum()
            result["text"].append(text)
            result["token_ids"].append(chosen.tolist())
            result["weights"].append(share.tolist())
        return result
