"""peft's adapted linear layer, computed in fewer steps while it trains.

Beside every linear layer peft adds seven small operations and keeps them all for the backward pass; on a CPU they cost
half as much again as the backbone itself. Here a layer and its adapter are one operation with one backward pass:

    y  = x W' + (x A') (s B')                      A (rank, in)   B (out, rank)   s the scaling
    dx = g W + (g s B) A     dA = (g s B)' x     dB = s g' (x A')

W is frozen and has no gradient. A and B are float32, so that small steps are not rounded away, and are multiplied in the
dtype of x, as under autocast. Dropout, where it is set, zeroes parts of the x that the adapter sees; its masks are
drawn 64 bits at a time, because torch's draws cost a CPU as much as the layer itself.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


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
