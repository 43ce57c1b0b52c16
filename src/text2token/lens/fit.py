"""How a reader is learnt: ridge regression in closed form, from embeddings to the words of the texts.

Two kinds, and their sum. From words: the target of a text is its tf-idf vector (each word counted once, unit length), so any
embedder can be read, given a corpus. From a head: the target is the hidden state that the head reads, and
the words' directions are the head's rows seen through the regression. The first knows which words this corpus uses, the
second which set a text apart; their sum reads better than either (docs/lens.md).
The strength of the ridge is the one with the smallest leave-one-out error, which has a closed form too (scikit-learn).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text2token.corpus.published import published_model
from text2token.errors import CorpusError
from text2token.lens.reader import ReaderCard, TokenReader
from text2token.model.backbone import NO_LIMIT
from text2token.model.bundle import Backbone
from text2token.model.head import LanguageModelHead
from text2token.recipe import VocabularySettings
from text2token.tokens.vocabulary import NOT_A_TARGET, tokenizer_fingerprint
from text2token.tokens.words import Words, WordSplitter

MIN_TEXTS = 3  # with a word in them, for the word to be read
MAX_WORDS = 10_000  # the most frequent ones: a matrix of texts × words is held in memory
FEWEST_TEXTS = 20
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the ridge, in units of the mean squared singular value


def learn_from_words(
    texts: Sequence[str],
    embeddings: Tensor,
    probe: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: VocabularySettings | None = None,
    max_tokens: int = NO_LIMIT,
    source: str = "",
) -> TokenReader:
    """Return a reader of any embedder: `embeddings`, shape (texts, dimension), regressed on the words of `texts`.

    `probe` is what the embedder gives for `PROBE`. `tokenizer` decides what a word is: that of the model or another one.
    Some thousand texts are enough, more are better. Raises `CorpusError` when there are too few.
    """
    vocabulary = vocabulary or VocabularySettings()
    words_of = WordSplitter(tokenizer, vocabulary).words_in(texts, max_tokens)
    counts = Counter(word for words in words_of for word in words)
    if len(texts) < FEWEST_TEXTS or max(counts.values(), default=0) < MIN_TEXTS:
        raise CorpusError(
            f"a reader cannot be learnt from {len(texts)} texts: at least {FEWEST_TEXTS} are needed, better a thousand, "
            f"and words that occur in {MIN_TEXTS} of them"
        )
    counter = TfidfVectorizer(analyzer=sorted, binary=True, min_df=MIN_TEXTS, max_features=MAX_WORDS)
    targets = counter.fit_transform(words_of).toarray()
    card = ReaderCard("tf-idf", source, len(texts), max_tokens, vocabulary, tokenizer_fingerprint(tokenizer))
    mean, directions = _regressed(embeddings, targets)
    lexicon = tuple(str(word) for word in counter.get_feature_names_out())
    return TokenReader(card, lexicon, directions, mean, probe.float(), tokenizer)


def learn_from_head(
    states: Tensor,
    embeddings: Tensor,
    probe: Tensor,
    head: LanguageModelHead,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: VocabularySettings | None = None,
    max_tokens: int = NO_LIMIT,
    source: str = "",
) -> TokenReader:
    """Return a reader that decodes as `head` would: `states`, shape (texts, head's dimension), are what the head can read.

    `embeddings`, shape (texts, dimension), are those of the same texts after post-processing. The states are read from
    their mean, so a bias of the head, the prior of all texts, plays no part; nor does a soft cap, which changes no order.
    Any word of the vocabulary can be decoded, whether the texts hold it or not.
    """
    vocabulary = vocabulary or VocabularySettings()
    words = WordSplitter(tokenizer, vocabulary).words
    mean, to_state = _regressed(embeddings, states.double().numpy())
    card = ReaderCard("head", source, len(embeddings), max_tokens, vocabulary, tokenizer_fingerprint(tokenizer))
    return TokenReader(card, words.lexicon, head_directions(head, words) @ to_state, mean, probe.float(), tokenizer)


def learn_from_both(
    backbone: Backbone, texts: Sequence[str], embeddings: Tensor, probe: Tensor, states: Tensor, source: str
) -> TokenReader:
    """Return the reader of an embedder made of `backbone`, from the words of `texts` and from what its head decodes.

    `embeddings`, shape (texts, dimension), are the embedder's, `probe` is what it gives for `PROBE`; `states`, the head's
    inputs, are those of the first texts. `source` is where the texts are from. Raises `CorpusError` when there are too few.
    """
    tokenizer, rules = backbone.tokenizer, backbone.vocabulary.settings
    words = learn_from_words(texts, embeddings, probe, tokenizer, vocabulary=rules, max_tokens=backbone.room, source=source)
    by_head = learn_from_head(
        states,
        embeddings[: len(states)],
        probe,
        backbone.head,
        tokenizer,
        vocabulary=rules,
        max_tokens=backbone.room,
        source=published_model(backbone.settings.name),
    )
    return joined(words, by_head, embeddings)


def joined(words: TokenReader, head: TokenReader, embeddings: Tensor) -> TokenReader:
    """Return the reader whose score is the sum of both readers' scores, each in units of its spread over `embeddings`.

    Both are of one model and one tokenizer; `embeddings`, shape (texts, dimension), are some of the model's. Words that only
    the head knows have its half of the score.
    """
    directions = head.directions / head.scores(embeddings).std()
    place = {word: row for row, word in enumerate(head.lexicon)}
    directions[[place[word] for word in words.lexicon]] += words.directions / words.scores(embeddings).std()
    card = replace(words.card, reads="both", source=f"{words.card.source}; head of {head.card.source}")
    return replace(words, card=card, lexicon=head.lexicon, directions=directions)


def head_directions(head: LanguageModelHead, words: Words) -> Tensor:
    """Return the directions of `words` among the states that `head` reads, shape (words, head's dimension).

    A probability is no linear function of a state, so a word's direction is the mean row of the tokens that stand for it.
    """
    first, second = torch.from_numpy(words.forms).long().T
    rows = head.weight[first].cpu()
    two = second != NOT_A_TARGET
    rows[two] = (rows[two] + head.weight[second[two]].cpu()) / 2
    rows *= head.scale
    return rows - rows.mean(0)  # what all rows share changes no probability


def _regressed(embeddings: Tensor, targets: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Return the mean embedding and the coefficients, shape (targets, dimension), of a ridge regression in float64.

    Raises `CorpusError` where the embeddings do not differ.
    """
    found = embeddings.double()
    mean = found.mean(0)
    if torch.allclose(found, mean.expand_as(found), rtol=1e-9, atol=0):
        raise CorpusError("a reader cannot be learnt: the model gives every text the same vector")
    of_ridge = float((found - mean).square().sum()) / min(len(found) - 1, found.shape[1])
    regression = RidgeCV(alphas=[strength * of_ridge for strength in STRENGTHS]).fit(found.numpy(), targets)
    return mean.float(), torch.from_numpy(regression.coef_).float().reshape(targets.shape[1], -1)  # of one target it is flat
