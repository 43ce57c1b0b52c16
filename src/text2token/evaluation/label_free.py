"""Is the embedder better on my text? Measured without labels, on documents that training never saw.

Each held-out document is a question about itself: its title (or first half) must find its own body (or second half)
among those of all held-out documents. That measures one thing, matching parts of a document, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

DEPTH = 10


@dataclass(frozen=True)
class RetrievalScores:
    """Means over the queries, in percent, of the measures at depth 10; each query has one right answer."""

    mrr_at_10: float
    ndcg_at_10: float
    recall_at_10: float
    queries: int


def retrieval_scores(similarities: NDArray[np.floating]) -> RetrievalScores:
    """Score a square matrix, shape (queries, passages), whose diagonal holds each query's own passage.

    A passage as similar as the right one counts as ranked before it, so that a constant embedding scores no point.
    """
    own = np.diagonal(similarities)[:, None]
    ranks = (similarities >= own).sum(axis=1)
    found = ranks <= DEPTH
    return RetrievalScores(
        mrr_at_10=100 * float(np.mean(found / ranks)),
        ndcg_at_10=100 * float(np.mean(found / np.log2(ranks + 1))),
        recall_at_10=100 * float(np.mean(found)),
        queries=len(ranks),
    )


def dense_scores(queries: Tensor, passages: Tensor) -> RetrievalScores:
    """Score embeddings of shape (documents, dimension), finished but for their length, by cosine."""
    similarities = normalize(queries) @ normalize(passages).T
    return retrieval_scores(similarities.numpy())


def tfidf_scores(queries: Sequence[str], passages: Sequence[str], corpus: Sequence[str]) -> RetrievalScores:
    """Score scikit-learn's TF-IDF, its frequencies learnt on `corpus` and the passages: the line a user has for free.

    Of the usual settings (stop words or not, sublinear or not) this one scored best on docstrings.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*corpus, *passages])
    similarities = vectorizer.transform(queries) @ vectorizer.transform(passages).T
    return retrieval_scores(similarities.toarray())
