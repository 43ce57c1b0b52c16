"""The whole method on a tiny model: every step leaves its file, settings are checked, interruptions cost nothing."""

import json
import os
import shutil
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BackboneMaker
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus
from text2token.corpus.readers import read_documents
from text2token.errors import OutputError, UsageError
from text2token.evaluation.label_free import dense_scores
from text2token.model.adapters import add_lora
from text2token.model.backbone import load_embedder, tokenizer_of
from text2token.model.head import load_head
from text2token.progress import Progress, Silent
from text2token.recipe import (
    BackboneSettings,
    CorpusSettings,
    ReadingSettings,
    Recipe,
    StageSettings,
    read_recipe,
    recipe_names,
)
from text2token.settings import from_toml
from text2token.targets.likelihood_ratio import LikelihoodRatioTargets
from text2token.targets.store import read_card
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.training.checkpoints import load_trainable
from text2token.training.folder import made_from
from text2token.training.run import build_targets, train
from text2token.training.stage import train_stage


@pytest.fixture
def recipe(tiny: BackboneSettings, text_file: Path) -> Recipe:
    return Recipe(tiny, sources=(str(text_file),), corpus=CorpusSettings(held_out=10)).with_settings(
        [
            "stage1.targets=data_driven",
            "stage1.tokens_per_batch=512",
            "stage1.learning_rate=0.01",
            "stage1.steps_per_checkpoint=3",
            "lora.rank=4",
        ]
    )


def run_here(recipe: Recipe, folder: Path, **options: Any) -> dict[str, Any]:
    return asdict(train(recipe, output=folder / "model", run_folder=folder / "run", **options))


