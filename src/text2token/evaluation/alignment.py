"""How much of a text its embedding says: Hit@k, LAR and GAR of "A Text is Worth Several Tokens" (arXiv 2406.17378).

With Tᵢ the words of text i and Sᵢ(k) the k words that its embedding says most:

    Hit@k = share of texts of which some word of Sᵢ(k) is in Tᵢ
    LAR   = mean over texts of |Sᵢ(|Tᵢ|) ∩ Tᵢ| / |Tᵢ|             local alignment rate
    GAR   = |∪ᵢ (Sᵢ(|Tᵢ|) ∩ Tᵢ)| / |∪ᵢ Tᵢ|                        global alignment rate: how diverse is what is said

The names, Hit@k and GAR are the paper's: a word counts where its own text says it, not where another one does. That LAR and
GAR look as deep as the text is long is inferred from digests of it. What differs on purpose: T and S hold whole words that
may be targets, merged spellings, and no special tokens, function words or punctuation, with which a model that says "the" of
everything would always hit; texts without any such word are left out. The depth is cut at the number of words that the
reader knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.errors import CorpusError


@dataclass(frozen=True)
class Alignment:
    """Rates in percent over `texts` texts: Hit@1, Hit@5 and Hit@10, the share of the first ten said that is in the text,
    LAR and GAR.
    """

    texts: int
    hit_at_1: float
    hit_at_5: float
    hit_at_10: float
    precision_at_10: float
    lar: float
    gar: float


def alignment_of_scores(scores: Tensor, lexicon: Sequence[str], words_of: Sequence[frozenset[str]]) -> Alignment:
    """Return how well scores, shape (texts, words of `lexicon`), say the words of each text.

    The texts must not be those that a reader was learnt on. Raises `CorpusError` when none of them has a word to say.
    """
    rows = [row for row, words in enumerate(words_of) if words]
    if not rows:
        raise CorpusError("none of the texts holds a word that a token of this vocabulary could say")
    depth = min(max(10, *(len(words_of[row]) for row in rows)), len(lexicon))
    ranked = torch.topk(scores[rows], depth).indices.tolist()
    hits = {1: 0, 5: 0, 10: 0}
    in_ten = lar = 0.0
    said: set[str] = set()
    for row, indices in zip(rows, ranked, strict=True):
        there, says = words_of[row], [lexicon[index] for index in indices]
        for k in hits:
            hits[k] += not there.isdisjoint(says[:k])
        in_ten += len(there.intersection(says[:10])) / 10
        lar += len(there.intersection(says[: len(there)])) / len(there)
        said.update(there.intersection(says[: len(there)]))
    everything = frozenset().union(*words_of)
    hit_1, hit_5, hit_10 = (100 * count / len(rows) for count in hits.values())
    gar = len(said) / len(everything)
    return Alignment(len(rows), hit_1, hit_5, hit_10, 100 * in_ten / len(rows), 100 * lar / len(rows), 100 * gar)
