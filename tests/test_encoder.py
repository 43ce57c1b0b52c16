"""An encoder is known by everything that changes its vectors, and embeds no text twice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.errors import ModelError, UsageError
from text2token.export.folder import export_embedder
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, resolve_dtype, tokenizer_of
from text2token.model.encoder import TextEncoder, encoder_of, model_fingerprint, open_encoder, token_counter
from text2token.model.whitening import fit_postprocessing
from text2token.progress import Progress
from text2token.recipe import BackboneSettings, DType, LoraSettings
from text2token.tokens.vocabulary import tokenise


@pytest.fixture
def exported(tiny: BackboneSettings, tmp_path: Path) -> Path:
    embedder = load_embedder(tiny)
    export_embedder(embedder, fit_postprocessing(embed(embedder, TEXTS), "none"), tmp_path / "model", "# card")
    return tmp_path / "model"


def test_anything_that_changes_vectors_changes_the_fingerprint(tiny: BackboneSettings) -> None:
    base = load_embedder(tiny)
    changes = {
        "the same": load_embedder(tiny),
        "prompt": load_embedder(replace(tiny, prompt="{text} is:")),
        "pooling": load_embedder(replace(tiny, pooling="mean")),
        "attention": load_embedder(replace(tiny, attention="bidirectional")),
        "length": load_embedder(replace(tiny, max_length=32)),
        "layers": load_embedder(replace(tiny, layers=1)),
        "dtype": load_embedder(replace(tiny, dtype="bfloat16")),
    }
    weights = load_embedder(tiny)
    add_lora(weights, LoraSettings(rank=2), seed=0)
    changes["weights"] = weights
    fingerprints = {name: model_fingerprint(model) for name, model in changes.items()}
    assert fingerprints.pop("the same") == model_fingerprint(base)
    assert len({*fingerprints.values(), model_fingerprint(base)}) == len(changes)


PROMPTS = {"query": "Ask: ", "passage": "Read: "}


@pytest.fixture
def prompted(tiny: BackboneSettings, tmp_path: Path) -> Path:
    """A model of somebody else's, with a prompt for each role and one by default."""
    model = load_embedder(replace(tiny, prompt="{text}", pooling="mean"))
    SentenceTransformer(modules=[*model], prompts={**PROMPTS, "other": "Say: "}, default_prompt_name="other").save(
        str(tmp_path / "prompted")
    )
    return tmp_path / "prompted"


@given(st.lists(st.sampled_from(["encode", "tokenizer", "lengths", "query", "encoder", "counter"]), max_size=4))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_using_a_model_does_not_change_its_fingerprint(exported: Path, uses: list[str]) -> None:
    model = _OPENED.setdefault(exported, SentenceTransformer(str(exported)))
    before = model_fingerprint(SentenceTransformer(str(exported))) if not uses else model_fingerprint(model)
    for use in uses:
        {
            "encode": lambda: model.encode(["a text", "another " * 99]),
            "tokenizer": lambda: model.tokenizer("a text", padding="max_length", truncation=True, max_length=9),
            "lengths": lambda: tokenise(tokenizer_of(model), ["a text"]),
            "query": lambda: model.encode_query("a text"),
            "encoder": lambda: encoder_of(model, "x")(["a text"], role="document"),
            "counter": lambda: token_counter(model)(["a text"]),
        }[use]()
        assert model_fingerprint(model) == before


_OPENED: dict[Path, SentenceTransformer] = {}


