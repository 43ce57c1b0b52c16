"""What training changed, along the singular directions of the untrained embeddings, and which of them carry the words.

The question and the basis are those of "A Text is Worth Several Tokens" (arXiv 2406.17378). Of the untrained embeddings of
some texts, nothing subtracted, so that the first direction is nearly that of their mean:

    before = U S Vᵀ, the singular directions V, the largest first

Each direction has its mean coordinate, embedding · v, before and after, and its share of the squared change. Embeddings that
have changed only along the first r directions, before + (after - before) Vᵣ Vᵣᵀ, are decoded through the head as in
training: where the words appear, there they were carried. Few texts do not span all dimensions; the last part is the whole
change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.errors import CorpusError
from text2token.evaluation.alignment import alignment_of_scores
from text2token.model.head import LanguageModelHead
from text2token.tokens.words import Words

RANKS = (0, 1, 4, 16, 64)
SHOWN_DIRECTIONS = 4
SHOWN_WORDS = 6


@dataclass(frozen=True)
class Part:
    """The change along the first `directions`: its `share` of the squared length, and how well embeddings that have changed
    along these alone decode to the words of their texts: Hit@1, the share of the first ten in the text, GAR. In percent.
    """

    directions: int
    share: float
    hit_at_1: float
    precision_at_10: float
    gar: float


@dataclass(frozen=True)
class Direction:
    """One direction: its `share` of the squared change in percent, the mean coordinate `before` (not negative) and `after`,
    and the decoded words of either end, the most probable first.
    """

    share: float
    before: float
    after: float
    one_way: list[str]
    other_way: list[str]


@dataclass(frozen=True)
class Change:
    """What training did to the embeddings of `texts` texts; `length` is that of the change as a share of theirs before."""

    texts: int
    length: float
    parts: list[Part]
    directions: list[Direction]


def change_of(
    before: Tensor,
    after: Tensor,
    centre: Tensor,
    words_of: Sequence[frozenset[str]],
    head: LanguageModelHead,
    words: Words,
) -> Change | None:
    """Return how the change from `before` to `after`, each of shape (texts, dimension), carries the words of the texts.

    `centre`, shape (dimension,), is subtracted before the head, as in training; `words_of` are the words of each text. None
    where nothing has changed or no text holds a word.
    """
    before, after, centre = before.float().cpu(), after.float().cpu(), centre.float().cpu()
    moved = after - before
    if not moved.any():
        return None
    basis = torch.linalg.svd(before, full_matrices=False)[2]
    basis = basis * torch.where(before.mean(0) @ basis.T < 0, -1, 1)[:, None]  # their signs are arbitrary: choose
    along = moved @ basis.T  # (texts, directions)
    shares = 100 * along.square().sum(0) / moved.square().sum()
    steps = [(rank, along[:, :rank] @ basis[:rank]) for rank in RANKS if rank < len(basis)] + [(before.shape[1], moved)]
    parts = []
    for rank, step in steps:
        try:
            decoded = alignment_of_scores(words.probabilities(head(before + step - centre)), words.lexicon, words_of)
        except CorpusError:
            return None
        share = 100.0 if step is moved else float(shares[:rank].sum())
        parts.append(Part(rank, share, decoded.hit_at_1, decoded.precision_at_10, decoded.gar))
    shown = basis[:SHOWN_DIRECTIONS]
    starts, ends = ((embeddings.mean(0) @ shown.T).tolist() for embeddings in (before, after))
    one_way, other_way = (_decoded(end, head, words) for end in (shown, -shown))
    directions = map(Direction, shares.tolist(), starts, ends, one_way, other_way)
    return Change(len(before), float(moved.norm() / before.norm()), parts, list(directions))


def _decoded(directions: Tensor, head: LanguageModelHead, words: Words) -> list[list[str]]:
    return [[token.word for token in row] for row in words.key_tokens(head(directions), SHOWN_WORDS)]
