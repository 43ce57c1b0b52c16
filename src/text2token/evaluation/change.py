"""What training changed, along the singular directions of the untrained embeddings, and which of them carry the words.

The question and the basis are the precursor's (arXiv 2406.17378), the reading is ours. Of the untrained embeddings of some
texts, nothing subtracted, so that the first direction is nearly that of their mean:

    before = U S Vᵀ, the singular directions V, the largest first

Each direction is told by its coordinate, the mean over the texts of embedding · v, before and after, and by its share of the
squared change. Embeddings that have gone only along the first r directions, before + (after - before) Vᵣ Vᵣᵀ, are read
through the head as training reads them: where the words appear, there they were carried. The directions of few texts do not
span all dimensions; the last part is the whole change, beyond them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.errors import CorpusError
from text2token.evaluation.history import word_scores
from text2token.lens.metrics import alignment_of_scores
from text2token.lens.reader import WordSplitter
from text2token.model.head import LanguageModelHead

RANKS = (0, 1, 4, 16, 64)
SHOWN_DIRECTIONS = 4
SHOWN_WORDS = 6


@dataclass(frozen=True)
class Part:
    """The change along the first `directions`: its `share` of the squared length of all, and what embeddings say that have
    gone along these only: is the word said most in the text, how many of the first ten are, GAR. All in percent.
    """

    directions: int
    share: float
    hit_at_1: float
    precision_at_10: float
    gar: float = 0.0


@dataclass(frozen=True)
class Direction:
    """One direction: its `share` of the squared change in percent, the mean coordinate of the texts `before` (not negative)
    and `after`, and the words towards either end, the most said first.
    """

    share: float
    one_way: list[str]
    other_way: list[str]
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Change:
    """What training did to the embeddings of `texts` texts. `length` is that of the change, as a share of theirs before.

    `basis` is "untrained" where the directions are those of the untrained embeddings; those of earlier versions were those
    of the change itself.
    """

    texts: int
    length: float
    parts: list[Part]
    directions: list[Direction]
    basis: str = "change"


def change_of(
    before: Tensor,
    after: Tensor,
    centre: Tensor,
    texts: Sequence[str],
    head: LanguageModelHead,
    splitter: WordSplitter,
    max_tokens: int,
) -> Change | None:
    """Return how the change from `before` to `after`, each shape (texts, dimension), carries the words of `texts`.

    `centre`, shape (dimension,), is what training takes from embeddings before the head reads them; `max_tokens` is how much
    of a text the model sees. None where nothing has changed or no text holds a word.
    """
    before, after, centre = before.float().cpu(), after.float().cpu(), centre.float().cpu()
    moved = after - before
    if not moved.any():
        return None
    basis = torch.linalg.svd(before, full_matrices=False)[2]
    basis = basis * torch.where(before.mean(0) @ basis.T < 0, -1, 1)[:, None]  # their signs are arbitrary: choose
    along = moved @ basis.T  # (texts, directions)
    shares = 100 * along.square().sum(0) / moved.square().sum()
    words_of = splitter.words_in(texts, max_tokens)
    steps = [(rank, along[:, :rank] @ basis[:rank]) for rank in RANKS if rank < len(basis)] + [(before.shape[1], moved)]
    parts = []
    for rank, step in steps:
        lexicon, scores = word_scores(before + step - centre, head, splitter)
        try:
            said = alignment_of_scores(scores, lexicon, words_of)
        except CorpusError:
            return None
        share = 100.0 if step is moved else float(shares[:rank].sum())
        parts.append(Part(rank, share, said.hit_at_1, said.precision_at_10, said.gar))
    shown = basis[:SHOWN_DIRECTIONS]
    coordinates = [(embeddings.mean(0) @ shown.T).tolist() for embeddings in (before, after)]
    directions = [
        Direction(share, one, other, start, end)
        for share, (one, other), start, end in zip(shares.tolist(), _ends(shown, head, splitter), *coordinates, strict=False)
    ]
    return Change(len(texts), float(moved.norm() / before.norm()), parts, directions, basis="untrained")


def _ends(directions: Tensor, head: LanguageModelHead, splitter: WordSplitter) -> list[tuple[list[str], list[str]]]:
    """Return the words said most at either end of each direction."""
    lexicon, scores = word_scores(torch.cat([directions, -directions]), head, splitter)
    best = torch.topk(scores, min(SHOWN_WORDS, len(lexicon))).indices.tolist()
    said = [[lexicon[index] for index in row] for row in best]
    return list(zip(said[: len(directions)], said[len(directions) :], strict=True))
