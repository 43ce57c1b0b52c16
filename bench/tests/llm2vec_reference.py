"""What the original LLM2Vec gives for a small model whose weights follow from a formula, so that none need be kept.

In an environment of its own (the package pins an old transformers):

    pip install torch llm2vec==0.2.3 "transformers==4.44.2" "numpy<2"
    python bench/tests/llm2vec_reference.py            # writes llm2vec_reference.json beside this file
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

REFERENCE = Path(__file__).with_suffix(".json")
VOCABULARY = 600
MASK_ID = 66
IGNORED = -100


def formula_model() -> LlamaForCausalLM:
    """Return a two-layer Llama with weights drawn by numpy, whose generator gives the same numbers in every version."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            drawn = np.random.default_rng(number).normal(size=tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(1 + 0.1 * drawn if "norm" in name else 0.3 * drawn))
    return model


def inputs() -> dict[str, torch.Tensor]:
    """Return token ids of three rows of different lengths, their mask, and labels at the masked positions."""
    rng = np.random.default_rng(7)
    present = torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 7, 4)):
        present[row, :length] = 1
    original = torch.from_numpy(rng.integers(100, VOCABULARY, size=(3, 12)))
    masked = (torch.from_numpy(rng.random((3, 12))) < 0.3) & present.bool()
    masked[:, 0] = False
    return {
        "input_ids": original.masked_fill(masked, MASK_ID),
        "attention_mask": present,
        "labels": original.masked_fill(~masked, IGNORED),
    }


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return two matrices of embeddings that belong together row by row, shape (6, 32)."""
    rng = np.random.default_rng(9)
    one = rng.normal(size=(6, 32)).astype(np.float32)
    two = (one + 2 * rng.normal(size=(6, 32))).astype(np.float32)
    return torch.from_numpy(one), torch.from_numpy(two)


def main() -> None:
    """Write the reference."""
    import tempfile

    from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
    from llm2vec.models import LlamaBiForMNTP, LlamaBiModel

    given = inputs()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        formula_model().save_pretrained(folder)
        model = LlamaBiModel.from_pretrained(folder, attn_implementation="sdpa").eval()
        hidden = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        mntp = LlamaBiForMNTP.from_pretrained(folder, attn_implementation="sdpa").eval()
        loss = mntp(**given).loss
        simcse = HardNegativeNLLLoss(scale=20.0)(*pairs())
    mask = given["attention_mask"][:, :, None]
    reference = {
        "mean_pooled": ((hidden * mask).sum(1) / mask.sum(1)).tolist(),
        "mntp_loss": float(loss),
        "simcse_loss": float(simcse),
    }
    REFERENCE.write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
