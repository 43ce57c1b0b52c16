"""Texts in, vectors out, and no text embedded twice: the interface that every method is measured by.

Scores are kept under an encoder's fingerprint, so it covers all that changes a vector: weights, tokenizer (with its
prompt), pooling, prompts, post-processing, and the number format of the arithmetic. Versions of libraries are left out:
upgrades change no vector, and hours of embedding are kept under the fingerprint.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from text2token.errors import ModelError
from text2token.model.backbone import (
    NO_LIMIT,
    Role,
    embed,
    open_embedder,
    prefer_plain_attention,
    resolve_dtype,
    role_prompt,
    tokenizer_of,
    transformer_of,
)
from text2token.model.whitening import Whitening
from text2token.progress import Progress
from text2token.recipe import DType
from text2token.tokens.vocabulary import bare_tokenizer

Embed = Callable[[Sequence[str], Progress | None], Tensor]
SAME_VECTORS = 0.995  # cosine; another release, processor or thread count gives 0.9998 or more in bfloat16
# what libraries write into configurations by themselves, or name by another release's names
OF_LIBRARIES = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "initializer_range", "_name_or_path"),
    *("module_input_name", "module_output_name", "modality_config", "transformer_task"),
}


@dataclass(frozen=True)
class TextEncoder:
    """`embed` gives vectors of shape (texts, dimension), float32; `postprocessing`, where set, is applied to them.

    `embed_as` has what embeds the texts of a role, where that is not done as `embed` does, and `prompts` what stands before
    them. `memory` holds what was given for each text, so that several kinds of post-processing share one pass over the
    texts; None remembers nothing, for corpora that do not fit. `model` is what cuts the texts into tokens, where there is
    one. `earlier` is the fingerprint that version 0.1.0 gave.
    """

    name: str
    fingerprint: str
    embed: Embed
    postprocessing: Whitening | None = None
    memory: dict[tuple[Role | None, str], Tensor] | None = field(default_factory=dict, repr=False)
    model: SentenceTransformer | None = field(default=None, repr=False)
    embed_as: Mapping[Role, Embed] = field(default_factory=dict, repr=False)
    prompts: Mapping[Role, str] = field(default_factory=dict)
    earlier: str = ""

    def __call__(self, texts: Sequence[str], progress: Progress | None = None, role: Role | None = None) -> Tensor:
        """Return post-processed vectors, shape (texts, dimension), float32; `progress` counts the texts that were new."""
        vectors = self.embedded(texts, progress, role)
        return self.postprocessing(vectors) if self.postprocessing else vectors

    def embedded(self, texts: Sequence[str], progress: Progress | None = None, role: Role | None = None) -> Tensor:
        """Return the vectors as `embed` gave them; raise `ModelError` where one is not made of finite numbers."""
        role = role if role in self.embed_as else None
        embed = self.embed_as[role] if role else self.embed
        if self.memory is None:
            return self._finite(embed(texts, progress))
        unknown = [text for text in dict.fromkeys(texts) if (role, text) not in self.memory]
        if unknown:
            found = self._finite(embed(unknown, progress))
            self.memory.update(zip([(role, text) for text in unknown], found, strict=True))
        return torch.stack([self.memory[role, text] for text in texts])

    def _finite(self, vectors: Tensor) -> Tensor:
        if not (good := vectors.isfinite().all(dim=-1)).all():
            raise ModelError(
                f"{self.name}: {int((~good).sum()):,} of {len(good):,} vectors are not made of finite numbers. "
                "Is the model whole? Does it bear the number format it computes in (--dtype float32)?"
            )
        return vectors

    def postprocessed_by(self, whitening: Whitening, name: str) -> "TextEncoder":
        """Return the encoder that applies `whitening` to its vectors; it shares the memory of this one."""
        digest = hashlib.sha256(whitening.centre.numpy().tobytes() + whitening.transform.numpy().tobytes()).hexdigest()
        earlier = self.earlier and _digest(self.earlier, digest)
        return replace(
            self, name=name, fingerprint=_digest(self.fingerprint, digest), postprocessing=whitening, earlier=earlier
        )

    def made(self, fingerprint: str, sample: Callable[[], tuple[Sequence[str], Tensor]]) -> bool:
        """Return whether the documents' vectors kept under `fingerprint` are this encoder's.

        Where neither fingerprint is this one's, as after another release of a library, `sample` gives a few texts and
        their kept vectors, shape (texts, dimension), to compare. Without any texts nothing differs.
        """
        if fingerprint in (self.fingerprint, self.earlier):
            return True
        texts, kept = sample()
        if not texts:
            return True
        found = self(texts, role="document")
        if found.shape != kept.shape:
            return False
        return bool(torch.cosine_similarity(found, kept.float()).min() > SAME_VECTORS)


def encoder_of(embedder: SentenceTransformer, name: str) -> TextEncoder:
    """Return the encoder of a loaded model, as it is now: the model must not be changed afterwards."""
    return _encoder_of(embedder, None, name)


def open_encoder(name: str, dtype: DType = "float32") -> TextEncoder:
    """Load any sentence-transformers model by folder, hub id or `pypi:PACKAGE` that holds one.

    With another `dtype` than float32 only a transformer computes in it; what follows the pooling stays in float32,
    because subtracting a mean is where bfloat16 would lose the small differences. Raises `ModelError`, and `UsageError`
    for a dtype that there is not.
    """
    number_format = resolve_dtype(dtype)
    model = open_embedder(name)
    if number_format == torch.float32 or not isinstance(model[0], Transformer):
        return encoder_of(model, name)
    pooled, rest = split_at_pooling(model, number_format)
    prefer_plain_attention(transformer_of(pooled))
    return _encoder_of(pooled, rest, name)


def _encoder_of(embedder: SentenceTransformer, rest: SentenceTransformer | None, name: str) -> TextEncoder:
    def embedded(texts: Sequence[str], progress: Progress | None, role: Role | None = None) -> Tensor:
        return after_pooling(rest, embed(embedder, texts, progress, role))

    prompts: dict[Role, str] = {role: prompt for role in get_args(Role) if (prompt := role_prompt(embedder, role))}
    tells_roles = bool(prompts or embedder.default_prompt_name or isinstance(embedder[0], Router))
    parts = [_fingerprints(part) for part in (embedder, rest) if part]
    fingerprint, earlier = parts[0] if len(parts) == 1 else (_digest(*of_parts) for of_parts in zip(*parts, strict=True))
    return TextEncoder(
        name,
        fingerprint,
        embedded,
        model=embedder,
        embed_as={role: partial(embedded, role=role) for role in get_args(Role)} if tells_roles else {},
        prompts=prompts,
        earlier="" if tells_roles else earlier,  # which knew of no prompts: what is kept under it was made without
    )


def split_at_pooling(
    model: SentenceTransformer, dtype: torch.dtype
) -> tuple[SentenceTransformer, SentenceTransformer | None]:
    """Split `model`: text → pooled embedding, computed in `dtype`, and the modules after the pooling, in float32, if any."""
    modules = list(model)
    cast(torch.nn.Module, transformer_of(model).model).to(dtype)
    prompts = {name: prompt or "" for name, prompt in model.prompts.items()}
    pooled = SentenceTransformer(modules=modules[:2], prompts=prompts, default_prompt_name=model.default_prompt_name)
    return pooled, SentenceTransformer(modules=modules[2:]) if modules[2:] else None


def after_pooling(rest: SentenceTransformer | None, embeddings: Tensor) -> Tensor:
    """Return `embeddings`, shape (texts, dimension), after the modules that follow the pooling."""
    if rest is None:
        return embeddings
    with torch.inference_mode():
        return cast(Tensor, rest({"sentence_embedding": embeddings.to(rest.device)})["sentence_embedding"]).cpu().clone()


def token_counter(model: SentenceTransformer) -> Callable[[Sequence[str]], list[int]]:
    """Return a function texts → how many tokens of each `model` reads: the prompt counts, what is cut off does not.

    It has a copy of the tokenizer, because `embed` in another thread changes the settings of the model's.
    """
    given: Any = model.tokenizer
    static = isinstance(given, Tokenizer)
    copy = Tokenizer.from_str(given.to_str()) if static else bare_tokenizer(given)
    copy.no_padding()
    copy.no_truncation()
    limit = getattr(model, "max_seq_length", None) or NO_LIMIT  # infinity for static embeddings
    return lambda texts: [
        min(limit, len(encoding.ids)) for encoding in copy.encode_batch_fast(list(texts), add_special_tokens=not static)
    ]


def model_fingerprint(model: SentenceTransformer) -> str:
    """Return 16 hex digits of what decides the vectors that `model` gives, and of nothing else.

    Using the model does not change it, nor does another release of transformers or sentence-transformers. Where one does,
    see `TextEncoder.made`.
    """
    return _fingerprints(model)[0]


def _fingerprints(model: SentenceTransformer) -> tuple[str, str]:
    """Return the fingerprint of `model`, and the one that version 0.1.0 gave with the libraries that are here."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    earlier = digest.copy()
    for module in model:
        earlier.update(_described_before(model, module).encode())
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    described = [prompts, model.default_prompt_name, model.truncate_dim, [_described(model, module) for module in model]]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16], earlier.hexdigest()[:16]


