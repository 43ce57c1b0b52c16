"""The same claims on a real model: SmolLM2-135M-Instruct, dequantised from its GGUF."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import transformers
from commands import call
from conftest import TEXTS, THREADS, with_others_targets
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from text2token.corpus.docstrings import standard_library_documents
from text2token.export.folder import export_embedder
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, resolve_backbone, tokenizer_of
from text2token.model.bundle import Backbone
from text2token.model.head import load_head
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, LoraSettings, Postprocessing, StageSettings, TargetSettings
from text2token.targets.constructors import make_constructor
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.tokens.words import Words
from text2token.training.objective import TokenTargetLoss
from text2token.training.schedule import plan
from text2token.training.stage import text_lengths, train_stage

pytestmark = pytest.mark.slow
FEW = 6  # of its thirty layers, where none of them has to know much

EVALUATION_DATA = Path(__file__).parents[2] / "shared" / "eval"


@pytest.fixture
def settings(real_backbone: str) -> BackboneSettings:
    return BackboneSettings(real_backbone, max_length=96, dtype="float32")


def test_the_dequantised_model_knows_the_capital_of_france(real_backbone: str) -> None:
    folder = resolve_backbone(real_backbone)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == " Paris"


def test_an_untrained_embedding_already_says_its_key_tokens(settings: BackboneSettings) -> None:
    embedder = load_embedder(settings)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    embeddings = embed(embedder, [*TEXTS, "A girl is styling her hair."])
    head = load_head(embedder, settings.name)
    (said,) = Words.of(vocabulary, whole=True).key_tokens(head(embeddings[-1:] - embeddings.mean(0)))
    assert "hair" in [token.word for token in said]
    assert sum(token.weight for token in said) < 1


def test_export_gives_the_same_vectors_whatever_the_batch_or_padding(settings: BackboneSettings, tmp_path: Path) -> None:
    embedder = load_embedder(replace(settings, layers=FEW))
    add_lora(embedder, LoraSettings(), seed=0)
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    texts = [*TEXTS, "short", "long " * 200]
    raw = embed(embedder, texts)
    whitening = fit_postprocessing(raw)
    expected = torch.nn.functional.normalize(whitening(raw))
    export_embedder(embedder, whitening, tmp_path / "model", "# card")
    exact = torch.from_numpy(SentenceTransformer(str(tmp_path / "model")).double().encode(texts))
    own_error = (expected - exact).abs().max()  # float32 and plain attention, where the reloaded model has torch's fused one
    assert own_error < 1e-4
    model = SentenceTransformer(str(tmp_path / "model"))
    for batch_size, side in ((1, "right"), (5, "right"), (32, "left")):
        model.tokenizer.padding_side = side
        found = torch.from_numpy(model.encode(texts, batch_size=batch_size))
        assert (found - exact).abs().max() < 3 * own_error, (batch_size, side)


def test_a_text_s_own_targets_are_learnt_and_another_s_are_not(settings: BackboneSettings, tmp_path: Path) -> None:
    settings = replace(settings, dtype="auto", max_length=64)
    texts = [document.body[:150] for document in list(standard_library_documents())[:250]]
    losses = {}
    for control in (False, True):
        embedder = load_embedder(settings)
        head = load_head(embedder, settings.name)
        vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
        constructor = DataDrivenTargets(tokenizer_of(embedder), vocabulary).fit(texts)
        targets = Dataset(pa.Table.from_batches(constructor.transform(texts)))
        if control:
            targets = with_others_targets(targets)
        centre = embed(embedder, texts[:32]).mean(0)
        add_lora(embedder, LoraSettings(last_layers=8), seed=0)
        stage = StageSettings(learning_rate=2e-3, max_tokens=4000, tokens_per_batch=256)
        schedule = plan(text_lengths(embedder, targets), stage, seed=0)
        loss = TokenTargetLoss(embedder, head, centre, contrast=0)
        losses[control] = train_stage(embedder, loss, targets, schedule, stage, tmp_path / str(control))
    assert losses[False].last_loss < losses[False].first_loss - 1
    assert losses[False].last_loss < losses[True].last_loss - 1


@pytest.mark.data
def test_untrained_similarity_agrees_with_people(settings: BackboneSettings) -> None:
    path = EVALUATION_DATA / "STSBenchmark" / "dev.jsonl"
    if not path.exists():
        pytest.skip("the development data are not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][::6]
    embedder = load_embedder(replace(settings, dtype="auto"))
    embeddings = embed(embedder, [row["a"] for row in rows] + [row["b"] for row in rows])

    def agreement(kind: Postprocessing) -> float:
        one, two = fit_postprocessing(embeddings, kind, "full")(embeddings).chunk(2)
        similarities = torch.nn.functional.cosine_similarity(one, two)
        return 100 * float(spearmanr(similarities, [row["score"] for row in rows])[0])

    assert agreement("whitened") > agreement("centred") > 73  # whole development set: 81.6 and 77.0 (LOG.md)


def test_quickstart_leaves_what_it_promises_and_is_honest(real_backbone: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    settings = ["stage1.max_tokens=1500", "corpus.held_out=12", "backbone.max_length=32", f"backbone.layers={FEW}"]
    settings = [word for setting in settings for word in ("--set", setting)]
    result = call("quickstart", "--folder", tmp_path / "run", *settings, env=environment)
    assert result.returncode == 0, result.stderr
    for name in ("untrained backbone", "trained", "TF-IDF", "Decoded tokens"):
        assert name in result.stdout
    assert re.search(r"MRR@10 rose by [\d.]+ points|There was no gain", result.stderr)
    assert re.search(r"text2token search \S+ python:stdlib", result.stderr)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model", "targets", "recipe.toml", "results.json"}
    (tmp_path / "few.txt").write_text("Bake the bread for an hour.\nBlock until the thread terminates.\n", encoding="utf-8")
    found = call("search", tmp_path / "run" / "model", tmp_path / "few.txt", "wait for a thread to end", "-k", "1", "--json")
    assert json.loads(found.stdout)[0]["place"].endswith("few.txt:2")


def test_the_model_derives_words_beyond_the_text(settings: BackboneSettings) -> None:
    embedder = load_embedder(settings)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    asked = TargetSettings()
    constructor = make_constructor("model_derived", Backbone(settings, embedder, vocabulary), asked).fit(TEXTS)
    texts = ["A girl is styling her hair.", "Stop the timer if it hasn't finished yet."]
    said = [
        {vocabulary.words[token] for token in target["token_ids"]}
        for batch in constructor.transform(texts)
        for target in batch.to_pylist()
    ]
    assert {"woman", "fashion", "dresses"} & said[0]
    assert {"pause", "halt", "stopped"} & said[1]
