"""The same texts before and after training: scores, and what their embeddings say."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.backbone import Progress, embed, without_last_layers
from text2token.evaluation.change import Change, change_of
from text2token.evaluation.label_free import TFIDF_SAMPLE, RetrievalScores, dense_scores, tfidf_scores
from text2token.head import LanguageModelHead
from text2token.isotropy import Isotropy, Whitening, fit_isotropy, sample_texts
from text2token.lens.key_tokens import KeyToken, key_tokens
from text2token.lens.reader import WordSplitter
from text2token.vocabulary import TargetVocabulary

SHOWN_TEXTS = 3  # texts whose key tokens are shown before and after
CENTRE_TEXTS = 256  # for the mean alone, where whitening wants more: its error is a sixteenth of the texts' own spread


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
    """Pooled embeddings of the sample and the held-out texts, shape (texts, dimension), and the map that finishes them.

    What the head reads is apart, because it reads after the last layer: `head_sample`, the embeddings of the first
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
    """The texts that are embedded before and after training: a sample of the corpus for isotropy, and the held-out."""

    sample: list[str]
    queries: list[str]
    passages: list[str]

    @classmethod
    def of(cls, passages: Dataset, held_out: Dataset, seed: int) -> "EvaluationTexts":
        """Draw the sample from the texts of `passages` and take all of `held_out`."""
        return cls(sample_texts(passages, seed), list(held_out["query"]), list(held_out["passage"]))

    @property
    def count(self) -> int:
        """The number of texts to embed."""
        return len(self.sample) + len(self.queries) + len(self.passages)

    def embedded(self, embedder: SentenceTransformer, isotropy: Isotropy, cut_layers: int, progress: Progress) -> Embedded:
        """Embed all texts without the last `cut_layers` layers, with the embedder as it is now, and learn its map."""
        head_sample, shown = embed(embedder, self.sample[:CENTRE_TEXTS]), embed(embedder, self.passages[:SHOWN_TEXTS])
        with without_last_layers(embedder, cut_layers):
            sample = embed(embedder, self.sample, progress)
            queries, passages = embed(embedder, self.queries, progress), embed(embedder, self.passages, progress)
        return Embedded(head_sample, shown, fit_isotropy(sample, isotropy), sample, queries, passages)


def centre_for_head(embedder: SentenceTransformer, sample: Sequence[str]) -> Tensor:
    """Return the mean embedding of the first `CENTRE_TEXTS` of a sample, shape (dimension,): what the head reads from."""
    return embed(embedder, sample[:CENTRE_TEXTS]).mean(0)


def compare(
    texts: EvaluationTexts,
    passages: Dataset,
    untrained: Embedded,
    trained: Embedded,
    head: LanguageModelHead,
    vocabulary: TargetVocabulary,
    splitter: WordSplitter,
    max_tokens: int,
) -> Evaluation | None:
    """Return the scores before and after, beside TF-IDF fitted on `passages`; None when no document is held out.

    `max_tokens` is how much of a text the model sees.
    """
    if not texts.queries:
        return None

    def scores(embedded: Embedded) -> RetrievalScores:
        return dense_scores(embedded.whitening(embedded.queries), embedded.whitening(embedded.passages))

    def says(embedded: Embedded) -> list[Sequence[KeyToken]]:
        return key_tokens(embedded.shown, head, vocabulary, embedded.head_centre)

    fitted_on = passages.select(range(min(len(passages), TFIDF_SAMPLE)))
    return Evaluation(
        untrained=scores(untrained),
        trained=scores(trained),
        tfidf=tfidf_scores(texts.queries, texts.passages, list(fitted_on["text"])),
        texts=texts.passages[:SHOWN_TEXTS],
        key_tokens_untrained=says(untrained),
        key_tokens_trained=says(trained),
        change=change_of(
            untrained.head_sample, trained.head_sample, texts.sample[:CENTRE_TEXTS], head, splitter, max_tokens
        ),
    )
