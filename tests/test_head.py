"""The head on the last hidden state gives the model's own logits, family by family."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker, family_configs
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from text2token.corpus.documents import Document
from text2token.errors import ModelError
from text2token.export.static import build_static
from text2token.model.backbone import load_embedder
from text2token.model.head import load_head, word_table
from text2token.recipe import BackboneSettings
from text2token.tokens.vocabulary import TargetVocabulary


@pytest.mark.parametrize("family", sorted(family_configs(10)))
def test_head_equals_the_causal_models_logits(make_backbone: BackboneMaker, family: str) -> None:
    folder = str(make_backbone(family))
    embedder = load_embedder(BackboneSettings(folder, dtype="float32", max_length=64))
    head = load_head(embedder, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in TEXTS[:3]:
        ids = embedder.preprocess([text])["input_ids"]
        with torch.inference_mode():
            expected = model(input_ids=ids).logits[0, -1]
            found = head(embedder.encode(text, convert_to_tensor=True))
        assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
        assert expected.std() > 1e-2  # logits that are all alike would agree with anything


def saved(tokenizer: PreTrainedTokenizerFast, config: transformers.PretrainedConfig, folder: Path) -> BackboneSettings:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BackboneSettings(str(folder), dtype="float32", max_length=64)


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNKNOWN = {
    "hyperclovax": ("HyperCLOVAXConfig", {"logits_scaling": 8.0, "num_key_value_heads": 2}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {"logits_soft_cap": 0.5, "head_dim": 8, "attention_window_size": 64}),
    "modernbert-decoder": ("ModernBertDecoderConfig", {"local_attention": 16}),
}


@pytest.mark.parametrize("family", sorted(UNKNOWN))
def test_a_family_whose_logits_are_made_otherwise_is_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    name, more = UNKNOWN[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = getattr(transformers, name)(vocab_size=len(byte_level_tokenizer), **{**SIZES, **more})
    backbone = saved(byte_level_tokenizer, config, tmp_path)
    embedder = load_embedder(backbone)
    with pytest.raises(ModelError, match=rf"the head of {family} models is not known here: .* of their spread"):
        load_head(embedder, backbone.name)


@pytest.mark.parametrize("family", ["llama_tied", "llama", "phi", "gemma3"])
def test_control_tokens_beyond_the_rows_of_the_head_have_rows_of_zeros(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    config = family_configs(len(byte_level_tokenizer))[family]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True)], special_tokens=True)
    backbone = saved(tokenizer, config, tmp_path / "backbone")
    embedder = load_embedder(backbone)
    head, vocabulary = load_head(embedder, backbone.name), TargetVocabulary.from_tokenizer(tokenizer)
    assert head.vocabulary_size == vocabulary.size == len(byte_level_tokenizer) + 1
    assert not head.weight[-1].any()
    assert word_table(head, vocabulary, torch.ones(vocabulary.size)).isfinite().all()
    documents = [Document(text, str(number)) for number, text in enumerate(TEXTS)]
    table = build_static(backbone, documents, tmp_path / "table")
    assert torch.isfinite(table.encode([*TEXTS, "<image_soft_token>"], convert_to_tensor=True)).all()


def test_words_beyond_the_rows_of_the_head_are_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = family_configs(len(byte_level_tokenizer) - 40)["llama_tied"]
    backbone = saved(byte_level_tokenizer, config, tmp_path)
    with pytest.raises(ModelError, match=r"36 tokens that are text .* have none\. Is the tokenizer that of the model"):
        load_head(load_embedder(backbone), backbone.name)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_of_an_untied_head_only_its_matrix_is_read(
    make_backbone: BackboneMaker, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_backbone(family)
    embedder = load_embedder(BackboneSettings(str(source), dtype="float32", max_length=64))
    expected = load_head(embedder, str(source))
    for path in source.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    head = {name: value for name, value in tensors.items() if name.startswith("lm_head")}
    shards = {"model-00001-of-00002.safetensors": head, "model-00002-of-00002.safetensors": {"other": torch.zeros(1)}}
    for name, values in shards.items():
        save_file(values, tmp_path / name)
    index = {"weight_map": {tensor: name for name, values in shards.items() for tensor in values}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("reads all"))
    found = load_head(embedder, str(tmp_path))
    assert torch.equal(found.weight, expected.weight)
    assert (found.bias is None) == (expected.bias is None)


def test_a_head_is_the_same_in_another_number_format_and_for_fewer_layers(make_backbone: BackboneMaker) -> None:
    backbone = BackboneSettings(str(make_backbone("gemma2")), dtype="float32", max_length=64)
    whole = load_head(load_embedder(backbone), backbone.name)
    for other in (replace(backbone, dtype="bfloat16"), replace(backbone, layers=1, attention="bidirectional")):
        found = load_head(load_embedder(other), other.name)
        assert torch.allclose(found.weight, whole.weight, atol=1e-2 * float(whole.weight.abs().max()))
