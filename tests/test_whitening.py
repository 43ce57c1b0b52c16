"""Whitening evens out the directions of a sample and exports as one stock module."""

from typing import get_args

import pytest
import torch

from text2token.model.whitening import Strength, fit_postprocessing
from text2token.recipe import Postprocessing


def sample(texts: int = 4000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(texts, 8) * torch.tensor([9.0, 4.0, 2.0, 1.0, 1.0, 0.5, 0.2, 0.1]) + 3


def test_without_shrinkage_the_covariance_becomes_a_multiple_of_the_identity() -> None:
    embeddings = sample()
    finished = fit_postprocessing(embeddings, strength="full", shrinkage=0)(embeddings)
    covariance = torch.cov(finished.T)
    assert torch.allclose(covariance / covariance.diagonal().mean(), torch.eye(8), atol=1e-3)
    assert finished.mean(0).abs().max() < 1e-3


def test_shrinkage_lies_between_whitening_and_centring() -> None:
    embeddings = sample()

    def spread(shrinkage: float) -> float:
        eigenvalues = torch.linalg.eigvalsh(
            torch.cov(fit_postprocessing(embeddings, strength="full", shrinkage=shrinkage)(embeddings).T)
        )
        return float(eigenvalues.max() / eigenvalues.mean())

    assert spread(0) < spread(1) < spread(1e6)


def test_there_is_less_whitening_and_more_between_centring_and_whitening() -> None:
    embeddings = sample()
    spreads = []
    maps = [fit_postprocessing(embeddings, "centred")]
    maps += [fit_postprocessing(embeddings, strength=strength) for strength in get_args(Strength)]
    for whitening in maps:
        eigenvalues = torch.linalg.eigvalsh(torch.cov(whitening(embeddings).T))
        spreads.append(float(eigenvalues.max() / eigenvalues.mean()))
    assert spreads == sorted(spreads, reverse=True)
    assert len(set(spreads)) == 4


@pytest.mark.parametrize("kind", ["centred", "whitened"])
def test_the_first_dimensions_say_most_and_cosines_are_those_of_the_unrotated(kind: Postprocessing) -> None:
    embeddings = sample() @ torch.linalg.qr(torch.randn(8, 8)).Q  # so that no axis is a principal one
    finished = fit_postprocessing(embeddings, kind, "full")(embeddings)
    covariance = torch.cov(finished.T)
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-3 * float(covariance.max()))
    assert (covariance.diagonal().diff() <= 0).all()
    centred = embeddings - embeddings.mean(0)
    if kind == "whitened":  # the symmetric map of the same shrinkage, without a rotation
        covariance = torch.cov(embeddings.T)
        values, vectors = torch.linalg.eigh(covariance + covariance.diagonal().mean() * torch.eye(8))
        centred = centred @ (vectors * values**-0.5) @ vectors.T
    expected = torch.nn.functional.normalize(centred[:50]) @ torch.nn.functional.normalize(centred[:50]).T
    found = torch.nn.functional.normalize(finished[:50]) @ torch.nn.functional.normalize(finished[:50]).T
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", get_args(Postprocessing))
def test_module_and_map_agree(kind: Postprocessing) -> None:
    embeddings = sample(50)
    whitening = fit_postprocessing(embeddings, kind)
    found = whitening.module()({"sentence_embedding": embeddings})["sentence_embedding"]
    assert torch.allclose(found, whitening(embeddings), atol=1e-4)
    if kind == "none":
        assert torch.equal(found, embeddings)


@pytest.mark.parametrize("texts", [1, 2, 5])
def test_fewer_texts_than_dimensions_stay_finite(texts: int) -> None:
    assert torch.isfinite(fit_postprocessing(sample(texts))(sample(20))).all()


@pytest.mark.parametrize("strength", get_args(Strength))
def test_texts_that_are_all_alike_leave_a_finite_map(strength: Strength) -> None:
    whitening = fit_postprocessing(torch.ones(20, 6), strength=strength)
    assert torch.isfinite(whitening(torch.randn(3, 6))).all()
