"""What can be no setting is refused when it is given, in one line; what can be one is kept as it was given."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2token import BackboneSettings, Recipe, read_documents, read_recipe
from text2token.errors import UsageError
from text2token.recipe import CorpusSettings, ModelDerivedSettings, StageSettings
from text2token.serve.limits import Limits
from text2token.settings import from_toml, item_name, with_assignments

RECIPE = Recipe(BackboneSettings("x"))


def leaves(settings: Any, path: str = "") -> Iterator[tuple[type, str, str, Any]]:
    """Yield of every setting its class, its key there, its key in the whole, and its type."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            yield from leaves(value[0], f"{path}{item_name(field.name, 1)}.")
        else:
            yield type(settings), field.name, path + field.name, hints[field.name]


def numbers(settings: Any) -> list[tuple[type, str, str, Any]]:
    return [leaf for leaf in leaves(settings) if {int, float} & {leaf[3], *typing.get_args(leaf[3])}]


@pytest.mark.parametrize("whole", [RECIPE, Limits()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400", "many", ""])
def test_no_number_may_be_negative_or_none_at_all_wherever_it_is_given(whole: Any, value: str) -> None:
    assert len(numbers(whole)) > 5
    for kind, name, path, _ in numbers(whole):
        with pytest.raises(UsageError, match=rf"^{path} is '{value}': ") as refused:
            with_assignments(whole, [f"{path}={value}"])
        assert "\n" not in str(refused.value)
        needed = {"name": "x"} if kind is BackboneSettings else {"backbone": RECIPE.backbone}
        others = needed if kind in (BackboneSettings, Recipe) else {}
        in_python = value if value in ("many", "") else float(value)
        with pytest.raises(UsageError, match=rf"^{name} is "):
            kind(**others, **{name: in_python})


def test_a_number_too_large_for_a_seed_is_refused() -> None:
    assert RECIPE.with_settings([f"seed={2**32 - 1}"]).seed == 2**32 - 1
    with pytest.raises(UsageError, match="seed is"):
        RECIPE.with_settings([f"seed={2**32}"])


def test_a_whole_number_beyond_64_bits_is_refused() -> None:
    whole = [leaf for leaf in numbers(RECIPE) if int in {leaf[3], *typing.get_args(leaf[3])}]
    assert len(whole) > 5
    for _, _, path, _ in whole:
        with pytest.raises(UsageError, match=f"{path.rpartition('.')[2]} is "):
            RECIPE.with_settings([f"{path}={2**63}"])


texts = st.text(st.characters(exclude_categories=["Cs"]))
prompts = st.tuples(texts, texts).map("{text}".join).filter(lambda prompt: prompt.count("{text}") == 1)
shares = st.floats(0, 1)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, 2**63 - 1)
stages = st.builds(
    StageSettings,
    targets=st.sampled_from(["data_driven", "likelihood_ratio", "model_derived", "corpus_derived"]),
    learning_rate=positive,
    max_tokens=st.none() | counts,
    warmup=shares,
    contrast=shares,
)
recipes = st.builds(
    Recipe,
    backbone=st.builds(BackboneSettings, name=texts, prompt=prompts, layers=st.none() | counts),
    sources=st.lists(texts).map(tuple),
    corpus=st.builds(CorpusSettings, held_out=st.integers(0, 10), seed=st.integers(0, 2**32 - 1)),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    postprocessing=st.sampled_from(["none", "whitened"]),
)


@given(recipes)
def test_what_is_written_is_read_as_the_same(recipe: Recipe) -> None:
    assert from_toml(Recipe, recipe.to_toml(), "here") == recipe


@given(prompts, texts.filter(lambda name: name != "none"))
def test_a_text_is_taken_to_the_last_space(prompt: str, name: str) -> None:
    changed = RECIPE.with_settings([f"backbone.prompt={prompt}", f"backbone.name={name}"])
    assert (changed.backbone.prompt, changed.backbone.name) == (prompt, name)


@given(st.text(min_size=1).filter(lambda name: name not in {field.name for field in dataclasses.fields(StageSettings)}))
def test_a_name_that_is_no_settings_is_refused_in_python_too(name: str) -> None:
    with pytest.raises(UsageError, match="no setting"):
        StageSettings(**{name: 1})


def test_the_nearest_name_is_told_and_what_is_missing() -> None:
    with pytest.raises(UsageError, match="did you mean 'learning_rate'"):
        StageSettings(learning_rat=1)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="backbone: is missing"):
        Recipe()  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"prompts is .*exactly once"):
        ModelDerivedSettings(prompts=("no room",))
    with pytest.raises(UsageError, match="no stop words for language 'xx'"):
        RECIPE.with_settings(["vocabulary.stop_words=en+xx"])


@pytest.mark.parametrize("given", ["docs.jsonl", Path("docs.jsonl"), ("docs.jsonl",), [Path("docs.jsonl")]])
def test_a_single_source_is_one_source_and_no_sequence_of_letters(given: Any, tmp_path: Path, monkeypatch: Any) -> None:
    assert Recipe(BackboneSettings("x"), sources=given).sources == ("docs.jsonl",)
    monkeypatch.chdir(tmp_path)
    Path("docs.jsonl").write_text('{"text": "A harbour."}\n', encoding="utf-8")
    assert [document.text for document in read_documents(given)] == ["A harbour."]


def test_one_source_in_a_file_or_an_assignment_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('sources = "docs.jsonl"\n[backbone]\nname = "x"', encoding="utf-8")
    assert read_recipe(str(tmp_path / "r.toml")).sources == ("docs.jsonl",)
    assert RECIPE.with_settings(["sources=docs.jsonl"]).sources == ("docs.jsonl",)
    assert RECIPE.with_settings(['sources=["a", "b"]']).sources == ("a", "b")
    assert RECIPE.with_settings(["sources=[ab]*.txt"]).sources == ("[ab]*.txt",)
