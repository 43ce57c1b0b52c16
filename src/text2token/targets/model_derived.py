"""Model-derived targets: the words most likely after a one-word prompt, less their prior.

    s(v | x) = log p(v | prompt(x)) - alpha · mean over x' of log p(v | prompt(x'))
    q(v | x) = softmax over the k largest of s(v | x) / temperature

The authors' form is `likelihood_ratio`. Here the prior is subtracted as in contextual calibration (Zhao et al. 2021). v runs
over words of the target vocabulary: p(v) adds up over the spellings of a word. Several prompts are averaged in log p, a
geometric mean; with a linear head that is MetaEOL's mean of embeddings but for a constant.

The teacher is the untrained backbone, or the model of the stage before, whose pooled embedding is decoded through the same
head.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.engine import Engine
from text2token.errors import UsageError
from text2token.model.backbone import behind, embed, load_embedder, room_for_text, tokenizer_of
from text2token.model.bundle import Backbone
from text2token.model.head import LanguageModelHead
from text2token.progress import Progress
from text2token.recipe import PREVIOUS, ModelDerivedSettings, TargetSettings
from text2token.targets.base import HERE, Passages, as_dataset, chosen, evenly, text_batches
from text2token.targets.data_driven import DataDrivenTargets
from text2token.targets.data_driven import build as build_data_driven
from text2token.targets.sparse import interpolated, record_batch
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.tokens.words import Words

TEXTS_PER_BATCH = 512  # enough to find neighbours of equal length
ROWS_OF_LOGITS = 64  # 64 × 49,152 probabilities are 12 MB


class ModelDerivedTargets:
    """Builds model-derived targets: `fit` learns the prior from a sample, `transform` embeds every text.

    `teacher` is `[Transformer, Pooling, …]`; the prompts are those of the settings. After `fit`,
    `prior_` has shape (words,): the mean log probability of each word.
    """

    name = "model_derived"
    expensive = True

    def __init__(
        self,
        teacher: SentenceTransformer,
        head: LanguageModelHead,
        vocabulary: TargetVocabulary,
        settings: ModelDerivedSettings | None = None,
        data_driven: DataDrivenTargets | None = None,
    ) -> None:
        self.settings = settings or ModelDerivedSettings()
        self.teacher = SentenceTransformer(modules=list(teacher)[:2])  # nothing after the pooling: the head reads from there
        self.head = head
        self.vocabulary = vocabulary
        self.words = Words.of(vocabulary)
        tokenizer = tokenizer_of(teacher)
        room = room_for_text(tokenizer)
        self.data_driven = data_driven or DataDrivenTargets(tokenizer, vocabulary, max_tokens=room)
        self.fitted_on = 0
        self.prior_: Tensor = torch.zeros(len(self.words.lexicon))

    def fit(self, passages: Passages, engine: Engine = HERE) -> "ModelDerivedTargets":
        """Learn the prior from texts spread evenly over `passages` (and document frequencies from all), return self.

        The prior is learnt here, whatever the engine: its texts are few.
        """
        if self.settings.data_driven_share:
            self.data_driven.fit(passages, engine)
        texts = as_dataset(passages)
        sample = evenly(len(texts), self.settings.prior_texts)
        self.fitted_on = len(sample)
        total = torch.zeros(len(self.words.lexicon), dtype=torch.float64)
        for batch in text_batches(texts.select(sample), TEXTS_PER_BATCH):
            for log_probabilities in self._log_probabilities(batch):
                total += log_probabilities.double().sum(0)
        self.prior_ = (total / max(1, self.fitted_on)).float()
        return self

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `passages`, or of those `rows` of them, in batches of the store's schema; all have one."""
        if not self.fitted_on:
            raise UsageError("the prior is not learnt yet: call fit first")
        for texts in text_batches(chosen(passages, rows), TEXTS_PER_BATCH):
            targets = self.rows(texts)
            if share := self.settings.data_driven_share:
                targets = interpolated(targets, self.data_driven.rows(texts), share)
            yield record_batch(texts, targets)
            if progress:
                progress(len(texts))

    def rows(self, texts: Sequence[str]) -> csr_array:
        """Return the targets of `texts` before any mixing, shape (texts, vocabulary size), each row summing to 1."""
        parts: list[csr_array] = []
        for log_probabilities in self._log_probabilities(texts):
            scores = log_probabilities - self.settings.alpha * self.prior_
            best = torch.topk(scores, min(self.settings.top_k, scores.shape[1]))
            weights = torch.softmax(best.values / self.settings.temperature, -1)
            parts.append(self.words.as_tokens(best.indices.numpy(), weights.double().numpy()))
        return csr_array(vstack(parts, format="csr"))

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card; `prior` is a digest of it, and so of whose it is."""
        prior = hashlib.sha256(self.prior_.numpy().tobytes()).hexdigest()[:16]
        return {**asdict(self.settings), "fitted_on": self.fitted_on, "prior": prior}

    def _log_probabilities(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the mean over the prompts of log p(word), shape (at most `ROWS_OF_LOGITS`, words), on the CPU."""
        embeddings = []
        for prompt in self.settings.prompts or (None,):
            with behind(tokenizer_of(self.teacher), prompt):
                embeddings.append(embed(self.teacher, texts))
        self.head.to(self.teacher.device)
        with torch.inference_mode():
            for rows in zip(*(torch.split(part, ROWS_OF_LOGITS) for part in embeddings), strict=True):
                yield torch.stack([self.words.log_probabilities(self.head(part).cpu()) for part in rows]).mean(0)


def build(backbone: Backbone, settings: TargetSettings) -> ModelDerivedTargets:
    """Return the constructor; its teacher is the backbone, untrained or as the stage before made it.

    Another copy of the weights is loaded only where the embedder's settings do not fit.
    """
    derived, teacher = settings.model_derived, backbone.embedder
    prompted = replace(backbone.settings, pooling="last", attention="causal", layers=None)
    if derived.teacher == PREVIOUS:
        derived = replace(derived, prompts=())
    elif prompted != backbone.settings:
        teacher = load_embedder(prompted)
    return ModelDerivedTargets(teacher, backbone.head, backbone.vocabulary, derived, build_data_driven(backbone, settings))
