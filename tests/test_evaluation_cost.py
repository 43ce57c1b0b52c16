"""The evaluation costs a share of the training at most, by counted tokens, and says what it left out."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BackboneMaker
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from test_recipe import Listening, run_here

from text2token.corpus.prepare import prepare_corpus
from text2token.corpus.readers import read_documents
from text2token.errors import UsageError
from text2token.evaluation.comparison import FEWEST_DOCUMENTS, EvaluationTexts, affordable
from text2token.model.backbone import load_embedder, token_lengths, tokenizer_of
from text2token.recipe import BackboneSettings, CorpusSettings, Recipe
from text2token.training.schedule import TRAINING_COST

PAIRS = st.lists(st.integers(2, 500), min_size=1, max_size=300).map(np.array)


def cost(pairs: np.ndarray, asked: int, step_documents: int, steps: int) -> int:
    """Return the tokens that are embedded: before and after, and at each evaluation step."""
    return int(2 * pairs[:asked].sum() + (steps + 1) * pairs[:step_documents].sum() * bool(steps))


@given(PAIRS, st.floats(-1000, 300_000), st.integers(0, 9))
def test_what_is_evaluated_stays_within_its_tokens_but_for_the_fewest_documents(
    pairs: np.ndarray, tokens: float, steps: int
) -> None:
    asked, step_documents = affordable(pairs, tokens, steps)
    least = min(FEWEST_DOCUMENTS, len(pairs))
    assert least <= asked <= len(pairs)
    assert step_documents <= asked
    assert cost(pairs, asked, step_documents, steps) <= max(tokens, cost(pairs, least, least, steps))
    if asked < len(pairs):  # and nothing that could be had is left
        assert cost(pairs, asked + 1, step_documents, steps) > tokens


@given(PAIRS, st.floats(0, 300_000), st.floats(0, 300_000), st.integers(0, 9))
def test_more_tokens_never_evaluate_less(pairs: np.ndarray, one: float, other: float, steps: int) -> None:
    fewer, more = (affordable(pairs, tokens, steps) for tokens in sorted((one, other)))
    assert fewer[1] <= more[1]
    if not steps:
        assert fewer[0] <= more[0]


class Told(Listening):
    def note(self, message: str) -> None:
        self.begun.append(message)


@pytest.fixture
def long(tiny: BackboneSettings, tmp_path: Path) -> Recipe:
    """A corpus whose held-out documents cost more than its training is allowed to."""
    lines = [f"Note {i}: the kettle number {i * 7} is on shelf {i % 9}. It was bought for {i} coins." for i in range(300)]
    (tmp_path / "docs.txt").write_text("\n".join(f"{line} {line[::-1]} {line}" for line in lines), encoding="utf-8")
    settings = ["stage1.targets=data_driven", "stage1.max_tokens=6000", "stage1.tokens_per_batch=512", "lora.rank=4"]
    recipe = Recipe(tiny, sources=(str(tmp_path / "docs.txt"),), corpus=CorpusSettings(held_out=90))
    return recipe.with_settings(settings)


def test_a_run_evaluates_for_a_share_of_its_training_unless_asked_for_all(long: Recipe, tmp_path: Path) -> None:
    told = Told()
    usual = run_here(long, tmp_path / "usual", reporter=told)["evaluation"]["trained"]["queries"]
    assert usual == FEWEST_DOCUMENTS
    assert f"Evaluation: on {usual} of the 90 held-out documents" in "\n".join(told.begun)
    told = Told()
    whole = long.with_settings(["evaluation_share=none"])
    result = run_here(whole, tmp_path / "usual", reporter=told)
    assert result["evaluation"]["trained"]["queries"] == 90
    assert not any("Evaluation: on" in message for message in told.begun)
    assert "Training" not in told.begun  # the embedder does not depend on what is asked about it


def test_tokens_are_counted_not_guessed(long: Recipe, make_backbone: BackboneMaker, tmp_path: Path) -> None:
    embedder = load_embedder(long.backbone)
    tokenizer = tokenizer_of(embedder)
    corpus = prepare_corpus(read_documents(long.sources), tmp_path / "corpus", long.corpus)
    texts = EvaluationTexts.of(corpus.passages, corpus.held_out, seed=0)
    sizes = []
    for share in (0.1, 0.9, 1.0, 100.0):
        tokens = share * TRAINING_COST * 6000
        some = texts.costing(tokens, tokenizer, steps=2)
        pairs = token_lengths(tokenizer, [some.queries]) + token_lengths(tokenizer, [some.passages])
        if len(some.queries) > FEWEST_DOCUMENTS:
            assert cost(pairs, len(pairs), some.step_documents, 2) <= tokens
        assert some.queries == texts.queries[: len(some.queries)]  # a larger share asks for the same ones, and more
        sizes.append(len(some.queries))
    assert sizes == sorted(sizes)
    assert sizes[0] == 20 < sizes[2] < sizes[3] == 90


def test_held_out_documents_are_in_random_order_and_nested(tmp_path: Path) -> None:
    (tmp_path / "docs.txt").write_text(
        "\n".join(f"Line {i}. " + f"It says {i * i} and more. " * 9 for i in range(400)), encoding="utf-8"
    )

    def held_out(count: int) -> Dataset:
        documents = read_documents([str(tmp_path / "docs.txt")])
        return prepare_corpus(documents, tmp_path / str(count), CorpusSettings(held_out=count)).held_out

    few, many = held_out(10), held_out(50)
    assert few["passage"] == many["passage"][:10]
    numbers = [int(place.rpartition(":")[2]) for place in many["place"]]
    assert numbers != sorted(numbers)


def test_a_share_is_a_number_not_below_zero(long: Recipe) -> None:
    for value in ("-1", "nan", "inf", "much"):
        with pytest.raises(UsageError, match="evaluation_share"):
            long.with_settings([f"evaluation_share={value}"])
