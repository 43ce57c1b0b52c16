"""Words alone: BM25 for retrieval (bm25s, through mteb), and latent semantic analysis, TF-IDF cut down by SVD."""

import hashlib
import os
from collections.abc import Sequence

# bm25s tries out jax where that is installed, and jax takes three quarters of a GPU
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bm25s
import mteb
import numpy as np
import Stemmer
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from text2token_bench.inside import Progress, TextEncoder
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop

BM25_OF_MTEB = "mteb/baseline-bm25s"


class BM25:
    """BM25 with English stemming and stop words."""

    name = "BM25"

    def __init__(self) -> None:
        self.mteb_model = mteb.get_model(BM25_OF_MTEB)

    def similarities(self, queries: list[str], passages: list[str]) -> NDArray[np.float32]:
        """Return BM25 scores of shape (queries, passages)."""
        stemmer = Stemmer.Stemmer("english")
        index = bm25s.BM25()
        index.index(bm25s.tokenize(passages, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
        asked = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
        return np.stack([index.get_scores(words) if words else np.zeros(len(passages)) for words in asked])


def build_bm25(workshop: Workshop, settings: Settings) -> Built:
    """Return BM25; it learns nothing beforehand."""
    return Built(BM25())


def build_lsa(workshop: Workshop, settings: Settings) -> Built:
    """Return TF-IDF vectors cut down to as many dimensions as settings say, learnt on the passages."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    matrix = vectorizer.fit_transform(workshop.passages["text"])
    dimensions = min(int(settings["dimensions"]), min(matrix.shape) - 1)
    reduction = TruncatedSVD(dimensions, random_state=workshop.seed).fit(matrix)

    def embed(texts: Sequence[str], progress: Progress | None) -> Tensor:
        vectors = torch.from_numpy(reduction.transform(vectorizer.transform(texts))).float()
        if progress:
            progress(len(texts))
        return vectors

    fingerprint = hashlib.sha256(reduction.components_.tobytes()).hexdigest()[:16]
    return Built(TextEncoder("TF-IDF + SVD", fingerprint, embed))


PEERS = (
    Peer("BM25", "lexical", build_bm25),
    Peer("TF-IDF + SVD", "lexical", build_lsa, tuple({"dimensions": number} for number in (300, 576, 1000)), seeded=True),
)
