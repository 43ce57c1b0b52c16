"""Targets of the authors' form are their formula, and the thresholds of it do what the algebra says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from text2token.errors import UsageError
from text2token.model.bundle import load_backbone
from text2token.recipe import BackboneSettings, LikelihoodRatioSettings, TargetSettings
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.targets.likelihood_ratio import (
    EFFECTIVE_TOKENS,
    MASS,
    MOST_TOKENS,
    LikelihoodRatioTargets,
    effective_tokens,
    misses,
    ratio_targets,
    tau_for,
)
from text2token.targets.store import SCHEMA, read_card

PROMPT = 'This sentence : "{text}" means in one word:"'


def constructor(backbone: BackboneSettings, **settings: Any) -> LikelihoodRatioTargets:
    settings_ = TargetSettings(likelihood_ratio=LikelihoodRatioSettings(**settings))
    made = make_constructor("likelihood_ratio", load_backbone(backbone), settings_)
    assert isinstance(made, LikelihoodRatioTargets)
    return made


TEXTS_AS_ROWS = Dataset.from_dict({"text": TEXTS})


def targets(made: LikelihoodRatioTargets, texts: list[str]) -> list[dict[int, float]]:
    rows = pa.Table.from_batches(made.transform(texts), schema=SCHEMA).to_pylist()
    return [dict(zip(row["token_ids"], row["weights"], strict=True)) for row in rows]


@pytest.mark.parametrize("family", ["mistral", "llama", "gemma2"])
@pytest.mark.parametrize("tau", [1e-5, 0.02, 0.3])
def test_targets_are_the_formula(make_backbone: BackboneMaker, family: str, tau: float) -> None:
    """Against the causal model itself, text by text, in float64, without any of our code."""
    folder = make_backbone(family)
    backbone = BackboneSettings(str(folder), dtype="float32", max_length=64, prompt=PROMPT)
    made = constructor(backbone, tau=tau, floor=1e-6).fit(TEXTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before, after = PROMPT.split("{text}")
    logits = []
    for text in TEXTS:
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text, after)]
        with torch.inference_mode():
            logits.append(model(torch.tensor([[*ids[0], *ids[1], *ids[2]]])).logits[0, -1])
    p, theta = torch.stack(logits).softmax(-1), torch.stack(logits).mean(0).softmax(0)
    t = p / (p + theta + 1e-6)
    q = ((t - t.max(-1, keepdim=True).values) / tau).softmax(-1)
    for found, row in zip(targets(made, TEXTS), q, strict=True):
        held = sum(float(row[token]) for token in found)
        assert held >= MASS - 1e-3 or len(found) == MOST_TOKENS
        others = torch.ones(len(row), dtype=torch.bool).index_fill(0, torch.tensor([*found]), False)
        assert min(float(row[token]) for token in found) >= 0.9 * float(row[others].max())
        for token, weight in found.items():
            assert weight == pytest.approx(float(row[token]) / held, rel=2e-3, abs=1e-4)


rows_of_misses = st.integers(0, 2**32 - 1).map(
    lambda seed: misses(
        5 * torch.randn(6, 400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        torch.randn(400, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).softmax(0),
        1e-8,
    )
)


@given(rows_of_misses, st.floats(-7, 1))
def test_a_target_keeps_the_largest_up_to_its_mass_and_no_more_tokens_than_it_may(
    rows: torch.Tensor, exponent: float
) -> None:
    tau = 10**exponent
    q = (-(rows - rows.min(-1, keepdim=True).values) / tau).softmax(-1)
    ids, weights, counts = ratio_targets(rows, tau)
    for row, chosen, kept in zip(
        q, np.split(ids, np.cumsum(counts)[:-1]), np.split(weights, np.cumsum(counts)[:-1]), strict=True
    ):
        ordered = row.sort(descending=True).values
        assert np.allclose(kept, ordered[: len(kept)], rtol=1e-9)
        assert np.allclose(kept, row[torch.from_numpy(chosen)], rtol=1e-9)
        assert len(kept) == MOST_TOKENS or kept.sum() >= MASS
        assert kept[:-1].sum() < MASS


@given(rows_of_misses)
def test_without_a_threshold_all_tokens_are_alike_and_above_all_of_them_one_is_left(rows: torch.Tensor) -> None:
    assert torch.allclose(effective_tokens(rows, 1e6), torch.full((6,), 400.0, dtype=torch.float64), rtol=1e-3)
    _, weights, counts = ratio_targets(rows, 1e6)
    assert (counts == MOST_TOKENS).all()
    assert np.allclose(weights, 1 / 400, rtol=1e-3)
    ids, _, counts = ratio_targets(rows, 1e-12)
    assert (counts == 1).all()
    assert ids.tolist() == rows.argmin(-1).tolist()  # the largest ratio


@given(rows_of_misses, st.floats(-6, 2), st.floats(0.01, 2))
def test_more_tokens_count_the_larger_tau_is_and_the_tau_found_has_the_median_asked_for(
    rows: torch.Tensor, exponent: float, step: float
) -> None:
    fewer, more = (effective_tokens(rows, 10**power) for power in (exponent, exponent + step))
    assert (more >= fewer - 1e-9).all()
    tau = tau_for(rows, EFFECTIVE_TOKENS)
    assert effective_tokens(rows, tau).median() == pytest.approx(EFFECTIVE_TOKENS, rel=0.05)


def test_what_misses_the_whole_by_a_billionth_is_told_apart() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 1e-300]], dtype=torch.float64))
    theta = torch.tensor([1e-10, 2e-10, 1 - 3e-10, 0.0], dtype=torch.float64)
    found = misses(logits, theta, 1e-12)
    expected = [1.01e-10 / 0.5, 2.01e-10 / 0.3, 1 / 1.2]
    assert found[0, :3].tolist() == pytest.approx(expected, rel=1e-6)


def test_tau_can_follow_the_model_and_the_card_says_what_was_found(tiny: BackboneSettings, tmp_path: Path) -> None:
    made = constructor(tiny, tau="auto")
    write_constructed(made, TEXTS_AS_ROWS, load_backbone(tiny), tmp_path / "targets")
    card = read_card(tmp_path / "targets")
    assert card.settings["tau"] == made.tau_ > 0
    assert card.settings["tau_follows_the_model"]
    assert card.sizes is not None
    sizes = [targets(constructor(tiny, tau=tau).fit(TEXTS), TEXTS) for tau in (made.tau_, made.tau_ / 1e6)]
    assert card.sizes.tokens == pytest.approx(np.quantile([len(target) for target in sizes[0]], (0.25, 0.5, 0.75)))
    assert card.sizes.half_of_mass[1] <= EFFECTIVE_TOKENS <= card.sizes.most
    assert [len(target) for target in sizes[1]] == [1] * len(TEXTS)
    assert (
        json.loads((tmp_path / "targets" / "card.json").read_text(encoding="utf-8"))["sizes"]["single"] == card.sizes.single
    )


def test_targets_that_were_cut_off_are_counted(tiny: BackboneSettings, tmp_path: Path) -> None:
    made = constructor(tiny, tau=1e3)
    write_constructed(made, TEXTS_AS_ROWS, load_backbone(tiny), tmp_path / "wide")
    sizes = read_card(tmp_path / "wide").sizes
    assert sizes is not None
    assert (sizes.most, sizes.with_most, sizes.single) == (MOST_TOKENS, len(TEXTS), 0)
    assert sizes.half_of_mass == (128, 128, 128)
    sharp = constructor(tiny, tau=1e-12)
    write_constructed(sharp, TEXTS_AS_ROWS, load_backbone(tiny), tmp_path / "sharp")
    sizes = read_card(tmp_path / "sharp").sizes
    assert sizes is not None
    assert (sizes.single, sizes.most, sizes.with_most, sizes.tokens) == (len(TEXTS), 1, len(TEXTS), (1, 1, 1))


def test_another_teacher_has_another_prior_in_the_description(tiny: BackboneSettings) -> None:
    one, same, other = (constructor(replace(tiny, prompt=prompt)).fit(TEXTS) for prompt in ("{text}", "{text}", PROMPT))
    assert one.describe() == same.describe()
    assert {**one.describe(), "prior": ""} == {**other.describe(), "prior": ""}
    assert one.describe() != other.describe()


@pytest.mark.parametrize("mistake", [{"tau": 0.0}, {"tau": float("nan")}, {"floor": 0.0}, {"prior_texts": 0}], ids=str)
def test_impossible_settings_are_refused(mistake: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(mistake))):
        LikelihoodRatioSettings(**mistake)
