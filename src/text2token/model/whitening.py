"""From pooled hidden states to vectors that compare well: a linear map learnt from a sample of the corpus, no labels.

Hidden states of a decoder share a large mean (the prior of function words) and a few directions of large variance, so
the cosine between any two texts is mostly about what all texts have in common. Two remedies, each one `Dense` module:

    centre     y = R'(h - m)
    whiten     y = S R'(h - m),   S = (λ + s c)^-a up to a constant,   c the mean of the λ

with m the mean of the sample, R the eigenvectors of its covariance and λ their eigenvalues, largest first. Full whitening
(s = 0) would blow up the directions that the sample determines least; the shrinkage s keeps them small, as in soft ZCA
whitening (Diera et al. 2024). Whitening proper has a = 1/2. The more of it, the better a document's halves find each
other, and the worse texts fall into clusters by subject, which lie along the very directions that it evens out: the default
is gentle, a = 1/10. The rotation R changes no cosine, and it orders the dimensions, so vectors can be cut (`truncate_dim` of
sentence-transformers) without having been trained for it. The head reads `h - m`: it knows nothing of this.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.modules import Dense
from torch import Tensor, nn

from text2token.recipe import Postprocessing

SAMPLE_SIZE = 1000  # texts
ENOUGH_TEXTS = 256  # for scores: with more of them those of a recipe's map change by less than a point
Strength = Literal["gentle", "half", "full"]
STRENGTHS: dict[Strength, tuple[float, float]] = {"gentle": (0.1, 0.3), "half": (0.25, 0.3), "full": (0.5, 1.0)}  # a, s


@dataclass(frozen=True)
class Whitening:
    """`centre` has shape (dimension,), `transform` (dimension in, dimension out); both float32."""

    centre: Tensor
    transform: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Return `embeddings`, shape (texts, dimension), centred and transformed."""
        return (embeddings - self.centre) @ self.transform

    def module(self) -> Dense:
        """Return the same map as a stock module."""
        dimension = len(self.centre)
        return Dense(
            dimension,
            dimension,
            activation_function=nn.Identity(),
            init_weight=self.transform.T.contiguous(),
            init_bias=-self.centre @ self.transform,
        )


def sample_texts(rows: Dataset, seed: int, size: int = SAMPLE_SIZE) -> list[str]:
    """Return the texts to learn from, `size` of the column `text` at most, in random order: the first few are one too."""
    return list(rows.select(np.random.default_rng(seed).permutation(len(rows))[:size])["text"])


def fit_postprocessing(
    embeddings: Tensor,
    kind: Postprocessing = "whitened",
    strength: Strength = "gentle",
    shrinkage: float | None = None,
) -> Whitening:
    """Learn the map from a sample of embeddings, shape (texts, dimension), computed in float64.

    `strength`: how far whitening evens out the variances. A recipe's is "gentle", "half" is better for search alone,
    and "full" makes them all the same. Fewer texts than dimensions are fine: shrinkage, where none is given that of the
    strength, keeps the transform finite.
    """
    dimension = embeddings.shape[1]
    if kind == "none":
        return Whitening(torch.zeros(dimension), torch.eye(dimension))
    centre = embeddings.double().mean(0)
    if len(embeddings) < 2:
        return Whitening(centre.float(), torch.eye(dimension))
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov((embeddings.double() - centre).T))
    eigenvalues, eigenvectors = eigenvalues.flip(0).clamp(min=0), eigenvectors.flip(1)
    eigenvectors = eigenvectors * torch.where(eigenvectors.sum(0) < 0, -1, 1)  # their signs are arbitrary: choose
    mean = eigenvalues.mean()
    if kind == "centred" or not mean:  # no direction differs: all texts have the same embedding
        return Whitening(centre.float(), eigenvectors.float())
    exponent, usual = STRENGTHS[strength]
    shrinkage = usual if shrinkage is None else shrinkage
    scales = ((eigenvalues + shrinkage * mean) / ((1 + shrinkage) * mean)) ** -exponent  # average direction: 1
    return Whitening(centre.float(), (eigenvectors * scales).float())
