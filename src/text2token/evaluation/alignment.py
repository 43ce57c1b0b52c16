"""Which words of a text its embedding decodes to: Hit@k, LAR, GAR of "A Text is Worth Several Tokens" (arXiv 2406.17378).

With Tᵢ the words of text i and Sᵢ(k) its top k decoded tokens:

    Hit@k = share of texts of which some word of Sᵢ(k) is in Tᵢ
    LAR   = mean over texts of |Sᵢ(|Tᵢ|) ∩ Tᵢ| / |Tᵢ|             local alignment rate
    GAR   = |∪ᵢ (Sᵢ(|Tᵢ|) ∩ Tᵢ)| / |∪ᵢ Tᵢ|                        global alignment rate: their diversity

The names, Hit@k and GAR are the paper's: a word counts where it is decoded from the text that has it. That
LAR and GAR take as many tokens as the text has words is inferred from digests of it. What differs on purpose: T and S hold
whole words that may be targets, merged spellings, and no special tokens, function words or punctuation, with which "the" for
every text would always hit; texts without any such word are left out. k is at most the number of words that the reader
knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.errors import CorpusError


@dataclass(frozen=True)
class Alignment:
    """Rates in percent over `texts` texts: Hit@1, Hit@5 and Hit@10, the share of the top 10 that is in the text, LAR
    and GAR.
    """

    texts: int
    hit_at_1: float
    hit_at_5: float
    hit_at_10: float
    precision_at_10: float
    lar: float
    gar: float


def alignment_of_scores(scores: Tensor, lexicon: Sequence[str], words_of: Sequence[frozenset[str]]) -> Alignment:
    """Return how well scores, shape (texts, words of `lexicon`), rank the words of each text.

    A reader must not have been learnt on the texts. Raises `CorpusError` when none of them has a word of the lexicon.
    """
    rows = [row for row, words in enumerate(words_of) if words]
    if not rows:
        raise CorpusError("none of the texts holds a word that is a token of this vocabulary")
    depth = min(max(10, *(len(words_of[row]) for row in rows)), len(lexicon))
    ranked = torch.topk(scores[rows], depth).indices.tolist()
    hits = {1: 0, 5: 0, 10: 0}
    in_ten = lar = 0.0
    found: set[str] = set()
    for row, indices in zip(rows, ranked, strict=True):
        there, decoded = words_of[row], [lexicon[index] for index in indices]
        for k in hits:
            hits[k] += not there.isdisjoint(decoded[:k])
        in_ten += len(there.intersection(decoded[:10])) / 10
        lar += len(there.intersection(decoded[: len(there)])) / len(there)
        found.update(there.intersection(decoded[: len(there)]))
    everything = frozenset().union(*words_of)
    hit_1, hit_5, hit_10 = (100 * count / len(rows) for count in hits.values())
    gar = len(found) / len(everything)
    return Alignment(len(rows), hit_1, hit_5, hit_10, 100 * in_ten / len(rows), 100 * lar / len(rows), 100 * gar)
