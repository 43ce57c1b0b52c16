"""One vector per token, no layers: the speed limit that everybody is compared with.

Model2Vec sends every token through the backbone once; ours takes the rows of its head (`text2token.export.static`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from model2vec.distill import distill_from_model
from torch import Tensor
from transformers import AutoTokenizer

from text2token import load_embedder
from text2token_bench.inside import (
    Progress,
    TextEncoder,
    encoder_of,
    resolve_backbone,
    static_embedder,
    transformer_of,
)
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the distilled table; every token of the vocabulary went through the backbone once."""
    model = transformer_of(load_embedder(replace(workshop.backbone, dtype="float32"))).model
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_backbone(workshop.backbone.name))
    static = distill_from_model(model, tokenizer, quantize_to="float32", device="cpu", **settings)

    def embed(texts: Sequence[str], progress: Progress | None) -> Tensor:
        vectors = torch.from_numpy(static.encode(list(texts))).float()
        if progress:
            progress(len(texts))
        return vectors

    fingerprint = hashlib.sha256(static.embedding.tobytes()).hexdigest()[:16]
    return Built(TextEncoder("Model2Vec", fingerprint, embed))


def build_ours(workshop: Workshop, settings: Settings) -> Built:
    """Return the table made of the head and the passages' words, whitened already."""
    return Built(encoder_of(static_embedder(workshop.backbone, workshop.passages), "text2token, static"))


# A token is embedded alone, so mean and last pooling are one; it stands at the first place, which decoders use to park
# attention, and its vector says little.
PEERS = (
    Peer("Model2Vec", "static", build, ({"pca_dims": 256}, {"pca_dims": 512})),
    Peer("text2token, static", "static", build_ours),
)
