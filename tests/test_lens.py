"""What embeddings say: readers say the words of texts they never saw, shares add up, and no reader reads another's model."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from commands import call
from conftest import TEXTS, BackboneMaker
from datasets import Dataset
from test_cli import FAST
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from text2token.errors import CorpusError, ModelError
from text2token.evaluation.alignment import Alignment, alignment_of_scores
from text2token.export.static import static_embedder
from text2token.lens.fit import joined, learn_from_head, learn_from_words
from text2token.lens.pair import decompose
from text2token.lens.reader import PROBE, TokenReader, as_fast_tokenizer, open_reader, save_reader
from text2token.model.backbone import embed, load_embedder, tokenizer_of
from text2token.model.encoder import TextEncoder, encoder_of
from text2token.model.head import load_head
from text2token.recipe import BackboneSettings
from text2token.tokens.vocabulary import tokenise
from text2token.tokens.words import WordSplitter


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Pairs of the ten texts in every combination but the last twenty, which stay unseen."""
    return [f"{one} {two}" for one in TEXTS for two in TEXTS if one != two]


@pytest.fixture(scope="module")
def encoder(make_backbone: BackboneMaker) -> TextEncoder:
    """A static embedder: a mean of word vectors, so what it could say is known."""
    settings = BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=64)
    return encoder_of(static_embedder(settings, Dataset.from_dict({"text": TEXTS})), "static")


@pytest.fixture(scope="module")
def reader(encoder: TextEncoder, texts: list[str], byte_level_tokenizer: PreTrainedTokenizerFast) -> TokenReader:
    return learn_from_words(texts[:-20], encoder(texts[:-20]), encoder(PROBE), byte_level_tokenizer)


def alignment(reader: TokenReader, texts: list[str], embeddings: torch.Tensor) -> Alignment:
    return alignment_of_scores(reader.scores(embeddings), reader.lexicon, reader.words_in(texts))


def test_a_reader_says_the_words_of_texts_it_was_not_learnt_on(
    reader: TokenReader, encoder: TextEncoder, texts: list[str]
) -> None:
    unseen, embeddings = texts[-20:], encoder(texts[-20:])
    found = alignment(reader, unseen, embeddings)
    of_others = alignment(reader, unseen, embeddings.roll(7, 0))
    assert found.texts == 20
    assert found.hit_at_1 > 90
    assert found.lar > of_others.lar + 20
    for text, words in zip(unseen, reader.words(embeddings, k=3), strict=True):
        weights = [word.weight for word in words]
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0
        assert words[0].word in reader.words_in([text])[0] or found.hit_at_1 < 100


@pytest.mark.parametrize("seed", range(20))
def test_the_shares_of_a_pair_sum_to_the_projection_onto_its_words(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b, mean = torch.randn(3, 24, generator=draw, dtype=torch.float64)
    b = b + a
    directions = torch.randn(40, 24, generator=draw, dtype=torch.float64)
    directions[1::2] = directions[::2] + 0.3 * directions[1::2]  # like words
    names = [f"word{row}" for row in range(40)]
    parts = decompose(a, b, mean, names, directions, k=9)
    assert parts.cosine == pytest.approx(float(normalize(a, dim=0) @ normalize(b, dim=0)))
    assert all(share > 0 for _, share in parts)
    assert len({word for word, _ in parts}) == len(parts) > 3
    chosen = directions[[names.index(word) for word, _ in parts]]
    with_mean, alone = (torch.linalg.qr(rows.T).Q for rows in (torch.cat([mean[None], chosen]), mean[None]))
    one, two = normalize(a, dim=0), normalize(b, dim=0)
    onto_words = (one @ with_mean) @ (two @ with_mean) - (one @ alone) @ (two @ alone)
    assert parts.explained == pytest.approx(float(onto_words), abs=1e-12)
    assert parts.common == pytest.approx(float((one @ alone) @ (two @ alone)), abs=1e-12)
    turned = decompose(7 * b, a, mean, names, 3 * directions, k=9)
    assert dict(turned) == pytest.approx(dict(parts))


def test_a_text_is_all_like_itself_and_opposites_share_no_word() -> None:
    draw = torch.Generator().manual_seed(0)
    a, directions = torch.randn(8, generator=draw), torch.randn(30, 8, generator=draw)
    names = [str(row) for row in range(30)]
    parts = decompose(a, a, torch.zeros(8), names, directions, k=8)
    assert parts.common == 0
    assert 0.8 < parts.explained <= 1 + 1e-9
    assert parts.rest == pytest.approx(1 - parts.explained)
    assert len(decompose(a, -a, torch.zeros(8), names, directions, k=8)) == 0


def test_many_pairs_at_once_are_taken_apart_as_each_alone(reader: TokenReader, encoder: TextEncoder) -> None:
    one, *others = encoder(TEXTS[:6])
    together = reader.contributions_to_each(one, torch.stack(others), k=5)
    for other, parts in zip(others, together, strict=True):
        alone = reader.contributions(one, other, k=5)
        assert [word for word, _ in parts] == [word for word, _ in alone]
        assert [share for _, share in parts] == pytest.approx([share for _, share in alone], abs=1e-6)
        assert parts.cosine == alone.cosine


def test_words_of_two_texts_with_a_sentence_in_common_explain_their_likeness(
    reader: TokenReader, encoder: TextEncoder
) -> None:
    a, b = encoder([f"{TEXTS[1]} {TEXTS[2]}", f"{TEXTS[1]} {TEXTS[8]}"])
    parts = reader.contributions(a, b, k=5)
    shared = reader.words_in([TEXTS[1]])[0]
    assert parts[0].word in shared
    # the words of a sentence always come together here, so one of them may take what all could say
    assert sum(share for word, share in parts if word in shared) > parts.explained / 2
    assert parts.explained > parts.rest


def test_alignment_rates_are_what_their_definitions_say() -> None:
    lexicon = ["cat", "dog", "sun", "sea", "ice"]
    scores = torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 5, 4, 3], [1, 1, 1, 1, 9]])
    found = alignment_of_scores(scores, lexicon, [frozenset({"cat", "sun"}), frozenset({"sea"}), frozenset()])
    assert found.texts == 2  # the third has no word to say
    assert found.hit_at_1 == 50
    assert found.hit_at_5 == found.hit_at_10 == 100
    assert found.lar == pytest.approx(100 * (1 / 2 + 0) / 2)  # two words deep, one word deep
    assert found.gar == pytest.approx(100 * 1 / 3)  # cat, dog and sun are said, but sun of the wrong text
    with pytest.raises(CorpusError, match="none of the texts"):
        alignment_of_scores(scores, lexicon, [frozenset()] * 3)


