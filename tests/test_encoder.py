"""An encoder is known by everything that changes its vectors, and embeds no text twice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.adapters import LoraSettings, add_lora
from text2token.backbone import BackboneSettings, Progress, embed, load_embedder
from text2token.encoder import TextEncoder, encoder_of, model_fingerprint, open_encoder
from text2token.errors import BackboneError
from text2token.export import export_embedder
from text2token.isotropy import fit_isotropy


@pytest.fixture
def exported(tiny: BackboneSettings, tmp_path: Path) -> Path:
    embedder = load_embedder(tiny)
    export_embedder(embedder, fit_isotropy(embed(embedder, TEXTS), "none"), tmp_path / "model", "# card")
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


def test_a_text_is_embedded_once_whatever_is_done_with_it() -> None:
    asked: list[str] = []

    def once(texts: Sequence[str], progress: Progress | None) -> Tensor:
        asked.extend(texts)
        return torch.stack([torch.full((3,), float(len(text))) + torch.arange(3) for text in texts])

    encoder = TextEncoder("lengths", "a", once)
    first = encoder(["one", "three", "one"])
    assert torch.equal(first[0], first[2])
    centred = encoder.finished_by(fit_isotropy(first, "centre"), "centred")
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
    with pytest.raises(BackboneError, match="cannot be loaded as an embedder"):
        open_encoder(str(exported))


def test_what_is_no_embedder_is_one_clear_line(tmp_path: Path) -> None:
    for name in (str(tmp_path), "pypi:no-such-package-at-all"):
        with pytest.raises(BackboneError) as caught:
            open_encoder(name)
        assert "\n" not in str(caught.value)
