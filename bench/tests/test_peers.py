"""Peers are given the same and do what their papers say."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import llm2vec_reference
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from conftest import TEXTS
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from llm2vec_reference import IGNORED, formula_model, inputs, pairs
from safetensors.torch import load_file, save_file

from text2token.errors import CorpusError
from text2token.model.backbone import embed, load_embedder, tokenizer_of, transformer_of
from text2token.model.encoder import TextEncoder
from text2token.model.head import load_head
from text2token.recipe import BackboneSettings
from text2token_bench.comparison import PEERS
from text2token_bench.peers.contrastive import ContrastiveSettings, RankingLoss, set_attention_dropout
from text2token_bench.peers.cropping import cropped_pairs
from text2token_bench.peers.embed_filter import middle_directions
from text2token_bench.peers.llm2vec import MaskedNextTokenLoss
from text2token_bench.peers.neighbours import neighbouring_pairs
from text2token_bench.peers.peer import Peer, Settings, Workshop
from text2token_bench.peers.token_targets import SHUFFLED, STAGE2_BESIDE, build
from text2token_bench.peers.whitened_cse import whitened_in_groups

REFERENCE = json.loads(llm2vec_reference.REFERENCE.read_text(encoding="utf-8"))
NAMES = [peer.name for peer in PEERS]
NO_VECTORS = "BM25"
NEEDS_A_REAL_TOKENIZER = "Model2Vec"


def passages() -> Dataset:
    rows = [
        {"text": f"{text} Passage {number} of it.", "document": number // 3}
        for number, text in enumerate(itertools.islice(itertools.cycle(TEXTS), 60))
    ]
    return Dataset.from_list(rows)


@pytest.fixture
def workshop(tiny: BackboneSettings, tmp_path: Path) -> Workshop:
    return Workshop(tiny, passages(), max_tokens=9000, seed=0, folder=tmp_path / "work")


@pytest.mark.parametrize(
    "peer", [peer for peer in PEERS if peer.name not in (NO_VECTORS, NEEDS_A_REAL_TOKENIZER)], ids=lambda peer: peer.name
)
def test_every_peer_embeds_any_text_whatever_its_company(peer: Peer, workshop: Workshop) -> None:
    built = peer.build(workshop, peer.candidates[-1])
    assert isinstance(built.result, TextEncoder)
    texts = ["hello", *TEXTS, ""]
    together = built.result.embed(texts, None)
    alone = torch.cat([built.result.embed([text], None) for text in texts])
    assert together.dtype == torch.float32
    assert torch.isfinite(together).all()
    assert (together - alone).abs().max() < 1e-4
    trained = peer.family in ("text2token", "contrastive", "control")
    assert bool(built.tokens) == trained
    if trained:  # at most a batch beyond the budget
        assert workshop.max_tokens <= built.tokens < workshop.max_tokens + 2 * 4096


@pytest.mark.parametrize("name", ["SimCSE", "LLM2Vec", "text2token, data-driven"])
def test_the_same_seed_gives_the_same_embedder_and_another_another(name: str, workshop: Workshop) -> None:
    peer = PEERS[NAMES.index(name)]

    def vectors(seed: int) -> torch.Tensor:
        shutil.rmtree(workshop.folder, ignore_errors=True)
        torch.manual_seed(seed)
        built = peer.build(replace(workshop, seed=seed), peer.candidates[-1])
        assert isinstance(built.result, TextEncoder)
        return built.result(TEXTS)

    first = vectors(0)
    assert torch.equal(first, vectors(0))
    assert not torch.equal(first, vectors(1))


def test_a_stage_that_another_variant_trained_is_taken_from_it(workshop: Workshop, tmp_path: Path) -> None:
    first = {"stage1.targets": "data_driven", "stage1.contrast": 0.0, "lora.rank": 4}
    second: dict[str, object] = {"stage2.targets": "likelihood_ratio", "stage2.contrast": 0.0, STAGE2_BESIDE: 0.2}
    second["targets.likelihood_ratio.tau"] = "auto"
    kept = tmp_path / "kept"

    def vectors(settings: Settings, folder: str, kept: Path | None) -> tuple[torch.Tensor, int]:
        built = build(replace(workshop, folder=tmp_path / folder), settings, "ours", kept)
        assert isinstance(built.result, TextEncoder)
        return built.result(TEXTS), built.tokens

    alone, tokens = vectors({**first, **second}, "alone", None)
    vectors(first, "first", kept)
    (stage1,) = kept.iterdir()
    again, tokens_again = vectors({**first, **second}, "second", kept)
    assert torch.equal(again, alone)
    assert tokens_again == tokens > 1.1 * workshop.max_tokens
    assert len(list(kept.iterdir())) == 2
    weights = load_file(stage1 / "weights.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, stage1 / "weights.safetensors")
    assert not torch.equal(vectors(first, "third", kept)[0], vectors(first, "fourth", None)[0])  # so it is taken from there


def test_neighbours_are_of_one_document_and_no_passage_is_used_twice() -> None:
    pairs = neighbouring_pairs(passages())
    number = {row["text"]: row["document"] for row in passages()}
    assert all(number[row["anchor"]] == number[row["positive"]] for row in pairs)
    used = [*pairs["anchor"], *pairs["positive"]]
    assert len(used) == len(set(used)) == 40  # of three passages two make a pair


def test_a_corpus_of_single_passages_has_no_neighbours() -> None:
    with pytest.raises(CorpusError, match="no document has two passages"):
        neighbouring_pairs(Dataset.from_list([{"text": "one", "document": 0}, {"text": "two", "document": 1}]))


def test_crops_are_spans_of_their_text_and_differ() -> None:
    words = [f"w{number}" for number in range(40)]
    pairs = cropped_pairs(Dataset.from_dict({"text": [" ".join(words)] * 50}), seed=0)
    for crop in (*pairs["anchor"], *pairs["positive"]):
        places = [int(word[1:]) for word in crop.split()]
        assert places == sorted(places)  # a span, less some deleted words
        assert places[-1] - places[0] < 20
    assert sum(row["anchor"] != row["positive"] for row in pairs) > 45


@given(st.integers(min_value=0, max_value=10_000))
def test_whitened_groups_have_mean_zero_and_no_correlation(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(200, 14, generator=generator) @ torch.randn(14, 14, generator=generator)
    order = torch.randperm(14, generator=generator)
    white = whitened_in_groups(mixed, order, channels=6)
    for group in (order[:6], order[6:12]):
        covariance = torch.cov(white[:, group].T)
        assert white[:, group].mean(0).abs().max() < 1e-3
        assert (covariance - torch.diag(covariance.diag())).abs().max() < 0.05
    assert torch.equal(white[:, order[12:]], mixed[:, order[12:]])


def test_embed_filter_keeps_the_middle_singular_directions() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8)
    kept = middle_directions(weight, ratio=2)
    right = torch.linalg.svd(weight.double()).Vh
    assert kept.shape == (8, 4)
    assert torch.allclose((kept.double().T @ right[2:6].T).abs(), torch.eye(4, dtype=torch.double), atol=1e-5)


def test_attention_dropout_is_noise_in_training_only(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    quiet = embed(embedder, TEXTS[:2])
    set_attention_dropout(embedder, 0.3)
    assert torch.equal(embed(embedder, TEXTS[:2]), quiet)
    embedder.train()
    features = embedder.preprocess(TEXTS[:2])
    assert not torch.equal(embedder(features)["sentence_embedding"], embedder(features)["sentence_embedding"])


def test_contrastive_settings_name_only_what_differs() -> None:
    assert ContrastiveSettings(learning_rate=1e-5).as_settings() == {"learning_rate": 1e-5}
    assert ContrastiveSettings(**ContrastiveSettings(dropout=0.5).as_settings()).dropout == 0.5


@pytest.fixture
def formula(tmp_path: Path, byte_level_tokenizer: transformers.PreTrainedTokenizerFast) -> BackboneSettings:
    """The model that the original LLM2Vec was asked about; its tokenizer does not matter, ids are given."""
    formula_model().save_pretrained(tmp_path)
    byte_level_tokenizer.save_pretrained(tmp_path)
    return BackboneSettings(str(tmp_path), "{text}", pooling="mean", attention="bidirectional", dtype="float32")


def test_llm2vec_sees_as_the_original_does(formula: BackboneSettings) -> None:
    given = inputs()
    features = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = load_embedder(formula)(features)["sentence_embedding"]
        causal = load_embedder(replace(formula, attention="causal"))({**features})["sentence_embedding"]
    expected = torch.tensor(REFERENCE["mean_pooled"])
    assert (found - expected).abs().max() < 1e-5
    assert (causal - expected).abs().max() > 0.1


def test_llm2vec_predicts_masked_tokens_as_the_original_does(formula: BackboneSettings) -> None:
    embedder = load_embedder(formula)
    loss = MaskedNextTokenLoss(embedder, load_head(embedder, formula.name), masked=0.2)
    given = inputs()
    chosen = given["labels"] != IGNORED
    features = {"input_ids": given["input_ids"].where(~chosen, given["labels"]), "attention_mask": given["attention_mask"]}
    with torch.no_grad():
        found = loss.loss(features, chosen, given["input_ids"])
    assert float(found) == pytest.approx(REFERENCE["mntp_loss"], abs=1e-5)


def test_simcse_loss_is_the_one_of_llm2vec() -> None:
    loss = RankingLoss(None, scale=20.0)  # type: ignore[arg-type]
    found = loss.compute_loss_from_embeddings(list(pairs()), torch.empty(0))
    assert float(found) == pytest.approx(REFERENCE["simcse_loss"], abs=1e-5)


def test_a_masked_token_is_never_seen_by_the_position_that_predicts_it(tiny: BackboneSettings) -> None:
    embedder = load_embedder(replace(tiny, attention="bidirectional", prompt="{text}"))
    loss = MaskedNextTokenLoss(embedder, load_head(embedder, tiny.name), masked=0.2)
    features = embedder.preprocess(TEXTS[:3])
    chosen = torch.zeros_like(features["input_ids"], dtype=torch.bool)
    chosen[:, 3] = True
    values = []
    for original in (5, 50):  # what stands under the mask must not matter to what the model sees
        ids = features["input_ids"].clone()
        ids[:, 3] = original
        seen = ids.masked_fill(chosen, loss.mask_id)
        hidden = transformer_of(embedder)({**features, "input_ids": seen})["token_embeddings"]
        values.append(hidden)
    assert torch.equal(*values)
    assert tokenizer_of(embedder).decode([loss.mask_id]) == "_"


def test_shares_of_masked_tokens(tiny: BackboneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load_embedder(replace(tiny, attention="bidirectional", prompt="{text}"))
    loss = MaskedNextTokenLoss(embedder, load_head(embedder, tiny.name), masked=0.2)
    seen_by_model: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(loss, "loss", lambda features, chosen, seen: seen_by_model.append((chosen, seen)) or torch.zeros(()))
    ids = torch.full((200, 50), 77)
    torch.manual_seed(0)
    loss([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    chosen, seen = seen_by_model[0]
    assert chosen.float().mean() == pytest.approx(0.2, abs=0.02)
    assert (seen[chosen] == loss.mask_id).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (seen[chosen] == 77).float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(seen[~chosen], ids[~chosen])


def test_bm25_ranks_by_rare_shared_words() -> None:
    bm25 = PEERS[NAMES.index("BM25")].build(None, {}).result  # type: ignore[arg-type]
    documents = [f"some common words and the rare word zebra{i}" for i in range(10)]
    scores = bm25.similarities([f"where is zebra{i}" for i in range(10)], documents)  # type: ignore[union-attr]
    assert np.array_equal(scores.argmax(1), np.arange(10))


@pytest.mark.slow
def test_model2vec_distils_the_real_backbone(real_backbone: str, tmp_path: Path) -> None:
    peer = PEERS[NAMES.index("Model2Vec")]
    workshop = Workshop(BackboneSettings(real_backbone, layers=2), passages(), 0, 0, tmp_path)
    encoder = peer.build(workshop, peer.candidates[0]).result
    assert isinstance(encoder, TextEncoder)
    one, two, three = torch.nn.functional.normalize(encoder(["a cat sat", "the cat sits", "stock markets fell"]))
    assert one @ two > one @ three


def test_the_control_trains_on_each_other_s_targets(workshop: Workshop, tmp_path: Path) -> None:
    stores = []
    for shuffled in ({}, {SHUFFLED: True}):
        own = replace(workshop, folder=tmp_path / str(len(shuffled)), max_tokens=500)
        build(own, {"stage1.targets": "data_driven", "stage1.contrast": 0.0, **shuffled}, "")
        (file,) = (own.folder / "run" / "targets" / "stage1").glob("*.parquet")
        stores.append(pq.read_table(file).to_pydict())
    right, others = stores
    assert others["text"] == right["text"]
    assert others["token_ids"] != right["token_ids"]
    assert sorted(others["token_ids"]) == sorted(right["token_ids"])