def test_only_whole_words_count(
    byte_level_tokenizer: PreTrainedTokenizerFast,
    sentencepiece_tokenizer: PreTrainedTokenizerFast,
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    for tokenizer in (byte_level_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer):
        splitter = WordSplitter(tokenizer)
        one, none = splitter.words_in(["The girl plays a guitar, the Girl!", "girlxq zguitar"], 99)
        assert {"girl", "guitar"} <= one
        assert {"the", "a", "!"}.isdisjoint(one)
        assert {"girl", "guitar"}.isdisjoint(none)  # pieces of other words
        (ids,) = tokenise(tokenizer, ["The girl plays a guitar"])
        assert {"girl"} <= splitter.words_in(["The girl plays a guitar"], len(ids) - 1)[0] < one
    assert "我的猫在沙发上睡觉" in WordSplitter(byte_level_tokenizer).words_in(["我的猫在沙发上睡觉。"], 99)[0]


def test_a_head_is_read_through_any_linear_finish(tiny: BackboneSettings, texts: list[str]) -> None:
    embedder = load_embedder(tiny)
    head, tokenizer = load_head(embedder, tiny.name), tokenizer_of(embedder)
    states = embed(embedder, texts)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    embeddings = (states - 1) @ turned
    reader = learn_from_head(states, embeddings, embeddings[:3], head, tokenizer)
    by_head = head(states - states.mean(0))
    splitter = WordSplitter(tokenizer)
    spellings = dict(zip(splitter.word_of, splitter.vocabulary.representatives.tolist(), strict=True))
    theirs = torch.stack([by_head[:, [row for row in spellings[word] if row >= 0]].mean(1) for word in reader.lexicon], 1)
    ours, theirs = reader.scores(embeddings), theirs - theirs.mean(1, keepdim=True)
    assert torch.corrcoef(torch.stack([ours.ravel(), theirs.ravel()]))[0, 1] > 0.99
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.8
    assert sum(word.weight for word in reader.words(embeddings, k=len(reader.lexicon))[0]) == pytest.approx(1, abs=1e-4)


def test_joined_readers_say_what_both_say(
    tiny: BackboneSettings, texts: list[str], byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    embedder = load_embedder(tiny)
    embeddings = embed(embedder, texts)
    head = load_head(embedder, tiny.name)
    words = learn_from_words(texts, embeddings, embeddings[:3], byte_level_tokenizer)
    by_head = learn_from_head(embeddings, embeddings, embeddings[:3], head, byte_level_tokenizer)
    both = joined(words, by_head, embeddings)
    assert set(words.lexicon) < set(both.lexicon) == set(by_head.lexicon)
    of_words, of_head, of_both = (reader.scores(embeddings) for reader in (words, by_head, both))
    for column, word in enumerate(both.lexicon):
        expected = of_head[:, by_head.lexicon.index(word)] / of_head.std()
        if word in words.lexicon:
            expected = expected + of_words[:, words.lexicon.index(word)] / of_words.std()
        assert torch.allclose(of_both[:, column], expected, atol=1e-3)


def test_a_saved_reader_reads_the_same_and_only_its_model(
    reader: TokenReader, encoder: TextEncoder, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no reader of its embeddings"):
        open_reader(tmp_path)
    save_reader(reader, tmp_path / "lens")
    opened = open_reader(tmp_path, encoder)
    assert opened.lexicon == reader.lexicon
    assert opened.card == reader.card
    assert opened.words_in(texts) == reader.words_in(texts)
    assert torch.allclose(opened.scores(encoder(texts)), reader.scores(encoder(texts)), atol=1e-3)  # kept in half precision

    other = TextEncoder("other", "", lambda texts, progress: encoder.embed(texts, progress).flip(1))
    with pytest.raises(ModelError, match="other: is not the model that its reader was learnt on"):
        open_reader(tmp_path, other)
    narrow = TextEncoder("narrow", "", lambda texts, progress: encoder.embed(texts, progress)[:, :8])
    with pytest.raises(ModelError, match="narrow: its embeddings have 8 dimensions, the reader's 32"):
        open_reader(tmp_path, narrow)
    rounded = TextEncoder("rounded", "", lambda texts, progress: encoder.embed(texts, progress).bfloat16().float())
    open_reader(tmp_path, rounded)

    (tmp_path / "lens" / "reader.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(ModelError, match="lens: is damaged"):
        open_reader(tmp_path)


def test_too_few_texts_are_refused(encoder: TextEncoder, byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match="cannot be learnt from 10 texts: at least 20"):
        learn_from_words(TEXTS, encoder(TEXTS), encoder(PROBE), byte_level_tokenizer)
    wordless = ["..."] * 30
    with pytest.raises(CorpusError, match="words that occur in 3 of them"):
        learn_from_words(wordless, encoder(wordless), encoder(PROBE), byte_level_tokenizer)


def test_a_model_that_gives_every_text_one_vector_is_told_so(
    texts: list[str], byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(CorpusError, match="every text the same vector"):
        learn_from_words(texts, torch.ones(len(texts), 8), torch.ones(1, 8), byte_level_tokenizer)


def test_a_static_embedders_own_tokenizer_serves(
    encoder: TextEncoder, byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = byte_level_tokenizer.backend_tokenizer
    wrapped = as_fast_tokenizer(bare)
    assert WordSplitter(wrapped).words_in(TEXTS, 99) == WordSplitter(byte_level_tokenizer).words_in(TEXTS, 99)


def test_a_trained_model_is_read_from_its_folder(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    backbone, model = make_backbone("llama"), tmp_path / "model"
    trained = call("train", text_file, "--backbone", backbone, "--output", model, "--quiet", *FAST)
    assert trained.returncode == 0, trained.stderr
    moved = tmp_path / "elsewhere"
    shutil.move(model, moved)
    text_file.rename(tmp_path / "gone.txt")

    read = call("lens", moved, TEXTS[0], "-", "-k", "3", "--json", "--quiet", input=TEXTS[4])
    assert read.returncode == 0, read.stderr
    assert read.stderr == ""
    (found,) = json.loads(read.stdout)
    assert found["reads"] == "both"
    assert [row["text"] for row in found["texts"]] == [TEXTS[0], TEXTS[4]]
    assert all(len(row["words"]) == 3 for row in found["texts"])
    shared = call("lens", "pair", moved, TEXTS[0], TEXTS[1], "--json", "--quiet")
    assert shared.returncode == 0, shared.stderr
    pair = json.loads(shared.stdout)[0]["pair"]
    assert pair["cosine"] == pytest.approx(pair["common"] + pair["explained"] + pair["rest"])

    corpus = tmp_path / "gone.txt"
    by_head = call("lens", "score", moved, "--head", backbone, "--corpus", corpus, "--compare", moved, "--json")
    assert by_head.returncode == 0, by_head.stderr
    one, two = json.loads(by_head.stdout)
    assert one == two
    assert one["reads"] == "both"
    assert 0 < one["metrics"]["lar"] <= 100
    again = call("lens", moved, TEXTS[0], "--head", backbone, "--compare", moved)
    assert again.returncode == 0, again.stderr
    assert "• in the text" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to read: give texts"),
        (["--metrics"], 2, "Missing option '--corpus'. See text2token lens score --help"),
        (["text", "--backbone", "x"], 2, "goes with --head fit"),
        (["--corpus", "docs.txt", "--save"], 2, "--save keeps the reader in the model's folder, and nowhere is none"),
        (["--pair", "one", ""], 4, "nowhere: no such folder, and the model hub cannot be reached"),
        (["text"], 4, "nowhere: no such folder, and the model hub cannot be reached"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = call("lens", "nowhere", *arguments, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_table_of_vectors_is_read_by_the_command_line(
    make_backbone: BackboneMaker, text_file: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    made = call("static", text_file, "--backbone", make_backbone("llama_tied"), "--output", table, "--quiet")
    assert made.returncode == 0, made.stderr
    learnt = call("lens", "fit", table, "--corpus", text_file, "--quiet")
    assert (learnt.returncode, learnt.stdout, learnt.stderr) == (0, "", "")
    read = call("lens", table, TEXTS[0], "--json", "--quiet")
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)[0]["texts"][0]["words"]
