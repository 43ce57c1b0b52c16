"""The model's language-model head: embedding → token logits.

The embedding is the hidden state after the final norm, so the head is one matrix product, plus what some families do to
their logits: a bias (Phi), a scale (Granite, Cohere) or a soft cap (Gemma 2). A family may do something else to them:
so whenever a head is loaded, its logits of a probe text are compared with those that the family's code makes of the same
hidden states. The head is frozen: it is the vocabulary that the embedding is aligned to.
"""

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from text2token.errors import ModelError, reason
from text2token.model.backbone import embed, resolve_backbone, tokenizer_of, transformer_of
from text2token.tokens.vocabulary import NOT_A_TARGET, TargetVocabulary, token_forms, tokenise

NO_WORD = 0.3  # of the mean idf: the weight of a token that is part of no word

CENTRE_TEXTS = 256  # for a mean whose error is a sixteenth of the texts' spread
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PROBE = "The price of coffee rose after frost damaged the harvest."
SAME_LOGITS = 1e-3  # of their spread; both are computed in float32 of the same states, and agree to 1e-6


class LanguageModelHead(nn.Module):
    """Frozen map from embeddings (…, dimension) to logits (…, vocabulary), in float32, on the device of the head."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, soft_cap: float | None = None
    ) -> None:
        super().__init__()
        # buffers, not parameters: no optimiser, adapter or checkpoint may touch them
        self.register_buffer("weight", weight.detach().to(torch.float32, copy=True), persistent=False)
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.register_buffer("bias", bias, persistent=False)
        self.scale = scale
        self.soft_cap = soft_cap

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = nn.functional.linear(embeddings.float().to(self.weight.device), self.weight, self.bias) * self.scale
        if self.soft_cap:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    @property
    def vocabulary_size(self) -> int:
        """The number of rows: at least that of token ids, and for some models padding up to a round number."""
        return int(self.weight.shape[0])


def load_head(embedder: SentenceTransformer, backbone: str) -> LanguageModelHead:
    """Return the head of the backbone that `embedder` was loaded from (`backbone` is its name in the settings).

    A tied head is the input embedding matrix, which is at hand; of an untied one that matrix alone is read from the model's
    files. Where the tokenizer knows more control tokens than the model has rows (Gemma 3, Code Llama), theirs are zeros.
    Raises `ModelError` when the model has no head, when the family's code makes other logits, or when rows of tokens
    that are text are missing.
    """
    model = transformer_of(embedder).model
    shell = _family(model.config, backbone)
    layer = shell.get_output_embeddings()
    name = next((name for name, module in shell.named_modules() if module is layer), None)
    if not isinstance(layer, nn.Linear) or name is None:
        raise ModelError(f"{backbone}: has no language-model head")
    read = _Weights(backbone)
    weight: Tensor
    if getattr(model.config, "tie_word_embeddings", False):
        weight = cast(nn.Embedding, model.get_input_embeddings()).weight
    else:
        weight = read(f"{name}.weight")
    bias: Tensor | None = None if layer.bias is None else read(f"{name}.bias")
    scale, soft_cap = logit_transform(model.config)
    weight, bias = _with_rows_for_all(weight, bias, tokenizer_of(embedder), backbone)
    head = LanguageModelHead(weight, bias, scale=scale, soft_cap=soft_cap)
    _check(head, embedder, shell, name, read, backbone)
    return head


class _Weights:
    """Reads single tensors of a model's files, in the number format that they have there."""

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone
        self.place = resolve_backbone(backbone)

    def __call__(self, name: str) -> Tensor:
        if file := self._file(WEIGHTS_INDEX):
            shards = json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"]
            file = self._file(shards[name]) if name in shards else None
        else:
            file = self._file(WEIGHTS)
        if file:
            with safe_open(file, "pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 — no mapping
                    return cast(Tensor, tensors.get_tensor(name))
        return self._of_whole_model[name]

    def _file(self, name: str) -> str | None:
        return cached_file(self.place, name, _raise_exceptions_for_missing_entries=False)

    @cached_property
    def _of_whole_model(self) -> dict[str, Tensor]:
        """All tensors, by the names of the causal model: for files of other kinds, or with other names in them."""
        try:
            whole: Any = transformers.AutoModelForCausalLM.from_pretrained(self.place, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{self.backbone}: has no language-model head ({reason(error)})") from error
        return dict(whole.state_dict())


def _family(config: PretrainedConfig, backbone: str) -> Any:
    """Return the family's causal model, of class `PreTrainedModel`, without weights."""
    try:
        with torch.device("meta"):
            causal: Any = transformers.AutoModelForCausalLM
            return causal.from_config(copy.deepcopy(config)).eval()
    except (ValueError, KeyError) as error:
        raise ModelError(f"{backbone}: has no language-model head ({reason(error)})") from error


def _check(
    head: LanguageModelHead,
    embedder: SentenceTransformer,
    shell: Any,
    name: str,
    read: _Weights,
    backbone: str,
) -> None:
    """Raise `ModelError` unless the family's code, in `shell`, makes the logits of `head` of the same hidden states.

    `shell` gets the embedder's model, which it runs, and `head` for its layer of that `name`; whatever else it
    has after the model is read. So no second model is in memory.
    """
    model = transformer_of(embedder).model
    place = shell.base_model_prefix
    setattr(shell, place, model)
    layer = cast(nn.Linear, shell.get_submodule(name))
    layer.weight = nn.Parameter(head.weight, requires_grad=False)
    if head.bias is not None:
        layer.bias = nn.Parameter(head.bias, requires_grad=False)
    for path, value in [*shell.named_parameters()]:
        if value.is_meta:
            owner, _, own = path.rpartition(".")
            setattr(shell.get_submodule(owner), own, nn.Parameter(read(path).float(), requires_grad=False))
    handles = [
        part.register_forward_pre_hook(lambda _, states: tuple(value.to(head.weight) for value in states))
        for path, part in shell.named_modules()
        if path and path.split(".")[0] != place and not [*part.children()]
    ]
    ids = torch.tensor(tokenise(tokenizer_of(embedder), [PROBE]), device=model.device)
    try:
        with torch.inference_mode():
            expected = shell(input_ids=ids, use_cache=False).logits[0].float().cpu()
            found = head(model(input_ids=ids, use_cache=False).last_hidden_state[0]).cpu()
    finally:
        for handle in handles:
            handle.remove()
    difference = float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm().clamp(min=1e-12))
    if not difference < SAME_LOGITS:
        slope = float((found * expected).sum() / expected.square().sum().clamp(min=1e-12))
        raise ModelError(
            f"{backbone}: the head of {model.config.model_type} models is not known here: their logits differ from those "
            f"of a plain head by {difference:.1%} of their spread (slope {slope:.3g}). Choose a family of docs/backbones.md"
        )


def _with_rows_for_all(
    weight: Tensor, bias: Tensor | None, tokenizer: PreTrainedTokenizerBase, backbone: str
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias with rows of zeros for the control tokens that the tokenizer has beyond them."""
    rows, size = len(weight), max(tokenizer.get_vocab().values()) + 1
    if size <= rows:
        return weight, bias
    if words := [token_id for token_id in range(rows, size) if token_id not in token_forms(tokenizer)[1]]:
        raise ModelError(
            f"{backbone}: its tokenizer has {size:,} tokens and its head {rows:,} rows: {len(words):,} tokens that are text "
            f"({tokenizer.convert_ids_to_tokens(words[0])!r} …) have none. Is the tokenizer that of the model?"
        )
    padded = nn.functional.pad(weight, (0, 0, 0, size - rows))
    return padded, None if bias is None else nn.functional.pad(bias, (0, size - rows))


def word_table(head: LanguageModelHead, vocabulary: TargetVocabulary, idf: Tensor) -> Tensor:
    """Return a vector for every token, shape (vocabulary size, dimension), in which similar words are close.

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


def centre_for_head(embedder: SentenceTransformer, sample: Sequence[str]) -> Tensor:
    """Return the mean embedding of the first `CENTRE_TEXTS` of a sample, shape (dimension,): what the head reads from."""
    return embed(embedder, sample[:CENTRE_TEXTS]).mean(0)


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """Return (scale, soft cap) that the family applies to its logits; (1, None) for most."""
    scale = 1.0
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        scale /= divisor
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        scale *= getattr(config, name, None) or 1.0
    return scale, getattr(config, "final_logit_softcapping", None)  # Gemma 2
