"""Low-rank adapters: peft's, computed in fewer steps while they train.

Beside every linear layer peft adds seven small operations and keeps them all for the backward pass; on a CPU they cost
half as much again as the backbone itself (LOG.md). Here a layer and its adapter are one operation with its own backward:

    y  = x W' + (x A') (s B')                      A (rank, in)   B (out, rank)   s the scaling
    dx = g W + (g s B) A     dA = (g s B)' x     dB = s g' (x A')

W is frozen and has no gradient. A and B are float32, so that small steps are not rounded away, and are multiplied in the
dtype of x, as under autocast. Dropout, where it is asked for, zeroes parts of the x that the adapter sees; its masks are
drawn 64 bits at a time, because torch's own draws cost a CPU as much as the layer itself.

Every stage of training has its own adapter. Those of the stages before stay beside it, frozen: that is what merging them
into the weights would give, without the rounding of bfloat16, which would lose most of a small update.
"""

import re
import warnings
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from text2token.errors import UsageError
from text2token.model.backbone import transformer_of
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


class FusedLinear(LoraLinear):
    """peft's adapted linear layer; with frozen weights it and the last adapter are computed as one operation."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()
        *earlier, name = self.active_adapters
        plain = (
            not (self.merged or self.disable_adapters or self.lora_variant or args or kwargs)
            and not base.weight.requires_grad
            and base.weight.dtype == x.dtype
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        dropout = self.lora_dropout[name]
        share = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        y: Tensor = _LinearWithAdapter.apply(x, base.weight, base.bias, a, b, self.scaling[name], share)  # type: ignore[no-untyped-call]
        for other in earlier:
            a, b = (cast(Tensor, part[other].weight) for part in (self.lora_A, self.lora_B))
            y = y + x @ a.T.to(x.dtype) @ (b * self.scaling[other]).T.to(x.dtype)
        return y


class _LinearWithAdapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept = drawn_mask(rows, 1 - dropout) if dropout else None
        seen = rows if kept is None else torch.where(kept, rows, 0)
        scaling /= 1 - dropout
        a, scaled_b = a.to(x.dtype), (b * scaling).to(x.dtype)
        inner = seen @ a.T
        y = nn.functional.linear(rows, weight, bias).addmm_(inner, scaled_b.T)
        ctx.save_for_backward(seen, kept, weight, a, scaled_b, inner)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, kept, weight, a, scaled_b, inner = ctx.saved_tensors
        (gradient,) = gradients
        g = gradient.reshape(-1, gradient.shape[-1])
        inner_gradient = g @ scaled_b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ weight
            dx = dx.addmm_(inner_gradient, a) if kept is None else dx + torch.where(kept, inner_gradient @ a, 0)
            dx = dx.view(*gradient.shape[:-1], -1)
        da = (inner_gradient.T @ seen).float()
        db = (g.T @ inner).float() * ctx.scaling
        return dx, None, None, da, db, None, None


def drawn_mask(like: Tensor, share: float) -> Tensor:
    """Return a boolean tensor of the shape of `like`, true with probability `share` (to a 65,536th)."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    draws = words.view(torch.int16)[: like.numel()].view(like.shape)
    return draws < round(share * 2**16) - 2**15
