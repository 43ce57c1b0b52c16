"""A batch for the trainer: texts as passes through the model, and their targets as the label.

A batch of many lengths goes through the model in several passes of similar ones, and its loss is taken over all of them, so
that it costs no padding. The trainer takes the passes for several columns of text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

# What a forward and backward pass costs before its first token, in tokens that would cost as much: on a CPU in bfloat16,
# which packs all weights anew each time, in float32, and on a GPU, where it is the wait for kernels.
PASS_COST_CPU, PASS_COST_FLOAT32, PASS_COST_GPU = 80, 25, 4096


def pass_cost(dtype: torch.dtype) -> int:
    """Return what a pass costs in training in `dtype` before its first token, in tokens that would cost as much."""
    if torch.cuda.is_available():
        return PASS_COST_GPU
    return PASS_COST_FLOAT32 if dtype == torch.float32 else PASS_COST_CPU


def passes_of(lengths: NDArray[np.int64], cost: int) -> list[NDArray[np.int64]]:
    """Split the rows of a batch into passes through the model, so that padding and passes together cost least.

    `lengths` has shape (rows,). A pass costs its rows times its longest, and `cost` tokens more. Returns the row numbers of
    each pass, the short ones first.
    """
    order = np.argsort(lengths, kind="stable")
    least = np.zeros(len(order) + 1)  # of the first rows in that order
    begin = np.zeros(len(order) + 1, dtype=np.int64)  # where the last pass of that optimum begins
    for end in range(1, len(order) + 1):
        costs = least[:end] + (end - np.arange(end)) * lengths[order[end - 1]] + cost
        begin[end] = np.argmin(costs)
        least[end] = costs[begin[end]]
    passes: list[NDArray[np.int64]] = []
    end = len(order)
    while end:
        passes.append(order[begin[end] : end])
        end = int(begin[end])
    return passes[::-1]


@dataclass
class TargetCollator(SentenceTransformerDataCollator):
    """Tokenises the texts as usual and hands the targets to the loss as `label`, padded with tokens of weight 0.

    The texts come out as one set of features for each pass through the model (`passes_of`, at `pass_cost`), and all that
    is in `label` in the same order.
    """

    pass_cost: int = PASS_COST_CPU

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        tokenised: dict[str, Any] = super().__call__([{"text": row["text"]} for row in features])
        mask = tokenised["text_attention_mask"]
        passes = passes_of(mask.sum(1).numpy(), self.pass_cost)
        batch: dict[str, Any] = {}
        for number, rows in enumerate(passes):
            used = mask[rows].any(0)  # whichever side the padding is on
            for name, value in tokenised.items():
                each_token = isinstance(value, Tensor) and value.shape == mask.shape
                batch[f"pass_{number}_{name.removeprefix('text_')}"] = value[rows][:, used] if each_token else value
        features = [features[row] for rows in passes for row in rows]
        width = max(len(row["token_ids"]) for row in features)
        token_ids = torch.zeros(len(features), width, dtype=torch.long)
        weights = torch.zeros(len(features), width)
        for index, row in enumerate(features):
            token_ids[index, : len(row["token_ids"])] = torch.as_tensor(row["token_ids"])
            weights[index, : len(row["weights"])] = torch.as_tensor(row["weights"])
        labels = {"token_ids": token_ids, "weights": weights, "rows": torch.tensor([row["row"] for row in features])}
        numbers: dict[str, int] = {}
        labels["texts"] = torch.tensor([numbers.setdefault(row["text"], len(numbers)) for row in features])
        if "document" in features[0]:
            labels["documents"] = torch.tensor([row["document"] for row in features])
        return {**batch, "label": labels}
