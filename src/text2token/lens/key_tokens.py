"""What an embedding says: decoded through the head, its key tokens.

The raw logits are ruled by a prior of function words; subtracting the mean embedding of a corpus first reveals the words
that set this text apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text2token.model.head import LanguageModelHead
from text2token.tokens.vocabulary import TargetVocabulary


@dataclass(frozen=True)
class KeyToken:
    """A word that an embedding says, with its probability among all words of the target vocabulary."""

    word: str
    weight: float


def key_tokens(
    embeddings: Tensor, head: LanguageModelHead, vocabulary: TargetVocabulary, centre: Tensor, k: int = 8
) -> list[Sequence[KeyToken]]:
    """Return the `k` strongest key tokens of each embedding, strongest first.

    `embeddings` has shape (texts, dimension), not normalised. Spellings of one word ("girl", "␣girl") are added up; what is
    only ever a piece of a word is left out.
    """
    probabilities = head(embeddings - centre)[:, : vocabulary.size].softmax(-1).cpu()
    result: list[Sequence[KeyToken]] = []
    for row in probabilities:
        weights: dict[str, float] = {}
        # far more than k candidates, since spellings of one word fall together
        candidates = torch.topk(row[torch.from_numpy(vocabulary.target_ids).long()], min(16 * k, len(vocabulary.target_ids)))
        for value, index in zip(candidates.values.tolist(), candidates.indices.tolist(), strict=True):
            word = vocabulary.words[int(vocabulary.target_ids[index])]
            if word in vocabulary.whole_words:
                weights[word] = weights.get(word, 0.0) + value
        strongest = sorted(weights.items(), key=lambda pair: -pair[1])[:k]
        result.append([KeyToken(word, weight) for word, weight in strongest])
    return result
