"""All target constructors: each says what its formula says, and any can take another's place."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from text2token.engine import Engine
from text2token.errors import UsageError
from text2token.model.backbone import tokenizer_of
from text2token.model.bundle import load_backbone
from text2token.progress import Progress
from text2token.recipe import (
    BackboneSettings,
    ConstructorName,
    CorpusDerivedSettings,
    LikelihoodRatioSettings,
    ModelDerivedSettings,
    TargetSettings,
)
from text2token.targets import constructors, data_driven
from text2token.targets import corpus_derived as corpus_derived_room
from text2token.targets.base import HERE, Passages
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.targets.corpus_derived import CorpusDerivedTargets
from text2token.targets.data_driven import DataDrivenTargets
from text2token.targets.model_derived import ModelDerivedTargets
from text2token.targets.sparse import distributions, interpolated, largest, record_batch
from text2token.targets.store import SCHEMA, open_targets
from text2token.tokens.vocabulary import NOT_A_TARGET

PROMPTS = ('"{text}" means "', "{text} In one word: ")


def model_derived(backbone: BackboneSettings, **settings: Any) -> ModelDerivedTargets:
    own = ModelDerivedSettings(**{"prompts": PROMPTS, "top_k": 5, **settings})
    constructor = make_constructor("model_derived", load_backbone(backbone), TargetSettings(model_derived=own))
    assert isinstance(constructor, ModelDerivedTargets)
    return constructor


def as_dicts(batches: Iterable[pa.RecordBatch]) -> list[dict[int, float]]:
    rows = pa.Table.from_batches(batches, schema=SCHEMA).to_pylist()
    return [dict(zip(row["token_ids"], row["weights"], strict=True)) for row in rows]


sparse_rows = st.lists(st.dictionaries(st.integers(0, 9), st.floats(0.1, 5), max_size=6), min_size=1, max_size=5).map(
    lambda rows: csr_array(np.array([[row.get(column, 0.0) for column in range(10)] for row in rows]))
)


@given(sparse_rows, st.integers(1, 4))
def test_the_heaviest_are_kept_and_the_rest_is_gone(rows: csr_array, k: int) -> None:
    kept, dense = largest(rows, k).toarray(), rows.toarray()
    for before, after in zip(dense, kept, strict=True):
        chosen = np.argsort(-before, kind="stable")[:k]
        expected = np.zeros(10)
        expected[chosen] = before[chosen]
        assert np.array_equal(after, expected)


@given(sparse_rows, st.integers(0, 2**32 - 1), st.sampled_from([0, 0.3, 1]))
def test_rows_mix_and_normalise(rows: csr_array, seed: int, share: float) -> None:
    others = csr_array(np.random.default_rng(seed).permutation(rows.toarray().ravel()).reshape(rows.shape))
    sums = distributions(rows).sum(axis=1)
    assert np.allclose(sums, rows.sum(axis=1) > 0)
    blend = interpolated(distributions(rows), distributions(others), share).toarray()
    both = (rows.sum(axis=1) > 0) & (others.sum(axis=1) > 0)
    expected = (1 - share) * distributions(rows).toarray() + share * distributions(others).toarray()
    assert np.allclose(blend[both], expected[both])
    texts = [str(number) for number in range(rows.shape[0])]
    stored = record_batch(texts, rows).to_pylist()
    assert [row["text"] for row in stored] == [text for text, total in zip(texts, rows.sum(axis=1), strict=True) if total]
    assert all(row["token_ids"] == sorted(row["token_ids"]) for row in stored)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2"])
def test_model_derived_targets_are_the_formula(make_backbone: BackboneMaker, family: str) -> None:
    """Against the causal model itself, text by text, in float64, without any of our code but the vocabulary."""
    folder = make_backbone(family)
    backbone = BackboneSettings(str(folder), dtype="float32", max_length=64)
    constructor = model_derived(backbone, alpha=0.7, temperature=0.8)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = constructor.vocabulary

    def words(text: str) -> torch.Tensor:
        per_prompt = []
        for prompt in PROMPTS:
            before, after = prompt.split("{text}")
            ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text, after)]
            with torch.inference_mode():
                logits = model(torch.tensor([[*ids[0], *ids[1], *ids[2]]])).logits[0, -1, : vocabulary.size]
            probabilities = logits.softmax(-1)
            first = torch.from_numpy(vocabulary.representatives[:, 0]).long()
            named = first != NOT_A_TARGET
            per_prompt.append(torch.zeros(vocabulary.size).double().index_add(0, first[named], probabilities[named]).log())
        return torch.stack(per_prompt).mean(0)

    every = torch.stack([words(text) for text in TEXTS])
    scores = every - 0.7 * every.mean(0)
    scores[:, torch.isnan(scores).any(0) | torch.isinf(every).any(0)] = -torch.inf
    found = as_dicts(constructor.fit(TEXTS).transform(TEXTS))
    assert len(found) == len(TEXTS)
    for target, row in zip(found, scores, strict=True):
        best = torch.topk(row, 5)
        expected: dict[int, float] = {}
        for token, weight in zip(best.indices.tolist(), (best.values / 0.8).softmax(-1).tolist(), strict=True):
            forms = [form for form in vocabulary.representatives[token].tolist() if form != NOT_A_TARGET]
            expected |= {form: weight / len(forms) for form in forms}
        assert target.keys() == expected.keys()
        assert all(target[token] == pytest.approx(weight, abs=2e-4) for token, weight in expected.items())


def test_a_share_of_the_target_can_be_data_driven(tiny: BackboneSettings) -> None:
    pure, half = model_derived(tiny).fit(TEXTS), model_derived(tiny, data_driven_share=0.25).fit(TEXTS)
    own = half.data_driven.rows(TEXTS).toarray()
    expected = 0.75 * pure.rows(TEXTS).toarray() + 0.25 * own
    for row, target in zip(expected, as_dicts(half.transform(TEXTS)), strict=True):
        assert set(target) == set(np.flatnonzero(row))
        assert all(target[token] == pytest.approx(row[token], abs=1e-5) for token in target)


def test_asking_the_model_leaves_the_embedder_as_it_was(tiny: BackboneSettings) -> None:
    given = load_backbone(tiny)
    before = tokenizer_of(given.embedder)("a girl")["input_ids"]
    list(make_constructor("model_derived", given, TargetSettings()).fit(TEXTS).transform(TEXTS))
    assert tokenizer_of(given.embedder)("a girl")["input_ids"] == before


def corpus(documents: list[list[str]]) -> Dataset:
    rows = [(text, number) for number, document in enumerate(documents) for text in document]
    return Dataset.from_dict({"text": [text for text, _ in rows], "document": [number for _, number in rows]})


def corpus_derived(backbone: BackboneSettings, **settings: Any) -> CorpusDerivedTargets:
    own = TargetSettings(corpus_derived=CorpusDerivedSettings(**settings))
    constructor = make_constructor("corpus_derived", load_backbone(backbone), own)
    assert isinstance(constructor, CorpusDerivedTargets)
    return constructor


def test_the_next_passage_says_what_a_passage_is_about(tiny: BackboneSettings) -> None:
    passages = corpus([[TEXTS[0], TEXTS[2], TEXTS[4]], [TEXTS[6]]])
    constructor = corpus_derived(tiny, neighbours=0, data_driven_share=0).fit(passages)
    own = as_dicts(constructor.data_driven.transform(passages))
    assert as_dicts(constructor.transform(passages)) == [
        pytest.approx(own[row], abs=1e-6)
        for row in (1, 2, 1, 3)  # the last looks back, the lonely one at itself
    ]


def test_neighbours_are_the_texts_that_share_words(tiny: BackboneSettings) -> None:
    pairs = [
        "The girl brushes her curly hair.",
        "A girl is styling curly hair.",
        "Print a helpful message.",
        "A helpful message.",
    ]
    texts = [*pairs, TEXTS[8], TEXTS[6]]
    constructor = corpus_derived(tiny, neighbours=1, next_passage=False, data_driven_share=0).fit(texts)
    own = as_dicts(constructor.data_driven.transform(texts))
    found = as_dicts(constructor.transform(texts))
    for row, neighbour in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert found[row] == pytest.approx(own[neighbour], abs=1e-6)


def test_of_a_large_corpus_an_even_sample_gives_the_neighbours(
    tiny: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_derived_room, "INDEXED_TEXTS", 3)
    girl, error = (
        "A girl is styling her curly hair; the {} hair.",
        "Parse the command line; print a helpful error about the {}.",
    )
    kinds = [(girl, "girl"), (girl, "guitar"), (girl, "music"), (error, "thread"), (error, "file"), (error, "socket")]
    texts = [kind.format(word) for kind, word in [*kinds, (girl, "moon")]]
    constructor = corpus_derived(tiny, neighbours=1, next_passage=False, data_driven_share=0).fit(texts)
    assert constructor.indexed_.shape[0] == 3  # texts 0, 3 and 6
    own = as_dicts(constructor.data_driven.transform(texts))
    found = as_dicts(constructor.transform(texts))
    for row, others in ((0, (6,)), (1, (0, 6)), (2, (0, 6)), (4, (3,)), (5, (3,)), (6, (0,))):
        assert any(found[row] == pytest.approx(own[other], abs=1e-6) for other in others), row


def test_every_settings_of_a_constructor_has_its_module(tiny: BackboneSettings) -> None:
    names = get_args(ConstructorName)
    assert len(names) == len(dataclasses.fields(TargetSettings)) > 3
    for name in names:
        assert make_constructor(name, load_backbone(tiny), TargetSettings()).name == name


class LettersAlone:
    """A constructor that keeps the protocol and no more: what a contributor writes first."""

    name = "letters"
    expensive = False

    def __init__(self, data_driven: DataDrivenTargets) -> None:
        self.data_driven = data_driven

    def fit(self, passages: Passages, engine: Engine = HERE) -> "LettersAlone":
        self.data_driven.fit(passages, engine)
        return self

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        return self.data_driven.transform(passages, progress, rows)

    def describe(self) -> dict[str, Any]:
        return {}


def test_candidates_that_are_remembered_give_the_files_that_a_second_reading_gives(
    tiny: BackboneSettings, tmp_path: Path, small_parts: Callable[[int], None]
) -> None:
    small_parts(3)
    given, own = load_backbone(tiny), TargetSettings()
    constructor = make_constructor("data_driven", given, own)
    for name, one in (("letters", LettersAlone(data_driven.build(given, own))), ("data_driven", constructor)):
        write_constructed(one, corpus([TEXTS]), given, tmp_path / name)
    shards = sorted(path.name for path in (tmp_path / "letters").glob("*.parquet"))
    assert len(shards) == 4
    for shard in shards:
        assert (tmp_path / "letters" / shard).read_bytes() == (tmp_path / "data_driven" / shard).read_bytes()


@pytest.mark.parametrize("name", get_args(ConstructorName))
def test_every_constructor_writes_distributions_that_open(
    tiny: BackboneSettings, name: ConstructorName, tmp_path: Path, small_parts: Callable[[int], None]
) -> None:
    small_parts(4)
    # at the usual tau of 1e-5 a ratio target multiplies the rounding by which batch mates move a vector
    given, own = load_backbone(tiny), TargetSettings(likelihood_ratio=LikelihoodRatioSettings(tau=0.1))
    passages = corpus([TEXTS[:4], TEXTS[4:7], TEXTS[7:]])
    reported: list[int] = []
    card = write_constructed(make_constructor(name, given, own), passages, given, tmp_path / name, progress=reported.append)
    assert (card.constructor, card.texts, card.dropped) == (name, len(TEXTS), 0)
    rows = open_targets(tmp_path / name, given.vocabulary, cache=tmp_path / "cache")
    assert rows["text"][:] == TEXTS
    for ids, weights in zip(rows["token_ids"], rows["weights"], strict=True):
        assert len(set(ids)) == len(ids)
        assert min(weights) > 0
        assert sum(weights) == pytest.approx(1, abs=1e-5)
    fitted = make_constructor(name, given, own).fit(passages)
    every = as_dicts(fitted.transform(passages))
    written = [dict(zip(row["token_ids"], row["weights"], strict=True)) for row in rows]
    assert written == [pytest.approx(target, abs=1e-6) for target in every]
    some = as_dicts(fitted.transform(passages, rows=np.array([1, 3, 8])))
    assert some == [pytest.approx(every[row], abs=1e-6) for row in (1, 3, 8)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # what was remembered is gone


def test_a_killed_construction_goes_on_after_its_last_part(
    tiny: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constructors, "EXPENSIVE_TEXTS_PER_PART", 3)
    given, passages = load_backbone(tiny), corpus([TEXTS])

    def write(folder: str, **changes: Any) -> list[int]:
        done: list[int] = []
        own = TargetSettings(model_derived=ModelDerivedSettings(alpha=changes.get("alpha", 0.7)))
        constructor = make_constructor("model_derived", given, own)

        def rows(texts: Sequence[str], of: Any = constructor.rows) -> csr_array:  # type: ignore[attr-defined]
            done.append(len(texts))
            if len(done) == changes.get("stop_after"):
                raise KeyboardInterrupt
            return of(texts)

        constructor.rows = rows  # type: ignore[attr-defined]
        told: list[int] = []
        write_constructed(constructor, passages, given, tmp_path / folder, progress=told.append)
        assert sum(told) == len(passages)
        return done

    assert write("whole") == [3, 3, 3, 1]
    with pytest.raises(KeyboardInterrupt):
        write("killed", stop_after=3)
    assert not (tmp_path / "killed").exists()
    assert write("killed") == [3, 1]  # the third part was not finished
    for name in ("targets-00000.parquet", "targets-00003.parquet", "card.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write("changed", stop_after=3)
    assert write("changed", alpha=0.5) == [3, 3, 3, 1]  # parts made by other settings are no good
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize(
    "mistake",
    [{"top_k": 0}, {"temperature": 0}, {"data_driven_share": 1.5}, {"prompts": ()}, {"prior_texts": 0}],
    ids=str,
)
def test_impossible_settings_are_refused(mistake: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(mistake))):
        ModelDerivedSettings(**mistake)
    with pytest.raises(UsageError, match="nothing to derive"):
        CorpusDerivedSettings(neighbours=0, next_passage=False)
