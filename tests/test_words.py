"""What a head gives a word is one thing: the probability of all its spellings."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from text2token.tokens.vocabulary import NOT_A_TARGET, TargetVocabulary
from text2token.tokens.words import Words, WordSplitter


@pytest.fixture(scope="module")
def splitter(byte_level_tokenizer: PreTrainedTokenizerFast) -> WordSplitter:
    return WordSplitter(byte_level_tokenizer)


@pytest.fixture(params=[False, True], ids=["all", "whole"])
def words(request: pytest.FixtureRequest, splitter: WordSplitter) -> Words:
    return Words.of(splitter.vocabulary, whole=request.param)


def test_a_word_has_the_probability_of_all_its_spellings(words: Words, splitter: WordSplitter) -> None:
    vocabulary: TargetVocabulary = splitter.vocabulary
    logits = torch.randn(3, vocabulary.size + 5, generator=torch.Generator().manual_seed(0))
    found = words.probabilities(logits)
    of_tokens = logits[:, : vocabulary.size].softmax(-1)
    for number, word in enumerate(words.lexicon):
        spellings = [
            token
            for token, name in enumerate(vocabulary.words)
            if name == word and vocabulary.representatives[token, 0] != NOT_A_TARGET
        ]
        assert torch.allclose(found[:, number], of_tokens[:, spellings].sum(1), atol=1e-7)
    assert torch.allclose(words.log_probabilities(logits), found.log())


def test_pieces_of_words_are_no_whole_words(splitter: WordSplitter) -> None:
    every, whole = Words.of(splitter.vocabulary), splitter.words
    assert set(whole.lexicon) == {word for word in splitter.word_of if word} < set(every.lexicon)


def test_an_embedding_that_points_at_a_word_says_it(splitter: WordSplitter) -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(splitter.vocabulary.size, 16, generator=torch.Generator().manual_seed(0))
    )
    for token in [token for token, word in enumerate(splitter.word_of) if word][::5]:
        first, second = splitter.words.key_tokens(50 * rows[token][None] @ rows.T, 2)[0]
        assert first.word == splitter.word_of[token]
        assert 1 >= first.weight > second.weight


def test_the_weight_of_a_word_goes_to_the_tokens_that_stand_for_it(words: Words) -> None:
    chosen, weights = np.array([[0, 3], [2, 1]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    found = words.as_tokens(chosen, weights).toarray()
    assert np.allclose(found.sum(1), 1)
    for row in range(2):
        for word, weight in zip(chosen[row], weights[row], strict=True):
            forms = [form for form in words.forms[word] if form != NOT_A_TARGET]
            assert np.allclose(found[row, forms], weight / len(forms))
