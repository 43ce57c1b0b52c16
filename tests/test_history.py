"""The history of a run, and that writing it changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file

from text2token.corpus.readers import read_documents
from text2token.evaluation.history import StepEvaluator, read_history
from text2token.evaluation.label_free import dense_scores, geometry
from text2token.model.backbone import embed, load_embedder, tokenizer_of
from text2token.model.head import load_head
from text2token.progress import Silent
from text2token.recipe import BackboneSettings, CorpusSettings, Recipe
from text2token.tokens.words import WordSplitter
from text2token.training.folder import HISTORY
from text2token.training.run import train


@pytest.fixture
def recipe(tiny: BackboneSettings, text_file: Path) -> Recipe:
    settings = ["stage1.targets=data_driven", "stage1.tokens_per_batch=512", "stage1.steps_per_checkpoint=3", "lora.rank=4"]
    return Recipe(tiny, sources=(str(text_file),), corpus=CorpusSettings(held_out=10)).with_settings(settings)


def run_here(recipe: Recipe, folder: Path, **options: Any) -> list[dict[str, Any]]:
    train(recipe, read_documents(recipe.sources), run_folder=folder / "run", output=folder / "model", **options)
    return read_history(folder / "run" / "stages" / "stage1" / HISTORY)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_evaluation_steps_change_nothing_and_see_the_beginning_and_the_end(recipe: Recipe, tmp_path: Path) -> None:
    history = run_here(recipe, tmp_path / "seen")
    unseen = run_here(replace(recipe, evaluation_steps=0), tmp_path / "unseen")
    before, after = weights(tmp_path / "seen"), weights(tmp_path / "unseen")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    evaluations = [line for line in history if "mrr_at_10" in line]
    steps = [line["step"] for line in evaluations]
    assert steps[0] == 0
    assert len(steps) == recipe.evaluation_steps + 1
    assert steps == sorted(set(steps))
    assert [line for line in history if "loss" in line] == unseen
    assert unseen[-1]["step"] <= steps[-1]


class Interrupting(Silent):
    """Stops the run in the middle of training."""

    def progress(self, description: str, total: int | None, unit: str) -> Any:
        inner = super().progress(description, total, unit)
        if description != "Training":
            return inner
        return _Broken(inner)


class _Broken:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __enter__(self) -> Any:
        self.inner.__enter__()
        self.steps = 0

        def advance(done: int) -> None:
            self.steps += 1
            if self.steps == 8:
                raise KeyboardInterrupt

        return advance

    def __exit__(self, *error: Any) -> Any:
        return self.inner.__exit__(*error)


def test_an_interrupted_run_ends_with_the_same_history(recipe: Recipe, tmp_path: Path) -> None:
    whole = run_here(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_here(recipe, tmp_path / "broken", reporter=Interrupting())
    assert run_here(recipe, tmp_path / "broken") == whole


def test_an_evaluation_step_scores_decoded_tokens_and_vectors(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    head = load_head(embedder, tiny.name)
    queries, passages = TEXTS[:5], TEXTS[5:]
    evaluator = StepEvaluator.of(queries, passages, head, WordSplitter(tokenizer_of(embedder)), steps=1)
    assert evaluator
    seen = evaluator.scores(embedder.train(), 7)
    assert embedder.training
    both = embed(embedder.eval(), TEXTS)
    centred = both - both.mean(0)
    assert seen.step == 7
    assert seen.mrr_at_10 == pytest.approx(dense_scores(centred[:5], centred[5:]).mrr_at_10)
    assert seen.uniformity == pytest.approx(geometry(centred[:5], centred[5:]).uniformity, abs=1e-5)
    assert seen.hit_at_1 is not None
    assert 0 <= seen.hit_at_1 <= 100


def test_without_steps_or_with_one_document_nothing_is_evaluated(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    given = load_head(embedder, tiny.name), WordSplitter(tokenizer_of(embedder))
    assert StepEvaluator.of(["one"], ["text"], *given, steps=1) is None
    assert StepEvaluator.of(TEXTS, TEXTS, *given, steps=0) is None
