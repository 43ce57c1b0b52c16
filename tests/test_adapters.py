"""The fused adapters are peft's to the last digit that float32 has, and all that cannot be fused is peft's own."""

import re
from collections.abc import Callable

import pytest
import torch
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import Linear as LoraLinear
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.model.adapters import add_lora, merge_lora
from text2token.model.backbone import embed, load_embedder
from text2token.model.fused_linear import FusedLinear, _LinearWithAdapter, drawn_mask
from text2token.recipe import BackboneSettings, LoraSettings


def adapted(settings: BackboneSettings, **options: float) -> SentenceTransformer:
    embedder = load_embedder(settings)
    add_lora(embedder, LoraSettings(rank=4, **options), seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return embedder.train()


def gradients(embedder: SentenceTransformer) -> tuple[Tensor, dict[str, Tensor]]:
    embedder.zero_grad()
    torch.manual_seed(2)  # some families have dropout of their own
    vectors = embedder(embedder.preprocess(TEXTS))["sentence_embedding"]
    (vectors.float() * torch.linspace(-1, 1, vectors.shape[1])).square().sum().backward()
    return vectors.detach(), {name: value.grad for name, value in embedder.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma3", "phi", "phi3", "olmo2", "opt", "gpt_neox"])
def test_outputs_and_gradients_are_those_of_peft(
    make_backbone: Callable[[str], object], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BackboneSettings(str(make_backbone(family)), dtype="float32", max_length=64)
    embedder = adapted(settings)
    fused = [module for module in embedder.modules() if isinstance(module, FusedLinear)]
    assert fused
    found, found_gradients = gradients(embedder)
    monkeypatch.setattr(FusedLinear, "forward", LoraLinear.forward)
    expected, expected_gradients = gradients(embedder)
    assert (found - expected).abs().max() < 1e-5
    assert found_gradients.keys() == expected_gradients.keys()
    assert any("lora_A" in name for name in found_gradients)
    for name, value in expected_gradients.items():
        assert (found_gradients[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, name


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    x, a, b = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (4, 2)))
    weight, bias = torch.randn(4, 5, dtype=torch.double), torch.randn(4, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda x, a, b: _LinearWithAdapter.apply(x, weight, bias, a, b, 2.0), (x, a, b), eps=1e-6, atol=1e-6
    )

    def with_dropout(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same mask for every difference
        return _LinearWithAdapter.apply(x, weight, bias, a, b, 2.0, 0.4)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(with_dropout, (x, a, b), eps=1e-6, atol=1e-6)


@given(st.floats(0.01, 0.99), st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_mask_keeps_its_share_and_is_the_same_for_a_seed(share: float, seed: int, dtype: torch.dtype) -> None:
    like = torch.empty(333, 101, dtype=dtype)
    torch.manual_seed(seed)
    mask = drawn_mask(like, share)
    five_deviations = 5 * (share * (1 - share) / like.numel()) ** 0.5
    assert abs(mask.float().mean().item() - share) < five_deviations + 2**-16
    assert abs((mask[:, 1:] ^ mask[:, :-1]).float().mean().item() - 2 * share * (1 - share)) < 0.03  # neighbours independent
    torch.manual_seed(seed)
    assert torch.equal(mask, drawn_mask(like, share))


def test_dropout_leaves_the_expected_output_as_it_was() -> None:
    torch.manual_seed(0)
    x, weight, a, b = torch.randn(3, 16), torch.randn(5, 16), torch.randn(2, 16), torch.randn(5, 2)
    quiet = _LinearWithAdapter.apply(x, weight, None, a, b, 1.0)
    noisy = torch.stack([_LinearWithAdapter.apply(x, weight, None, a, b, 1.0, 0.5) for _ in range(4000)])
    error = noisy.std(0) / 4000**0.5
    assert ((noisy.mean(0) - quiet).abs() < 5 * error).all()


def test_in_bfloat16_the_adapters_keep_float32_gradients(tiny: BackboneSettings) -> None:
    settings = BackboneSettings(tiny.name, dtype="bfloat16", max_length=64)
    vectors, found = gradients(adapted(settings))
    exact, expected = gradients(adapted(tiny))
    assert vectors.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found.values())
    assert torch.nn.functional.cosine_similarity(vectors.float(), exact).min() > 0.99
    one, two = (torch.cat([grads[name].flatten() for name in sorted(grads)]) for grads in (found, expected))
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98


def test_dropout_and_merging_are_as_in_peft(tiny: BackboneSettings) -> None:
    features = adapted(tiny).preprocess(TEXTS)
    noisy, quiet = adapted(tiny, dropout=0.5), adapted(tiny)
    assert not torch.equal(noisy(features)["sentence_embedding"], noisy(features)["sentence_embedding"])
    assert torch.equal(quiet(features)["sentence_embedding"], quiet(features)["sentence_embedding"])
    embedder = adapted(tiny).eval()
    whole = embed(embedder, TEXTS)
    merge_lora(embedder)
    assert (embed(embedder, TEXTS) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "gpt_neox", "opt", "phi"])
def test_adapters_on_the_last_layer_only_leave_the_others_alone(make_backbone: Callable[[str], object], family: str) -> None:
    settings = BackboneSettings(str(make_backbone(family)), dtype="float32", max_length=64)
    embedder = load_embedder(settings)
    add_lora(embedder, LoraSettings(rank=4, last_layers=1), seed=0)
    trained = [name for name, value in embedder.named_parameters() if value.requires_grad]
    assert trained
    assert all(re.search(r"\.1\.", name) for name in trained)  # of layers 0 and 1
    gradients = []
    first = next(module for module in embedder.modules() if isinstance(module, torch.nn.ModuleList))[0]
    first.register_full_backward_hook(lambda *_: gradients.append(1))
    embedder.train()(embedder.preprocess(TEXTS))["sentence_embedding"].float().square().sum().backward()
    assert not gradients  # nothing is computed backward through what is not trained


def moved(embedder: SentenceTransformer, seed: int) -> None:
    """Move the adapters that train away from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "phi3"])
def test_a_second_adapter_begins_where_merging_the_first_would_and_alone_is_trained(
    make_backbone: Callable[[str], object], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BackboneSettings(str(make_backbone(family)), dtype="float32", max_length=64)
    lora = LoraSettings(rank=4, dropout=0.3)
    beside, merged = load_embedder(settings), load_embedder(settings)
    for embedder in (beside, merged):
        add_lora(embedder, lora, seed=0)
        moved(embedder, 1)
    merge_lora(merged)
    before = embed(beside.eval(), TEXTS)
    assert (before - embed(merged.eval(), TEXTS)).abs().max() < 1e-5
    add_lora(beside, lora, seed=0)
    assert (embed(beside.eval(), TEXTS) - before).abs().max() < 1e-5
    trained = [name for name, value in beside.named_parameters() if value.requires_grad]
    assert trained
    assert all(".stage2." in name for name in trained)

    found, found_gradients = gradients(adapted_without_dropout(beside))
    monkeypatch.setattr(FusedLinear, "forward", LoraLinear.forward)
    expected, expected_gradients = gradients(beside)
    assert (found - expected).abs().max() < 1e-5
    assert found_gradients.keys() == expected_gradients.keys() == set(trained)
    for name, value in expected_gradients.items():
        assert (found_gradients[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, name
    monkeypatch.undo()

    moved(beside, 2)
    whole = embed(beside.eval(), TEXTS)
    assert (whole - before).abs().max() > 0.01
    merge_lora(beside)
    assert (embed(beside, TEXTS) - whole).abs().max() < 1e-5


def adapted_without_dropout(embedder: SentenceTransformer) -> SentenceTransformer:
    for module in embedder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    moved(embedder, 3)
    return embedder.train()


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "gpt_neox", "opt", "phi", "phi3", "mistral"])
def test_adapters_can_be_on_attention_alone(make_backbone: Callable[[str], object], family: str) -> None:
    embedder = load_embedder(BackboneSettings(str(make_backbone(family)), dtype="float32", max_length=64))
    add_lora(embedder, LoraSettings(rank=4, modules="attention"), seed=0)
    adapted = {name.split(".lora_")[0] for name, value in embedder.named_parameters() if value.requires_grad}
    each = len(adapted) / 2  # layers
    assert each == {"gpt2": 2, "gpt_neox": 2, "phi3": 2}.get(family, 4)
    assert all("attn" in name or "attention" in name for name in adapted)
