"""The SimCSE step of the authors' own package, timed in its own environment; `speed.peers` starts it.

    PYTHON llm2vec_step.py GIVEN.json

GIVEN holds `model` (sizes), `dtype`, `token_ids` (a list for each text), `batch`, `threads` and `repeats`. Prints
{"seconds": [...]} for each pass over the texts with model, adapters, pooling and loss of `llm2vec`, weights random.
"""

import json
import sys
import time
from pathlib import Path

import torch
from llm2vec import LLM2Vec
from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
from llm2vec.models import LlamaBiModel
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig

PADDING = 0


class Tokenizer:
    """All that pooling asks of a tokenizer."""

    padding_side = "left"


def batch_of(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return the rows padded on the left."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PADDING] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def main() -> None:
    """Time the passes."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    dtype = getattr(torch, given["dtype"])
    backbone = LlamaBiModel(LlamaConfig(**given["model"], attention_dropout=0.3, attn_implementation="sdpa")).to(dtype)
    modules = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=modules)
    model = LLM2Vec(get_peft_model(backbone, adapters), Tokenizer(), pooling_mode="mean", skip_instruction=False)
    model.train()
    loss = HardNegativeNLLLoss(scale=20.0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-5)
    rows = given["token_ids"]
    taken = []
    for _ in range(given["repeats"] + 1):
        started = time.perf_counter()
        for start in range(0, len(rows), given["batch"]):
            chosen = rows[start : start + given["batch"]]
            one, two = (model(batch_of(chosen)) for _ in range(2))
            loss(one, two).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        taken.append(time.perf_counter() - started)
    print(json.dumps({"seconds": taken[1:]}))


if __name__ == "__main__":
    main()
