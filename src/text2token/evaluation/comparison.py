"""The same texts before and after training: scores, and the decoded tokens of their embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text2token.evaluation.change import Change, change_of
from text2token.evaluation.history import DOCUMENTS, StepEvaluator
from text2token.evaluation.label_free import TFIDF_SAMPLE, RetrievalScores, dense_scores, tfidf_scores
from text2token.files import atomic_file
from text2token.model.backbone import embed, embed_at_two_depths, token_lengths, tokenizer_of, without_last_layers
from text2token.model.bundle import Backbone
from text2token.model.encoder import model_fingerprint
from text2token.model.head import CENTRE_TEXTS
from text2token.model.whitening import ENOUGH_TEXTS, Whitening, fit_postprocessing, sample_texts
from text2token.progress import SILENT, Reporter
from text2token.recipe import Postprocessing
from text2token.steps import digest
from text2token.tokens.words import KeyToken

SHOWN_TEXTS = 3  # texts whose key tokens are shown before and after
FEWEST_DOCUMENTS = 20  # held-out ones that are evaluated whatever it costs: fewer mean nothing


@dataclass(frozen=True)
class Evaluation:
    """Label-free scores on held-out documents, the key tokens of a few of their passages, and what training changed."""

    untrained: RetrievalScores
    trained: RetrievalScores
    tfidf: RetrievalScores
    texts: list[str]
    key_tokens_untrained: list[Sequence[KeyToken]]
    key_tokens_trained: list[Sequence[KeyToken]]
    change: Change | None = None


@dataclass(frozen=True)
class Embedded:
    """Pooled embeddings of the sample and the held-out texts, shape (texts, dimension), and their post-processing.

    The head reads after the last layer: `head_sample`, the embeddings of the first
    `CENTRE_TEXTS` of the sample there, and `shown`, those of the first `SHOWN_TEXTS` passages.
    """

    head_sample: Tensor
    shown: Tensor
    whitening: Whitening
    sample: Tensor
    queries: Tensor
    passages: Tensor

    @property
    def head_centre(self) -> Tensor:
        """What the head reads from, shape (dimension,)."""
        return self.head_sample.mean(0)


@dataclass(frozen=True)
class EvaluationTexts:
    """The texts that are embedded before and after training: a random sample of the corpus, and the held-out.

    `step_documents` of the held-out documents are also scored at the evaluation steps.
    """

    sample: list[str]
    queries: list[str]
    passages: list[str]
    step_documents: int

    @classmethod
    def of(cls, passages: Dataset, held_out: Dataset, seed: int) -> "EvaluationTexts":
        """Draw the sample from the texts of `passages` and take all of `held_out`."""
        return cls(sample_texts(passages, seed), list(held_out["query"]), list(held_out["passage"]), DOCUMENTS)

    def step_evaluator(self, backbone: Backbone, steps: int) -> StepEvaluator | None:
        """Return what scores `backbone` at so many steps of its training."""
        texts = self.queries[: self.step_documents], self.passages[: self.step_documents]
        return StepEvaluator.of(*texts, backbone.head, backbone.splitter, steps)

    def costing(
        self, tokens: float, tokenizer: PreTrainedTokenizerBase, steps: int, reporter: Reporter = SILENT
    ) -> "EvaluationTexts":
        """Return these texts with only so many of the held-out that all evaluation together embeds at most `tokens`.

        The first few are kept in any case (`FEWEST_DOCUMENTS`). Of the sample only what is embedded for the untrained map
        alone counts: the first of it give the head's centre too, and the trained map is learnt on all.
        """
        queries, passages, sample = (
            token_lengths(tokenizer, [texts])
            for texts in (self.queries, self.passages, self.sample[CENTRE_TEXTS:ENOUGH_TEXTS])
        )
        documents, step_documents = affordable(queries + passages, tokens - float(sample.sum()), steps)
        if documents < len(self.queries):
            reporter.note(
                f"Evaluation: on {documents} of the {len(self.queries)} held-out documents, within its share of the "
                "training's cost; on all: --set evaluation_share=none"
            )
        return replace(
            self, queries=self.queries[:documents], passages=self.passages[:documents], step_documents=step_documents
        )

    def embedded(
        self,
        embedder: SentenceTransformer,
        postprocessing: Postprocessing,
        cut_layers: int,
        reporter: Reporter,
        file: Path,
    ) -> Embedded:
        """Embed all texts without the last `cut_layers` layers, with the embedder as it is now, and learn its map.

        The file is called untrained or trained. Only the map of a trained embedder is learnt from the whole sample, from
        which more is learnt than the map. What was embedded is kept in `file` and reused as long as embedder and texts are
        the same.
        """
        sample = self.sample[:ENOUGH_TEXTS] if file.stem == "untrained" else self.sample
        centre, shown = min(CENTRE_TEXTS, len(sample)), min(SHOWN_TEXTS, len(self.passages))

        def embed_all() -> dict[str, Tensor]:
            with reporter.progress(
                f"Embedding, {file.stem}", len(sample) + len(self.queries) + len(self.passages), "texts"
            ) as progress:
                head_sample, begun = embed_at_two_depths(embedder, sample[:centre], cut_layers, progress)
                said, first = embed_at_two_depths(embedder, self.passages[:shown], cut_layers, progress)
                with without_last_layers(embedder, cut_layers):
                    return {
                        "head_sample": head_sample,
                        "shown": said,
                        "sample": torch.cat([begun, embed(embedder, sample[centre:], progress)]),
                        "queries": embed(embedder, self.queries, progress),
                        "passages": torch.cat([first, embed(embedder, self.passages[shown:], progress)]),
                    }

        backend = tokenizer_of(embedder).backend_tokenizer
        backend.no_padding()  # its state before its first use
        backend.no_truncation()
        made_from = model_fingerprint(embedder), cut_layers, sample, self.queries, self.passages
        vectors = kept_in(file, *made_from, make=embed_all)
        return Embedded(whitening=fit_postprocessing(vectors["sample"], postprocessing), **vectors)


def affordable(pair_tokens: NDArray[np.int64], tokens: float, steps: int) -> tuple[int, int]:
    """Return how many held-out documents to evaluate, and how many of them at evaluation steps, within `tokens` to embed.

    `pair_tokens`, shape (documents,), are those of query and passage together. Each document is embedded twice, before
    training and after; those of evaluation steps once more before the first and at each. These steps may take a third.
    """
    costs = np.cumsum(pair_tokens)
    least = min(FEWEST_DOCUMENTS, len(costs))
    step_documents = 0
    if steps:
        step_documents = min(DOCUMENTS, max(least, int(np.searchsorted((steps + 1) * costs, tokens / 3, side="right"))))
    spent = (steps + 1) * costs[step_documents - 1] if step_documents else 0
    return max(least, step_documents, int(np.searchsorted(2 * costs, tokens - spent, side="right"))), step_documents


def kept_in(file: Path, *made_from: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors in `file`; where there are none, or `made_from` something else, `make` them and keep them there."""
    same = digest(*made_from)
    try:
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("made_from") == same:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        pass
    made = make()
    with atomic_file(file) as path:
        save_file(made, path, {"made_from": same})
    return made