def test_another_release_of_transformers_does_not_change_the_fingerprint(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_encoder(str(exported))
    monkeypatch.setattr("transformers.configuration_utils.__version__", "5.99.0")
    after = open_encoder(str(exported))
    assert after.fingerprint == before.fingerprint
    assert after.earlier != before.earlier  # as version 0.1.0 had it


def test_prompts_are_part_of_the_fingerprint(tiny: BackboneSettings) -> None:
    modules = [*load_embedder(tiny)]
    kinds: list[dict[str, Any]] = [
        {},
        {"prompts": PROMPTS},
        {"prompts": {**PROMPTS, "query": "Seek: "}},
        {"prompts": PROMPTS, "default_prompt_name": "query"},
        {"truncate_dim": 4},
    ]
    fingerprints = [model_fingerprint(SentenceTransformer(modules=modules, **kind)) for kind in kinds]
    assert len(set(fingerprints)) == len(kinds)


def test_what_is_kept_under_another_fingerprint_is_told_by_its_vectors(exported: Path) -> None:
    encoder = open_encoder(str(exported))
    kept = TEXTS[:3], encoder(TEXTS[:3])
    assert encoder.made("of another release", lambda: kept)
    assert encoder.made("nothing yet", lambda: ([], torch.empty(0, 0)))
    assert encoder.made(encoder.earlier, lambda: pytest.fail("is known by its name"))
    assert not encoder.made("another model", lambda: (TEXTS[:3], kept[1].flip(1)))
    assert not encoder.made("another size", lambda: (TEXTS[:3], kept[1][:, :4]))
    assert not encoder.made("damaged", lambda: (TEXTS[:3], torch.full_like(kept[1], torch.nan)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_queries_and_documents_have_the_prompts_of_their_model(prompted: Path, dtype: DType) -> None:
    encoder, model = open_encoder(str(prompted), dtype), SentenceTransformer(str(prompted))
    asked, read, plain = encoder(TEXTS, role="query"), encoder(TEXTS, role="document"), encoder(TEXTS)
    for found, prompt in ((asked, "Ask: "), (read, "Read: "), (plain, "Say: ")):
        expected = torch.from_numpy(model.encode(TEXTS, prompt=prompt))
        assert torch.cosine_similarity(found, expected).min() > (0.99999 if dtype == "float32" else 0.99)
        assert torch.equal(encoder(TEXTS[:2]), plain[:2])  # remembered by role
    assert torch.allclose(asked, torch.from_numpy(model.encode_query(TEXTS)), atol=1e-5) or dtype == "bfloat16"
    assert encoder.prompts == {"query": "Ask: ", "document": "Read: "}
    assert not encoder.earlier  # which knew of no prompts


def test_without_prompts_a_text_is_embedded_once_whatever_its_role(exported: Path) -> None:
    encoder = open_encoder(str(exported))
    seen: list[int] = []
    for role in (None, "query", "document"):
        encoder(TEXTS, seen.append, role)  # type: ignore[arg-type]
    assert sum(seen) == len(TEXTS)


@pytest.mark.parametrize("dtype", ["float16", "int8", "banana", ""])
def test_a_number_format_is_one_of_three(exported: Path, dtype: str) -> None:
    with pytest.raises(UsageError, match="choose auto, float32, bfloat16"):
        open_encoder(str(exported), dtype)  # type: ignore[arg-type]


def test_emulated_bfloat16_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_dtype("auto") == torch.float32


def test_a_text_is_embedded_once_whatever_is_done_with_it() -> None:
    asked: list[str] = []

    def once(texts: Sequence[str], progress: Progress | None) -> Tensor:
        asked.extend(texts)
        return torch.stack([torch.full((3,), float(len(text))) + torch.arange(3) for text in texts])

    encoder = TextEncoder("lengths", "a", once)
    first = encoder(["one", "three", "one"])
    assert torch.equal(first[0], first[2])
    centred = encoder.postprocessed_by(fit_postprocessing(first, "centred"), "centred")
    assert centred(["three", "seventeen"])[0].norm() == pytest.approx(
        float((first[1] - first.mean(0)).norm())
    )  # a rotation keeps lengths
    assert asked == ["one", "three", "seventeen"]
    assert centred.fingerprint != encoder.fingerprint


def test_an_exported_model_opens_as_what_it_is(exported: Path) -> None:
    expected = torch.from_numpy(SentenceTransformer(str(exported)).encode(TEXTS))
    assert (open_encoder(str(exported))(TEXTS) - expected).abs().max() < 1e-5
    low = open_encoder(str(exported), "bfloat16")(TEXTS)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low, expected).min() > 0.98
    assert not torch.equal(low, expected)
    assert torch.allclose(low.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5)


def test_the_number_format_is_part_of_the_identity(exported: Path) -> None:
    assert open_encoder(str(exported)).fingerprint == open_encoder(str(exported)).fingerprint
    assert open_encoder(str(exported)).fingerprint != open_encoder(str(exported), "bfloat16").fingerprint


def test_encoder_of_a_loaded_model_embeds_like_it(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    assert torch.equal(encoder_of(embedder, "tiny")(TEXTS), embed(embedder, TEXTS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_ends_with_its_pooling_opens_in_every_number_format(
    tiny: BackboneSettings, tmp_path: Path, dtype: str
) -> None:
    plain = load_embedder(replace(tiny, dtype="float32"))
    plain.save(str(tmp_path / "plain"))
    vectors = open_encoder(str(tmp_path / "plain"), dtype)(TEXTS)
    assert torch.cosine_similarity(vectors, embed(plain, TEXTS)).min() > (0.99999 if dtype == "float32" else 0.99)


def test_weights_cut_short_are_one_clear_line(exported: Path) -> None:
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cannot be loaded as an embedder"):
        open_encoder(str(exported))


@pytest.mark.parametrize(
    "listed", ["", "{}", "[]", "null", "3", '["a"]', '[{"model": "x"}]', '[{"idx": 0, "name": "0", "path": 1}]']
)
def test_a_list_of_modules_that_is_none_is_one_clear_line(exported: Path, listed: str) -> None:
    (exported / "modules.json").write_text(listed, encoding="utf-8")
    with pytest.raises(ModelError, match=f"^{exported}: (cannot be loaded as an embedder|holds no embedder)") as caught:
        open_encoder(str(exported))
    assert "\n" not in str(caught.value)


def test_what_is_no_embedder_is_one_clear_line(tmp_path: Path) -> None:
    for name in (str(tmp_path), "pypi:no-such-package-at-all"):
        with pytest.raises(ModelError) as caught:
            open_encoder(name)
        assert "\n" not in str(caught.value)
