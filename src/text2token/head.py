"""The model's language-model head: embedding → token logits.

The embedding is the hidden state after the final norm, so the head is one matrix product, plus what some families do to
their logits: a bias (Phi), a scale (Granite, Cohere) or a soft cap (Gemma 2). Parity with `AutoModelForCausalLM` is a
test per family. The head is frozen: it is the vocabulary that the embedding is aligned to.
"""

from typing import Any, cast

import torch
import transformers
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PretrainedConfig

from text2token.backbone import resolve_backbone, transformer_of
from text2token.errors import BackboneError
from text2token.vocabulary import NOT_A_TARGET, TargetVocabulary

NO_WORD = 0.3  # 0, 0.1 and 0.3 measured alike (LOG.md)


class LanguageModelHead(nn.Module):
    """Frozen map from embeddings (…, dimension) to logits (…, vocabulary), in float32, on the device of the head."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, soft_cap: float | None = None
    ) -> None:
        super().__init__()
        # buffers, not parameters: no optimiser, adapter or checkpoint may touch them
        self.register_buffer("weight", weight.detach().float().clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone(), persistent=False)
        self.scale = scale
        self.soft_cap = soft_cap

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = nn.functional.linear(embeddings.float().to(self.weight.device), self.weight, self.bias) * self.scale
        if self.soft_cap:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    @property
    def vocabulary_size(self) -> int:
        """The number of rows: token ids, and for some models padding up to a round number."""
        return int(self.weight.shape[0])


def load_head(embedder: SentenceTransformer, backbone: str) -> LanguageModelHead:
    """Return the head of the backbone that `embedder` was loaded from (`backbone` is its name in the settings).

    A tied head is the input embedding matrix, which is at hand; an untied one is read from the model's files. Raises
    `BackboneError` when the model has none.
    """
    model = transformer_of(embedder).model
    scale, soft_cap = logit_transform(model.config)
    if getattr(model.config, "tie_word_embeddings", False):
        return LanguageModelHead(cast(nn.Embedding, model.get_input_embeddings()).weight, scale=scale, soft_cap=soft_cap)
    try:
        full: Any = transformers.AutoModelForCausalLM.from_pretrained(resolve_backbone(backbone), dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{backbone}: has no language-model head ({str(error).splitlines()[0]})") from error
    layer = full.get_output_embeddings()
    if layer is None:
        raise BackboneError(f"{backbone}: has no language-model head")
    return LanguageModelHead(layer.weight, getattr(layer, "bias", None), scale=scale, soft_cap=soft_cap)


def word_table(head: LanguageModelHead, vocabulary: TargetVocabulary, idf: Tensor) -> Tensor:
    """Return a vector for every token, shape (vocabulary size, dimension), in which like words are alike.

        idf(word) · unit vector of the sum over the word's spellings of the unit vector of (row of the head - mean row)

    `idf` has shape (vocabulary size,). Tokens that are no words (function words, punctuation, fragments) are by themselves
    and keep `NO_WORD` of the mean idf.
    """
    rows = head.weight[: vocabulary.size].float().cpu()
    rows = nn.functional.normalize(rows - rows.mean(0))
    word = torch.from_numpy(vocabulary.representatives[:, 0]).long()
    is_word = word != NOT_A_TARGET
    summed = torch.zeros_like(rows).index_add_(0, word[is_word], rows[is_word])
    table = rows * NO_WORD * idf[word[is_word]].mean()
    table[is_word] = nn.functional.normalize(summed[word[is_word]]) * idf[word[is_word], None]
    return table


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """Return (scale, soft cap) that the family applies to its logits; (1, None) for most."""
    scale = 1.0
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        scale /= divisor
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        scale *= getattr(config, name, None) or 1.0
    return scale, getattr(config, "final_logit_softcapping", None)  # Gemma 2