def compare(
    texts: EvaluationTexts,
    passages: Dataset,
    untrained: Embedded,
    trained: Embedded,
    backbone: Backbone,
    centre: Tensor,
) -> Evaluation | None:
    """Return the scores before and after, beside TF-IDF fitted on `passages`; None when no document is held out.

    `centre`, shape (dimension,), is what training subtracts from embeddings before the head.
    """
    if not texts.queries:
        return None

    def scores(embedded: Embedded) -> RetrievalScores:
        return dense_scores(embedded.whitening(embedded.queries), embedded.whitening(embedded.passages))

    def key_tokens(embedded: Embedded) -> list[Sequence[KeyToken]]:
        return backbone.splitter.words.key_tokens(backbone.head(embedded.shown - embedded.head_centre))

    fitted_on = passages.select(range(min(len(passages), TFIDF_SAMPLE)))
    return Evaluation(
        untrained=scores(untrained),
        trained=scores(trained),
        tfidf=tfidf_scores(texts.queries, texts.passages, list(fitted_on["text"])),
        texts=texts.passages[:SHOWN_TEXTS],
        key_tokens_untrained=key_tokens(untrained),
        key_tokens_trained=key_tokens(trained),
        change=change_of(
            untrained.head_sample,
            trained.head_sample,
            centre,
            backbone.splitter.words_in(texts.sample[:CENTRE_TEXTS], backbone.room),
            backbone.head,
            backbone.splitter.words,
        ),
    )
