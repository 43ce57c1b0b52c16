"""A quickstart is as long as the machine's speed allows, says so, and is the same run when it goes on."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation_cost import Told
from typer.testing import CliRunner

from text2token import UsageError, train
from text2token.cli.main import app
from text2token.corpus.readers import read_documents
from text2token.progress import Progress, Silent
from text2token.recipe import BackboneSettings, Recipe, read_recipe
from text2token.training import speed
from text2token.training.folder import RunFolder
from text2token.training.speed import FEWEST_TOKENS, Machine, fitted, in_its_minutes, measured, minutes_of

QUICKSTART = read_recipe("quickstart")
MACHINES = st.builds(Machine, st.floats(1, 1e5), st.floats(1, 1e6), st.floats(12, 128), st.floats(24, 256))


@given(MACHINES, st.floats(2, 60))
def test_what_is_chosen_takes_the_time_at_most_or_is_the_shortest_there_is(machine: Machine, minutes: float) -> None:
    chosen = fitted(QUICKSTART, machine, 60 * minutes)
    assert FEWEST_TOKENS <= chosen.stages[0].max_tokens <= QUICKSTART.stages[0].max_tokens  # type: ignore[operator]
    assert 0 <= chosen.evaluation_share <= QUICKSTART.evaluation_share  # type: ignore[operator]
    if chosen.stages[0].max_tokens > FEWEST_TOKENS:  # type: ignore[operator]
        assert minutes_of(chosen, machine) <= 1.02 * minutes


@given(MACHINES, st.floats(1, 10))
def test_a_faster_machine_is_never_given_less(machine: Machine, factor: float) -> None:
    faster = replace(machine, training=factor * machine.training, embedding=factor * machine.embedding)
    assert fitted(QUICKSTART, faster, 600).stages[0].max_tokens >= fitted(QUICKSTART, machine, 600).stages[0].max_tokens  # type: ignore[operator]


def test_an_ordinary_machine_has_ten_minutes_and_a_good_one_all_of_it() -> None:
    bfloat16, avx2, old = (Machine(*speeds, 38, 98) for speeds in ((280, 2000), (110, 300), (15, 40)))
    assert fitted(QUICKSTART, bfloat16, 600) == QUICKSTART
    ordinary = fitted(QUICKSTART, avx2, 600)
    assert 25_000 < ordinary.stages[0].max_tokens < 60_000  # type: ignore[operator]
    assert 9 < minutes_of(ordinary, avx2) <= 10
    assert fitted(QUICKSTART, old, 600).stages[0].max_tokens == FEWEST_TOKENS


def test_a_recipe_is_read_back_as_it_was_chosen(tmp_path: Path) -> None:
    chosen = fitted(QUICKSTART, Machine(123, 456, 38, 98), 600)
    (tmp_path / "recipe.toml").write_text(chosen.to_toml(), encoding="utf-8")
    assert read_recipe(str(tmp_path / "recipe.toml")) == chosen


@pytest.fixture
def small(tiny: BackboneSettings, text_file: Path) -> Recipe:
    settings = ["corpus.held_out=30", "lora.rank=4", "stage1.targets=data_driven"]
    return Recipe(tiny, sources=(str(text_file),)).with_settings(settings)


def test_a_machine_is_measured_on_the_first_texts(small: Recipe) -> None:
    for recipe in (small, small.with_settings(["lora.rank=0", "corpus.held_out=0"])):
        machine = measured(recipe, read_documents(recipe.sources))
        assert machine.training > 0
        assert machine.embedding > 0
        assert 12 < machine.passage <= 64
        assert (machine.pair > machine.passage) == bool(recipe.corpus.held_out)
    assert measured(small, read_documents([*small.sources])).training > 0


def test_very_little_text_can_be_measured(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("A girl plays a guitar.\nClose the socket.\n", encoding="utf-8")
    assert measured(small, read_documents([str(tmp_path / "two.txt")])).training >= 0


class Interrupting(Silent):
    """Interrupts a run as it begins to train."""

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Progress]:
        if description == "Training":
            raise KeyboardInterrupt
        return super().progress(description, total, unit)


def test_a_quickstart_says_what_it_chose_and_goes_on_with_it(
    small: Recipe, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickstart(
        machine: Machine | None, *more: str, interrupted: bool = False, overwrite: bool = False
    ) -> tuple[int, str, str]:
        def given_machine(recipe: Recipe, documents: object) -> Machine:
            assert machine, "it is not measured again"
            return machine

        told = Told()
        monkeypatch.setattr(speed, "measured", given_machine)
        monkeypatch.setattr("text2token.cli.train.reporter_for", lambda quiet: Interrupting() if interrupted else told)
        settings = [
            f'sources=["{text_file}"]',
            f"backbone.name={small.backbone.name}",
            "backbone.dtype=float32",
            "backbone.max_length=64",
            "lora.rank=4",
            *more,
        ]
        words = ["quickstart", "--folder", str(tmp_path / "run"), "--quiet", *(["--overwrite"] if overwrite else [])]
        result = CliRunner().invoke(app, [*words, *(part for setting in settings for part in ("--set", setting))])
        recipe = (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")
        return result.exit_code, recipe, "\n".join(told.begun)

    code, begun, _ = quickstart(Machine(110, 300, 38, 98), interrupted=True)
    assert code == 130
    code, finished, _ = quickstart(None)
    assert code == 0
    assert finished == begun
    code, again, told = quickstart(None)  # a finished one is neither done nor measured again
    assert (code, again) == (0, begun)
    code, anew, told = quickstart(Machine(15, 40, 38, 98), overwrite=True)
    assert "trains about 15 tokens/s and embeds 40: 10,000 tokens to train on, about" in told
    assert "max_tokens = 10000" in anew
    code, asked, told = quickstart(None, "stage1.max_tokens=3000")
    assert "max_tokens = 3000" in asked
    assert "This machine" not in told


def test_a_run_that_is_no_longer_there_is_measured(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measured", lambda *_: Machine(110, 300, 38, 98))
    short = replace(small, minutes=10)
    for anew in (True, False):
        folder = RunFolder(tmp_path / "run")
        assert in_its_minutes(short, [], folder, Silent(), anew=anew) == fitted(short, Machine(110, 300, 38, 98), 600)


def test_from_python_a_run_takes_its_minutes_too(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measured", lambda *_: Machine(10, 1e9, 38, 98))
    told = Told()
    recipe = replace(small, minutes=1, stages=(replace(small.stages[0], max_tokens=10**6),))
    train(recipe, output=tmp_path / "model", reporter=told)
    assert read_recipe(str(tmp_path / "model.run" / "recipe.toml")).stages[0].max_tokens == FEWEST_TOKENS
    assert "10,000 tokens to train on" in "\n".join(told.begun)


def test_what_is_refused_with_overwrite_leaves_the_earlier_run_as_it_was(small: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "model"
    train(small, output=output)
    steps = (tmp_path / "model.run" / "steps.json").read_bytes()
    with pytest.raises(UsageError, match="minutes: standard input"):
        train(replace(small, minutes=1, sources=("-",)), output=output, overwrite=True)
    assert (tmp_path / "model.run" / "steps.json").read_bytes() == steps


def test_standard_input_cannot_be_measured_and_trained_on(small: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minutes: standard input cannot be read twice"):
        train(replace(small, minutes=1, sources=("-",)), output=tmp_path / "model")
