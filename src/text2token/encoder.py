"""Texts in, vectors out, and no text embedded twice: what every method is to those who measure it.

The trap is identity. Scores are kept under an encoder's fingerprint, so it covers all that changes a vector: weights,
tokenizer (the prompt lives there), pooling, what is done to the vectors afterwards, and the number format of the arithmetic.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer
from torch import Tensor

from text2token.backbone import (
    NO_LIMIT,
    Progress,
    embed,
    open_embedder,
    prefer_plain_attention,
    resolve_dtype,
    tokenizer_of,
    transformer_of,
)
from text2token.errors import BackboneError
from text2token.isotropy import Whitening
from text2token.vocabulary import bare_tokenizer

Embed = Callable[[Sequence[str], Progress | None], Tensor]


@dataclass(frozen=True)
class TextEncoder:
    """`embed` gives vectors of shape (texts, dimension), float32; `finish`, where set, maps them to what is compared.

    `memory` holds what `embed` gave for each text, so that several finishes share one pass over the texts; None remembers
    nothing, for corpora that do not fit. `model` is what cuts the texts into tokens, where there is one.
    """

    name: str
    fingerprint: str
    embed: Embed
    finish: Whitening | None = None
    memory: dict[str, Tensor] | None = field(default_factory=dict, repr=False)
    model: SentenceTransformer | None = field(default=None, repr=False)

    def __call__(self, texts: Sequence[str], progress: Progress | None = None) -> Tensor:
        """Return finished vectors, shape (texts, dimension), float32; `progress` counts the texts that were new."""
        vectors = self.embedded(texts, progress)
        return self.finish(vectors) if self.finish else vectors

    def embedded(self, texts: Sequence[str], progress: Progress | None = None) -> Tensor:
        """Return the vectors as `embed` gave them; raise `BackboneError` where one is not made of finite numbers."""
        if self.memory is None:
            return self._finite(self.embed(texts, progress))
        unknown = [text for text in dict.fromkeys(texts) if text not in self.memory]
        if unknown:
            self.memory.update(zip(unknown, self._finite(self.embed(unknown, progress)), strict=True))
        return torch.stack([self.memory[text] for text in texts])

    def _finite(self, vectors: Tensor) -> Tensor:
        if not (good := vectors.isfinite().all(dim=-1)).all():
            raise BackboneError(
                f"{self.name}: {int((~good).sum()):,} of {len(good):,} vectors are not made of finite numbers. "
                "Is the model whole? Does it bear the number format it computes in (--dtype float32)?"
            )
        return vectors

    def finished_by(self, finish: Whitening, name: str) -> "TextEncoder":
        """Return the encoder whose vectors are finished by `finish`; it shares the memory of this one."""
        digest = hashlib.sha256(finish.centre.numpy().tobytes() + finish.transform.numpy().tobytes()).hexdigest()
        return replace(self, name=name, fingerprint=_digest(self.fingerprint, digest), finish=finish)


def encoder_of(embedder: SentenceTransformer, name: str) -> TextEncoder:
    """Return the encoder of a loaded model, as it is now: the model must not be changed afterwards."""
    return TextEncoder(
        name, model_fingerprint(embedder), lambda texts, progress: embed(embedder, texts, progress), model=embedder
    )


def open_encoder(name: str, dtype: str = "float32") -> TextEncoder:
    """Load a sentence-transformers model, ours or any other, by folder, hub id or `pypi:PACKAGE` that holds one.

    With another `dtype` than float32 only a transformer computes in it; what follows the pooling stays in float32,
    because subtracting a mean is where bfloat16 would lose the small differences. Raises `BackboneError`.
    """
    model = open_embedder(name)
    if resolve_dtype(dtype) == torch.float32 or not isinstance(model[0], Transformer):
        return encoder_of(model, name)
    pooled, rest = in_two_parts(model, resolve_dtype(dtype))
    prefer_plain_attention(transformer_of(pooled))
    fingerprint = _digest(model_fingerprint(pooled), *([model_fingerprint(rest)] if rest else []))
    return TextEncoder(
        name, fingerprint, lambda texts, progress: finish_with(rest, embed(pooled, texts, progress)), model=pooled
    )


def in_two_parts(model: SentenceTransformer, dtype: torch.dtype) -> tuple[SentenceTransformer, SentenceTransformer | None]:
    """Split `model`: text → pooled embedding, computed in `dtype`, and the modules after the pooling, in float32, if any."""
    modules = list(model)
    cast(torch.nn.Module, transformer_of(model).model).to(dtype)
    return SentenceTransformer(modules=modules[:2]), SentenceTransformer(modules=modules[2:]) if modules[2:] else None


def finish_with(rest: SentenceTransformer | None, embeddings: Tensor) -> Tensor:
    """Return `embeddings`, shape (texts, dimension), after the modules that follow the pooling."""
    if rest is None:
        return embeddings
    with torch.inference_mode():
        return cast(Tensor, rest({"sentence_embedding": embeddings.to(rest.device)})["sentence_embedding"]).cpu().clone()


def token_counter(model: SentenceTransformer) -> Callable[[Sequence[str]], list[int]]:
    """Return a function texts → how many tokens of each `model` reads: the prompt counts, what is cut off does not.

    It has a tokenizer of its own, because `embed` in another thread changes the settings of the model's.
    """
    given: Any = model.tokenizer
    table = isinstance(given, Tokenizer)
    own = Tokenizer.from_str(given.to_str()) if table else bare_tokenizer(given)
    own.no_padding()
    own.no_truncation()
    limit = getattr(model, "max_seq_length", None) or NO_LIMIT  # infinity for a table of vectors
    return lambda texts: [
        min(limit, len(encoding.ids)) for encoding in own.encode_batch_fast(list(texts), add_special_tokens=not table)
    ]


def model_fingerprint(model: SentenceTransformer) -> str:
    """Return 16 hex digits of everything that decides what `model` gives for a text."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for module in model:
        described: Any = module
        settings = described.get_config_dict() if hasattr(described, "get_config_dict") else {}
        digest.update(f"{type(module).__name__} {json.dumps(settings, sort_keys=True, default=str)}".encode())
        if isinstance(getattr(module, "tokenizer", None), Tokenizer):  # a table of vectors
            digest.update(described.tokenizer.to_str().encode())
        inner: Any = getattr(module, "model", None)
        if inner is not None:
            digest.update(json.dumps(inner.config.to_diff_dict(), sort_keys=True, default=str).encode())
            tokenizer = tokenizer_of(model)
            digest.update(tokenizer.backend_tokenizer.to_str().encode())
            digest.update(str(tokenizer.model_max_length).encode())
    return digest.hexdigest()[:16]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
