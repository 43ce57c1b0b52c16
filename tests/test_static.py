"""A static embedder is what its formula says, in one stock module."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import read_first_word_as_any
from text2token.corpus.readers import read_documents
from text2token.errors import OutputError, UsageError
from text2token.export.static import build_static, static_embedder
from text2token.model.backbone import embed, load_embedder, tokenizer_of
from text2token.model.encoder import TextEncoder, encoder_of, model_fingerprint, open_encoder
from text2token.model.head import NO_WORD, load_head, word_table
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings
from text2token.search.one_off import kept_index
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary

PASSAGES = Dataset.from_dict({"text": TEXTS})


def table_of(backbone: BackboneSettings) -> tuple[torch.Tensor, torch.Tensor, TargetVocabulary, Any]:
    """Return the table, the idf that it was made with, the vocabulary and the tokenizer."""
    embedder = load_embedder(backbone)
    tokenizer = tokenizer_of(embedder)
    read_first_word_as_any(tokenizer.backend_tokenizer)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    idf = torch.from_numpy(DataDrivenTargets(tokenizer, vocabulary).fit(TEXTS).token_weights())
    return word_table(load_head(embedder, backbone.name), vocabulary, idf), idf, vocabulary, tokenizer


def test_spellings_of_a_word_share_a_vector_and_function_words_weigh_little(tiny: BackboneSettings) -> None:
    table, idf, vocabulary, tokenizer = table_of(tiny)
    (girl,), (capital,), (the,) = (tokenizer.convert_tokens_to_ids([token]) for token in ("Ġgirl", "ĠGirl", "Ġthe"))
    assert torch.equal(table[girl], table[capital])
    words = vocabulary.representatives[:, 0]
    assert float(table[girl].norm()) == pytest.approx(float(idf[words[girl]]), rel=1e-5)
    mean_idf = idf[words[words >= 0]].mean()
    assert float(table[the].norm()) == pytest.approx(NO_WORD * float(mean_idf), rel=1e-5)


def test_a_text_is_the_whitened_mean_of_its_tokens(tiny: BackboneSettings) -> None:
    table, _, _, tokenizer = table_of(tiny)
    means = torch.stack([table[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0) for text in TEXTS])
    expected = normalize(fit_postprocessing(means, strength="full")(means))
    model = static_embedder(tiny, PASSAGES)
    assert torch.allclose(model.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-5)
    cut = static_embedder(tiny, PASSAGES, dimensions=4).encode(TEXTS, convert_to_tensor=True)
    assert torch.allclose(cut, normalize(expected[:, :4]), atol=1e-4)
    with pytest.raises(UsageError, match=r"dimensions is 99; .* has 32"):
        static_embedder(tiny, PASSAGES, dimensions=99)


def test_a_static_embedder_is_written_reloaded_and_searched(tiny: BackboneSettings, text_file: Path, tmp_path: Path) -> None:
    documents = list(read_documents([str(text_file)]))
    model = build_static(tiny, documents, tmp_path / "model")
    expected = model.encode(TEXTS, convert_to_tensor=True)
    assert torch.allclose(SentenceTransformer(str(tmp_path / "model")).encode(TEXTS, convert_to_tensor=True), expected)
    assert torch.allclose(open_encoder(str(tmp_path / "model"), "auto")(TEXTS), expected)
    assert torch.allclose(embed(model, TEXTS), expected)
    with kept_index(str(tmp_path / "model"), [str(text_file)], documents) as index:
        best = index.search(documents[3].text, 1, "dense")[0]
    assert best.text == documents[3].text
    assert best.score == pytest.approx(1, abs=1e-3)
    with pytest.raises(OutputError, match="exists"):
        build_static(tiny, documents, tmp_path / "model")


def test_a_search_ranks_by_cosine_whatever_the_length_of_the_vectors(
    tiny: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {"foo": [1.0, 0.0], "far": [9.0, 9.0], "near": [0.5, 0.1]}
    encoder = TextEncoder("lengths", "a", lambda texts, _: torch.tensor([vectors[text] for text in texts]))
    monkeypatch.setattr("text2token.search.one_off.open_encoder", lambda *_: encoder)
    with kept_index("any", ["two"], [Document("far", "1"), Document("near", "2")]) as index:
        found = index.search("foo", mode="dense")
    assert [hit.text for hit in found] == ["near", "far"]
    assert found[0].score == pytest.approx(0.981, abs=1e-3)


def test_a_text_of_no_tokens_is_no_error(tiny: BackboneSettings) -> None:
    vectors = encoder_of(static_embedder(tiny, PASSAGES), "static")(["", "girl"])
    assert torch.isfinite(vectors).all()


def test_the_fingerprint_of_a_static_embedder_covers_its_tokenizer(tiny: BackboneSettings) -> None:
    one, other = static_embedder(tiny, PASSAGES), static_embedder(tiny, PASSAGES)
    assert model_fingerprint(one) == model_fingerprint(other)
    other[0].tokenizer.enable_truncation(3)
    assert model_fingerprint(one) != model_fingerprint(other)
