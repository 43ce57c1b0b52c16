"""Low-rank adapters on the linear layers of a backbone.

Every stage of training has a new adapter. Those of the stages before stay beside it, frozen: that is what merging them
into the weights would give, without the rounding of bfloat16, which would lose most of a small update.
"""

import re
import warnings
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from text2token.errors import UsageError
from text2token.model.backbone import transformer_of
from text2token.model.fused_linear import FusedLinear
from text2token.recipe import LoraSettings


def add_lora(embedder: SentenceTransformer, settings: LoraSettings, seed: int) -> None:
    """Put trainable adapters on the linear layers of the backbone, in place; freeze the rest, earlier adapters included."""
    transformer = transformer_of(embedder)
    earlier = _adapters_of(transformer.model)
    name = f"stage{len(earlier) + 1}"
    torch.manual_seed(seed + len(earlier))
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_adapted_layers(transformer.model, settings),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in transformer.model.modules()),  # GPT-2
    )
    config._register_custom_module({nn.Linear: FusedLinear})
    if not earlier:
        with warnings.catch_warnings():  # peft asks transformers by a deprecated name
            warnings.simplefilter("ignore", FutureWarning)
            transformer.model = cast(PreTrainedModel, get_peft_model(transformer.model, config, adapter_name=name))
        return
    model: Any = transformer.model
    model.add_adapter(name, config)
    model.base_model.set_adapter([*earlier, name])
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for other in earlier:
                layer.lora_dropout[other] = nn.Identity()
                for weights in (layer.lora_A[other], layer.lora_B[other]):
                    weights.requires_grad_(False)


def _adapters_of(model: nn.Module) -> list[str]:
    """Return the names of the adapters, the first added first."""
    return list(model.peft_config) if isinstance(model, PeftModel) else []


def _adapted_layers(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Return the names of the linear layers that get an adapter, or have one already."""
    layers = model.config.num_hidden_layers
    first = max(0, layers - (settings.last_layers or layers))
    backbone = model.get_base_model() if isinstance(model, PeftModel) else model
    chosen = []
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Linear | Conv1D | LoraLayer) or "lora_" in name or name.endswith("base_layer"):
            continue
        number = re.search(r"\d+", name)  # a layer's number is the first in its name: layers.3.mlp.up_proj, h.3.attn.c_attn
        in_attention = "attn" in name or "attention" in name
        if (not number or int(number[0]) >= first) and (in_attention or settings.modules == "all"):
            chosen.append(name)
    if not chosen:
        raise UsageError(f"lora.modules is {settings.modules!r}: {model.config.model_type} has no such linear layers")
    return chosen


def merge_lora(embedder: SentenceTransformer) -> None:
    """Fold the adapters into float32 weights, in place; nothing happens where there are none."""
    transformer = transformer_of(embedder)
    cast(nn.Module, transformer.model).to(
        torch.float32
    )  # adding a small update to bfloat16 weights would round most of it away
    if isinstance(transformer.model, PeftModel):
        transformer.model = transformer.model.merge_and_unload()
