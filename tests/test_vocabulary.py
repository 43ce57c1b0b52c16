"""Key tokens are words; their spellings are one; another tokenizer is another vocabulary."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from text2token.errors import UsageError
from text2token.recipe import VocabularySettings
from text2token.tokens.vocabulary import NOT_A_TARGET, TargetVocabulary, token_forms

TOKENIZERS = ["byte_level_tokenizer", "sentencepiece_tokenizer", "wordpiece_tokenizer"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def represented_words(tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary, text: str) -> set[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = vocabulary.representatives[ids]
    return {vocabulary.words[i] for i in found[found != NOT_A_TARGET]}


def test_content_words_stay_and_the_rest_goes(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    words = represented_words(tokenizer, vocabulary, "The girl and the thread, hair; music.")
    assert {"girl", "thread", "hair"} <= words
    assert not {"the", "and", ",", ";", "."} & words


def test_no_special_token_or_byte_fragment_is_a_target(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer, VocabularySettings(stop_words="off"))
    for token_id in vocabulary.target_ids.tolist():
        assert token_id not in tokenizer.all_special_ids
        text = tokenizer.decode([token_id])
        assert "\ufffd" not in text
        assert any(character.isalnum() for character in text)


def test_representatives_are_stable_under_themselves(tokenizer: PreTrainedTokenizerFast) -> None:
    both = TargetVocabulary.from_tokenizer(tokenizer)
    for vocabulary in (both, both.with_one_form()):
        targets = vocabulary.representatives[vocabulary.target_ids]
        assert {*np.unique(targets)} <= {*vocabulary.target_ids, NOT_A_TARGET}
        assert all(target in row for target, row in zip(vocabulary.target_ids, targets, strict=True))


def test_spellings_merge_and_one_form_may_stand_for_all(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_level_tokenizer.get_vocab()
    inside, capital = ids["Ġgirl"], ids["ĠGirl"]
    both = TargetVocabulary.from_tokenizer(byte_level_tokenizer)
    assert both.representatives[inside][0] == both.representatives[capital][0] == inside
    assert both.with_one_form().representatives[capital].tolist() == [inside, NOT_A_TARGET]
    assert both.with_one_form().fingerprint != both.fingerprint


def test_a_piece_of_a_word_is_no_whole_word(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    forms, _ = token_forms(tokenizer)
    begun = {word for word, form in zip(vocabulary.words, forms, strict=True) if form.starts_word}
    assert {"girl", "thread"} <= vocabulary.whole_words
    assert all(word in begun or not word.isascii() for word in vocabulary.whole_words)
    assert any(word and word not in vocabulary.whole_words for word in vocabulary.words)


def test_two_forms_share_a_words_weight(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(byte_level_tokenizer)
    two_forms = vocabulary.representatives[:, 1] != NOT_A_TARGET
    assert two_forms.any()
    assert (vocabulary.form_shares[vocabulary.representatives[two_forms]] == 0.5).all()


def test_sentencepiece_spaces_and_bytes_are_read(sentencepiece_tokenizer: PreTrainedTokenizerFast) -> None:
    forms, special = token_forms(sentencepiece_tokenizer)
    ids = sentencepiece_tokenizer.get_vocab()
    assert forms[ids["▁girl"]].starts_word
    assert forms[ids["▁girl"]].text == "girl"
    assert forms[ids["<0xE4>"]].text == ""
    assert ids["</s>"] in special


def test_stop_words_by_language_and_off(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    def words(languages: str) -> set[str]:
        vocabulary = TargetVocabulary.from_tokenizer(byte_level_tokenizer, VocabularySettings(stop_words=languages))
        return {vocabulary.words[i] for i in vocabulary.target_ids}

    assert "the" in words("off")
    assert "the" not in words("en")
    assert "auf" in words("en")
    assert not {"the", "auf"} & words("en+de")
    with pytest.raises(UsageError, match="no stop words for language 'xx'"):
        words("xx")


def test_fingerprint_follows_tokenizer_and_rules_but_not_padding(
    byte_level_tokenizer: PreTrainedTokenizerFast, wordpiece_tokenizer: PreTrainedTokenizerFast
) -> None:
    def fingerprint(tokenizer: PreTrainedTokenizerFast, **rules: str) -> str:
        return TargetVocabulary.from_tokenizer(tokenizer, VocabularySettings(**rules)).fingerprint  # type: ignore[arg-type]

    reference = fingerprint(byte_level_tokenizer)
    byte_level_tokenizer("some text", padding="max_length", truncation=True, max_length=9)
    assert fingerprint(byte_level_tokenizer) == reference
    others = {
        fingerprint(wordpiece_tokenizer),
        fingerprint(byte_level_tokenizer, stop_words="off"),
    }
    assert len(others | {reference}) == 3
