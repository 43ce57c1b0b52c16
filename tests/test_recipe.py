"""The whole method on a tiny model: every step leaves its file, settings are checked, interruptions cost nothing."""

import json
import tomllib
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from text2token.backbone import BackboneSettings, Progress
from text2token.corpus.prepare import CorpusSettings
from text2token.corpus.readers import read_documents
from text2token.errors import OutputError, RecipeError
from text2token.recipe import Recipe, build_targets, run
from text2token.reporter import Silent
from text2token.targets.store import read_card


@pytest.fixture
def recipe(tiny: BackboneSettings, text_file: Path) -> Recipe:
    return Recipe(tiny, sources=(str(text_file),), corpus=CorpusSettings(held_out=10)).with_settings(
        ["stage.tokens_per_batch=512", "stage.learning_rate=0.01", "stage.steps_per_checkpoint=3", "lora.rank=4"]
    )


def run_here(recipe: Recipe, folder: Path, **options: Any) -> dict[str, Any]:
    documents = read_documents(recipe.sources)
    return asdict(run(recipe, documents, folder / "run", folder / "model", **options))


def test_a_run_leaves_model_targets_settings_and_results(recipe: Recipe, tmp_path: Path) -> None:
    result = run_here(recipe, tmp_path)
    assert SentenceTransformer(str(tmp_path / "model")).encode(["hello"]).shape == (1, 32)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(result))
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["stage"]["learning_rate"] == 0.01
    assert read_card(tmp_path / "run" / "targets").texts == result["corpus"]["passages"]
    assert result["evaluation"]["trained"]["queries"] == 10
    assert result["training"]["last_loss"] < result["training"]["first_loss"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "MRR@10" in card
    assert 'pooling = "last"' in card
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "run"}
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name or "replaced" in path.name]


class Interrupting(Silent):
    """Interrupts the run at its n-th sign of life."""

    def __init__(self, after: int) -> None:
        self.left = after

    def note(self, message: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Progress]:
        self.note(description)
        return super().progress(description, total, unit)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = SentenceTransformer(str(folder / "model"))
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_run_resumed_after_each_step_gives_the_same_model(recipe: Recipe, tmp_path: Path) -> None:
    run_here(recipe, tmp_path / "whole")
    for after in (1, 2, 3, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            run_here(recipe, tmp_path / "parts", resume=True, reporter=Interrupting(after))
    assert not (tmp_path / "parts" / "model").exists()
    run_here(recipe, tmp_path / "parts", resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_an_earlier_run_is_kept_unless_told_otherwise(recipe: Recipe, tmp_path: Path) -> None:
    run_here(recipe, tmp_path)
    with pytest.raises(OutputError, match="model: exists"):
        run_here(recipe, tmp_path)
    with pytest.raises(OutputError, match=r"started with other settings \(learning_rate = 0.01; learning_rate = 0.02\)"):
        run_here(recipe.with_settings(["stage.learning_rate=0.02"]), tmp_path, resume=True)
    run_here(recipe.with_settings(["seed=1"]), tmp_path, overwrite=True)
    assert "seed = 1" in (tmp_path / "run" / "recipe.toml").read_text()


def test_all_weights_train_when_the_rank_is_zero(recipe: Recipe, tmp_path: Path) -> None:
    result = run_here(recipe.with_settings(["lora.rank=0", "stage.learning_rate=0.003", "isotropy=centre"]), tmp_path)
    assert result["training"]["last_loss"] < result["training"]["first_loss"]


def test_targets_alone(recipe: Recipe, tmp_path: Path) -> None:
    card = build_targets(recipe, read_documents(recipe.sources), tmp_path / "targets")
    assert card.settings["fitted_on"] == card.texts == 120


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stage.learning_rat=1", "did you mean 'learning_rate'"),
        ("stag.epochs=1", "did you mean 'stage'"),
        ("stage=1", "is a section"),
        ("seed.x=1", "holds no further settings"),
        ("stage.epochs=many", "stage.epochs is 'many'"),
        ("backbone.pooling=middle", "'last', 'mean' or 'weighted_mean'"),
        ("stage.epochs", "expected section.key=value"),
        ("stage.epochs=0", "must be above zero"),
    ],
)
def test_mistaken_settings_are_explained_in_one_line(tiny: BackboneSettings, assignment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe(tiny).with_settings([assignment])
    assert "\n" not in str(caught.value)


def test_settings_take_their_types(tiny: BackboneSettings) -> None:
    recipe = Recipe(tiny).with_settings(["stage.max_tokens=5000", "backbone.layers=1", "stage.learning_rate=3e-5"])
    assert (recipe.stage.max_tokens, recipe.backbone.layers, recipe.stage.learning_rate) == (5000, 1, 3e-5)
    assert recipe.with_settings(["stage.max_tokens=none"]).stage.max_tokens is None
    assert recipe.with_settings(["isotropy=none"]).isotropy == "none"
