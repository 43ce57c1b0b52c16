"""The label-free scores are what their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers.util import cos_sim

from text2token.errors import CorpusError, ModelError
from text2token.evaluation.label_free import dense_scores, geometry, retrieval_scores, tfidf_scores
from text2token.model.encoder import TextEncoder


def test_scores_of_known_ranks() -> None:
    similarities = np.zeros((3, 30))[:, :3] + np.array([[3, 2, 1], [3, 2, 1], [3, 2, 1]])
    scores = retrieval_scores(similarities)  # ranks 1, 2 and 3
    assert scores.mrr_at_10 == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)
    assert scores.ndcg_at_10 == pytest.approx(100 * (1 + 1 / np.log2(3) + 1 / 2) / 3)
    assert scores.recall_at_10 == 100


def test_what_is_ranked_eleventh_counts_nothing() -> None:
    similarities = np.triu(np.ones((12, 12)), 1)[::-1, ::-1] + np.eye(12) * 0.5
    assert retrieval_scores(similarities).recall_at_10 == pytest.approx(100 * 10 / 12)


def test_a_constant_embedding_scores_no_point() -> None:
    assert dense_scores(torch.ones(50, 4), torch.ones(50, 4)).mrr_at_10 == 0


@given(
    arrays(
        np.float32,
        st.integers(1, 15).map(lambda size: (size, size)),
        elements=st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0]),
    )
)
def test_scores_lie_between_0_and_100_whatever_the_similarities(similarities: np.ndarray) -> None:
    scores = retrieval_scores(similarities)
    for score in (scores.mrr_at_10, scores.ndcg_at_10, scores.recall_at_10, *scores.mrr_interval):
        assert 0 <= score <= 100
    assert scores.recall_at_10 <= 100 * np.isfinite(np.diagonal(similarities)).mean() + 1e-6


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(CorpusError, match="nothing to score"):
        retrieval_scores(np.zeros((0, 0)))
    with pytest.raises(CorpusError, match="at least two"):
        geometry(torch.ones(1, 4), torch.ones(1, 4))


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_encoder_gives_numbers_or_refuses(remembers: bool, broken: float) -> None:
    encoder = TextEncoder("mine", "", lambda texts, _: torch.tensor([[1.0, broken], [1.0, 2.0]][: len(texts)]))
    with pytest.raises(ModelError, match="mine: 1 of 2 vectors"):
        (encoder if remembers else replace(encoder, memory=None))(["a", "b"])


def test_dense_scores_use_the_cosine() -> None:
    torch.manual_seed(0)
    queries, passages = torch.randn(40, 6), torch.randn(40, 6)
    assert dense_scores(queries * 7, passages) == retrieval_scores(cos_sim(queries, passages).numpy())


def test_tfidf_finds_shared_rare_words() -> None:
    passages = [f"some common words and the rare word w{i}" for i in range(30)]
    assert tfidf_scores([f"where is w{i}" for i in range(30)], passages, passages).mrr_at_10 == 100
