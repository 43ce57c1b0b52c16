"""The label-free scores are what their names say."""

import numpy as np
import pytest
import torch
from sentence_transformers.util import cos_sim

from text2token.evaluation.label_free import dense_scores, retrieval_scores, tfidf_scores


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


def test_dense_scores_use_the_cosine() -> None:
    torch.manual_seed(0)
    queries, passages = torch.randn(40, 6), torch.randn(40, 6)
    assert dense_scores(queries * 7, passages) == retrieval_scores(cos_sim(queries, passages).numpy())


def test_tfidf_finds_shared_rare_words() -> None:
    passages = [f"some common words and the rare word w{i}" for i in range(30)]
    assert tfidf_scores([f"where is w{i}" for i in range(30)], passages, passages).mrr_at_10 == 100
