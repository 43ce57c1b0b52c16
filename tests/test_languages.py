"""Key tokens are words in other languages as well: Chinese, German, Arabic, Hindi. The sentences are ours."""

import unicodedata
from collections.abc import Sequence

import pytest
from conftest import TEXTS, trained_byte_level, trained_sentencepiece
from transformers import PreTrainedTokenizerFast

from text2token.corpus.prepare import split_text
from text2token.recipe import VocabularySettings
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary, folded
from text2token.tokens.words import WordSplitter

SENTENCES = {
    "zh": [
        "我的猫在沙发上睡觉，因为外面下雨。",
        "这只猫很喜欢沙发，也喜欢音乐。",
        "老师和学生在学校里学习音乐。",
        "学生们昨天在学校看见了一只猫。",
        "外面下雨的时候，老师在家里睡觉。",
        "他们把新的沙发送到了学校。",
    ],
    "de": [
        "Die Katze schläft auf dem Sofa, weil es draußen regnet.",
        "Auf der Straße regnet es, und die Katze bleibt auf dem Sofa.",
        "Der Lehrer und die Schüler lernen in der Schule Musik.",
        "Die Schüler haben gestern auf der Straße eine Katze gesehen.",
        "Wenn es regnet, schläft der Lehrer auf dem Sofa.",
        "In der Schule ist die Straße ein Thema, und Musik auch.",
    ],
    "ar": [
        "القطة تنام على الأريكة لأن المطر يهطل في الخارج.",
        "هذه القطة تحب الأريكة وتحب الموسيقى.",
        "المعلم في المدرسة يحب الموسيقى، والقطة تنام.",
        "هل رأى المعلم القطة في المدرسة؟",
        "عندما يهطل المطر ينام المعلم على الأريكة.",
        "المدرسة في الخارج، والموسيقى في المدرسة.",
    ],
    "hi": [
        "बिल्ली सोफ़े पर सो रही है क्योंकि बाहर बारिश हो रही है।",
        "यह बिल्ली सोफ़े को और संगीत को पसंद करती है।",
        "शिक्षक और छात्र विद्यालय में संगीत सीखते हैं।",
        "छात्र ने कल विद्यालय में एक बिल्ली देखी।",
        "जब बारिश होती है तो शिक्षक सोफ़े पर सोते हैं।",
        "विद्यालय के बाहर बारिश है और संगीत भी है।",
    ],
}
CONTENT = {
    "zh": {"猫", "沙发", "睡觉"},
    "de": {"katze", "schläft", "sofa", "regnet"},
    "ar": {"القطة", "تنام", "الاريكة"},
    "hi": {"बिल्ली", "बारिश", "बाहर"},
}
FUNCTION = {
    "zh": {"我", "的", "在", "因为"},
    "de": {"die", "auf", "dem", "es"},
    "ar": {"على", "في"},
    "hi": {"पर", "है", "हो"},
}
LANGUAGES = sorted(SENTENCES)


TOKENIZERS = {
    # pieces that two sentences share; with all of them a Chinese sentence without a comma would become one token
    "bytes": trained_byte_level([text for texts in SENTENCES.values() for text in texts], size=2000, frequency=2),
    "sentencepiece": trained_sentencepiece(SENTENCES["hi"], size=700),
}
# GPT-2's way of cutting before the merges, which most byte-level tokenizers have, cuts Hindi at every vowel sign
WITH = [("zh", "bytes"), ("de", "bytes"), ("ar", "bytes"), ("hi", "sentencepiece")]


def targets(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], stop_words: str) -> list[dict[str, float]]:
    """Return the data-driven target of each text that has one, as word → weight."""
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer, VocabularySettings(stop_words))
    rows = []
    for batch in DataDrivenTargets(tokenizer, vocabulary).fit(texts).transform(texts):
        for row in batch.to_pylist():
            weights: dict[str, float] = {}
            for token_id, weight in zip(row["token_ids"], row["weights"], strict=True):
                word = vocabulary.words[token_id]
                weights[word] = weights.get(word, 0.0) + weight
            rows.append(weights)
    return rows


