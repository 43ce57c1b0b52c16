"""Targets name the meaningful tokens of their own text, and a store refuses whatever it was not made for."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TEXTS
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from text2token.errors import TargetMismatch, UsageError
from text2token.recipe import DataDrivenSettings, VocabularySettings
from text2token.shards import write_shards
from text2token.targets import data_driven, store
from text2token.targets.base import HERE
from text2token.targets.data_driven import DataDrivenTargets
from text2token.targets.store import SCHEMA, documents_of, open_targets, read_card, write_targets
from text2token.tokens.vocabulary import TargetVocabulary, stop_words_of, tokenise


@pytest.fixture
def vocabulary(byte_level_tokenizer: PreTrainedTokenizerFast) -> TargetVocabulary:
    return TargetVocabulary.from_tokenizer(byte_level_tokenizer)


def constructor(
    tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary, max_tokens: int = 256, **settings: object
) -> DataDrivenTargets:
    return DataDrivenTargets(tokenizer, vocabulary, DataDrivenSettings(**settings), max_tokens)  # type: ignore[arg-type]


def merged(batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    return pa.Table.from_batches(batches, schema=store.SCHEMA).to_pydict()  # type: ignore[no-any-return]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=20), st.sampled_from(["idf", "uniform"]), st.integers(1, 5))
def test_targets_are_distributions_over_tokens_of_their_own_text(
    byte_level_tokenizer: PreTrainedTokenizerFast, texts: list[str], weight: str, top_k: int
) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(byte_level_tokenizer)
    targets = constructor(byte_level_tokenizer, vocabulary, weight=weight, top_k=top_k).fit(texts)
    result = merged(targets.transform(texts))
    # only a text without any whole character is left out
    whole = [set(ids) - vocabulary.special_ids for ids in tokenise(byte_level_tokenizer, texts)]
    assert result["text"] == [text for text, ids in zip(texts, whole, strict=True) if ids]
    for text, ids, weights in zip(result["text"], result["token_ids"], result["weights"], strict=True):
        own = byte_level_tokenizer(text, add_special_tokens=False)["input_ids"]
        allowed = {*vocabulary.representatives[own].ravel().tolist(), *own}
        assert set(ids) <= allowed
        assert len(ids) == len(set(ids)) == len(weights)
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1, abs=1e-5)


@given(st.lists(st.text(alphabet="the girl threads ", max_size=40), min_size=1, max_size=12), st.integers(1, 4))
def test_what_is_remembered_gives_what_a_second_reading_gives(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, texts: list[str], top_k: int
) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(byte_level_tokenizer)
    one, two = (constructor(byte_level_tokenizer, vocabulary, top_k=top_k) for _ in range(2))
    one.remember = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_driven, "TEXTS_PER_PART", 5)
        one.fit(iter(texts))
        parts = [np.arange(start, min(start + 5, len(texts))) for start in range(0, len(texts), 5)]
        found = merged(chain.from_iterable(one.transform([], rows=part) for part in parts))
    assert one.documents_ == len(texts)
    assert found == merged(two.fit(texts).transform(texts))
    assert np.array_equal(one.document_frequencies_, two.document_frequencies_)


def test_the_heaviest_tokens_are_kept(byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary) -> None:
    whole = constructor(byte_level_tokenizer, vocabulary).fit(TEXTS)
    cut = constructor(byte_level_tokenizer, vocabulary, top_k=3).fit(TEXTS)
    for text in TEXTS:
        every = merged(whole.transform([text]))
        kept = merged(cut.transform([text]))["token_ids"][0]
        by_weight = sorted(
            zip(every["weights"][0], every["token_ids"][0], strict=True), key=lambda pair: (-pair[0], pair[1])
        )
        assert sorted(kept) == kept == sorted(token for _, token in by_weight[:3])


def test_the_rarer_word_weighs_more_by_idf(
    byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary
) -> None:
    ids = byte_level_tokenizer.get_vocab()
    texts = ["a girl"] * 9 + ["a girl and a thread"]
    targets = constructor(byte_level_tokenizer, vocabulary).fit(texts)
    assert targets.documents_ == 10
    assert targets.document_frequencies_[ids["Ġgirl"]] == 10
    result = merged(targets.transform(texts))
    last = dict(zip(result["token_ids"][-1], result["weights"][-1], strict=True))
    assert last[ids["Ġthread"]] / last[ids["Ġgirl"]] == pytest.approx(
        vocabulary.form_shares[ids["Ġthread"]] / vocabulary.form_shares[ids["Ġgirl"]] * (np.log(11 / 2) + 1), rel=1e-4
    )


def test_what_the_model_cannot_see_is_not_asked(
    byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary
) -> None:
    text = "girl " * 5 + "thread"
    seen = byte_level_tokenizer(text, add_special_tokens=False)["input_ids"][:5]
    result = merged(constructor(byte_level_tokenizer, vocabulary, max_tokens=5, weight="uniform").transform([text]))
    assert set(result["token_ids"][0]) <= set(vocabulary.representatives[seen].ravel().tolist())


@given(
    st.lists(st.text(alphabet="the Girl's hair, styl-ing 1969! 猫", max_size=60), min_size=1, max_size=8), st.integers(1, 12)
)
def test_words_tokenised_anew_are_all_there_as_they_come_and_weigh_the_same(
    byte_level_tokenizer: PreTrainedTokenizerFast, texts: list[str], seen: int
) -> None:
    vocabulary = TargetVocabulary.from_tokenizer(byte_level_tokenizer)
    made = constructor(byte_level_tokenizer, vocabulary, seen, read="words", weight="uniform", top_k=1000)
    found = merged(made.transform(texts))
    expected = {}
    for text in texts:
        parts = byte_level_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        read = text[: parts[seen - 1][1]] if len(parts) > seen else text
        words = re.sub(r"[^\w]|_", " ", read).split()
        left = " ".join(word for word in words if word.lower() not in stop_words_of("en"))
        ids = {*byte_level_tokenizer(left or read, add_special_tokens=False)["input_ids"][:seen]} - vocabulary.special_ids
        if ids:
            expected[text] = ids
    for text, ids, weights in zip(found["text"], found["token_ids"], found["weights"], strict=True):
        assert set(ids) == expected[text]
        assert weights == pytest.approx([1 / len(ids)] * len(ids), rel=1e-5)
    assert set(found["text"]) == set(expected)


def test_words_without_punctuation_and_stop_words_keep_their_spelling(
    byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary
) -> None:
    made = constructor(byte_level_tokenizer, vocabulary, read="words", weight="uniform")
    (ids,) = merged(made.transform(["The Girl's thread: of a girl, don't!"]))["token_ids"]
    assert set(ids) == set(byte_level_tokenizer("Girl thread girl", add_special_tokens=False)["input_ids"])


def test_a_text_of_stop_words_falls_back_to_its_tokens(
    byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary
) -> None:
    result = merged(constructor(byte_level_tokenizer, vocabulary, weight="uniform").transform(["the", ""]))
    assert result["text"] == ["the"]
    assert set(result["token_ids"][0]) == set(byte_level_tokenizer("the", add_special_tokens=False)["input_ids"])


def test_idf_without_fit_and_no_tokens_at_all_are_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="call fit first"):
        list(constructor(byte_level_tokenizer, vocabulary).transform(["a"]))
    with pytest.raises(UsageError, match="top_k is 0"):
        DataDrivenSettings(top_k=0)
    with pytest.raises(TargetMismatch, match="no text has a single usable token"):
        write(tmp_path / "none", vocabulary, lambda _: [])


ROWS_OF_PARTS = [range(4), range(4, 8), range(8, 10)]


def write(
    folder: Path, vocabulary: TargetVocabulary, batches: Callable[[int], Iterable[pa.RecordBatch]]
) -> store.TargetCard:
    card = store.TargetCard.of("data_driven", {}, "tiny", vocabulary, len(TEXTS))

    def table_of(part: int, _: object) -> pa.Table:
        return pa.Table.from_batches(batches(part), SCHEMA)

    parts = range(len(ROWS_OF_PARTS))
    return write_targets(
        folder, card, "those texts", lambda waiting: write_shards(waiting, store.SHARDS, parts, table_of, HERE)
    )


@pytest.fixture
def stored(tmp_path: Path, byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary) -> Path:
    targets = constructor(byte_level_tokenizer, vocabulary).fit(TEXTS)
    write(tmp_path / "targets", vocabulary, lambda part: targets.transform([TEXTS[row] for row in ROWS_OF_PARTS[part]]))
    return tmp_path / "targets"


def test_rows_come_back_in_order_across_shards(
    stored: Path, byte_level_tokenizer: PreTrainedTokenizerFast, vocabulary: TargetVocabulary, tmp_path: Path
) -> None:
    card = read_card(stored)
    assert [shard.rows for shard in card.shards] == [4, 4, 2]
    assert (card.texts, card.dropped) == (len(TEXTS), 0)
    dataset = open_targets(stored, vocabulary, cache=tmp_path / "cache")
    assert list(dataset["text"]) == TEXTS
    for text, ids in zip(dataset["text"], dataset["token_ids"], strict=True):
        own = byte_level_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert set(ids) <= set(vocabulary.representatives[own].ravel().tolist())


def test_another_tokenizer_or_other_rules_are_refused_with_the_remedy(
    stored: Path,
    byte_level_tokenizer: PreTrainedTokenizerFast,
    wordpiece_tokenizer: PreTrainedTokenizerFast,
    vocabulary: TargetVocabulary,
) -> None:
    with pytest.raises(
        TargetMismatch, match=rf"built for a vocabulary of {vocabulary.size} tokens .* has \d+. Rebuild: delete"
    ):
        open_targets(stored, TargetVocabulary.from_tokenizer(wordpiece_tokenizer))
    with pytest.raises(TargetMismatch, match="stop_words 'en' instead of 'off'"):
        open_targets(stored, TargetVocabulary.from_tokenizer(byte_level_tokenizer, VocabularySettings(stop_words="off")))
    shuffled = replace(vocabulary, tokenizer_fingerprint="another")
    with pytest.raises(TargetMismatch, match="which is not this model's"):
        open_targets(stored, shuffled)


def test_altered_cut_or_missing_shards_are_refused(stored: Path, vocabulary: TargetVocabulary) -> None:
    shard = stored / "targets-00001.parquet"
    content = shard.read_bytes()
    for damaged in (content[:-20], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        shard.write_bytes(damaged)
        with pytest.raises(TargetMismatch, match=r"targets-00001\.parquet was altered or cut short"):
            open_targets(stored, vocabulary)
    shard.unlink()
    with pytest.raises(TargetMismatch, match=r"targets-00001\.parquet is missing"):
        open_targets(stored, vocabulary)


def test_a_card_that_is_missing_broken_or_points_elsewhere_is_refused(
    stored: Path, vocabulary: TargetVocabulary, tmp_path: Path
) -> None:
    card = json.loads((stored / "card.json").read_text(encoding="utf-8"))
    outside = tmp_path / "outside.parquet"
    pq.write_table(pq.read_table(stored / "targets-00000.parquet"), outside)
    card["shards"][0]["file"] = "../outside.parquet"
    (stored / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(TargetMismatch, match="is missing"):
        open_targets(stored, vocabulary)
    (stored / "card.json").write_text("{", encoding="utf-8")
    with pytest.raises(TargetMismatch, match="holds no targets that can be read"):
        open_targets(stored, vocabulary)
    (stored / "card.json").unlink()
    with pytest.raises(TargetMismatch, match="Build them: text2token targets"):
        open_targets(stored, vocabulary)


def test_a_failure_while_writing_leaves_no_targets_and_what_was_finished_is_not_done_again(
    tmp_path: Path, vocabulary: TargetVocabulary, byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    targets = constructor(byte_level_tokenizer, vocabulary, weight="uniform")
    begun: list[int] = []
    stops = True

    def batches(part: int) -> Iterable[pa.RecordBatch]:
        begun.append(part)
        yield from targets.transform([TEXTS[row] for row in ROWS_OF_PARTS[part]])
        if part == 1 and stops:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "targets", vocabulary, batches)
    assert not (tmp_path / "targets").exists()
    stops = False
    assert write(tmp_path / "targets", vocabulary, batches).texts == len(TEXTS)
    assert begun == [0, 1, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["targets"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_targets_know_the_documents_of_their_texts(rows: list[tuple[str, int, bool]]) -> None:
    passages = [{"text": f"{text}{number}", "document": document} for number, (text, document, _) in enumerate(rows)]
    kept = [passage for passage, (_, _, keep) in zip(passages, rows, strict=True) if keep]
    targets = Dataset.from_list(kept) if kept else Dataset.from_dict({"text": [], "document": []})
    assert documents_of(targets, Dataset.from_list(passages)).tolist() == [passage["document"] for passage in kept]
