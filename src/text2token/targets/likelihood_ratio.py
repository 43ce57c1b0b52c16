"""Model-derived targets in the authors' form: tokens far more likely for this text than for the others.

    p     = softmax(head(h(x)))                          probabilities for text x
    theta = softmax(mean over the corpus of head(h))     the prior, for any text
    t     = p / (p + theta + floor)
    q     = softmax(t / tau)

over the whole vocabulary, every spelling and piece by itself. With the ratio R = p / (theta + floor) it is 1 - t = 1 / (1 +
R), so for two tokens q₁ / q₂ = exp((1 / (1 + R₂) - 1 / (1 + R₁)) / tau): a soft threshold. Tokens far above R = 1 / tau have
nearly the same weight, those far below hardly any; where none reaches it, the target is the one token of largest ratio. The
floor keeps out what is rare: a token needs a p of floor / tau to reach the threshold at all.

At tau = 1e-5 the difference 1 - t counts to the tenth digit. So it is computed as (theta + floor) / (p + theta + floor), in
float64, and never as a difference. A threshold of 1e5 suits a large model after a first stage; of a small one hardly any
token reaches it. "auto" finds the tau at which the median text of a sample has `EFFECTIVE_TOKENS` tokens, as the exponential
of the target's entropy counts them: that number grows with tau, so halving an interval finds it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.engine import Engine
from text2token.errors import UsageError
from text2token.model.backbone import embed
from text2token.model.bundle import Backbone
from text2token.model.head import LanguageModelHead
from text2token.progress import Progress
from text2token.recipe import LikelihoodRatioSettings, TargetSettings
from text2token.targets.base import HERE, Passages, as_dataset, chosen, evenly, text_batches
from text2token.targets.sparse import record_batch
from text2token.tokens.vocabulary import TargetVocabulary

TEXTS_PER_BATCH = 512  # enough to find neighbours of equal length
ROWS_OF_LOGITS = 32  # 32 × 262,144 probabilities in float64 are 67 MB
MASS, MOST_TOKENS = 0.999, 256  # a target keeps its largest tokens up to this mass, and no more than so many
EFFECTIVE_TOKENS = 10.0
TUNED_ON = 64  # texts
SMALLEST_TAU, LARGEST_TAU, HALVINGS = 1e-12, 1e3, 48


class LikelihoodRatioTargets:
    """Builds the targets: `fit` learns theta from a sample of the corpus, `transform` embeds every text.

    `teacher` is `[Transformer, Pooling, …]`, left unchanged. After `fit`, `theta_` has shape (vocabulary of the head,),
    float64, and `tau_` is a number.
    """

    name = "likelihood_ratio"
    expensive = True

    def __init__(
        self,
        teacher: SentenceTransformer,
        head: LanguageModelHead,
        vocabulary: TargetVocabulary,
        settings: LikelihoodRatioSettings | None = None,
    ) -> None:
        self.settings = settings or LikelihoodRatioSettings()
        self.teacher = SentenceTransformer(modules=list(teacher)[:2])  # nothing after the pooling: the head reads from there
        self.head = head
        self.vocabulary = vocabulary
        self.fitted_on = 0
        self.theta_: Tensor = torch.zeros(head.vocabulary_size, dtype=torch.float64)
        self.tau_ = 0.0

    def fit(self, passages: Passages, engine: Engine = HERE) -> "LikelihoodRatioTargets":
        """Learn theta, and tau where it is to follow the model, from texts spread evenly over `passages`; return self.

        It is done here, whatever the engine: its texts are few.
        """
        texts = as_dataset(passages)
        sample = texts.select(evenly(len(texts), self.settings.prior_texts))
        self.fitted_on = len(sample)
        embeddings = embed(self.teacher, list(sample["text"]))
        total = torch.zeros_like(self.theta_)
        for logits in self._logits(embeddings):
            total += logits.sum(0)
        self.theta_ = (total / max(1, self.fitted_on)).softmax(0)
        if self.settings.tau == "auto":
            some = embeddings[torch.from_numpy(evenly(len(embeddings), TUNED_ON))]
            self.tau_ = tau_for(torch.cat([*self._misses(some)]), EFFECTIVE_TOKENS)
        else:
            self.tau_ = self.settings.tau
        return self

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `passages`, or of those `rows` of them, in batches of the store's schema; all have one."""
        if not self.fitted_on:
            raise UsageError("the prior is not learnt yet: call fit first")
        for texts in text_batches(chosen(passages, rows), TEXTS_PER_BATCH):
            parts = [ratio_targets(misses, self.tau_) for misses in self._misses(embed(self.teacher, texts))]
            ids, weights, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
            bounds = np.concatenate([[0], np.cumsum(counts)])
            yield record_batch(texts, csr_array((weights, ids, bounds), shape=(len(texts), self.vocabulary.size)))
            if progress:
                progress(len(texts))

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card; `prior` is a digest of theta, and so of whose it is."""
        prior = hashlib.sha256(self.theta_.numpy().tobytes()).hexdigest()[:16]
        found = {"tau": self.tau_, "tau_follows_the_model": self.settings.tau == "auto", "prior": prior}
        return {**asdict(self.settings), **found, "mass": MASS, "most_tokens": MOST_TOKENS, "fitted_on": self.fitted_on}

    def _logits(self, embeddings: Tensor) -> Iterator[Tensor]:
        """Yield the logits of at most `ROWS_OF_LOGITS` embeddings at a time, float64, on the CPU."""
        self.head.to(self.teacher.device)
        with torch.inference_mode():
            for part in torch.split(embeddings, ROWS_OF_LOGITS):
                yield self.head(part).cpu().double()

    def _misses(self, embeddings: Tensor) -> Iterator[Tensor]:
        """Yield 1 - t of the module's formula, shape (at most `ROWS_OF_LOGITS`, vocabulary size), float64."""
        for logits in self._logits(embeddings):
            yield misses(logits, self.theta_, self.settings.floor)[:, : self.vocabulary.size]


