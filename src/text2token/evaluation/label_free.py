"""Is the embedder better in-domain? Measured without labels, on documents that training never saw.

The title (or first half) of each held-out document must find its body (or second half) among those of all.
That measures matching parts of a document, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from text2token.errors import CorpusError

DEPTH = 10
BOOTSTRAP_DRAWS = 1000
TASK = "Retrieval among {:,} held-out documents: the query is a title or first half, the rest is to be found (percent)"
TFIDF_SAMPLE = 20_000  # passages of a corpus that TF-IDF learns its frequencies from


@dataclass(frozen=True)
class RetrievalScores:
    """Means over the queries, in percent, of the measures at depth 10; each query has one right answer.

    `mrr_interval` is the 95 % interval of `mrr_at_10` by bootstrap over the queries: how far another draw of as many
    documents from the same corpus might move it. It holds for this corpus and these questions alone.
    """

    mrr_at_10: float
    ndcg_at_10: float
    recall_at_10: float
    queries: int
    mrr_interval: tuple[float, float]


@dataclass(frozen=True)
class Geometry:
    """How embeddings of unit length lie on the sphere (Wang & Isola 2020), which is not whether they are right.

    `alignment`: mean squared distance of a query to its passage (0 … 4; less is closer). `uniformity`: log mean of
    exp(-2 squared distance) over pairs of passages (0: all the same; less is more even). `anisotropy`: mean cosine of
    different passages (0: no common direction).
    """

    alignment: float
    uniformity: float
    anisotropy: float


def retrieval_scores(similarities: NDArray[np.floating]) -> RetrievalScores:
    """Score a square matrix, shape (queries, passages), whose diagonal holds each query's positive.

    A passage as similar as the right one counts as ranked before it, so that a constant embedding scores no point; so does
    one whose similarity is no number, and a right one whose similarity is none is not found. Raises `CorpusError` where
    there is no query.
    """
    if not len(similarities):
        raise CorpusError("no held-out document has a query, so there is nothing to score")
    positive = np.diagonal(similarities)[:, None]
    ranks = np.maximum(1, (~(similarities < positive)).sum(axis=1))
    found = (ranks <= DEPTH) & np.isfinite(positive[:, 0])
    reciprocal = 100 * found / ranks
    draws = np.random.default_rng(0).integers(len(ranks), size=(BOOTSTRAP_DRAWS, len(ranks)))
    low, high = np.quantile(reciprocal[draws].mean(axis=1), [0.025, 0.975])
    return RetrievalScores(
        mrr_at_10=float(np.mean(reciprocal)),
        ndcg_at_10=100 * float(np.mean(found / np.log2(ranks + 1))),
        recall_at_10=100 * float(np.mean(found)),
        queries=len(ranks),
        mrr_interval=(float(low), float(high)),
    )


def dense_scores(queries: Tensor, passages: Tensor) -> RetrievalScores:
    """Score embeddings of shape (documents, dimension), after post-processing, by cosine."""
    similarities = normalize(queries) @ normalize(passages).T
    return retrieval_scores(similarities.numpy())


def geometry(queries: Tensor, passages: Tensor) -> Geometry:
    """Return how the embeddings of matching queries and passages lie, shape (documents, dimension) each.

    Raises `CorpusError` for fewer than two documents, which have no distance.
    """
    if len(passages) < 2:
        raise CorpusError(f"{len(passages)} held-out document; the geometry of embeddings needs at least two")
    queries, passages = normalize(queries), normalize(passages)
    squared_distances = torch.pdist(passages).square()
    return Geometry(
        alignment=float((queries - passages).square().sum(1).mean()),
        uniformity=float(squared_distances.mul(-2).exp().mean().log()),
        anisotropy=float(1 - squared_distances.mean() / 2),
    )


def tfidf_scores(queries: Sequence[str], passages: Sequence[str], corpus: Sequence[str]) -> RetrievalScores:
    """Score scikit-learn's TF-IDF, its frequencies learnt on `corpus` and the passages: the line a user has for free.

    Of the usual settings (stop words or not, sublinear or not) this one scored best on docstrings.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*corpus, *passages])
    similarities = vectorizer.transform(queries) @ vectorizer.transform(passages).T
    return retrieval_scores(similarities.toarray())