@pytest.mark.parametrize(("language", "tokenizer"), WITH)
def test_a_sentence_is_known_by_its_content_words_and_no_function_words(language: str, tokenizer: str) -> None:
    first = targets(TOKENIZERS[tokenizer], SENTENCES[language], language)[0]
    assert set(first) >= CONTENT[language]
    assert not set(first) & FUNCTION[language]
    assert sum(first.values()) == pytest.approx(1)
    assert set(targets(TOKENIZERS[tokenizer], SENTENCES[language], "off")[0]) & FUNCTION[language]


@pytest.mark.parametrize(
    "spellings",
    [
        ["Straße", "STRASSE", "strasse"],
        ["كتاب", "كِتَابٌ", "كتـــاب"],
        ["أحمد", "احمد"],
        ["ज़रूर", "ज़रूर", "जरूर"],
        ["चाँद", "चांद"],
        ["ＡＢＣ", "abc"],
        ["İstanbul", "istanbul"],
        ["می\u200cخواهم", "میخواهم"],
    ],
)
def test_spellings_of_a_word_are_one(spellings: list[str]) -> None:
    assert len({folded(spelling) for spelling in spellings}) == 1


def test_other_words_stay_others() -> None:
    different = ["Mutter", "Mütter", "قلم", "قلب", "दिन", "दीन", "買", "賣"]
    assert len({folded(word) for word in different}) == len(different)


def test_half_a_character_is_never_a_target() -> None:
    english = trained_byte_level(TEXTS[:5], size=500)  # knows other scripts as bytes alone
    chinese, both, punctuation = "猫睡觉", "猫 thread 睡觉", "!!! …"
    fragments = {english.decode([token_id]) for token_id in english(chinese, add_special_tokens=False)["input_ids"]}
    assert fragments == {"\ufffd"}
    assert targets(english, [chinese, both], "en") == [{"thread": 1.0}]
    assert len(targets(english, [punctuation], "en")) == 1  # whole characters still stand in where there is nothing better


def test_letters_are_pieces_and_ideographs_are_words() -> None:
    alphabet = trained_byte_level([" ".join("ß ق न の 猫 집 a 7") + " "] * 20, size=400)
    vocabulary = TargetVocabulary.from_tokenizer(alphabet, VocabularySettings("off"))
    assert {vocabulary.words[token_id] for token_id in vocabulary.target_ids} == {"猫", "집"}


@pytest.mark.parametrize(("language", "tokenizer"), WITH)
def test_the_lens_counts_whole_words_where_there_are_spaces_and_every_token_where_there_are_none(
    language: str, tokenizer: str
) -> None:
    splitter = WordSplitter(TOKENIZERS[tokenizer], VocabularySettings(language))
    found = splitter.words_in(SENTENCES[language][:1], max_tokens=100)[0]
    assert found >= CONTENT[language]
    if language != "zh":
        words = SENTENCES[language][0].split()
        assert found <= {folded(word) for word in words} | {folded(word.strip(".,،")) for word in words}


def test_a_vowel_sign_that_was_cut_off_its_letter_is_no_target() -> None:
    vocabulary = TargetVocabulary.from_tokenizer(TOKENIZERS["bytes"], VocabularySettings("off"))
    words = [vocabulary.words[token_id] for token_id in vocabulary.target_ids]
    assert not [word for word in words if unicodedata.category(word[0]).startswith("M")]
    cut = [text for text in map(TOKENIZERS["bytes"].decode, range(vocabulary.size)) if text.startswith("ि")]
    assert cut  # there are such tokens


@pytest.mark.parametrize("language", LANGUAGES)
def test_passages_end_where_sentences_end(language: str) -> None:
    one, two = (SENTENCES[language][number] for number in (3, 1))
    text = f"{one} {two}"
    assert split_text(text, max(len(one), len(two)) + 2) == [one, two]
