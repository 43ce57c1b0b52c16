"""Along which directions training changed the embeddings, and which of them carry the words.

The question is the precursor's (arXiv 2406.17378), the answer's form is ours. Embeddings of the same texts before and after,
each less its mean, as the head reads them:

    C = after - before      C = U S Vᵀ, the singular directions of the change, the largest first

Embeddings that have gone only along the first r directions, before + C Vᵣ Vᵣᵀ, are read through the head: where the words
appear, there they were carried.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.errors import CorpusError
from text2token.evaluation.along_the_way import word_scores
from text2token.head import LanguageModelHead
from text2token.lens.metrics import alignment_of_scores
from text2token.lens.reader import WordSplitter

RANKS = (0, 1, 4, 16, 64)
SHOWN_DIRECTIONS = 4
SHOWN_WORDS = 6


@dataclass(frozen=True)
class Part:
    """The first `directions` of the change: their `share` of its squared length, and what embeddings say that have gone
    along these only: is the word said most in the text, how many of the first ten are. All in percent.
    """

    directions: int
    share: float
    hit_at_1: float
    precision_at_10: float


@dataclass(frozen=True)
class Direction:
    """One direction: its `share` of the squared change in percent, and the words towards either end, the most said first."""

    share: float
    one_way: list[str]
    other_way: list[str]


@dataclass(frozen=True)
class Change:
    """What training did to the embeddings of `texts` texts. `length` is that of the change, as a share of theirs before."""

    texts: int
    length: float
    parts: list[Part]
    directions: list[Direction]


def change_of(
    before: Tensor, after: Tensor, texts: Sequence[str], head: LanguageModelHead, splitter: WordSplitter, max_tokens: int
) -> Change | None:
    """Return how the change from `before` to `after`, each shape (texts, dimension), carries the words of `texts`.

    `max_tokens` is how much of a text the model sees. None where nothing has changed or no text holds a word.
    """
    before, after = (embeddings.float().cpu() - embeddings.float().cpu().mean(0) for embeddings in (before, after))
    moved = after - before
    if not moved.any():
        return None
    sizes, directions = torch.linalg.svd(moved, full_matrices=False)[1:]
    shares = 100 * sizes.square() / sizes.square().sum()
    words_of = splitter.words_in(texts, max_tokens)
    parts = []
    for rank in [*(rank for rank in RANKS if rank < len(sizes)), len(sizes)]:
        kept = directions[:rank]
        lexicon, scores = word_scores(before + moved @ kept.T @ kept, head, splitter)
        try:
            said = alignment_of_scores(scores, lexicon, words_of)
        except CorpusError:
            return None
        parts.append(Part(rank, float(shares[:rank].sum()), said.hit_at_1, said.precision_at_10))
    length = float(moved.norm() / before.norm())
    return Change(len(texts), length, parts, _ends(directions[:SHOWN_DIRECTIONS], shares, head, splitter))


def _ends(directions: Tensor, shares: Tensor, head: LanguageModelHead, splitter: WordSplitter) -> list[Direction]:
    both_ways = torch.cat([directions, -directions])
    lexicon, scores = word_scores(both_ways, head, splitter)
    best = torch.topk(scores, min(SHOWN_WORDS, len(lexicon))).indices.tolist()
    said = [[lexicon[index] for index in row] for row in best]
    return [
        Direction(float(share), one, other)
        for share, one, other in zip(shares, said[: len(directions)], said[len(directions) :], strict=False)
    ]
