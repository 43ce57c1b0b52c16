"""Model2Vec: one vector per token, distilled from the same backbone; the speed limit that everybody is compared with."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from model2vec.distill import distill_from_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from text2token.backbone import Progress, resolve_backbone
from text2token.baselines.peer import Built, Peer, Settings, Workshop
from text2token.encoder import TextEncoder


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the distilled table; every token of the vocabulary went through the backbone once."""
    folder = resolve_backbone(workshop.backbone.name)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    static = distill_from_model(model, tokenizer, quantize_to="float32", device="cpu", **settings)

    def embed(texts: Sequence[str], progress: Progress | None) -> Tensor:
        vectors = torch.from_numpy(static.encode(list(texts))).float()
        if progress:
            progress(len(texts))
        return vectors

    fingerprint = hashlib.sha256(static.embedding.tobytes()).hexdigest()[:16]
    return Built(TextEncoder("Model2Vec", fingerprint, embed))


PEERS = (Peer("Model2Vec", "static", build, ({"pca_dims": 256, "pooling": "mean"}, {"pca_dims": 256, "pooling": "last"})),)