def _described(model: SentenceTransformer, module: Any) -> list[Any]:
    """Return what decides what `module` does, beside its weights."""
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    settings = {key: value for key, value in settings.items() if value and key not in OF_LIBRARIES}
    described: list[Any] = [type(module).__name__, settings]
    tokenizer = getattr(module, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):  # static embeddings
        described.append({**json.loads(tokenizer.to_str()), "padding": None})
    if (inner := getattr(module, "model", None)) is not None:
        described.append(_config_of(inner.config))
        described.append(json.loads(bare_tokenizer(tokenizer_of(model)).to_str()))
        described.append(model.max_seq_length)
    return described


def _config_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return the entries of a model's configuration that are not its class's defaults, which change with releases."""
    try:
        default = type(config)().to_dict()
    except Exception:  # some classes want arguments
        default = {}
    given = config.to_diff_dict()
    return {key: value for key, value in given.items() if key not in OF_LIBRARIES and default.get(key, ...) != value}


def _described_before(model: SentenceTransformer, module: Any) -> str:
    """Return what version 0.1.0 hashed of `module`: versions too, and what is left in the tokenizer by using it."""
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    described = f"{type(module).__name__} {json.dumps(settings, sort_keys=True, default=str)}"
    if isinstance(getattr(module, "tokenizer", None), Tokenizer):
        described += module.tokenizer.to_str()
    if (inner := getattr(module, "model", None)) is not None:
        described += json.dumps(inner.config.to_diff_dict(), sort_keys=True, default=str)
        tokenizer = tokenizer_of(model)
        described += tokenizer.backend_tokenizer.to_str() + str(tokenizer.model_max_length)
    return described


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
