"""Words: which tokens spell one, its probability under a language-model head, and which words stand in a text.

A vocabulary holds a word several times ("girl", "␣girl", "Girl"). What a head gives a word is one thing everywhere, in
targets, in tables and in the history of a training: the probability of all its spellings,

    p(word) = sum over the tokens that spell it of softmax(logits)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text2token.recipe import VocabularySettings
from text2token.tokens.vocabulary import (
    NOT_A_TARGET,
    TargetVocabulary,
    is_of_a_word,
    is_unspaced,
    token_forms,
    tokenise,
)

SMALLEST = 1e-30  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class KeyToken:
    """A word and its weight: in a target, or decoded from an embedding (of a head, its probability)."""

    word: str
    weight: float


@dataclass(frozen=True)
class Words:
    """The words of a target vocabulary, in `lexicon`, and their tokens.

    `forms`, shape (words, 2), are the token ids that stand for each in targets. `tokens` are all ids that spell some word,
    those of one word in a row; word i begins at `starts[i]`.
    """

    lexicon: tuple[str, ...]
    forms: NDArray[np.int32]
    tokens: Tensor
    starts: NDArray[np.int64]
    vocabulary_size: int

    @classmethod
    def of(cls, vocabulary: TargetVocabulary, *, whole: bool = False) -> "Words":
        """Return all words of a vocabulary, or only `whole` ones, which are not just pieces of words."""
        first = vocabulary.representatives[:, 0]
        tokens = np.flatnonzero(first != NOT_A_TARGET)
        if whole:
            tokens = tokens[[vocabulary.words[token] in vocabulary.whole_words for token in tokens]]
        tokens = tokens[np.argsort(first[tokens], kind="stable")]
        heads, starts = np.unique(first[tokens], return_index=True)
        lexicon = tuple(vocabulary.words[token] for token in heads)
        return cls(lexicon, vocabulary.representatives[heads], torch.from_numpy(tokens), starts, vocabulary.size)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return p of each word, shape (rows, words), from logits of all tokens, shape (rows, vocabulary size or more)."""
        of_tokens = logits[:, : self.vocabulary_size].float().softmax(-1)[:, self.tokens].cpu().numpy()
        return torch.from_numpy(np.add.reduceat(of_tokens, self.starts, axis=1))

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log p of each word, shape (rows, words)."""
        return self.probabilities(logits).clamp(min=SMALLEST).log()

    def key_tokens(self, logits: Tensor, k: int = 8) -> list[Sequence[KeyToken]]:
        """Return the `k` most probable words of each row of logits, the first first.

        Raw logits are ruled by a prior of function words. Those of an embedding less the mean embedding of a corpus show the
        words that set its text apart.
        """
        best = torch.topk(self.probabilities(logits), min(k, len(self.lexicon)))
        return [
            [KeyToken(self.lexicon[index], weight) for weight, index in zip(weights, indices, strict=True)]
            for weights, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def as_tokens(self, words: NDArray[np.int64], weights: NDArray[np.float64]) -> csr_array:
        """Return weights of words, both of shape (texts, k), as weights of the tokens that stand for them."""
        forms = self.forms[words]  # (texts, k, 2)
        named = forms != NOT_A_TARGET
        shares = np.where(named, weights[..., None] / named.sum(-1, keepdims=True), 0)
        text = np.broadcast_to(np.arange(len(words))[:, None, None], forms.shape)
        return csr_array((shares[named], (text[named], forms[named])), shape=(len(words), self.vocabulary_size))


class WordSplitter:
    """Texts to the words that can be decoded: target tokens that are whole words, by their merged spellings.

    Pieces ("bu" of "bubblewrap", "ings" of "bindings") mean nothing by themselves, so a token counts only where a word
    begins and ends with it; in scripts that set no spaces between words every target token is one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: VocabularySettings | None = None) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = TargetVocabulary.from_tokenizer(tokenizer, settings)
        words = self.vocabulary.words
        forms, _ = token_forms(tokenizer)
        self.word_of = [
            word if word in self.vocabulary.whole_words and first != NOT_A_TARGET else ""
            for word, first in zip(words, self.vocabulary.representatives[:, 0].tolist(), strict=True)
        ]
        self._unspaced = [is_unspaced(word) for word in words]
        # a fragment of a character has no text; it is part of a word
        self._continues = [not form.starts_word and (is_of_a_word(form.text[:1]) or not form.text) for form in forms]
        self._is_open = [is_of_a_word(form.text[-1:]) or not (form.text or form.starts_word) for form in forms]

    @cached_property
    def words(self) -> "Words":
        """The words that can be decoded, and the tokens that spell them."""
        return Words.of(self.vocabulary, whole=True)

    def words_in(self, texts: Sequence[str], max_tokens: int) -> list[frozenset[str]]:
        """Return the words in the first `max_tokens` tokens of each text."""
        return [frozenset(self._found(ids[:max_tokens])) for ids in tokenise(self.tokenizer, texts)]

    def _found(self, ids: Sequence[int]) -> Iterator[str]:
        for place, token_id in enumerate(ids):
            if word := self.word_of[token_id]:
                begins = not self._continues[token_id] or not place or not self._is_open[ids[place - 1]]
                ends = place + 1 == len(ids) or not self._continues[ids[place + 1]]
                if self._unspaced[token_id] or (begins and ends):
                    yield word
