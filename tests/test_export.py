"""What is exported is a plain sentence-transformers folder that gives the trained vectors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker, family_configs
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from text2token.errors import OutputError
from text2token.export.folder import export_embedder
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, tokenizer_of
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, LoraSettings

MORE_TEXTS = [*TEXTS, "short", "long " * 200]


def trained(settings: BackboneSettings) -> SentenceTransformer:
    embedder = load_embedder(settings)
    add_lora(embedder, LoraSettings(rank=4), seed=0)
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return embedder


def exported(settings: BackboneSettings, folder: Path) -> tuple[SentenceTransformer, torch.Tensor]:
    """Return the reloaded export and the vectors that it must give."""
    embedder = trained(settings)
    raw = embed(embedder, MORE_TEXTS)
    whitening = fit_postprocessing(raw)
    export_embedder(embedder, whitening, folder, "# card")
    return SentenceTransformer(str(folder)), torch.nn.functional.normalize(whitening(raw))


@pytest.mark.parametrize(
    "family",
    [
        "llama_tied",
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3",
        "phi3",
        "olmo2",
        "granite",
        "gpt2",
        "gpt_neox",
        "opt",
    ],
)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_merged_export_reloads_in_plain_sentence_transformers(
    make_backbone: BackboneMaker, tmp_path: Path, family: str, attention: str
) -> None:
    settings = BackboneSettings(str(make_backbone(family)), attention=attention, dtype="float32", max_length=64)  # type: ignore[arg-type]
    model, expected = exported(settings, tmp_path / "model")
    assert (torch.from_numpy(model.encode(MORE_TEXTS)) - expected).abs().max() < 1e-5
    for options in ({"batch_size": 1}, {"batch_size": 5}):
        assert (torch.from_numpy(model.encode(MORE_TEXTS, **options)) - expected).abs().max() < 1e-5  # type: ignore[arg-type]
    if family in ("llama_tied", "llama", "qwen3", "gemma3"):  # absolute positions shift under left padding
        model.tokenizer.padding_side = "left"
        assert (torch.from_numpy(model.encode(MORE_TEXTS)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_pooling_survives_in_the_older_layout(tiny: BackboneSettings, tmp_path: Path, pooling: str) -> None:
    model, expected = exported(replace(tiny, pooling=pooling), tmp_path / "model")  # type: ignore[arg-type]
    assert (torch.from_numpy(model.encode(MORE_TEXTS)) - expected).abs().max() < 1e-5
    config = json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert sum(value for key, value in config.items() if key.startswith("pooling_mode_")) == 1


def test_export_is_stock_modules_without_adapters_or_templates(tiny: BackboneSettings, tmp_path: Path) -> None:
    exported(tiny, tmp_path / "model")
    names = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*")}
    assert not {name for name in names if "adapter" in name or "template" in name or name.endswith((".bin", ".pt", ".pkl"))}
    modules = json.loads((tmp_path / "model" / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# card"


def test_the_prompt_is_in_the_exported_tokenizer(tiny: BackboneSettings, tmp_path: Path) -> None:
    model, _ = exported(replace(tiny, prompt='Say "{text}" in a word:'), tmp_path / "model")
    assert model.tokenizer.decode(model.tokenizer("girl")["input_ids"]) == 'Say "girl" in a word:'
    assert tokenizer_of(model).model_max_length == tiny.max_length


def test_an_existing_model_is_kept_unless_told_otherwise(tiny: BackboneSettings, tmp_path: Path) -> None:
    exported(tiny, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        exported(tiny, tmp_path / "model")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="is a file"):
        exported(tiny, tmp_path / "file")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "file"}


def test_vectors_can_be_cut_by_sentence_transformers(tiny: BackboneSettings, tmp_path: Path) -> None:
    _, whole = exported(tiny, tmp_path / "model")
    cut = SentenceTransformer(str(tmp_path / "model"), truncate_dim=4)
    found = cut.encode(MORE_TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    assert torch.allclose(found, torch.nn.functional.normalize(whole[:, :4]), atol=1e-5)
    assert whole[:, :4].square().sum() > whole[:, 4:8].square().sum()  # what says most comes first


ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500_000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1_000_000.0},
    "default": {"rope_type": "default", "rope_theta": 300_000.0},
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_neox", "phi"])
@pytest.mark.parametrize("rope", sorted(ROPE))
def test_rotary_positions_are_there_for_older_readers_too(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str, rope: str
) -> None:
    config = family_configs(len(byte_level_tokenizer))[family]
    if family == "gemma3":
        sliding = {"rope_type": "default", "rope_theta": 20_000.0}
        config.rope_parameters = {"full_attention": ROPE[rope], "sliding_attention": sliding}
    else:
        config.rope_parameters = {**config.rope_parameters, **ROPE[rope]}
        if family == "gpt_neox":  # of so few dimensions a quarter is a single frequency
            config.rope_parameters["partial_rotary_factor"] = 1.0
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "backbone")
    byte_level_tokenizer.save_pretrained(tmp_path / "backbone")
    settings = BackboneSettings(str(tmp_path / "backbone"), dtype="float32", max_length=64)
    model, _ = exported(settings, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    del written["rope_parameters"]  # which is all that transformers 4 does not know; 5 still reads the older names
    path.write_text(json.dumps(written), encoding="utf-8")
    older = SentenceTransformer(str(tmp_path / "model"))
    assert abs(older.encode(MORE_TEXTS) - model.encode(MORE_TEXTS)).max() < 1e-6
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base"):
        written.pop(name, None)
    path.write_text(json.dumps(written), encoding="utf-8")
    without = SentenceTransformer(str(tmp_path / "model"))
    assert abs(without.encode(MORE_TEXTS) - model.encode(MORE_TEXTS)).max() > 1e-4  # they do matter here
