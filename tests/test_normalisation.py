"""What training does to a text is done by every reader of the finished folder, and is done once."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker, family_configs, write_corpus
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text2token.corpus.normalisation import normalise, read_as_text, read_first_word_as_any, without_ours
from text2token.corpus.readers import read_documents
from text2token.export.folder import export_embedder
from text2token.export.static import build_static
from text2token.model.backbone import embed, load_embedder, prompt_tokens, set_prompt, tokenizer_of
from text2token.model.encoder import token_counter
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings
from text2token.tokens.vocabulary import TargetVocabulary, bare_tokenizer, token_forms, tokenise, tokenizer_fingerprint

WHITESPACE = "".join(chr(code) for code in range(0x110000) if chr(code).isspace())
UNICODE = st.text(st.characters(codec="utf-8"), max_size=60)
MIXED = st.lists(
    st.sampled_from(["e\u0301", "\u1100\u1161", "\r\n", "\r", "\n\n", "  ", "</s>", "<pad>", "<tool>", "word", *WHITESPACE])
    | UNICODE
).map("".join)

Tokenizers = dict[str, PreTrainedTokenizerFast]


def copy(
    tokenizer: PreTrainedTokenizerFast, change: Callable[[Tokenizer], None] = lambda _: None
) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def like_llama(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None


def like_gemma(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in ("\n\n", "▁▁", "<tool>")])


def like_neox(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("  ", normalized=True), AddedToken("<tool>", normalized=False), AddedToken("word")])


@pytest.fixture(scope="module")
def plain(
    byte_level_tokenizer: PreTrainedTokenizerFast,
    sentencepiece_tokenizer: PreTrainedTokenizerFast,
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> Tokenizers:
    return {
        "bytes": copy(byte_level_tokenizer),
        "neox": copy(byte_level_tokenizer, like_neox),
        "metaspace": copy(sentencepiece_tokenizer),
        "llama": copy(sentencepiece_tokenizer, like_llama),
        "gemma": copy(sentencepiece_tokenizer, like_gemma),
        "wordpiece": copy(wordpiece_tokenizer),
    }


@pytest.fixture(scope="module")
def normalising(plain: Tokenizers) -> Tokenizers:
    made = {name: copy(tokenizer) for name, tokenizer in plain.items()}
    for tokenizer in made.values():
        read_as_text(tokenizer)
    return made


@given(MIXED)
@settings(deadline=None)
def test_normalising_twice_is_as_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once == once.strip()
    assert "\r" not in once


@given(st.text(st.sampled_from([*WHITESPACE, "a", "é", "\u0301", "我", "\ufeff"]), max_size=20))
def test_normalising_is_what_python_calls_nfc_and_strip(text: str) -> None:
    expected = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()
    assert normalise(text) == expected


@given(MIXED)
@settings(deadline=None)
@example("\n\nword \n\n <tool>  word</s>\n\n")
def test_a_tokenizer_reads_a_text_as_if_it_were_normalised(normalising: Tokenizers, text: str) -> None:
    for name, tokenizer in normalising.items():
        expected = tokenizer(normalise(text))["input_ids"]
        assert tokenizer(text)["input_ids"] == expected, name
        assert tokenise(tokenizer, [text]) == [expected], name
        assert bare_tokenizer(tokenizer).encode(text).ids == expected, name


@given(st.text(st.sampled_from("abc é我 .,'word\n"), max_size=30).map(normalise))
@settings(deadline=None)
def test_ordinary_text_keeps_the_tokens_of_the_backbone(plain: Tokenizers, normalising: Tokenizers, text: str) -> None:
    if "  " in text or "\n\n" in text:
        return
    for name, tokenizer in plain.items():
        assert tokenizer(text)["input_ids"] == normalising[name](text)["input_ids"], name


def test_control_tokens_spelt_in_a_text_are_text_and_added_words_stay(normalising: Tokenizers) -> None:
    for name, tokenizer in normalising.items():
        control = {tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>")}
        assert control.isdisjoint(tokenizer("x </s> y<pad>z <s>")["input_ids"]), name
        assert control <= TargetVocabulary.from_tokenizer(tokenizer).special_ids, name
    neox = normalising["neox"]
    assert neox.convert_tokens_to_ids("word") in neox("a word")["input_ids"]
    assert neox.convert_tokens_to_ids("<tool>") not in neox("a <tool> b")["input_ids"]
    assert neox.convert_tokens_to_ids("<tool>") == len(neox) - 2  # ids stay


def test_reading_as_text_twice_is_as_once_and_leaves_the_fingerprint(plain: Tokenizers) -> None:
    for name, tokenizer in plain.items():
        one = copy(tokenizer)
        read_as_text(one)
        state = one.backend_tokenizer.to_str()
        read_as_text(one)
        assert one.backend_tokenizer.to_str() == state, name
        assert tokenizer_fingerprint(one) == tokenizer_fingerprint(tokenizer), name
        assert without_ours(json.loads(state)) == without_ours(json.loads(tokenizer.backend_tokenizer.to_str())) | {
            "added_tokens": json.loads(state)["added_tokens"]
        }, name


def test_a_prompt_is_read_as_it_stands(plain: Tokenizers) -> None:
    for name, tokenizer in plain.items():
        before, after = copy(tokenizer), copy(tokenizer)
        set_prompt(before, "<s> Passage: {text}\nTopic: ")
        read_as_text(before)
        read_as_text(after)
        set_prompt(after, "<s> Passage: {text}\nTopic: ")
        assert before("a girl")["input_ids"] == after("a girl")["input_ids"], name
        assert before("")["input_ids"] == [
            *tokenizer("<s> Passage: ", add_special_tokens=False)["input_ids"],
            *tokenizer("\nTopic: ", add_special_tokens=False)["input_ids"],
        ], name


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, "llama_tied") for name in ("bytes", "neox", "metaspace", "llama", "gemma", "wordpiece")]
    + [("bytes", family) for family in ("qwen2", "qwen3", "phi3", "gemma3", "gpt2")],
)
def test_the_exported_folder_reads_texts_as_training_does(plain: Tokenizers, name: str, family: str, tmp_path: Path) -> None:
    tokenizer = plain[name]
    config = family_configs(len(tokenizer))[family]
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    embedder = load_embedder(BackboneSettings(str(tmp_path / "backbone"), dtype="float32", max_length=64))
    export_embedder(embedder, fit_postprocessing(embed(embedder, TEXTS)), tmp_path / "model", "# card")
    texts = [*TEXTS, "e\u0301tude", "a </s> b <pad>", "code:\n\n  <tool> x"]
    around = [f" \r\n{unicodedata.normalize('NFD', text)}\u3000\x1c\n\n" for text in texts]
    model = SentenceTransformer(str(tmp_path / "model"))
    assert abs(model.encode(texts) - model.encode(around)).max() < 1e-6
    expected = tokenise(tokenizer_of(embedder), texts, prompt=True)
    alone = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    alone.no_padding()
    alone.no_truncation()
    for found in (tokenise(tokenizer_of(model), around, prompt=True), [alone.encode(text).ids for text in around]):
        assert found == expected
    assert token_counter(model)(around) == [min(64, len(ids)) for ids in expected]
    own, back = tokenizer_of(embedder), tokenizer_of(model)
    assert (own.pad_token_id, own.eos_token_id, own.get_vocab()) == (back.pad_token_id, back.eos_token_id, back.get_vocab())
    assert token_forms(own) == token_forms(back)
    again = load_embedder(BackboneSettings(str(tmp_path / "model"), dtype="float32", max_length=64))  # as a backbone
    assert tokenise(tokenizer_of(again), around, prompt=True) == expected


def test_an_empty_text_has_a_vector_even_without_a_prompt(tiny: BackboneSettings) -> None:
    embedder = load_embedder(replace(tiny, prompt="{text}"))
    assert prompt_tokens(tokenizer_of(embedder)) == 0
    vectors = embed(embedder, ["", " \n", "a text", "\t"])
    assert torch.isfinite(vectors).all()
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[3])
    assert torch.equal(embed(embedder, [" "]), torch.from_numpy(embedder.encode(["", "x"]))[:1])


def test_a_word_that_begins_a_text_is_the_same_word_as_within(plain: Tokenizers) -> None:
    for name, tokenizer in plain.items():
        one = copy(tokenizer)
        read_as_text(one)
        read_first_word_as_any(one.backend_tokenizer)
        for word in ("girl", "music", "Zeitgeist", '"quoted"'):
            (alone, within, before) = tokenise(one, [word, f"time {word}", "time"])
            assert within == before + alone, name
        assert tokenise(one, ["\n word "]) == tokenise(one, ["word"])
        assert tokenizer_fingerprint(one) == tokenizer_fingerprint(tokenizer), name
        chinese = tokenise(one, ["我的猫"])
        if name in ("bytes", "gemma"):  # of a script that sets no spaces: none is put before it
            assert chinese == tokenise(tokenizer, ["我的猫"])


def test_static_vectors_know_a_first_word(make_backbone: BackboneMaker, tmp_path: Path) -> None:
    documents = read_documents([str(write_corpus(tmp_path / "docs.txt"))])
    build_static(BackboneSettings(str(make_backbone("llama_tied")), dtype="float32"), documents, tmp_path / "table")
    model = SentenceTransformer(str(tmp_path / "table"))
    alone, spaced, ended, special = model.encode(["girl", "  girl", "girl\r\n", "</s>"])
    assert (alone == spaced).all()
    assert (alone == ended).all()
    assert abs(special).max() > 0
    assert json.loads((tmp_path / "table" / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"] == []