def test_a_run_leaves_model_targets_settings_and_results(recipe: Recipe, tmp_path: Path) -> None:
    result = run_here(recipe, tmp_path)
    assert SentenceTransformer(str(tmp_path / "model")).encode(["hello"]).shape == (1, 32)
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert (
        tomllib.loads((tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8"))["stages"][0]["learning_rate"] == 0.01
    )
    assert read_card(tmp_path / "run" / "targets" / "stage1").texts == result["corpus"]["passages"]
    assert result["evaluation"]["trained"]["queries"] == 10
    assert result["stages"]["stage1"]["last_loss"] < result["stages"]["stage1"]["first_loss"]
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
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
    for after in (1, 2, 3, 3, 3, 4, 3):  # at each step in turn; what is done is no sign of life again
        with pytest.raises(KeyboardInterrupt):
            run_here(recipe, tmp_path / "parts", reporter=Interrupting(after))
    assert not (tmp_path / "parts" / "model").exists()
    run_here(recipe, tmp_path / "parts")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


class Listening(Interrupting):
    """Interrupts a run as it begins a task, and lists those that it began."""

    def __init__(self, at: str = "") -> None:
        self.at = at
        self.begun: list[str] = []

    def note(self, message: str) -> None:
        """Say nothing."""

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Progress]:
        self.begun.append(description)
        if description == self.at:
            raise KeyboardInterrupt
        return Silent.progress(self, description, total, unit)


def test_no_text_is_embedded_again_that_was_before_an_interruption(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(recipe, tmp_path, reporter=Listening("Embedding, trained"))
    resumed = Listening()
    run_here(recipe, tmp_path, reporter=resumed)
    assert resumed.begun == ["Embedding, trained"]
    other_map = Listening()
    run_here(recipe.with_settings(["postprocessing=centred"]), tmp_path, reporter=other_map)
    assert other_map.begun == []  # learnt from the same vectors
    for changed, again in {
        "stage1.learning_rate=0.001": {"Embedding, trained"},
        "backbone.prompt=A {text}": {"Embedding, untrained", "Embedding, trained"},
        "cut_layers=0": {"Embedding, untrained", "Embedding, trained"},
        "corpus.held_out=9": {"Embedding, untrained", "Embedding, trained"},
    }.items():
        once_more = Listening()
        recipe = recipe.with_settings([changed])
        run_here(recipe, tmp_path, reporter=once_more)
        assert {task for task in once_more.begun if task.startswith("Embedding")} == again, changed
    path = tmp_path / "run" / "embedded" / "untrained.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "run" / "results.json").unlink()
    damaged = Listening()
    run_here(recipe, tmp_path, reporter=damaged)
    assert damaged.begun == ["Embedding, untrained"]


def test_an_earlier_run_is_kept_unless_told_otherwise(recipe: Recipe, tmp_path: Path) -> None:
    run_here(recipe, tmp_path)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="model: exists"):  # a model that no run here has made
        run_here(recipe, tmp_path)
    run_here(recipe.with_settings(["seed=1"]), tmp_path, overwrite=True)
    assert "seed = 1" in (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")


def test_neighbouring_passages_meet_in_a_run_at_no_further_tokens(recipe: Recipe, tmp_path: Path) -> None:
    lines = Path(recipe.sources[0]).read_text(encoding="utf-8").splitlines()
    long = tmp_path / "long.txt"
    long.write_text("\n".join(" ".join(lines[start : start + 3]) for start in range(0, len(lines) - 3, 3)), encoding="utf-8")
    short = replace(recipe, sources=(str(long),)).with_settings(["corpus.passage_characters=100", "stage1.contrast=0"])
    without = run_here(short, tmp_path / "without")
    beside = run_here(short.with_settings(["stage1.contrast=0.5"]), tmp_path / "beside")
    assert without["corpus"]["passages"] > without["corpus"]["documents"]
    assert beside["stages"]["stage1"]["tokens"] == without["stages"]["stage1"]["tokens"]
    alone = weights(tmp_path / "without")
    assert any(not torch.equal(value, alone[name]) for name, value in weights(tmp_path / "beside").items())


TWO_STAGES = ["stage2.targets=model_derived", "stage2.tokens_per_batch=512", "stage2.learning_rate=0.005"]


def test_a_second_stage_goes_on_from_the_first(recipe: Recipe, tmp_path: Path) -> None:
    one = run_here(recipe, tmp_path)
    before = weights(tmp_path)
    two = run_here(recipe.with_settings(TWO_STAGES), tmp_path)
    assert (list(two["stages"]), list(two["targets"])) == (["stage1", "stage2"], ["stage1", "stage2"])
    assert [card["constructor"] for card in two["targets"].values()] == ["data_driven", "model_derived"]
    assert two["stages"]["stage1"] == one["stages"]["stage1"]  # taken from the run folder, times and all
    assert any(not torch.equal(value, before[name]) for name, value in weights(tmp_path).items())
    run_here(recipe.with_settings(TWO_STAGES), tmp_path / "at once")
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in weights(tmp_path / "at once").items())


def test_only_what_has_changed_is_done_again(recipe: Recipe, tmp_path: Path, text_file: Path) -> None:
    recipe = recipe.with_settings(TWO_STAGES)
    first = run_here(recipe, tmp_path)
    done = json.loads((tmp_path / "run" / "steps.json").read_text(encoding="utf-8"))

    def changed_by(recipe: Recipe) -> set[str]:
        run_here(recipe, tmp_path)
        now = json.loads((tmp_path / "run" / "steps.json").read_text(encoding="utf-8"))
        changed = {step for step, made_from in now.items() if done.get(step) != made_from}
        done.update(now)
        return changed

    assert changed_by(recipe) == set()
    other = tmp_path / "other"
    train(
        recipe, read_documents(recipe.sources), run_folder=tmp_path / "run", output=other
    )  # into another folder: exported again
    assert (other / "model.safetensors").exists()
    last = run_here(recipe, tmp_path)
    assert run_here(recipe, tmp_path, reporter=Interrupting(2)) == last  # one note and nothing else
    assert {**last, "seconds": {}} == {**first, "seconds": {}}
    assert changed_by(recipe.with_settings(["postprocessing=centred"])) == {"result"}
    assert changed_by(recipe.with_settings(["stage2.learning_rate=0.001"])) == {"stage2", "result"}
    assert changed_by(recipe.with_settings(["targets.model_derived.alpha=0.5"])) == {
        "targets/stage2",
        "stage2",
        "result",
    }
    text_file.write_text(
        text_file.read_text(encoding="utf-8") + "One more line about a harbour and its lighthouse.\n", encoding="utf-8"
    )
    assert changed_by(recipe) == set(done)


def test_a_finished_embedder_of_other_text_is_replaced_only_when_told(recipe: Recipe, tmp_path: Path) -> None:
    lines = [f"Boat {number} waits in the harbour for the pilot and the tide.\n" for number in range(40)]
    (tmp_path / "other.txt").write_text("".join(lines), encoding="utf-8")
    other = replace(recipe, sources=(str(tmp_path / "other.txt"),))
    output = tmp_path / "model"
    train(recipe, output=output)
    weights = (output / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"trained on .*docs.txt\. Choose another folder, or .* --overwrite"):
        train(other, output=output)
    assert (output / "model.safetensors").read_bytes() == weights
    train(other, output=output, overwrite=True)
    train(other, output=output)


TAUGHT = ["stage2.targets=likelihood_ratio", "targets.likelihood_ratio.tau=auto", *TWO_STAGES[1:]]


def test_the_second_stage_asks_the_model_that_the_first_one_made(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.with_settings(TAUGHT)
    run_here(recipe, tmp_path)
    done = tmp_path / "run" / "steps.json"
    assert list(json.loads(done.read_text(encoding="utf-8"))) == [
        "corpus",
        "targets/stage1",
        "stage1",
        "targets/stage2",
        "stage2",
        "result",
    ]

    def prior(settings: Sequence[str]) -> str:
        run_here(recipe.with_settings(settings), tmp_path)
        return str(read_card(tmp_path / "run" / "targets" / "stage2").settings["prior"])

    embedder = load_embedder(recipe.backbone)
    passages = Corpus.open(tmp_path / "run" / "corpus").passages
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    by_hand = LikelihoodRatioTargets(embedder, load_head(embedder, recipe.backbone.name), vocabulary)
    untrained = by_hand.fit(passages).describe()["prior"]
    add_lora(embedder, recipe.lora, recipe.seed)
    load_trainable(embedder, load_file(tmp_path / "run" / "stages" / "stage1" / "weights.safetensors"))
    first = by_hand.fit(passages).describe()["prior"]
    assert prior([]) == first != untrained
    before = json.loads(done.read_text(encoding="utf-8"))
    assert prior(["stage1.learning_rate=0.005"]) not in (first, untrained)  # another first stage, other targets
    assert {name for name, digest in json.loads(done.read_text(encoding="utf-8")).items() if before[name] == digest} == {
        "corpus",
        "targets/stage1",
    }
    assert prior(["targets.likelihood_ratio.teacher=untrained"]) == untrained


def test_targets_half_made_of_another_first_stage_are_not_taken(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.with_settings(TAUGHT)
    run_here(recipe, tmp_path)
    whole = read_card(tmp_path / "run" / "targets" / "stage2")
    changed = recipe.with_settings(["stage1.learning_rate=0.005"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("text2token.targets.constructors.EXPENSIVE_TEXTS_PER_PART", 16)
        patch.setattr(
            "text2token.targets.store.atomic_folder", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )  # all parts are there, and no card yet
        with pytest.raises(KeyboardInterrupt):
            run_here(changed.with_settings(["targets.likelihood_ratio.tau=1.0"]), tmp_path)
        patch.undo()
        patch.setattr("text2token.targets.constructors.EXPENSIVE_TEXTS_PER_PART", 16)
        assert list((tmp_path / "run" / "targets").glob("stage2.unfinished/*.parquet"))
        run_here(recipe.with_settings(["targets.likelihood_ratio.tau=1.0"]), tmp_path / "fresh")
        run_here(recipe.with_settings(["targets.likelihood_ratio.tau=1.0"]), tmp_path)
    found, expected = (read_card(folder / "run" / "targets" / "stage2") for folder in (tmp_path, tmp_path / "fresh"))
    assert found == expected != whole


@pytest.mark.parametrize(
    ("name", "family"), [("paper", "llama_tied"), ("paper_mistral_7b", "mistral"), ("paper_llama3_8b", "llama")]
)
@pytest.mark.parametrize(
    "reading", [[], ["backbone.pooling=mean", "backbone.prompt={text}", "backbone.attention=bidirectional"]]
)
def test_the_authors_recipes_run_on_small_models_of_their_families(
    name: str, family: str, reading: list[str], make_backbone: BackboneMaker, text_file: Path, tmp_path: Path
) -> None:
    small = ["backbone.dtype=float32", "backbone.max_length=64", "corpus.held_out=10", "evaluation_steps=1"]
    lengths = ["stage1.max_tokens=2000", "stage2.max_tokens=300", "targets.likelihood_ratio.prior_texts=20"]
    recipe = replace(read_recipe(name), sources=(str(text_file),))
    recipe = recipe.with_settings([f"backbone.name={make_backbone(family)}", *small, *lengths, *reading])
    result = run_here(recipe, tmp_path)
    assert [card["constructor"] for card in result["targets"].values()] == ["data_driven", "likelihood_ratio"]
    assert result["stages"]["stage1"]["texts"] <= 32 * result["stages"]["stage1"]["steps"]
    assert result["stages"]["stage2"]["steps"] == 1
    assert result["targets"]["stage2"]["texts"] <= 32
    names = load_file(tmp_path / "run" / "stages" / "stage2" / "weights.safetensors")
    assert {one.split(".lora_")[0].rsplit(".", 1)[-1] for one in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model = SentenceTransformer(str(tmp_path / "model"))
    assert [type(module).__name__ for module in model][:2] == ["Transformer", "Pooling"]
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert '"constructor": "likelihood_ratio"' in card
    assert '"half_of_mass"' in card


def test_what_finishes_the_vectors_does_not_change_the_training(recipe: Recipe, tmp_path: Path) -> None:
    losses = [
        run_here(recipe.with_settings([f"postprocessing={kind}"]), tmp_path / kind)["stages"]["stage1"]["last_loss"]
        for kind in ("none", "whitened")
    ]
    assert losses[0] == losses[1]


def test_layers_that_are_cut_are_trained_with_and_not_in_the_model(recipe: Recipe, tmp_path: Path) -> None:
    whole, cut = (run_here(recipe.with_settings([f"cut_layers={n}"]), tmp_path / str(n)) for n in (0, 1))
    for same in ("first_loss", "last_loss"):
        assert cut["stages"]["stage1"][same] == whole["stages"]["stage1"][same]
    for same in ("key_tokens_untrained", "key_tokens_trained"):  # the head reads after the last layer
        assert cut["evaluation"][same] == whole["evaluation"][same]
    assert cut["evaluation"]["trained"] != whole["evaluation"]["trained"]
    for layers, folder in ((2, "0"), (1, "1")):
        assert (
            json.loads((tmp_path / folder / "model" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
            == layers
        )
    held_out = Corpus.open(tmp_path / "1" / "run" / "corpus").held_out
    model = SentenceTransformer(str(tmp_path / "1" / "model"))
    queries, passages = (model.encode(list(held_out[name]), convert_to_tensor=True) for name in ("query", "passage"))
    assert asdict(dense_scores(queries, passages)) == cut["evaluation"]["trained"]  # what is reported is what is exported


def test_a_recipe_is_read_from_toml_and_comes_back(recipe: Recipe, tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):  # editors put a byte order mark before it
        (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding=encoding)
        assert read_recipe(str(tmp_path / "recipe.toml")) == recipe
    for name in recipe_names():
        known = read_recipe(name)
        assert known.backbone.name
        (tmp_path / "copy.toml").write_text(known.to_toml(), encoding="utf-8")
        assert read_recipe(str(tmp_path / "copy.toml")) == known


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed = 1", "backbone: is missing; add"),
        ("[backbone]\nmax_length = 64", "backbone.name: is missing"),
        ("[backbone]\nname = 'x'\n[stage3]", "stage3: no setting 'stage3'; did you mean 'stage"),
        (
            "[backbone]\nname = 'x'\n[stage1]\nlearning_rat = 1",
            "stage1.learning_rat: no setting .* did you mean 'learning_rate'",
        ),
        ("[backbone]\nname = 'x'\n[stage1]\nepochs = 'many'", "stage1.epochs is 'many'"),
        ("stage1 = 3\n[backbone]\nname = 'x'", "stage1: no setting 'stage1'; did you mean 'stages'"),
        ("[backbone]\nname = 'x'\n[stage1]\ntargets = 'none'", "stages: there is none"),
        ("stages = []\n[backbone]\nname = 'x'", "stages: there is none"),
        ("[backbone]\nname = 'x'\n[stages]\nepochs = 1", r"stages: is a list of sections; write \[\[stages\]\]"),
        ("[backbone]\nname = 'x'\n[[stages]]\n[[stages]]\nepoch = 1", "stage2.epoch: no setting .* did you mean 'epochs'"),
        ("[backbone\nname = 'x'", "is no TOML"),
    ],
)
def test_mistaken_recipe_files_are_explained_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=f"r.toml: {message}") as caught:
        read_recipe(str(tmp_path / "r.toml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such recipe file; those that come along are data_driven, llm_7b"):
        read_recipe("two_stages")


def test_all_weights_train_when_the_rank_is_zero(recipe: Recipe, tmp_path: Path) -> None:
    result = run_here(
        recipe.with_settings(["lora.rank=0", "stage1.learning_rate=0.003", "postprocessing=centred"]), tmp_path
    )
    assert result["stages"]["stage1"]["last_loss"] < result["stages"]["stage1"]["first_loss"]


def test_targets_alone(recipe: Recipe, tmp_path: Path) -> None:
    card = build_targets(recipe, output=tmp_path / "targets")
    assert card.settings["fitted_on"] == card.texts == 240  # 120 texts of one sentence, in halves


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stage1.learning_rat=1", "did you mean 'learning_rate'"),
        ("stag1.epochs=1", "did you mean 'stage1'"),
        ("stage1=1", "is a section"),
        ("stages=1", "is a list of sections; name one, such as stage1"),
        ("stage3.epochs=1", "no setting 'stage3'"),
        ("stage1=none", "stages: there is none"),
        ("seed.x=1", "holds no further settings"),
        ("stage1.epochs=many", "stage1.epochs is 'many'"),
        ("backbone.pooling=middle", "'last', 'mean' or 'weighted_mean'"),
        ("stage1.epochs", "expected section.key=value"),
        ("stage1.epochs=0", "stage1.epochs is '0': it should be greater than 0"),
        ("stage1.contrast=2", "less than or equal to 1"),
        ("stage1.contrast_with=itself", "no setting 'contrast_with'"),
        ("targets.smoothing.share=1", "no setting 'smoothing'"),
        ("isotropy=none", "no setting 'isotropy'; there are .*postprocessing"),
        ('targets.model_derived.prompts=["word"]', "exactly once"),
        ("stage1.warmup=-1", "greater than or equal to 0"),
        ("corpus.halves_from=-1", "greater than or equal to 0"),
        ("lora.rank=-1", "greater than or equal to 0"),
        ("lora.dropout=1.0", "less than 1"),
        ("lora.last_layers=1", "all that is trained would be left out"),
        ("reading.format=docx", "reading.format is 'docx'"),
    ],
)
def test_mistaken_settings_are_explained_in_one_line(tiny: BackboneSettings, assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Recipe(tiny).with_settings([assignment])
    assert "\n" not in str(caught.value)


def test_settings_take_their_types(tiny: BackboneSettings) -> None:
    recipe = Recipe(tiny).with_settings(["stage1.max_tokens=5000", "backbone.layers=1", "stage1.learning_rate=3e-5"])
    assert (recipe.stages[0].max_tokens, recipe.backbone.layers, recipe.stages[0].learning_rate) == (5000, 1, 3e-5)
    assert recipe.with_settings(["stage1.max_tokens=none"]).stages[0].max_tokens is None
    assert recipe.with_settings(["postprocessing=none"]).postprocessing == "none"
    prompts = recipe.with_settings(
        ['targets.model_derived.prompts=["{text}: ", "{text} is "]']
    ).targets.model_derived.prompts
    assert prompts == ("{text}: ", "{text} is ")


def test_stages_are_named_added_and_left_out(tiny: BackboneSettings) -> None:
    one = Recipe(tiny)
    three = one.with_settings(["stage3.epochs=3", "stage2.targets=data_driven", "stage1.learning_rate=1e-3"])
    assert [(stage.learning_rate, stage.targets, stage.epochs) for stage in three.stages] == [
        (1e-3, "corpus_derived", 1),
        (2e-4, "data_driven", 1),
        (2e-4, "corpus_derived", 3),
    ]
    assert three.with_settings(["stage2=none", "stage3.epochs=4"]).stages == (
        three.stages[0],
        replace(three.stages[2], epochs=4),
    )
    assert from_toml(Recipe, three.to_toml(), "") == three
    with pytest.raises(UsageError, match="there is no stage2 before it"):
        one.with_settings(["stage3.epochs=1", "seed=1"])
    assert list(three.named_stages) == ["stage1", "stage2", "stage3"]


def test_a_recipe_of_two_named_stages_is_read_still(tmp_path: Path) -> None:
    old = "[backbone]\nname = 'x'\n[stage1]\nepochs = 2\nrecentre = false\n[stage2]\ntargets = '{}'\nrecentre = false\n"
    found = []
    for targets in ("model_derived", "none"):
        (tmp_path / "old.toml").write_text(old.format(targets), encoding="utf-8")
        found.append(read_recipe(str(tmp_path / "old.toml")).stages)
    two, one = found
    assert one == (StageSettings(epochs=2),)
    assert two == (*one, StageSettings(targets="model_derived"))
    (tmp_path / "old.toml").write_text(old.replace("recentre = false", "recentre = true").format("none"), encoding="utf-8")
    with pytest.raises(UsageError, match="no setting 'recentre'"):
        read_recipe(str(tmp_path / "old.toml"))


def test_how_text_is_read_belongs_to_the_run(tiny: BackboneSettings, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    rows = [{"one": f"A girl plays a guitar, take {i}.", "two": f"Close the socket, number {i}."} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, begins in (("one", "A girl"), ("two", "Close the socket")):
        changed = replace(recipe, sources=(str(path),), reading=ReadingSettings(text_field=name))
        documents = read_documents(changed.sources, text_field=name)
        train(changed, documents, run_folder=tmp_path / "run", output=tmp_path / "model")
        texts = list(Corpus.open(tmp_path / "run" / "corpus").passages["text"])
        assert all(text.startswith(begins) for text in texts)
    assert (
        from_toml(Recipe, (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8"), "recipe").reading.text_field
        == "two"
    )


def test_a_resumed_run_replaces_no_folder_that_is_no_model(recipe: Recipe, tmp_path: Path) -> None:
    run_here(recipe, tmp_path)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="exists and is not empty"):
        train(recipe, read_documents(recipe.sources), run_folder=tmp_path / "run", output=other)
    assert (other / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("lost", ["corpus", "targets/stage1", "stages/stage1"])
def test_what_was_deleted_from_an_unfinished_run_is_made_again(recipe: Recipe, tmp_path: Path, lost: str) -> None:
    result = run_here(recipe, tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "results.json").unlink()
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run_here(recipe, tmp_path)
    assert path.exists()
    assert again["evaluation"]["trained"] == result["evaluation"]["trained"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_a_finished_run_keeps_no_checkpoints(recipe: Recipe, tmp_path: Path) -> None:
    run_here(recipe, tmp_path)
    assert not list((tmp_path / "run").glob("stages/*/checkpoints-*/checkpoint-*"))
    assert not (tmp_path / "run" / "cache").exists()


def test_texts_that_are_trained_on_know_their_own_document(
    recipe: Recipe, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages stand several times in the corpus, and training sees a few of them."""
    seen: list[Dataset] = []

    def watched(embedder: Any, loss: Any, rows: Dataset, *others: Any, **options: Any) -> Any:
        seen.append(rows)
        return train_stage(embedder, loss, rows, *others, **options)

    monkeypatch.setattr("text2token.training.stages.train_stage", watched)
    lines = text_file.read_text(encoding="utf-8").splitlines()[:12]
    documents = [Document(body=f"{first} {second}", place="") for first in lines for second in lines if first != second]
    settings = ["stage1.targets=corpus_derived", "stage1.max_tokens=400"]
    settings += ["corpus.passage_characters=60", "corpus.held_out=0"]
    short = replace(recipe.with_settings(settings), sources=())
    train(short, documents, run_folder=tmp_path / "run", output=tmp_path / "model")
    passages = Corpus.open(tmp_path / "run" / "corpus").passages
    assert len(set(passages["text"])) < len(passages)
    asked = load_file(tmp_path / "run" / "targets" / "stage1.safetensors")["rows"].numpy()
    assert 0 < len(asked) < len(passages)
    (trained,) = seen
    assert trained["text"][:] == passages.select(asked)["text"][:]
    assert trained["document"][:] == passages.select(asked)["document"][:]


def test_documents_of_one_sentence_have_a_neighbour_unless_they_are_not_to_be_halved(recipe: Recipe, tmp_path: Path) -> None:
    sentence = "This is sentence number {}, and it is followed by nothing else that it could find."
    documents = [Document(sentence.format(number), "") for number in range(6)]
    settings = ["stage1.max_tokens=100", "corpus.held_out=0"]
    passages = {}
    for length in ("0", "60"):
        short = replace(recipe, sources=()).with_settings([*settings, f"corpus.halves_from={length}"])
        train(short, documents, run_folder=tmp_path / length / "run", output=tmp_path / length / "model")
        passages[length] = list(Corpus.open(tmp_path / length / "run" / "corpus").passages["document"])
        card = build_targets(short, documents, output=tmp_path / length / "targets")
        assert card.texts == len(passages[length])
    assert passages["0"] == [0, 1, 2, 3, 4, 5]
    assert passages["60"] == [number for number in range(6) for _ in range(2)]


def test_other_weights_under_the_same_name_are_noticed(recipe: Recipe, tmp_path: Path) -> None:
    """What hangs on the backbone is made anew, and the corpus is not."""
    shutil.copytree(recipe.backbone.name, tmp_path / "base")
    given = replace(recipe, backbone=replace(recipe.backbone, name=str(tmp_path / "base")))
    before = made_from(given, None)
    assert made_from(given, None) == before
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "base" / "model.safetensors")
    now = made_from(given, None)
    assert [step for step in now if now[step] != before[step]] == ["targets/stage1", "stage1", "result"]
    before = now
    os.utime(tmp_path / "base" / "config.json", (1, 1))
    assert made_from(given, None) != before


def test_documents_given_from_memory_are_compared(recipe: Recipe, tmp_path: Path, text_file: Path) -> None:
    documents = list(read_documents(text_file))
    given = replace(recipe, sources=())

    def again(documents: list[Document]) -> list[str]:
        told = Telling()
        train(given, iter(documents), run_folder=tmp_path / "run", output=tmp_path / "model", reporter=told)
        return told.notes

    again(documents)
    assert again(documents) == ["Nothing has changed since this run was finished."]
    assert "Nothing has changed" not in str(again(documents[1:]))
    assert json.loads((tmp_path / "run" / "corpus" / "summary.json").read_text(encoding="utf-8"))["documents"] == 119


class Telling(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)