def misses(
    logits: Float[Tensor, "texts vocabulary"], theta: Float[Tensor, " vocabulary"], floor: float
) -> Float[Tensor, "texts vocabulary"]:
    """Return 1 - t of the module's formula, without a difference of nearly equal numbers."""
    prior = theta + floor
    return prior / (logits.softmax(-1) + prior)


def ratio_targets(
    misses: Float[Tensor, "texts vocabulary"], tau: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return token ids and weights of the targets q, one text after the other, and how many each has.

    Of each the largest are kept, up to `MASS` of it and to `MOST_TOKENS` tokens.
    """
    best = torch.topk((-misses / tau).softmax(-1), min(MOST_TOKENS, misses.shape[1]))
    kept = best.values.cumsum(-1) - best.values < MASS  # what is before a token is not enough yet
    return best.indices[kept].numpy(), best.values[kept].numpy(), kept.sum(-1).numpy()


def effective_tokens(misses: Float[Tensor, "texts vocabulary"], tau: float) -> Float[Tensor, " texts"]:
    """Return the exponential of the entropy of each target: of k equal weights, k."""
    q = (-misses / tau).softmax(-1)
    entropies: Tensor = torch.special.entr(q).sum(-1)
    return entropies.exp()


def tau_for(misses: Float[Tensor, "texts vocabulary"], tokens: float) -> float:
    """Return the tau, to three digits, at which the median target has so many effective tokens."""
    low, high = np.log(SMALLEST_TAU), np.log(LARGEST_TAU)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if effective_tokens(misses, float(np.exp(middle))).median() < tokens:
            low = middle
        else:
            high = middle
    return float(f"{np.exp(high):.2e}")


def build(backbone: Backbone, settings: TargetSettings) -> LikelihoodRatioTargets:
    """Return the constructor; its teacher is the embedder as the stage finds it."""
    return LikelihoodRatioTargets(backbone.embedder, backbone.head, backbone.vocabulary, settings.likelihood_ratio)
